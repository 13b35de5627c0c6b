"""All figures of one method, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sar2eo.datasets import Batch, PairsDataset
from sar2eo.errors import PairsError
from sar2eo.evaluation.metrics import (
    BLOCK_PX,
    block_means,
    colour_difference,
    image_metrics,
    squared_errors,
    to_unit,
)
from sar2eo.evaluation.perceptual import Fid, Lpips
from sar2eo.evaluation.spectrum import OctavePowers, octave_powers
from sar2eo.settings.vocabulary import Metric

__all__ = [
    "BASELINES",
    "MEAN_COLOUR",
    "SAR_GREY",
    "VAE_UPPER_BOUND",
    "Judge",
    "Measures",
    "constant",
    "mean_colour",
    "sar_grey",
]

_POOLED = ("error", "values", f"error_{BLOCK_PX}px", f"values_{BLOCK_PX}px")
_SCENE = "sar_href"


@dataclass(frozen=True)
class Measures:
    """What is measured, the same for every method.

    Parameters
    ----------
    metrics : tuple of str
    protocol : {"usual", "release"}
    lpips : Lpips or None
    inception : Module or None
        Of FID.
    """

    metrics: tuple[Metric, ...]
    protocol: str
    lpips: Lpips | None = None
    inception: nn.Module | None = None


class Judge:
    """Gathers the figures of one method.

    Parameters
    ----------
    measures : Measures

    Attributes
    ----------
    rows : list of dict
        Figures of each image that was judged, with the pair's "id".
    seconds : float
        Spent in making the images.
    """

    def __init__(self, measures: Measures) -> None:
        self.measures = measures
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._powers: OctavePowers | None = None
        self._fid = None if measures.inception is None else Fid(measures.inception)

    def add(self, prediction: Tensor, batch: Batch, seconds: float = 0.0) -> None:
        """Judge a batch of images, shape (B, 3, H, W) in [-1, 1], against the batch's truth."""
        protocol, valid = self.measures.protocol, batch["valid"]
        predicted, truth = (to_unit(images, protocol) for images in (prediction, batch["eo"]))
        columns = self._columns(predicted, truth, valid)
        if self.measures.lpips is not None:
            columns["lpips"] = self.measures.lpips(predicted, truth, valid)
        coarse, kept = block_means(predicted, valid)
        for name, column in self._columns(coarse, block_means(truth, valid)[0], kept).items():
            columns[f"{name}_{BLOCK_PX}px"] = column
        scenes = batch.get(_SCENE, [None] * len(truth))
        for i, (key, scene) in enumerate(zip(batch["id"], scenes, strict=True)):
            row = {name: float(column[i]) for name, column in columns.items()}
            self.rows.append({"id": key, "scene": scene, **row})
            powers = octave_powers(predicted[i].numpy(), truth[i].numpy(), valid[i, 0].numpy())
            self._powers = powers if self._powers is None else self._powers + powers
        if self._fid is not None:
            self._fid.add(predicted, truth, valid)
        self.seconds += seconds

    def _columns(self, predicted: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Any]:
        error, values = squared_errors(predicted, truth, valid)
        return {
            **image_metrics(predicted, truth, valid, self.measures.metrics),
            "ciede2000": colour_difference(predicted, truth, valid),
            "error": error,
            "values": values,
        }

    def summary(self) -> dict[str, Any]:
        """Return all figures: means over images, errors pooled over pixels, per scene and per octave."""
        scenes = sorted({row["scene"] for row in self.rows if row["scene"] is not None})
        found: dict[str, Any] = {"images": len(self.rows), **figures(self.rows)}
        if self._fid is not None:
            found["fid"] = self._fid.value()
        if self.seconds:
            found["seconds_per_image"] = self.seconds / len(self.rows)
        if scenes:
            found["scenes"] = {
                scene: figures([row for row in self.rows if row["scene"] == scene]) for scene in scenes
            }
        if self._powers is not None:
            found["octaves"] = [
                {"wavelength_px": wavelengths(octave), "power_ratio": float(ratio), "correlation": float(c)}
                for octave, (ratio, c) in enumerate(
                    zip(self._powers.ratios, self._powers.coherence, strict=True)
                )
            ]
        return found

    def by_pair(self) -> list[dict[str, Any]]:
        """Return the figures of each pair, means over its draws."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault(row["id"], []).append(row)
        return [{"id": key, "scene": rows[0]["scene"], **figures(rows)} for key, rows in groups.items()]


def wavelengths(octave: int) -> str:
    """Name the wavelengths of an octave in pixels."""
    return "below 4" if octave == 0 else f"{2 ** (octave + 1)} to {2 ** (octave + 2)}"


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return means over rows, without what is NaN, and the PSNR of errors pooled over their pixels."""
    names = [name for name in rows[0] if name not in ("id", "scene", *_POOLED)]
    found = {}
    for name in names:
        values = np.array([row[name] for row in rows])
        values = values[~np.isnan(values)]
        found[name] = float(values.mean()) if len(values) else float("nan")
    for suffix in ("", f"_{BLOCK_PX}px"):
        error, values = (sum(row[f"{name}{suffix}"] for row in rows) for name in ("error", "values"))
        with np.errstate(divide="ignore"):
            pooled = -10 * np.log10(error / values) if values else np.nan
        found[f"psnr_pooled{suffix}"] = float(pooled)
    return found


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
