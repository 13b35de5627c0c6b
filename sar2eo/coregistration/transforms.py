"""Transforms that tie points are fitted by, some of which are wrong.

Shifts are of pixels of the reference's grid: what the reference shows at (row, col) is found `rows` and
`cols` farther in the moving scene.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sar2eo.matching.shifts import Displacement, SceneDrift, fit_drift
from sar2eo.settings import CoregisterSettings

__all__ = ["FieldTransform", "LinearTransform", "MovingTransform", "arrays_of", "fit_transform", "near"]

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# More stretch, turn or shear than this is no misregistration.
_LARGEST_STRETCH = 0.02
# Where half are right, one sample in eight is; these fail once in 1e29.
_TRIALS = 500
_SURE = 0.99999


class MovingTransform(Protocol):
    """Where the reference's pixels are found in the moving scene."""

    def shifts(self, places: Points) -> Points:
        """Return shifts (place, 2) in pixels at places (place, 2), rows and columns of the reference."""
        ...

    def facts(self) -> dict[str, Any]:
        """Say what it is, as JSON values."""
        ...


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """One shift for all, or an affine transform.

    Parameters
    ----------
    kind : {"shift", "affine"}
    coefficients : ndarray of float64, shape (2, 3)
        Shift of rows and of columns: constant, per row, per column.
    """

    kind: str
    coefficients: Points

    def shifts(self, places: Points) -> Points:
        """See `MovingTransform`."""
        return np.asarray(_terms(places) @ self.coefficients.T)

    def facts(self) -> dict[str, Any]:
        """See `MovingTransform`: rows and cols hold the constant, the part per row, and per column."""
        rows, cols = self.coefficients.tolist()
        return {"kind": self.kind, "rows": rows, "cols": cols}


@dataclass(frozen=True, eq=False)
class FieldTransform:
    """A smooth field of shifts; beyond what was measured, that of its edge.

    Parameters
    ----------
    drift : SceneDrift
    """

    drift: SceneDrift

    def shifts(self, places: Points) -> Points:
        """See `MovingTransform`."""
        return self.drift.shifts(places)

    def facts(self) -> dict[str, Any]:
        """See `MovingTransform`: order (0 to 2, or "spline") and residuals."""
        return {"kind": "local", **self.drift.facts()}


def fit_transform(ties: Sequence[Displacement], settings: CoregisterSettings) -> MovingTransform | None:
    """Fit a transform to tie points of which some are wrong.

    Parameters
    ----------
    ties : sequence of Displacement
        Sure ones.
    settings : CoregisterSettings
        Transform, tolerance, grid and seed are used.

    Returns
    -------
    MovingTransform or None
        A shift is the median of the largest agreement; an affine transform is fitted by least squares to
        the largest agreement that RANSAC finds (Fischler and Bolles, CACM 24(6), 1981); for a field see
        `sar2eo.matching.shifts.fit_drift`. None where there is none.
    """
    if settings.transform == "local":
        drift = fit_drift(ties, apart_px=settings.grid, seed=settings.seed)
        return None if drift is None else FieldTransform(drift)
    at, shifts = arrays_of(ties)
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
        inlier = near(transform, at, shifts, settings.tolerance)
    stretch = float(np.abs(transform.coefficients[:, 1:]).max())
    return transform if stretch <= _LARGEST_STRETCH else None


def arrays_of(ties: Sequence[Displacement]) -> tuple[Points, Points]:
    """Return the places and the shifts of tie points, each of shape (tie, 2)."""
    at = np.array([(tie.row, tie.col) for tie in ties], float).reshape(-1, 2)
    return at, np.array([(tie.rows, tie.cols) for tie in ties], float).reshape(-1, 2)


def near(transform: MovingTransform, at: Points, shifts: Points, tolerance: float) -> Mask:
    """Tell which shifts are within the tolerance, in pixels, of a transform's."""
    return np.asarray(np.hypot(*(transform.shifts(at) - shifts).T) < tolerance)


def _terms(at: Points) -> Points:
    return np.column_stack([np.ones(len(at)), at])
