"""Image metrics in which only valid pixels count.

All of them take images in [0, 1] (`to_unit`), batches of shape (B, 3, H, W), and validity of shape
(B, 1, H, W). An image in which a metric finds nothing to measure yields NaN.

`sum_octave_powers` tells detail from invented texture: noise or sharpening raises the power of fine octaves
and not their correlation with the truth; blur lowers the power. Octave 0 holds wavelengths below 4 pixels,
octave k those of 2**(k + 1) to 2**(k + 2) pixels, up to half of the image's shorter side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.image.scc import _scc_per_channel_compute

from sar2eo.settings.vocabulary import Metric

FloatArray = npt.NDArray[np.float64]

BLOCK_PX = 8
"""Side of the blocks of `average_blocks`: about what a radar image knows despite its speckle."""

_SSIM_SIGMA, _SSIM_PX = 1.5, 11  # Wang et al. 2004
_SCC_PX = 8
_LAPLACIAN = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 8.0, -1.0], [-1.0, -1.0, -1.0]])


def to_unit(images: Tensor, protocol: str = "usual") -> Tensor:
    """Map images from [-1, 1] to [0, 1].

    Parameters
    ----------
    protocol : {"usual", "release"}
        ``(x + 1) / 2``; or ``x + 0.5`` as in the authors' release, whose clamping takes the darkest and
        the brightest quarter of the range out of every figure. Both are clamped.
    """
    return (images + 0.5 if protocol == "release" else (images + 1) / 2).clamp(0, 1)


def image_metrics(
    prediction: Tensor, truth: Tensor, valid: Tensor, names: tuple[Metric, ...] = ("psnr", "ssim", "scc")
) -> dict[str, FloatArray]:
    """Measure those of psnr, ssim and scc that are named, of each image; other names are left out."""
    known = {"psnr": psnr, "ssim": ssim, "scc": scc}
    return {name: known[name](prediction, truth, valid) for name in names if name in known}


def psnr(prediction: Tensor, truth: Tensor, valid: Tensor) -> FloatArray:
    """Peak signal-to-noise ratio in dB over valid pixels, peak 1; infinite for equal images.

    That of scikit-image's ``peak_signal_noise_ratio(data_range=1)``.
    """

    def one(p: Tensor, t: Tensor, v: Tensor) -> float:
        chosen = v.expand_as(p) > 0
        if not chosen.any():
            return np.nan
        return float(peak_signal_noise_ratio(p[chosen], t[chosen], data_range=1.0))

    return np.array([one(*images) for images in zip(prediction, truth, valid, strict=True)])


def ssim(prediction: Tensor, truth: Tensor, valid: Tensor) -> FloatArray:
    """Structural similarity (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861), mean over bands.

    A Gaussian window of sigma 1.5 (11 x 11 pixels), population covariance, data range 1. The mean is
    over the pixels whose window lies inside the image and is valid throughout, which is
    ``skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False)``;
    torchmetrics by itself counts windows mirrored at the border too.
    """
    if min(truth.shape[2:]) < _SSIM_PX:
        return np.full(len(truth), np.nan)
    _, maps = structural_similarity_index_measure(
        prediction, truth, sigma=_SSIM_SIGMA, data_range=1.0, return_full_image=True
    )
    return _masked_mean(maps, _windows_valid(valid, _SSIM_PX // 2, _SSIM_PX // 2, outside=False))


def scc(prediction: Tensor, truth: Tensor, valid: Tensor) -> FloatArray:
    """Spatial correlation coefficient: local correlation of high-passed images, mean over bands.

    Laplacian of 3 x 3, windows of 8 x 8 pixels (Zhou et al. 1998,
    https://doi.org/10.1080/014311698215973). The mean is over the pixels whose window, and the
    Laplacian's around it, hold no invalid pixel; windows over the border count, so that of an image
    that is valid throughout it is torchmetrics' ``spatial_correlation_coefficient``.
    """
    if min(truth.shape[2:]) < _SCC_PX:
        return np.full(len(truth), np.nan)
    kernel = _LAPLACIAN[None, None].to(truth.device)
    bands = [
        _scc_per_channel_compute(prediction[:, [band]], truth[:, [band]], kernel, _SCC_PX)
        for band in range(truth.shape[1])
    ]
    # A window reaches 4 pixels back and 3 ahead, and the Laplacian one more.
    return _masked_mean(torch.cat(bands, dim=1), _windows_valid(valid, 5, 4, outside=True))


def colour_difference(prediction: Tensor, truth: Tensor, valid: Tensor) -> FloatArray:
    """Mean CIEDE2000 colour difference over valid pixels; 1 is about what an eye can tell apart.

    Images are taken as sRGB.
    """
    lab = [rgb2lab(images.permute(0, 2, 3, 1).double().cpu().numpy()) for images in (prediction, truth)]
    difference = torch.from_numpy(deltaE_ciede2000(*lab))  # type: ignore[no-untyped-call]  # [B, H, W]
    return _masked_mean(difference[:, None], valid.cpu())


def sum_squared_errors(prediction: Tensor, truth: Tensor, valid: Tensor) -> tuple[FloatArray, FloatArray]:
    """Return each image's sum of squared errors over valid pixels and bands, and how many values that is.

    For errors pooled over many images, in which a pixel counts as a pixel.
    """
    chosen = valid.double()
    error = (prediction.double() - truth.double()).square() * chosen
    count = chosen.flatten(1).sum(1) * truth.shape[1]
    return error.flatten(1).sum(1).cpu().numpy(), count.cpu().numpy()


def average_blocks(images: Tensor, valid: Tensor, size: int = BLOCK_PX) -> tuple[Tensor, Tensor]:
    """Average valid pixels over blocks; what is left at the lower and right edge is dropped.

    Returns the means, shape (B, C, H // size, W // size), 0 where a block is invalid, and validity: 1 where
    at least half of a block's pixels are valid.
    """
    share = functional.avg_pool2d(valid, size)
    means = functional.avg_pool2d(images * valid, size) / share.clamp(min=1 / size**2)
    kept = (share >= 0.5).to(images.dtype)
    return means * kept, kept


def _windows_valid(valid: Tensor, before: int, after: int, *, outside: bool) -> Tensor:
    """Tell whose window, from `before` pixels back to `after` ahead, is valid; so may be what is outside."""
    invalid = functional.pad(1 - valid, (before, after, before, after), value=0.0 if outside else 1.0)
    return 1 - functional.max_pool2d(invalid, before + after + 1, stride=1)


def _masked_mean(maps: Tensor, valid: Tensor) -> FloatArray:
    chosen = valid.double()
    total = (maps.double() * chosen).flatten(1).sum(1)
    count = chosen.flatten(1).sum(1) * maps.shape[1]
    mean: FloatArray = torch.where(count > 0, total / count, torch.nan).cpu().numpy()
    return mean


@dataclass(frozen=True)
class OctavePowers:
    """Sums over each octave, from the finest on, shape (octaves,); they add up over images of any sizes.

    `prediction` and `truth` are squared magnitudes of the spectra, `cross` the real part of the
    cross-spectrum.
    """

    prediction: FloatArray
    truth: FloatArray
    cross: FloatArray

    def __add__(self, other: OctavePowers) -> OctavePowers:
        octaves = max(len(self.truth), len(other.truth))

        def total(a: FloatArray, b: FloatArray) -> FloatArray:
            return np.pad(a, (0, octaves - len(a))) + np.pad(b, (0, octaves - len(b)))

        return OctavePowers(
            total(self.prediction, other.prediction),
            total(self.truth, other.truth),
            total(self.cross, other.cross),
        )

    @property
    def ratios(self) -> FloatArray:
        """Power of the prediction over that of the truth; NaN where the truth has none."""
        return _quotient(self.prediction, self.truth)

    @property
    def coherence(self) -> FloatArray:
        """Correlation of the two images by octave, -1 to 1; NaN if one has no power there."""
        return _quotient(self.cross, np.sqrt(self.prediction * self.truth))


def sum_octave_powers(prediction: npt.ArrayLike, truth: npt.ArrayLike, valid: npt.ArrayLike) -> OctavePowers:
    """Sum the spectra of two images, shape (H, W) or (C, H, W), over octaves; powers of bands are added.

    Both images lose their mean over valid pixels and are multiplied by the same window: a Hann window, 0
    where they are invalid.
    """
    predicted, true = (np.asarray(image, dtype=np.float64) for image in (prediction, truth))
    height, width = true.shape[-2:]
    window = np.outer(_hann(height), _hann(width)) * (np.asarray(valid) > 0)
    spectra = [np.fft.fft2(_centre(image, window) * window) for image in (predicted, true)]
    octaves = _octave_of(height, width)
    count = count_octaves(height, width)

    def summed(values: FloatArray) -> FloatArray:
        flat = values.reshape(-1, height * width).sum(axis=0)
        # What is coarser than the coarsest octave goes to one more, which is dropped.
        sums = np.bincount(octaves.ravel(), weights=flat, minlength=count + 1)
        return np.asarray(sums[:count], dtype=np.float64)

    return OctavePowers(
        summed(np.abs(spectra[0]) ** 2),
        summed(np.abs(spectra[1]) ** 2),
        summed((spectra[0] * spectra[1].conj()).real),
    )


def count_octaves(height: int, width: int) -> int:
    """Return how many octaves an image has: wavelengths up to half of its shorter side."""
    return max(1, int(np.log2(min(height, width))) - 2)


def _octave_of(height: int, width: int) -> npt.NDArray[np.intp]:
    """Return the octave of each place of a two-dimensional FFT; the count where it is in none."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))  # cycles per pixel
    count = count_octaves(height, width)
    lower_edges = 0.5 ** np.arange(2, count + 2)  # 1/4, 1/8 ...
    return np.asarray((radius[..., None] < lower_edges).sum(axis=-1), dtype=np.intp)


def _hann(size: int) -> FloatArray:
    # Half a step off, so that no pixel of the image is left out altogether.
    return np.asarray(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2)


def _centre(image: FloatArray, window: FloatArray) -> FloatArray:
    weights = (window > 0).astype(np.float64)
    mean = (image * weights).sum(axis=(-2, -1), keepdims=True) / max(weights.sum(), 1.0)
    return np.asarray(image - mean)


def _quotient(over: FloatArray, under: FloatArray) -> FloatArray:
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)
