"""Figures of one method, batch by batch; baselines; controls: calibration of the variance, shuffled SAR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import starmap
from operator import add, ne
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from sar2eo.datasets import Batch, PairsDataset
from sar2eo.errors import PairsError
from sar2eo.evaluation.crop_search import find_crop, is_found, to_grey
from sar2eo.evaluation.metrics import (
    BLOCK_PX,
    FloatArray,
    OctavePowers,
    average_blocks,
    colour_difference,
    image_metrics,
    psnr,
    sum_octave_powers,
    sum_squared_errors,
    to_unit,
)
from sar2eo.evaluation.perceptual import Frechet, Lpips
from sar2eo.settings.vocabulary import Metric

_POOLED = ("error", "values", f"error_{BLOCK_PX}px", f"values_{BLOCK_PX}px", "tally")
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measures:
    """Metrics and networks, the same for every method; `frechet` are the networks of Fréchet distances.

    `places` are the names of the pairs' places, or None, and `offsets` the radar's from the truth, shape
    (pairs, 2): both by the pairs' index.
    """

    metrics: tuple[Metric, ...]
    protocol: str
    places: Sequence[str | None]
    offsets: FloatArray
    lpips: Lpips | None = None
    frechet: Mapping[str, nn.Module] = field(default_factory=dict)


class ScoreKeeper:
    """Collects the figures of one method: `rows` of each image, and the `seconds` spent drawing them."""

    def __init__(self, measures: Measures) -> None:
        self.measures = measures
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._powers: list[OctavePowers] = []
        self._shared: list[OctavePowers] = []
        self._distances = {name: Frechet(network) for name, network in measures.frechet.items()}

    def add(self, prediction: Tensor, batch: Batch, seconds: float = 0.0) -> None:
        """Score a batch of images, shape (B, 3, H, W) in [-1, 1], against the batch's truth."""
        protocol, valid = self.measures.protocol, batch["valid"]
        predicted, truth = (to_unit(images, protocol) for images in (prediction, batch["eo"]))
        columns = self._columns(predicted, truth, valid)
        if self.measures.lpips is not None:
            columns["lpips"] = self.measures.lpips(predicted, truth, valid)
        (coarse, kept), (coarse_truth, _) = (average_blocks(images, valid) for images in (predicted, truth))
        for name, column in self._columns(coarse, coarse_truth, kept).items():
            columns[f"{name}_{BLOCK_PX}px"] = column
        blocks = _tally_blocks(coarse.numpy(), coarse_truth.numpy(), kept.numpy())
        for i, (key, index) in enumerate(zip(batch["id"], batch["index"], strict=True)):
            row: dict[str, Any] = {name: float(column[i]) for name, column in columns.items()}
            shifts = search_crop(prediction[i], batch["eo"][i], valid[i])
            found = is_found(shifts, self.measures.offsets[index])
            row["tally"] = np.array([*np.nan_to_num(found), not np.isnan(found).any(), *blocks[i]])
            self.rows.append({"id": key, "scene": self.measures.places[index], **row})
        self._powers += _sum_powers(predicted, truth, valid)
        for distance in self._distances.values():
            distance.add(predicted, truth, valid)
        self.seconds += seconds

    def compare_draws(self, first: Tensor, second: Tensor, valid: Tensor) -> None:
        """Hold two draws of a batch against each other, by octave; parameters as in `add`."""
        self._shared += _sum_powers(first, second, valid)

    def _columns(self, predicted: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Any]:
        error, values = sum_squared_errors(predicted, truth, valid)
        return {
            **image_metrics(predicted, truth, valid, self.measures.metrics),
            "ciede2000": colour_difference(predicted, truth, valid),
            "error": error,
            "values": values,
        }

    def summarise(self) -> dict[str, Any]:
        """Return all figures: means over images, errors pooled over pixels, by scene and by octave."""
        scenes = sorted({row["scene"] for row in self.rows if row["scene"] is not None})
        found = _summarise_rows(self.rows)
        found |= {name: distance.value() for name, distance in self._distances.items()}
        if self.seconds:
            found["seconds_per_image"] = self.seconds / len(self.rows)
        if scenes:
            found["scenes"] = {
                scene: _summarise_rows([row for row in self.rows if row["scene"] == scene])
                for scene in scenes
            }
        powers = reduce(add, self._powers)
        columns = {"power_ratio": powers.ratios, "correlation": powers.coherence}
        if self._shared:
            columns["agreement"] = reduce(add, self._shared).coherence
        found["octaves"] = [
            {"wavelength_px": f"{2 ** (octave + 1)} to {2 ** (octave + 2)}" if octave else "below 4"}
            | {name: float(column[octave]) for name, column in columns.items()}
            for octave in range(len(powers.truth))
        ]
        return found

    def summarise_pairs(self) -> list[dict[str, Any]]:
        """Return the figures of each pair, as means over its draws."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault(row["id"], []).append(row)
        return [{"id": key, "scene": rows[0]["scene"], **average_rows(rows)} for key, rows in groups.items()]


def average_rows(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return means over rows, ignoring NaN, and figures of what is pooled over their pixels."""
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
    pictured = compute_picture_figures(np.sum([row["tally"] for row in rows], axis=0, dtype=float))
    return found | {name: float(value) for name, value in pictured.items()}


def search_crop(prediction: Tensor, truth: Tensor, valid: Tensor) -> FloatArray:
    """Look for the middle of an image, shape (3, H, W), as `find_crop`; NaN if a pixel is invalid."""
    if not valid.all():
        return np.full((2, 2), np.nan)
    return find_crop(*(to_grey((image.numpy() + 1) * 127.5) for image in (prediction, truth)))


def _sum_powers(images: Tensor, others: Tensor, valid: Tensor) -> list[OctavePowers]:
    each = zip(images.numpy(), others.numpy(), valid[:, 0].numpy(), strict=True)
    return list(starmap(sum_octave_powers, each))


def _tally_blocks(prediction: FloatArray, truth: FloatArray, kept: FloatArray) -> FloatArray:
    """Sum what correlation and gain hang on, over the blocks of each image, shape (B, 11)."""
    p, t = ((images - 0.5) * kept for images in (prediction, truth))
    pg, tg = to_grey(p), to_grey(t)
    colours = (t[:, band] for band in range(3))
    values = (kept[:, 0], *colours, (t**2).sum(1), ((p - t) ** 2).sum(1), pg, tg, pg**2, tg**2, pg * tg)
    return np.stack([value.sum((1, 2), dtype=np.float64) for value in values], axis=1)


def compute_picture_figures(tally: FloatArray) -> dict[str, FloatArray]:
    """Compute the shares of crops found, and correlation and gain of blocks, of sums of tallies."""
    by_structure, by_grey, searched, count, red, green, blue, square, error, *grey = np.moveaxis(tally, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p, t, pp, tt, pt = (total / count for total in grey)
        spread = (pp - p**2) * (tt - t**2)
        return {
            "structure": by_structure / searched,
            "grey": by_grey / searched,
            # What is constant correlates with nothing.
            f"correlation_{BLOCK_PX}px": np.where(spread > 1e-12, pt - p * t, np.nan) / np.sqrt(spread),
            f"gain_{BLOCK_PX}px": 10 * np.log10((square - (red**2 + green**2 + blue**2) / count) / error),
        }


def _summarise_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of rows, and the intervals of those of the picture: 5 to 95 % of a bootstrap.

    Images are drawn, each with all of its rows.
    """
    names = np.unique([row["id"] for row in rows], return_inverse=True)[1]
    tallies = np.zeros((names.max() + 1, len(rows[0]["tally"])))
    np.add.at(tallies, names, [row["tally"] for row in rows])
    share = np.full(len(tallies), 1 / len(tallies))
    drawn = np.random.default_rng(0).multinomial(len(tallies), share, size=_RESAMPLES)
    intervals = {}
    for name, values in compute_picture_figures(np.asarray(drawn @ tallies, float)).items():
        known = values[np.isfinite(values)]
        intervals[name] = np.percentile(known, [5, 95]).tolist() if len(known) else [np.nan, np.nan]
    return {"images": len(rows), **average_rows(rows), "intervals": intervals}


MEAN_COLOUR = "mean-colour"
"""The mean colour of the training split's valid pixels, everywhere."""

SAR_GREY = "sar-grey"
"""The SAR image in grey: the mean of the model's three input channels, not fitted."""

BASELINES = (MEAN_COLOUR, SAR_GREY)

VAE_UPPER_BOUND = "vae-upper-bound"
"""The truth, encoded and decoded by the model's VAE (C-DiffSET, Table 4)."""

_COLOUR_PAIRS = 1000


def compute_mean_colour(
    training: PairsDataset, progress: Callable[[int, int], None] = lambda done, total: None
) -> Tensor:
    """Return the mean colour of valid pixels of up to 1000 pairs, shape (3,), in [-1, 1]."""
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


def predict_constant(colour: Tensor) -> Callable[[Batch], Tensor]:
    """Return a method that predicts one colour everywhere."""
    return lambda batch: colour.view(1, 3, 1, 1).expand_as(batch["eo"]).contiguous()


def predict_sar_grey(batch: Batch) -> Tensor:
    """Predict the SAR in grey."""
    grey: Tensor = batch["sar"].mean(1, keepdim=True).expand_as(batch["eo"]).contiguous()
    return grey


def compute_calibration(variance: npt.ArrayLike, error: npt.ArrayLike, quantiles: int = 10) -> dict[str, Any]:
    """Compare predicted variance with squared error, both of shape (N,), by quantile of the variance.

    Returns "quantiles" from the lowest variance on, each with means "variance" and "error" and number
    "values"; "ratio" of mean error to mean variance, 1 if calibrated; and "rank_correlation" (Spearman's),
    NaN if either is constant.
    """
    predicted, found = (np.asarray(values, dtype=np.float64).ravel() for values in (variance, error))
    groups = [
        group for group in np.array_split(np.argsort(predicted, kind="stable"), quantiles) if len(group)
    ]
    varies = len(predicted) > 1 and np.ptp(predicted) > 0 and np.ptp(found) > 0
    return {
        "quantiles": [
            {
                "variance": float(predicted[group].mean()),
                "error": float(found[group].mean()),
                "values": len(group),
            }
            for group in groups
        ],
        "ratio": float(found.mean() / predicted.mean()) if len(found) else float("nan"),
        "rank_correlation": float(spearmanr(predicted, found).statistic) if varies else float("nan"),
    }


class ShuffleControl:
    """The shuffle control: images from one pair's SAR are compared with another pair's truth.

    A model that uses the SAR image loses much; one that only knows what EO images look like loses nothing.
    Only pixels that are valid in both pairs count. The order of pairs follows from `seed`; each is compared
    with the next one that shows other ground, as `apart` tells by their indices.
    """

    def __init__(self, seed: int, apart: Callable[[int, int], bool] = ne) -> None:
        self._seed, self._apart = seed, apart
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._numbers: list[int] = []

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor, number: int) -> None:
        """Add one pair: images of shape (3, H, W) in [-1, 1], validity of shape (1, H, W), its index."""
        images = (((image + 1) * 127.5).round().byte() for image in (prediction, truth))
        self._held.append((*images, valid.bool()))  # type: ignore[arg-type]
        self._numbers.append(number)

    def summarise(self, protocol: str) -> dict[str, Any] | None:
        """Return mean PSNR as paired and as shuffled, and the cost, also of blocks; None for no pairs."""
        order = np.random.default_rng(self._seed).permutation(len(self._held)).tolist()
        rows = []
        for place, i in enumerate(order):
            others = (order[place - step] for step in range(1, len(order)))
            j = next((j for j in others if self._apart(self._numbers[i], self._numbers[j])), None)
            if j is not None:
                rows.append(self._compare(self._held[i], self._held[j], protocol))
        if not rows:
            return None
        means = [
            float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
            for column in np.array(rows).T
        ]
        names = ("psnr", "psnr_shuffled", f"psnr_{BLOCK_PX}px", f"psnr_{BLOCK_PX}px_shuffled")
        found = dict(zip(names, means, strict=True))
        return {
            "pairs": len(rows),
            **found,
            "cost_db": means[0] - means[1],
            f"cost_{BLOCK_PX}px_db": means[2] - means[3],
        }

    @staticmethod
    def _compare(
        own: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor], protocol: str
    ) -> list[float]:
        valid = (own[2] & other[2]).float()[None]
        right, wrong, truth = (
            to_unit(image.float() / 127.5 - 1, protocol)[None] for image in (own[0], other[0], own[1])
        )
        found = [psnr(image, truth, valid)[0] for image in (right, wrong)]
        coarse_truth, kept = average_blocks(truth, valid)
        found += [psnr(average_blocks(image, valid)[0], coarse_truth, kept)[0] for image in (right, wrong)]
        return found
