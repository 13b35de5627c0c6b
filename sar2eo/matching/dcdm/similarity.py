"""How alike a template is to every place of a search image, and where it lies.

The similarity map is a normalised correlation of features (supplement, section 2.1: "smooth single
peaks"), by FFT and over valid pixels alone (Padfield, IEEE TIP 21(5), 2012, summed over the channels).
Own choices: a correlation of the decoded translation with the search image's own pixels is added to it,
which places the peak to a fraction of a pixel; the probability of a match follows from the whole map and
from a level that a template without a match does not rise above, which is learned.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sar2eo.matching.classical import vertex

__all__ = ["Correlation", "correlate", "match_probability", "subpixel_peak", "to_pixels"]

FloatArray = npt.NDArray[np.float32]

_MIN_SHARED = 0.5  # of the template's valid pixels
_NEAR = 2.0  # cells around a place that count as the place
_FLAT = 1e-4  # of an image's usual power: what has less is flat, and correlates with nothing


class Correlation(NamedTuple):
    """A similarity map.

    Parameters
    ----------
    surface : Tensor of float32, shape (B, H - h + 1, W - w + 1)
        Correlation coefficient, -1 to 1, for each place of the template's first pixel in the search image.
    known : Tensor of bool, of the same shape
        Where enough is valid in both; elsewhere the surface is -1.
    """

    surface: Tensor
    known: Tensor


def correlate(template: Tensor, template_valid: Tensor, search: Tensor, search_valid: Tensor) -> Correlation:
    """Correlate a template with every place of a search image in which it lies as a whole.

    Of what is valid in both, each channel's mean is taken away; the channels share one norm.

    Parameters
    ----------
    template : Tensor, shape (B, F, h, w)
    template_valid : Tensor, shape (B, 1, h, w)
        1 where valid, else 0.
    search : Tensor, shape (B, F, H, W)
    search_valid : Tensor, shape (B, 1, H, W)

    Returns
    -------
    Correlation
    """
    size = search.shape[-2:]
    places = tuple(whole - part + 1 for whole, part in zip(size, template.shape[-2:], strict=True))
    m, n = template_valid.float(), search_valid.float()
    # So the sums below lose fewer digits; the result does not depend on mean and scale.
    f, g = _standardised(template.float(), m), _standardised(search.float(), n)

    def spectrum(image: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft2(image, s=size)
        return found

    def at_places(product: Tensor) -> Tensor:
        found: Tensor = torch.fft.irfft2(product, s=size)
        return found[..., : places[0], : places[1]]

    M, N, F, G = spectrum(m).conj(), spectrum(n), spectrum(f).conj(), spectrum(g)
    shared = at_places(M * N)[:, 0].round()
    count = shared.clamp_min(1)
    sum_f, sum_g = at_places(F * N), at_places(M * G)  # [B, F, ...]
    product = at_places((F * G).sum(dim=1)) - (sum_f * sum_g).sum(dim=1) / count
    power_f = at_places(spectrum((f * f).sum(dim=1)).conj() * N[:, 0]) - sum_f.square().sum(dim=1) / count
    power_g = at_places(M[:, 0] * spectrum((g * g).sum(dim=1))) - sum_g.square().sum(dim=1) / count
    least = _MIN_SHARED * m.sum(dim=(1, 2, 3)).clamp_min(2)[:, None, None]
    flat = _FLAT * count
    known = (shared >= least) & (power_f > flat) & (power_g > flat)
    norm = torch.where(known, power_f * power_g, torch.ones_like(product)).sqrt()
    surface = torch.where(known, product / norm, torch.full_like(product, -1.0)).clamp(-1, 1)
    return Correlation(surface, known)


def _standardised(image: Tensor, valid: Tensor) -> Tensor:
    """Return an image whose valid pixels have channel means 0 and a common power 1; 0 elsewhere."""
    total = valid.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    centred = (image - (image * valid).sum(dim=(2, 3), keepdim=True) / total) * valid
    power = centred.square().sum(dim=(1, 2, 3), keepdim=True) / total
    return centred / power.clamp_min(1e-12).sqrt()


def match_probability(
    surface: Tensor, places: Tensor, sharpness: Tensor, none: Tensor, *, step: int = 1
) -> Tensor:
    """Return how probable it is that templates lie where they were found, and nowhere else, or not at all.

    A softmax over the places of the map and, as one more outcome, no match.

    Parameters
    ----------
    surface : Tensor, shape (B, n, m)
        Evidence for each place, in the units of `correlate`.
    places : Tensor, shape (B, 2)
        Row and column in the map; those within two cells count as the place.
    sharpness, none : Tensor, scalars
        Logarithm of the softmax's factor, and the correlation that stands for no match.
    step : int
        Places of the map along a cell of the one that these two were learnt on.

    Returns
    -------
    Tensor of float64, shape (B,)
        0 to 1.
    """
    factor = sharpness.double().exp()
    rows, cols = (torch.arange(length, device=surface.device) for length in surface.shape[1:])
    near_rows = (rows - places[:, :1]).abs() <= _NEAR * step
    near_cols = (cols - places[:, 1:]).abs() <= _NEAR * step
    near = near_rows[:, :, None] & near_cols[:, None]
    logits = factor * surface.double()
    here = logits.masked_fill(~near, -torch.inf).flatten(1).logsumexp(dim=1)
    # A map with so many more places has so much more weight against the one that is no place.
    level = (factor * none.double() + 2 * math.log(step)).expand(len(surface), 1)
    return (here - torch.cat([logits.flatten(1), level], dim=1).logsumexp(dim=1)).exp()


def to_pixels(surface: Tensor, step: int) -> Tensor:
    """Interpolate a map with a place every `step` pixels to every pixel (bicubic), between its corners.

    Parameters
    ----------
    surface : Tensor, shape (B, n, m)
    step : int

    Returns
    -------
    Tensor, shape (B, (n - 1) * step + 1, (m - 1) * step + 1)
    """
    size = [(length - 1) * step + 1 for length in surface.shape[1:]]
    fine = functional.interpolate(surface[:, None], size=size, mode="bicubic", align_corners=True)
    return fine[:, 0]


def subpixel_peak(surface: FloatArray) -> tuple[float, float]:
    """Return row and column of the highest place, to a fraction by a parabola along either axis.

    Parameters
    ----------
    surface : ndarray of float32, shape (n, m)
    """
    row, col = (int(i) for i in np.unravel_index(int(np.argmax(surface)), surface.shape))
    return row + vertex(surface[:, col], row), col + vertex(surface[row], col)
