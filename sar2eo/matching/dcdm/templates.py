"""Templates cut at known places: what matching is learnt from, calibrated on and judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sar2eo.matching.dcdm.evidence import Images

__all__ = ["Planted", "plant"]


class Planted(NamedTuple):
    """Templates cut at known places.

    Parameters
    ----------
    images : Images
    truth : Tensor, shape (B, 3, h, w)
        What the SAR shows where the template lies.
    offsets : Tensor of int64, shape (B, 2)
        Rows and columns of the templates' first pixels in the search images.
    """

    images: Images
    truth: Tensor
    offsets: Tensor


def plant(batch: Mapping[str, Any], side: int, generator: torch.Generator) -> Planted:
    """Cut a template from each EO image at a place drawn from all; the SAR image is what it is searched in.

    Parameters
    ----------
    batch : mapping
        With "sar", "eo" and "valid".
    side : int
        Of the templates, in pixels.
    generator : torch.Generator
        On the CPU.
    """
    sar, eo, valid = batch["sar"], batch["eo"], batch["valid"]
    limits = torch.tensor(sar.shape[-2:]) - side + 1
    offsets = (torch.rand((len(sar), 2), generator=generator) * limits).long()
    places = [(slice(row, row + side), slice(col, col + side)) for row, col in offsets.tolist()]

    def cut(images: Tensor) -> Tensor:
        return torch.stack([image[:, rows, cols] for image, (rows, cols) in zip(images, places, strict=True)])

    images = Images(cut(eo), cut(valid), sar, valid)
    return Planted(images, cut(sar), offsets.to(sar.device))
