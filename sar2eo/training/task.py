"""The task interface of the training loop: networks, losses, validation and export; contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = Mapping[str, Any]
"""Collated samples of `sar2eo.datasets`: tensors with a leading axis of images, and lists of values."""

Facts = dict[str, Tensor]
"""Scalars to record, without gradient; on the device, since reading one makes the host wait for it."""


class Task(Protocol):
    """Networks to train, with their losses, validation and export.

    Attributes
    ----------
    phases : dict of str to Module
        Networks by name, each with its own optimiser; every step runs the phases in this order. The loop
        replaces them by networks prepared by accelerate, so tasks call them through this attribute, by
        ``forward``, where autocast and several devices act. Parameters that require no gradient at the
        start are never trained and not saved in states.
    averaged : tuple of str
        Phases with a moving average of their weights, which is validated and exported.
    """

    phases: dict[str, nn.Module]
    averaged: tuple[str, ...]

    def active(self, phase: str, step: int) -> bool:
        """Return whether a phase is trained at a step."""
        ...

    def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Facts]:
        """Return the loss of a phase, and scalars to record.

        Parameters
        ----------
        phase : str
            Key of the network in `phases`.
        batch : mapping
            Samples, with tensors on the device.
        step : int
            Counted from 0.
        generator : torch.Generator
            Source of noise and timesteps, on the CPU; seeded by run and batch, the same for every phase.
        """
        ...

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Compute metrics on validation pairs, with averaged weights; a lower ``score`` is better."""
        ...

    def picture(self, batch: Batch) -> Tensor:
        """Draw a few pairs and their results, uint8 of shape (3, H, W)."""
        ...

    def export(self, out: Path, facts: dict[str, Any]) -> Path:
        """Write the current weights as a folder; `facts` (steps, metrics) go into its card."""
        ...


_GAP_PX = 4


def contact_sheet(sar: Tensor, predicted: Tensor, eo: Tensor, variance: Tensor, valid: Tensor) -> Tensor:
    """Draw SAR, prediction, EO and confidence side by side, one pair a row.

    Parameters
    ----------
    sar, predicted, eo : Tensor, shape (B, 3, H, W)
        In [-1, 1].
    variance : Tensor, shape (B, 1, h, w)
        Drawn as confidence: minus its logarithm, stretched to black and white.
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels are valid; others are drawn black.

    Returns
    -------
    Tensor of uint8, shape (3, rows, columns)
    """
    confidence = -functional.interpolate(variance.log(), size=eo.shape[2:], mode="nearest")
    low, high = confidence.aminmax()
    confidence = (confidence - low) / (high - low).clamp(min=1e-6) * 2 - 1
    columns = [sar, predicted, eo, confidence.expand_as(eo)]
    masked = [torch.where(valid > 0, column, -1.0).clamp(-1, 1) for column in columns]
    padded = [functional.pad(column, (0, _GAP_PX, 0, _GAP_PX), value=1.0) for column in masked]
    sheet = torch.cat(list(torch.cat(padded, dim=3)), dim=1)  # [3, B (H + gap), 4 (W + gap)]
    return ((sheet[:, :-_GAP_PX, :-_GAP_PX] + 1) * 127.5).round().to(torch.uint8).cpu()
