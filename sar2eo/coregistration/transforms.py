"""Transforms fitted to tie points, some of which are wrong, and whether the evidence carries them.

Shifts are of pixels of the reference's grid: what the reference shows at (row, col) is found `rows` and
`cols` farther in the moving scene.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from sar2eo.matching.shifts import Displacement, SceneDrift, fit_drift, predict_shifts
from sar2eo.settings import CoregisterSettings

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# More stretch, turn or shear than this is no misregistration.
_LARGEST_STRETCH = 0.02
# Where half are right, one sample in eight is; these fail once in 1e29.
_TRIALS = 500
_SURE = 0.99999


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """One shift for all, or an affine transform.

    `coefficients`, shape (2, 3), are of the shift of rows and of columns: constant, per row, per column.
    """

    kind: str
    coefficients: Points

    def shifts(self, places: Points) -> Points:
        """Return shifts (place, 2) in pixels at places (place, 2), rows and columns of the reference."""
        return np.asarray(_terms(places) @ self.coefficients.T)

    def facts(self) -> dict[str, Any]:
        """Return JSON values: rows and cols hold the constant, the part per row, and per column."""
        rows, cols = self.coefficients.tolist()
        return {"kind": self.kind, "rows": rows, "cols": cols}


@dataclass(frozen=True, eq=False)
class FieldTransform:
    """A smooth field of shifts; places outside the measured area take the shift at its edge."""

    drift: SceneDrift

    def shifts(self, places: Points) -> Points:
        """Return shifts (place, 2) in pixels at places (place, 2), rows and columns of the reference."""
        return self.drift.shifts(places)

    def facts(self) -> dict[str, Any]:
        """Return JSON values: order (0 to 2, or "spline") and residuals."""
        return {"kind": "local", **self.drift.facts()}


MovingTransform = LinearTransform | FieldTransform
"""Where the reference's pixels are found in the moving scene."""


def fit_transform(ties: Sequence[Displacement], settings: CoregisterSettings) -> MovingTransform | None:
    """Fit a transform to sure tie points, some of which are wrong; None where no transform fits.

    A shift is the median of the largest agreement; an affine transform is fitted by least squares to the
    largest agreement that RANSAC finds (Fischler and Bolles, CACM 24(6), 1981); for a field see
    `sar2eo.matching.shifts.fit_drift`.
    """
    if settings.transform == "local":
        drift = fit_drift(ties, apart_px=settings.grid, seed=settings.seed)
        return None if drift is None else FieldTransform(drift)
    at, shifts = split_ties(ties)
    if settings.transform == "shift":
        return _fit_shift(shifts, settings.tolerance)
    return _fit_affine(at, shifts, settings)


def _fit_shift(shifts: Points, tolerance: float) -> LinearTransform | None:
    if not len(shifts):
        return None
    apart = np.hypot(*np.moveaxis(shifts[:, None] - shifts[None], 2, 0))
    agreeing = apart < tolerance
    # Of equal agreements the tighter one.
    start = int(np.lexsort((np.where(agreeing, apart, 0).sum(axis=1), -agreeing.sum(axis=1)))[0])
    chosen = agreeing[start]
    for _ in range(10):
        middle = np.median(shifts[chosen], axis=0)
        chosen = np.hypot(*(shifts - middle).T) < tolerance
        if not chosen.any():
            return None
    middle = np.median(shifts[chosen], axis=0)
    return LinearTransform("shift", np.column_stack([middle, np.zeros((2, 2))]))


def _fit_affine(at: Points, shifts: Points, settings: CoregisterSettings) -> LinearTransform | None:
    from skimage.measure import ransac
    from skimage.transform import AffineTransform

    if len(at) < 3 or np.linalg.matrix_rank(at - at.mean(axis=0), tol=0.5 * settings.grid) < 2:
        return None

    def plausible(model: Any, *_: Any) -> bool:
        return bool(np.abs(model.params[:2, :2] - np.eye(2)).max() <= _LARGEST_STRETCH)

    with warnings.catch_warnings():
        # Three places on a line, and samples without a model, are drawn now and then.
        warnings.simplefilter("ignore")
        _, inlier = ransac(  # type: ignore[no-untyped-call]
            (at, at + shifts),
            AffineTransform,
            min_samples=3,
            residual_threshold=settings.tolerance,
            is_model_valid=plausible,
            max_trials=_TRIALS,
            stop_probability=_SURE,
            rng=np.random.Generator(np.random.Philox(settings.seed)),
        )
    if inlier is None:
        return None
    for _ in range(10):
        if inlier.sum() < 3:
            return None
        solved = np.linalg.lstsq(_terms(at[inlier]), shifts[inlier], rcond=None)[0]
        transform = LinearTransform("affine", solved.T)
        inlier = find_agreeing(transform, at, shifts, settings.tolerance)
    stretch = float(np.abs(transform.coefficients[:, 1:]).max())
    return transform if stretch <= _LARGEST_STRETCH else None


def split_ties(ties: Sequence[Displacement]) -> tuple[Points, Points]:
    """Return the places and the shifts of tie points, each of shape (tie, 2)."""
    at = np.array([(tie.row, tie.col) for tie in ties], float).reshape(-1, 2)
    return at, np.array([(tie.rows, tie.cols) for tie in ties], float).reshape(-1, 2)


def find_agreeing(transform: MovingTransform, at: Points, shifts: Points, tolerance: float) -> Mask:
    """Find the shifts within `tolerance` pixels of a transform's; bool, shape (tie,)."""
    return np.asarray(np.hypot(*(transform.shifts(at) - shifts).T) < tolerance)


def _terms(at: Points) -> Points:
    return np.column_stack([np.ones(len(at)), at])


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
    """A transform fitted to tie points, and how well they carry it.

    `refusal` says on one line why it cannot be used. `at`, `shifts` and `predicted`, shape (tie, 2), are
    places and shifts of the sure tie points, in pixels, and the shifts that fits to the points of other folds
    predict. `inlier` points are within the tolerance of the transform; `spread` is the share of the lattice's
    convex hull that theirs covers.
    """

    transform: MovingTransform | None
    refusal: str | None
    at: Points
    shifts: Points
    predicted: Points
    inlier: Mask
    spread: float

    def quality(self, size: tuple[float, float]) -> dict[str, Any]:
        """Return errors of the agreeing tie points before and after the transform, as JSON values.

        After: against fits that did not see them. Before: the same tie points, unmoved. `size` is the height
        and width of a pixel in metres.
        """
        known = np.isfinite(self.predicted).all(axis=1)
        chosen = self.inlier & known
        offsets = {"before": self.shifts, "after": self.shifts - self.predicted}
        return {
            "points": int(chosen.sum()),
            **{name: _summary(each[chosen], size) for name, each in offsets.items()},
            "all_sure_median_px": {name: _median(each[known]) for name, each in offsets.items()},
        }


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

    `lattice` holds the centres of all templates, shape (cell, 2), `radius` the pixels that were searched.
    """
    sure = [tie for tie in ties if tie.sure and np.isfinite([tie.rows, tie.cols]).all()]
    at, shifts = split_ties(sure)
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
    inlier = find_agreeing(transform, at, shifts, settings.tolerance)
    spread = _spread(at[inlier], lattice, settings.grid)
    thin = _too_few(inlier, spread, settings)
    if thin is not None:
        return Evidence(transform, thin, at, shifts, nothing[0], inlier, spread)
    predicted = _held_out(sure, transform, settings)
    reach = float(np.abs(transform.shifts(lattice)).max())
    refused = _too_loose(shifts - predicted, reach, settings, radius)
    return Evidence(transform, refused, at, shifts, predicted, inlier, spread)


def _too_few(inlier: Mask, spread: float, settings: CoregisterSettings) -> str | None:
    """Return why the tie points that agree are too few, or too close together; None if they are not."""
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
    """Return why a transform is not known well enough: by tie points left out, and by its reach; or None."""
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
    at, _ = split_ties(ties)
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
