"""What the training loop trains: a task with its networks, losses, validation and result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Batch", "Facts", "Task", "contact_sheet"]

Batch = Mapping[str, Any]
"""Collated samples of `sar2eo.datasets`: tensors with a leading axis of images, and lists of facts."""

Facts = dict[str, Tensor]
"""Scalars to record, without gradient; on the device, for reading one makes the host wait for it."""


class Task(Protocol):
    """Something with networks to train.

    Attributes
    ----------
    phases : dict of str to Module
        Networks by name, each with an optimiser of its own; every step runs the phases in this order.
        The loop replaces them by what accelerate makes of them, so they are called through this
        attribute, by their ``forward``: that is where autocast and several devices act. What does not
        require a gradient at the start is never trained, and not held by states.
    averaged : tuple of str
        Phases of which a moving average is kept, validated and exported.
    """

    phases: dict[str, nn.Module]
    averaged: tuple[str, ...]

    def active(self, phase: str, step: int) -> bool:
        """Whether a phase is trained at a step."""
        ...

    def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Facts]:
        """Return the loss to be minimised by a phase, and scalars to record.

        Parameters
        ----------
        phase : str
        batch : mapping
            On the device.
        step : int
            From 0 on.
        generator : torch.Generator
            Of everything drawn (noise, timesteps), on the CPU; a function of seed and batch, the same
            for every phase.
        """
        ...

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Measure on validation pairs with the averaged weights in place; ``score`` is what should fall."""
        ...

    def picture(self, batch: Batch) -> Tensor:
        """Return a picture of a few pairs for people, uint8 of shape (3, H, W)."""
        ...

    def export(self, out: Path, facts: dict[str, Any]) -> Path:
        """Write the weights in place as a folder for use; `facts` go into its card or notes."""
        ...


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
