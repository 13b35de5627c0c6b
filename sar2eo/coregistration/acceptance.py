"""What tie points say: a transform, how good it is, or why they are too thin an evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from sar2eo.coregistration.transforms import FieldTransform, MovingTransform, arrays_of, fit_transform, near
from sar2eo.matching.shifts import Displacement, predict_shifts
from sar2eo.settings import CoregisterSettings

__all__ = ["LEAST", "Evidence", "weigh"]

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Tie points that must agree, and their share of all sure ones.
LEAST = {"shift": 5, "affine": 10, "local": 10}
_LEAST_SHARE = 0.5
# Share of the lattice's convex hull that theirs must cover.
_LEAST_SPREAD = 0.25
# Tie points left out of the fit must be predicted to this share of the tolerance (their median).
_LARGEST_MEDIAN = 0.8
_FOLDS = 10


@dataclass(frozen=True, eq=False)
class Evidence:
    """What tie points say.

    Parameters
    ----------
    transform : MovingTransform or None
        None where there is none.
    refusal : str or None
        Why it cannot be used, on one line.
    at, shifts : ndarray of float64, shape (tie, 2)
        Of the sure tie points.
    predicted : ndarray of float64, shape (tie, 2)
        What fits to the tie points of the other folds say of each.
    inlier : ndarray of bool, shape (tie,)
        Within the tolerance of the transform.
    spread : float
        Share of the lattice's convex hull that theirs covers.
    """

    transform: MovingTransform | None
    refusal: str | None
    at: Points
    shifts: Points
    predicted: Points
    inlier: Mask
    spread: float

    def quality(self, size: tuple[float, float]) -> dict[str, Any]:
        """Measure tie points that bear the transform out, before and after it, as JSON values.

        After: against fits that did not see them. Before: the same tie points, unmoved.

        Parameters
        ----------
        size : tuple of float
            Height and width of a pixel in metres.
        """
        chosen = self.inlier & np.isfinite(self.predicted).all(axis=1)
        found = {
            "before": _summary(self.shifts[chosen], size),
            "after": _summary((self.shifts - self.predicted)[chosen], size),
        }
        known = np.isfinite(self.predicted).all(axis=1)
        every = {
            "before": _median(self.shifts[known]),
            "after": _median((self.shifts - self.predicted)[known]),
        }
        return {"points": int(chosen.sum()), **found, "all_sure_median_px": every}


def _summary(offsets: Points, size: tuple[float, float]) -> dict[str, float | None]:
    if not len(offsets):
        return {"rmse_px": None, "rmse_m": None, "median_px": None}
    squares = [float(np.mean(np.sum(np.square(each), axis=1))) for each in (offsets, offsets * size)]
    return {
        "rmse_px": round(squares[0] ** 0.5, 4),
        "rmse_m": round(squares[1] ** 0.5, 4),
        "median_px": _median(offsets),
    }


def _median(offsets: Points) -> float | None:
    return round(float(np.median(np.hypot(*offsets.T))), 4) if len(offsets) else None


def weigh(
    ties: Sequence[Displacement], lattice: Points, settings: CoregisterSettings, radius: int
) -> Evidence:
    """Fit a transform to tie points, and decide whether they carry it.

    Parameters
    ----------
    ties : sequence of Displacement
        All that were measured.
    lattice : ndarray of float64, shape (cell, 2)
        Middles of all templates of the overlap.
    settings : CoregisterSettings
    radius : int
        That was searched.
    """
    sure = [tie for tie in ties if tie.sure and np.isfinite([tie.rows, tie.cols]).all()]
    at, shifts = arrays_of(sure)
    nothing = np.full_like(shifts, np.nan), np.zeros(len(sure), bool)
    least = LEAST[settings.transform]
    if len(sure) < least:
        best = max((tie.score for tie in ties), default=0.0)
        refusal = (
            f"{len(sure)} of {len(ties)} tie points are sure (the best score is {best:.3f}), and "
            f"{settings.transform} needs {least}: water, cloud, another place, more than the {radius} pixels "
            f"of --radius, or too large a --grid for {len(lattice)} templates?"
        )
        return Evidence(None, refusal, at, shifts, *nothing, 0.0)
    transform = fit_transform(sure, settings)
    if transform is None:
        refusal = (
            f"{len(sure)} of {len(ties)} tie points are sure, and no {settings.transform} fits half of them"
        )
        return Evidence(None, refusal, at, shifts, *nothing, 0.0)
    inlier = near(transform, at, shifts, settings.tolerance)
    spread = _spread(at[inlier], lattice, settings.grid)
    thin = _too_few(inlier, spread, settings)
    if thin is not None:
        return Evidence(transform, thin, at, shifts, nothing[0], inlier, spread)
    predicted = _held_out(sure, transform, settings)
    reach = float(np.abs(transform.shifts(lattice)).max())
    return Evidence(
        transform,
        _too_loose(shifts - predicted, reach, settings, radius),
        at,
        shifts,
        predicted,
        inlier,
        spread,
    )


def _too_few(inlier: Mask, spread: float, settings: CoregisterSettings) -> str | None:
    """Say why the tie points that agree are too few, or lie too close together."""
    least, count = LEAST[settings.transform], int(inlier.sum())
    if count < max(least, _LEAST_SHARE * len(inlier)):
        return (
            f"{count} of {len(inlier)} sure tie points agree within {settings.tolerance:g} pixels, and "
            f"{settings.transform} needs {least}, and half of them"
        )
    if spread < _LEAST_SPREAD:
        return (
            f"the {count} tie points that agree cover {spread:.0%} of the overlap, and must cover "
            f"{_LEAST_SPREAD:.0%}"
        )
    return None


def _too_loose(errors: Points, reach: float, settings: CoregisterSettings, radius: int) -> str | None:
    """Say why a transform is not known well enough: by tie points left out, and by how far it reaches."""
    known = np.isfinite(errors).all(axis=1)
    median = float(np.median(np.where(known, np.hypot(*errors.T), np.inf)))
    largest = _LARGEST_MEDIAN * settings.tolerance
    if median > largest:
        return (
            f"tie points left out of the fit are predicted to {median:.2f} pixels (median), and "
            f"{largest:.2f} is the most"
        )
    if reach > radius:
        return (
            f"the fit reaches {reach:.1f} pixels, beyond the {radius} that were searched: is --radius too "
            "small?"
        )
    return None


def _held_out(
    ties: Sequence[Displacement], transform: MovingTransform, settings: CoregisterSettings
) -> Points:
    """Predict every tie point by a fit to those of other folds."""
    at, _ = arrays_of(ties)
    draw = np.random.Generator(np.random.Philox(settings.seed))
    fold = draw.permutation(len(ties)) % min(_FOLDS, len(ties))
    predicted = np.full_like(at, np.nan)
    for number in np.unique(fold):
        others = [tie for tie, where in zip(ties, fold, strict=True) if where != number]
        here = fold == number
        if isinstance(transform, FieldTransform):
            predicted[here] = predict_shifts(others, transform.drift, at[here])
            continue
        fitted = fit_transform(others, settings)
        if fitted is not None:
            predicted[here] = fitted.shifts(at[here])
    return predicted


def _spread(at: Points, lattice: Points, side: int) -> float:
    """Return the share of the lattice's convex hull that templates at some places cover."""
    hulls = []
    for places in (at, lattice):
        low, high = (places - side / 2).T, (places + side / 2).T
        hulls.append(shapely.convex_hull(shapely.geometrycollections(shapely.box(*low, *high))).area)
    return float(hulls[0] / hulls[1]) if hulls[1] else 0.0
