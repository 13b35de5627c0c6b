"""Validation pictures for people: SAR | prediction | EO | confidence, a row for each pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["contact_sheet"]

_GAP_PX = 4


def contact_sheet(sar: Tensor, predicted: Tensor, eo: Tensor, variance: Tensor, valid: Tensor) -> Tensor:
    """Draw pairs side by side.

    Parameters
    ----------
    sar, predicted, eo : Tensor, shape (B, 3, H, W)
        In [-1, 1].
    variance : Tensor, shape (B, 1, h, w)
        Drawn by rank in the log, bright where it is small: the confidence.
    valid : Tensor, shape (B, 1, H, W)
        What is not valid is drawn black.

    Returns
    -------
    Tensor of uint8, shape (3, rows, columns)
    """
    confidence = -functional.interpolate(variance.log(), size=eo.shape[2:], mode="nearest")
    low, high = confidence.aminmax()
    confidence = (confidence - low) / (high - low).clamp(min=1e-6) * 2 - 1
    columns = [sar, predicted, eo, confidence.expand_as(eo)]
    shown = [torch.where(valid > 0, column, -1.0).clamp(-1, 1) for column in columns]
    padded = [functional.pad(column, (0, _GAP_PX, 0, _GAP_PX), value=1.0) for column in shown]
    sheet = torch.cat(list(torch.cat(padded, dim=3)), dim=1)  # [3, B (H + gap), 4 (W + gap)]
    return ((sheet[:, :-_GAP_PX, :-_GAP_PX] + 1) * 127.5).round().to(torch.uint8).cpu()
