"""Whether the variance is what it says, and whether the SAR image is looked at."""

from __future__ import annotations

from collections.abc import Callable
from operator import ne
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from torch import Tensor

from sar2eo.evaluation.metrics import BLOCK_PX, block_means, psnr, to_unit

__all__ = ["Shuffle", "calibration_table"]


def calibration_table(variance: npt.ArrayLike, error: npt.ArrayLike, quantiles: int = 10) -> dict[str, Any]:
    """Compare predicted variance with squared error, by quantile of the variance.

    Parameters
    ----------
    variance, error : array_like, shape (N,)
        Of the same latent pixels at the same timestep.
    quantiles : int
        Groups of as equal size as can be.

    Returns
    -------
    dict
        "quantiles": from the lowest variance on, each with "variance" and "error" (means) and
        "values" (how many); "ratio": mean error over mean variance, 1 if calibrated as a whole;
        "rank_correlation": Spearman's, NaN if either never varies.
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


class Shuffle:
    """The shuffle control: images made from one pair's SAR are held against another pair's truth.

    A model that looks at the SAR loses much by that; one that only knows what EO images look like
    loses nothing. Both are measured on the pixels that are valid in both pairs.

    Parameters
    ----------
    seed : int
        Of the order in which the pairs are chained: each is judged against the next that is of other ground.
    apart : callable, optional
        Whether two pairs, by their numbers, show different ground; by default any two do.
    """

    def __init__(self, seed: int, apart: Callable[[int, int], bool] = ne) -> None:
        self._seed, self._apart = seed, apart
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._numbers: list[int] = []

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor, number: int) -> None:
        """Keep one pair: images of shape (3, H, W) in [-1, 1], validity of shape (1, H, W), its number."""
        images = (((image + 1) * 127.5).round().byte() for image in (prediction, truth))
        self._held.append((*images, valid.bool()))  # type: ignore[arg-type]
        self._numbers.append(number)

    def result(self, protocol: str) -> dict[str, Any] | None:
        """Return mean PSNR as paired and as shuffled, and the difference; None for no two pairs apart.

        The same at means of 8 pixels.
        """
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
        coarse_truth, kept = block_means(truth, valid)
        found += [psnr(block_means(image, valid)[0], coarse_truth, kept)[0] for image in (right, wrong)]
        return found
