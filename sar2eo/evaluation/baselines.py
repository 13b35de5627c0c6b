"""What any method must beat, needing no model at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sar2eo.datasets import Batch, PairsDataset
from sar2eo.errors import PairsError

__all__ = ["BASELINES", "MEAN_COLOUR", "SAR_GREY", "VAE_UPPER_BOUND", "constant", "mean_colour", "sar_grey"]

MEAN_COLOUR = "mean-colour"
"""The mean colour of the training split's valid pixels, everywhere."""

SAR_GREY = "sar-grey"
"""The SAR image itself as grey, as the model receives it: the mean of its three channels, not fitted."""

BASELINES = (MEAN_COLOUR, SAR_GREY)

VAE_UPPER_BOUND = "vae-upper-bound"
"""The truth, encoded and decoded by the model's VAE (C-DiffSET, Table 4)."""

_COLOUR_PAIRS = 1000


def mean_colour(
    training: PairsDataset, progress: Callable[[int, int], None] = lambda done, total: None
) -> Tensor:
    """Return the mean colour of valid pixels, shape (3,), in [-1, 1].

    Of a large data set 1000 pairs, spread evenly, tell it well enough.

    Raises
    ------
    PairsError
        If no pixel is valid.
    """
    chosen = np.linspace(0, len(training) - 1, min(len(training), _COLOUR_PAIRS)).astype(int)
    total, count = torch.zeros(3, dtype=torch.float64), 0.0
    for done, index in enumerate(chosen):
        sample = training[int(index)]
        total += (sample["eo"].double() * sample["valid"]).sum((1, 2))
        count += float(sample["valid"].sum())
        progress(done + 1, len(chosen))
    if not count:
        raise PairsError("the training split has no valid pixel, so no mean colour")
    return (total / count).float()


def constant(colour: Tensor) -> Callable[[Batch], Tensor]:
    """Return what predicts one colour everywhere."""
    return lambda batch: colour.view(1, 3, 1, 1).expand_as(batch["eo"]).contiguous()


def sar_grey(batch: Batch) -> Tensor:
    """Predict the SAR in grey."""
    grey: Tensor = batch["sar"].mean(1, keepdim=True).expand_as(batch["eo"]).contiguous()
    return grey
