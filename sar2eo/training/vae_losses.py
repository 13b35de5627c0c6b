"""Losses of a VAE's reconstruction, over valid pixels alone, and the divergence of its latents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from sar2eo.evaluation.metrics import OctavePowers, sum_octave_powers
from sar2eo.model.network import pool_validity

__all__ = [
    "BLOCK",
    "Moments",
    "PatchDiscriminator",
    "Tally",
    "absolute_error",
    "balanced",
    "discriminator_loss",
    "divergence",
    "generator_loss",
    "gradient_error",
    "only_where_valid",
    "squared_error",
    "texture_error",
    "weighted_mean",
]


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of values, weighted; 0 where no weight is left.

    Parameters
    ----------
    values : Tensor, shape (B, C, H, W)
    weight : Tensor, shape (B, 1, H, W)
        Not negative.
    """
    total = weight.sum() * values.shape[1]
    return (values * weight).sum() / total.clamp_min(torch.finfo(total.dtype).tiny)


def absolute_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error over valid pixels.

    Parameters
    ----------
    prediction, truth : Tensor, shape (B, C, H, W)
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0.
    """
    return weighted_mean((prediction - truth).abs(), valid)


def squared_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over valid pixels; parameters as in `absolute_error`."""
    return weighted_mean((prediction - truth).square(), valid)


def gradient_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error of the image's gradient, along rows and columns, between valid neighbours.

    It weighs detail against tone: the spectrum of a difference of neighbours rises with frequency.
    Parameters as in `absolute_error`.
    """
    error = prediction - truth
    parts = [
        weighted_mean(error.diff(dim=dim).abs(), _both(valid, dim))
        for dim in (-2, -1)
        if error.shape[dim] > 1
    ]
    return torch.stack(parts).sum() if parts else error.new_zeros(())


def _both(valid: Tensor, dim: int) -> Tensor:
    """Return where a pixel and its next neighbour are valid."""
    length = valid.shape[dim] - 1
    return valid.narrow(dim, 0, length) * valid.narrow(dim, 1, length)


def balanced(errors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the mean of errors whose gradients count relative to the size of each.

    As the sum of their logarithms would have it, on the scale of the mean: the speckle of SAR images,
    which no latent can hold, would otherwise leave little of the gradient to the EO images.

    Parameters
    ----------
    errors : sequence of Tensor
        Scalars, not negative, one for each kind of image.
    shares : sequence of float
        Of the gradient, for each; positive, of any sum.
    """
    sizes = torch.stack([error.detach() for error in errors])
    parts = torch.tensor(shares, dtype=sizes.dtype, device=sizes.device)
    weights = parts / parts.sum() * sizes.mean() / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return (torch.stack(list(errors)) * weights).sum()


def divergence(mean: Tensor, log_variance: Tensor, valid: Tensor, bands: int) -> Tensor:
    """Kullback-Leibler divergence of the latents from a standard normal, in nats per value of the image.

    Divided by image values, not by latents, it weighs against a mean error over pixels as in
    Kingma and Welling (https://arxiv.org/abs/1312.6114, appendix B), whatever the factor and channels.

    Parameters
    ----------
    mean, log_variance : Tensor, shape (B, C, h, w)
        Of the latents' distribution.
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0; a latent counts with all of its pixels or not at all.
    bands : int
        Of the images.
    """
    factor = valid.shape[-1] // mean.shape[-1]
    whole = pool_validity(valid, factor)  # [B, 1, h, w]
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return (nats * whole).sum() / (whole.sum() * factor**2 * bands).clamp_min(1)


BLOCK = 32
"""Side of the blocks that texture is measured in, in pixels."""

_RINGS = 16  # to a cycle per pixel; wavelengths of a ring and more are tone, which other losses see
_DIRECTIONS = 4
_GREY_AND_COLOURS = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)
_GRAIN = 0.01  # a deviation of a little more than one level of 256: nobody sees less


def texture_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of log power, over places, wavelengths, directions and colours.

    Detail that latents do not hold is drawn as its mean by a squared error, and that is flat. This asks for
    as much of it as the truth has there (of wavelengths below 16 pixels), wherever its ridges lie: the
    spectral loss of https://arxiv.org/abs/2003.01826 (section 3.2), but by blocks, for water is to stay plain
    beside a city, and by direction and colour, for otherwise grey checks of two pixels pass for any texture.

    Parameters
    ----------
    prediction, truth : Tensor, shape (B, 3, H, W)
        In [-1, 1], at least `BLOCK` pixels a side.
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0; a block counts with all of its pixels or not at all.

    Returns
    -------
    Tensor
        A scalar, in units of the natural logarithm; 0 where no block is valid.
    """
    whole = -functional.max_pool2d(-valid, BLOCK, BLOCK // 2)[:, 0]  # [B, rows, cols]
    groups = _groups().to(truth.device)
    powers = [_powers(images.float()) @ groups + _GRAIN**2 for images in (prediction, truth)]
    error = (powers[0] / powers[1]).log().abs().mean(dim=(1, -1))
    return (error * whole).sum() / whole.sum().clamp_min(1)


def _powers(images: Tensor) -> Tensor:
    """Return the periodograms of blocks, shape (B, 3, rows, cols, frequencies); of noise, its variance."""
    colours = torch.tensor(_GREY_AND_COLOURS, device=images.device)
    parts = torch.einsum("oc,bchw->bohw", colours, images)
    blocks = parts.unfold(2, BLOCK, BLOCK // 2).unfold(3, BLOCK, BLOCK // 2)
    window = torch.hann_window(BLOCK, device=images.device)
    weight = window[:, None] * window
    tone = (blocks * weight).sum((-2, -1), keepdim=True) / weight.sum()
    spectrum = torch.fft.rfft2((blocks - tone) * weight)
    powers: Tensor = spectrum.abs().square().flatten(-2) / weight.square().sum()
    return powers


@cache
def _groups() -> Tensor:
    """Return what averages frequencies to rings in four directions, shape (frequencies, groups)."""
    down, across = torch.fft.fftfreq(BLOCK)[:, None], torch.fft.rfftfreq(BLOCK)
    ring = (torch.hypot(down, across) * _RINGS).floor().long()
    direction = (torch.atan2(down, across) / math.pi * _DIRECTIONS + 0.5).floor().long() % _DIRECTIONS
    group = (ring * _DIRECTIONS + direction).flatten()
    members = functional.one_hot(group)[:, _DIRECTIONS:].float()  # the first ring is tone
    members = members[:, members.sum(0) > 0]
    return members / members.sum(0)


_WIDTHS = (32, 64, 128)
_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Judges patches of 24 pixels: above 0 real, below 0 reconstructed.

    Group normalisation, for images of one batch are not to know each other; patches far smaller than an
    image, for it is texture that a reconstruction lacks; and a first look at full resolution, for without
    one the checks that an upsampling decoder draws pass for texture.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, _WIDTHS[0], 3, padding=1)]
        for before, width in itertools.pairwise(_WIDTHS):
            layers += [
                nn.LeakyReLU(0.2),
                nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, width),
            ]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(_WIDTHS[-1], 1, 4, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score images of shape (B, 3, H, W), at least 16 pixels a side; a map of scores, (B, 1, h, w)."""
        scores: Tensor = self.layers(images)
        return scores


def only_where_valid(reconstruction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the reconstruction with the truth in its invalid pixels, so that they tell nothing."""
    return torch.where(valid > 0, reconstruction, truth)


def discriminator_loss(real: Tensor, fake: Tensor, valid: Tensor) -> Tensor:
    """Hinge loss of the discriminator: half of relu(1 - real) and half of relu(1 + fake).

    Parameters
    ----------
    real, fake : Tensor, shape (B, 1, h, w)
        Scores of true and of reconstructed images.
    valid : Tensor, shape (B, 1, H, W)
        Of the images; a score weighs as much as its place has valid pixels.
    """
    weight = _at(valid, real)
    return 0.5 * weighted_mean(functional.relu(1 - real) + functional.relu(1 + fake), weight)


def generator_loss(fake: Tensor, valid: Tensor) -> Tensor:
    """Hinge loss of the reconstruction: minus its mean score; parameters as in `discriminator_loss`."""
    return -weighted_mean(fake, _at(valid, fake))


def _at(valid: Tensor, scores: Tensor) -> Tensor:
    size = (scores.shape[-2], scores.shape[-1])
    return functional.interpolate(valid, size=size, mode="area")


_LEAST_DEVIATION = 1e-3  # of a latent channel that holds nothing, which would be divided by 0


class Tally:
    """Squared error and spectra of reconstructions, summed over batches."""

    def __init__(self) -> None:
        self._squared = self._count = 0.0
        self._powers: OctavePowers | None = None

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Add images in [-1, 1] of shape (B, C, H, W), and their validity, (B, 1, H, W)."""
        self._squared += float(((prediction - truth).square() * valid).double().sum())
        self._count += float(valid.sum()) * truth.shape[1]
        images = (tensor.cpu().numpy() for tensor in (prediction, truth, valid[:, 0]))
        for found in map(sum_octave_powers, *images):
            self._powers = found if self._powers is None else self._powers + found

    def metrics(self) -> dict[str, float]:
        """Return PSNR in dB, and power over the truth's per octave, the finest first."""
        octaves = {f"power_{index}": ratio for index, ratio in enumerate(self._ratios())}
        return {"psnr": self.psnr(), **octaves}

    def psnr(self) -> float:
        """Return the PSNR in dB of all valid pixels together."""
        mean = self._squared / max(self._count, 1.0)
        return 10 * math.log10(4 / max(mean, 1e-12))  # images span 2

    def worst_octave_db(self) -> float:
        """Return how far the power of the worst octave is from the truth's, in dB."""
        return max((abs(10 * math.log10(max(ratio, 1e-12))) for ratio in self._ratios()), default=0.0)

    def _ratios(self) -> list[float]:
        found = [] if self._powers is None else self._powers.ratios.tolist()
        return [ratio for ratio in found if math.isfinite(ratio)]


class Moments:
    """Sums of values and of their squares by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add values of shape (N, C)."""
        exact = values.double().cpu()
        self.count += len(exact)
        self.sums += torch.stack([exact.sum(0), exact.square().sum(0)])

    def described(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel."""
        mean, square = self.sums / max(self.count, 1)
        deviation = (square - mean.square()).clamp_min(_LEAST_DEVIATION**2).sqrt()
        return {"mean": mean.tolist(), "std": deviation.tolist()}
