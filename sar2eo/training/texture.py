"""How much texture an image has, by place, wavelength, direction and colour: a loss for decoders."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BLOCK", "texture_error"]

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
