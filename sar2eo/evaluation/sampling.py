"""Images of a model for batches of pairs, each pair with noise of its own."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sar2eo.datasets import Batch
from sar2eo.models import ModelSpec, Translator

__all__ = ["Drawn", "ModelImages", "padded"]

PITCH_PX = 2**20
"""Pixels between pairs, and between draws of one, in the plane of scene-anchored noise."""


class Drawn(NamedTuple):
    """What a model draws for a batch.

    Parameters
    ----------
    eo : Tensor of float32, shape (B, 3, H, W)
        In [-1, 1], in the levels of bytes.
    variance : Tensor of float32, shape (B, h, w), or None
        At latent resolution, the padding included.
    seconds : float
        Wall time for the batch.
    """

    eo: Tensor
    variance: Tensor | None
    seconds: float


class ModelImages:
    """Translates batches of pairs.

    The noise of a pair depends on its index in the data set, the number of the draw and the seed
    alone: not on which other pairs are evaluated, or in which order.

    Parameters
    ----------
    spec : ModelSpec
        Of a single sample.
    translator : Translator, optional
        By default the spec's.
    """

    def __init__(self, spec: ModelSpec, translator: Translator | None = None) -> None:
        self.spec = spec
        self.translator = translator or spec.load()

    def with_steps(self, steps: int) -> ModelImages:
        """Return the same model with another number of steps."""
        return ModelImages(self.spec, self.translator.with_steps(steps))

    def draw(self, batch: Batch, number: int = 0) -> Drawn:
        """Draw images for a batch of samples.

        Parameters
        ----------
        batch : dict
            "sar", shape (B, 3, H, W) of any size, and "index".
        number : int
            Which of several independent draws.
        """
        height, width = batch["sar"].shape[2:]
        rows, cols = (-(-side // self.spec.factor) for side in (height, width))
        sar = padded(batch["sar"], self.translator.multiple).numpy()
        origins = [noise_origin(index, number) for index in batch["index"]]
        start, images, variances = time.perf_counter(), [], []
        for first in range(0, len(sar), self.spec.batch):
            part = slice(first, first + self.spec.batch)
            translation = self.translator.translate(sar[part], origins[part])
            images.append(torch.from_numpy(translation.eo))
            if translation.variance is not None:
                variances.append(torch.from_numpy(translation.variance[..., :rows, :cols]))
        seconds = time.perf_counter() - start
        eo = torch.cat(images)[..., :height, :width].float() / 127.5 - 1
        return Drawn(eo, torch.cat(variances) if variances else None, seconds)


def noise_origin(index: int, number: int = 0) -> tuple[int, int]:
    """Return the pixel of the noise plane where the noise of a pair's draw starts."""
    return index * PITCH_PX, number * PITCH_PX


def padded(images: Tensor, factor: int, *, value: float | None = None) -> Tensor:
    """Pad images below and to the right to multiples of a factor, by reflection or with a value."""
    height, width = images.shape[-2:]
    margins = (0, -width % factor, 0, -height % factor)
    if value is not None:
        return functional.pad(images, margins, value=value)
    # Reflection cannot reach further than the image.
    mode = "reflect" if margins[1] < width and margins[3] < height else "replicate"
    return functional.pad(images, margins, mode=mode)
