"""The area under the ROC curve, with its uncertainty, for groups of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BOOTSTRAPS", "GROUPS", "UNCHANGED", "compare_groups", "roc_curve"]

FloatArray = npt.NDArray[np.float64]

BOOTSTRAPS = 2000
_INTERVAL = (2.5, 97.5)

UNCHANGED = "unchanged"
GROUPS = (
    ("ship", "sar-only"),
    ("ship", "eo-only"),
    ("vehicle", "sar-only"),
    ("vehicle", "eo-only"),
    ("field", "changed"),
)
"""Kinds of objects, and how they can differ between the dates; each is held against those unchanged."""

CONTRAST = "sar contrast"


def roc_curve(changed: npt.ArrayLike, unchanged: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return shares of unchanged and of changed objects above each threshold, from (0, 0) to (1, 1)."""
    found, wrong = (np.asarray(scores, dtype=np.float64) for scores in (changed, unchanged))
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([found, wrong]))[::-1]])
    return (wrong >= thresholds[:, None]).mean(axis=1), (found >= thresholds[:, None]).mean(axis=1)


def compare_groups(
    objects: list[dict[str, Any]], headline: str, seed: int, *, blind: bool = False
) -> list[dict[str, Any]]:
    """Hold changed objects against unchanged ones of the same kind, by every detector.

    Parameters
    ----------
    objects : list of dict
        As of `sar2eo.evaluation.confidence.objects.score_objects`.
    headline : str
        The detector whose lead over the SAR contrast is told; the contrast counts in whichever direction
        is better.
    seed : int
        Of the bootstrap, which draws changed and unchanged objects apart, with replacement.
    blind : bool
        Leave detectors out that are made of variance.

    Returns
    -------
    list of dict
        Each with "kind", "discrepancy", "changed" and "unchanged" (counts), "pixels" (medians of both),
        "areas" by detector and "margin", each with "value", "low" and "high" (95 %); without objects of
        both sorts these are empty.
    """
    return [
        _compare(
            [row for row in objects if (row["kind"], row["state"]) == (kind, state)],
            [row for row in objects if (row["kind"], row["state"]) == (kind, UNCHANGED)],
            headline,
            np.random.default_rng([seed, number]),
            blind=blind,
        )
        | {"kind": kind, "discrepancy": state}
        for number, (kind, state) in enumerate(GROUPS)
    ]


def _compare(
    changed: list[dict[str, Any]],
    unchanged: list[dict[str, Any]],
    headline: str,
    draw: np.random.Generator,
    *,
    blind: bool,
) -> dict[str, Any]:
    counts = {"changed": len(changed), "unchanged": len(unchanged)}
    if not changed or not unchanged:
        return {**counts, "pixels": None, "areas": {}, "margin": None}
    names = [name for name in changed[0]["scores"] if not (blind and name.startswith(("forced", "sampled")))]
    weights = [
        draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), BOOTSTRAPS) / len(rows)
        for rows in (changed, unchanged)
    ]
    areas, drawn = {}, {}
    for name in names:
        wins = _wins(*([row["scores"][name] for row in rows] for rows in (changed, unchanged)))
        drawn[name] = ((weights[0] @ wins) * weights[1]).sum(axis=1)
        areas[name] = _interval(float(wins.mean()), drawn[name])
    margin = None
    if headline in areas:
        sign = 1 if areas[CONTRAST]["value"] >= 0.5 else -1
        contrast = 0.5 + sign * (drawn[CONTRAST] - 0.5)
        value = areas[headline]["value"] - (0.5 + sign * (areas[CONTRAST]["value"] - 0.5))
        margin = _interval(value, drawn[headline] - contrast)
    pixels = [float(np.median([row["pixels"] for row in rows])) for rows in (changed, unchanged)]
    return {**counts, "pixels": pixels, "areas": areas, "margin": margin}


def _wins(changed: npt.ArrayLike, unchanged: npt.ArrayLike) -> FloatArray:
    """Return 1 where a changed object scores above an unchanged one, 1/2 where they tie; shape (N, M).

    Their mean is the area under the ROC curve (Hanley and McNeil 1982,
    https://doi.org/10.1148/radiology.143.1.7063747).
    """
    found, wrong = (np.asarray(scores, dtype=np.float64) for scores in (changed, unchanged))
    return np.asarray((found[:, None] > wrong) + 0.5 * (found[:, None] == wrong))


def _interval(value: float, drawn: FloatArray) -> dict[str, float]:
    low, high = np.percentile(drawn, _INTERVAL)
    return {"value": value, "low": float(low), "high": float(high)}
