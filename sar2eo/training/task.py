"""What the training loop trains: a task with its networks, losses, validation and result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Facts", "Task"]

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
