"""Losses of a VAE over valid pixels: reconstruction, texture, divergence, discriminator; their metrics."""

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


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of `values` (B, C, H, W) by weights >= 0 (B, 1, H, W); 0 if all are 0."""
    total = weight.sum() * values.shape[1]
    return (values * weight).sum() / total.clamp_min(torch.finfo(total.dtype).tiny)


def absolute_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error of images (B, C, H, W) over valid pixels.

    Parameters
    ----------
    prediction, truth : Tensor, shape (B, C, H, W)
        In [-1, 1].
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0.
    """
    return weighted_mean((prediction - truth).abs(), valid)


def squared_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over valid pixels; parameters as in `absolute_error`."""
    return weighted_mean((prediction - truth).square(), valid)


def gradient_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error of the image gradient along rows and columns, between valid neighbours.

    It stresses detail over tone, since differences of neighbours amplify high frequencies. Parameters as in
    `absolute_error`.
    """
    error = prediction - truth
    parts = [
        weighted_mean(error.diff(dim=dim).abs(), _valid_neighbours(valid, dim))
        for dim in (-2, -1)
        if error.shape[dim] > 1
    ]
    return torch.stack(parts).sum() if parts else error.new_zeros(())


def _valid_neighbours(valid: Tensor, dim: int) -> Tensor:
    """Return where a pixel and its next neighbour along an axis are both valid."""
    length = valid.shape[dim] - 1
    return valid.narrow(dim, 0, length) * valid.narrow(dim, 1, length)


def balance_errors(errors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the mean of errors, with each gradient divided by the size of its error.

    These are the gradients of the sum of logarithms, on the scale of the mean. Otherwise the speckle of SAR
    images, which no latent can hold, would dominate the gradient over the EO images.

    Parameters
    ----------
    errors : sequence of Tensor
        Scalars >= 0, one for each kind of image.
    shares : sequence of float
        Positive weight of each gradient; only their ratios matter.
    """
    sizes = torch.stack([error.detach() for error in errors])
    parts = torch.tensor(shares, dtype=sizes.dtype, device=sizes.device)
    weights = parts / parts.sum() * sizes.mean() / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return (torch.stack(list(errors)) * weights).sum()


def divergence(mean: Tensor, log_variance: Tensor, valid: Tensor, bands: int) -> Tensor:
    """Kullback-Leibler divergence of the latents from a standard normal, in nats per value of the image.

    Divided by the number of image values, not of latents, it balances against a mean error over pixels as in
    Kingma and Welling (https://arxiv.org/abs/1312.6114, appendix B), for any factor and number of channels.

    Parameters
    ----------
    mean, log_variance : Tensor, shape (B, C, h, w)
        Mean and log variance of the latents' distribution.
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0; a latent counts with all of its pixels or not at all.
    bands : int
        Number of bands of the images.
    """
    factor = valid.shape[-1] // mean.shape[-1]
    whole = pool_validity(valid, factor)  # [B, 1, h, w]
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return (nats * whole).sum() / (whole.sum() * factor**2 * bands).clamp_min(1)


BLOCK = 32
"""Side of the blocks of `texture_error`, in pixels."""

_RINGS = 16  # per cycle/pixel; the first one (wavelengths above 16 pixels) is tone, left to other losses
_DIRECTIONS = 4
_GREY_AND_COLOURS = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)
_GRAIN = 0.01  # standard deviation, a little more than one level of 256; less is invisible


def texture_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of log power over blocks, wavelengths, directions and colours.

    A squared error draws detail that latents do not hold as its mean, which is flat. This loss asks for as
    much detail as the truth has in a block (at wavelengths below 16 pixels), at any phase: the spectral loss
    of https://arxiv.org/abs/2003.01826 (section 3.2), but by blocks, so that water stays plain beside a city,
    and by direction and colour, as otherwise grey checks of two pixels would pass for any texture.

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
    """Return periodograms of blocks, (B, 3, rows, cols, frequencies); white noise gives its variance."""
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
    """Return the matrix that averages frequencies in rings and four directions, (frequencies, groups)."""
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
    """Scores patches of 24 pixels: above 0 real, below 0 reconstructed.

    Group normalisation keeps images of a batch independent. Patches are far smaller than images, since
    reconstructions lack texture. The first layer works at full resolution, as otherwise the checks drawn by
    an upsampling decoder would pass for texture.
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


def replace_invalid(reconstruction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Replace the invalid pixels of a reconstruction by the truth, so that they reveal nothing."""
    return torch.where(valid > 0, reconstruction, truth)


def discriminator_loss(real: Tensor, fake: Tensor, valid: Tensor) -> Tensor:
    """Hinge loss of the discriminator: half of relu(1 - real) and half of relu(1 + fake).

    Parameters
    ----------
    real, fake : Tensor, shape (B, 1, h, w)
        Scores of true and of reconstructed images.
    valid : Tensor, shape (B, 1, H, W)
        Validity of the images; each score is weighted by the share of valid pixels at its place.
    """
    weight = _resize(valid, real)
    return 0.5 * weighted_mean(functional.relu(1 - real) + functional.relu(1 + fake), weight)


def generator_loss(fake: Tensor, valid: Tensor) -> Tensor:
    """Hinge loss of the reconstruction: minus its mean score; parameters as in `discriminator_loss`."""
    return -weighted_mean(fake, _resize(valid, fake))


def _resize(valid: Tensor, scores: Tensor) -> Tensor:
    size = (scores.shape[-2], scores.shape[-1])
    return functional.interpolate(valid, size=size, mode="area")


_LEAST_DEVIATION = 1e-3  # avoids a division by 0 for a constant latent channel


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
        """Return PSNR in dB, and the ratio of power to the truth's per octave, the finest first."""
        octaves = {f"power_{index}": ratio for index, ratio in enumerate(self._ratios())}
        return {"psnr": self.psnr(), **octaves}

    def psnr(self) -> float:
        """Return the PSNR in dB over all valid pixels."""
        mean = self._squared / max(self._count, 1.0)
        return 10 * math.log10(4 / max(mean, 1e-12))  # images span 2: peak squared is 4

    def worst_octave_db(self) -> float:
        """Return the largest deviation of an octave's power from the truth's, in dB."""
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

    def summarise(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel."""
        mean, square = self.sums / max(self.count, 1)
        deviation = (square - mean.square()).clamp_min(_LEAST_DEVIATION**2).sqrt()
        return {"mean": mean.tolist(), "std": deviation.tolist()}
