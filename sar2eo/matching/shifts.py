"""Local shifts of a SAR scene against an EO scene, and the smooth drift that explains them.

A shift (rows, cols): what the EO image shows at pixel (r, c) lies in the SAR image at (r + rows, c + cols).

Two smooth effects move a SAR scene against an EO scene: an imperfect geolocation, which a polynomial of
low order describes, and the height of the ground, which moves a scene that is not terrain-corrected
along its range and which no polynomial describes. So the candidates are polynomials of order 0 to 2
and thin-plate splines of growing freedom, and the evidence chooses: each local shift is predicted from
those that share no pixel with it, and a higher order must predict clearly better than a lower one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

FloatArray = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Model = Callable[[Points], Points]

_ORDERS = (0, 1, 2)
# Bending penalties of the splines, from stiff to free, in units of _UNIT.
_PENALTIES = (0.1, 0.03, 0.01, 0.003)
_UNIT = 4096.0
# Pixels: a local shift that is off by less than the first counts as right; errors are capped at the second.
_NEAR = 3.0
_FAR = 6.0
# A local shift has support if so many of its nearest neighbours differ from it by at most this many pixels.
# Support is local so that a part of a scene that moves differently, such as a mountain, also counts.
_NEIGHBOURS, _SUPPORT, _SUPPORT_PX = 8, 3, 4.0
# A higher order must bring the error of prediction down to this share of the lower one's.
_BETTER = 0.95
# No drift is fitted to fewer sure local shifts, to a smaller share of them in agreement, or where predictions
# are off by more than this many pixels.
_LEAST = 8
_LEAST_SHARE = 0.5
_LEAST_SURE_PX = 2.5
# Least number of places for a spline.
_LEAST_SPLINE = 20
# Held-out predictions at the most, and draws of the bootstrap.
_HELD_OUT = 80
_RESAMPLES = 20
# Weight of local shifts that do not count.
_TRACE = 1e-6


class LocalShift(NamedTuple):
    """Shift in pixels by which a neighbourhood of an EO image lies in the SAR image, and how sure it is."""

    rows: float
    cols: float
    score: float
    sure: bool


@dataclass(frozen=True)
class Displacement:
    """A `LocalShift`, and the centre of its neighbourhood in pixels of the SAR scene's grid."""

    row: float
    col: float
    rows: float
    cols: float
    score: float
    sure: bool


@dataclass(frozen=True)
class _Family:
    """Models of one stiffness: a polynomial, or a thin-plate spline where there is a penalty."""

    order: int
    penalty: float | None = None

    @property
    def name(self) -> int | str:
        """Order of the polynomial, or "spline"."""
        return self.order if self.penalty is None else "spline"

    def can_fit(self, at: Points) -> bool:
        """Whether there are twice as many places (point, 2) as the model needs, and not on one line."""
        if self.penalty is None:
            return len(at) >= (self.order + 1) * (self.order + 2)
        return len(at) >= _LEAST_SPLINE and np.linalg.matrix_rank(at - at.mean(axis=0), tol=1e-3) == 2

    def fit(self, at: Points, shifts: Points, weights: npt.NDArray[np.float64]) -> Model:
        """Fit to shifts (point, 2) at places (point, 2), by weighted least squares."""
        if self.penalty is None:
            terms, root = _terms(at, self.order), np.sqrt(weights)[:, None]
            # Places on one line leave some terms open: take the smallest solution.
            solved = np.linalg.lstsq(terms * root, shifts * root, rcond=1e-9)[0]
            return lambda places: np.asarray(_terms(places, self.order) @ solved)
        spline = RBFInterpolator(
            at, shifts, smoothing=self.penalty / weights, kernel="thin_plate_spline", degree=1
        )
        return lambda places: np.asarray(spline(places))


_FAMILIES = (*(_Family(order) for order in _ORDERS), *(_Family(1, penalty) for penalty in _PENALTIES))


@dataclass(frozen=True)
class SceneDrift:
    """The smooth shift of one SAR scene against one EO scene.

    Parameters
    ----------
    order : int or "spline"
        Order of the polynomial, or a thin-plate spline.
    model : callable
        Places (place, 2), in units of 4096 pixels, to shifts (place, 2) in pixels.
    bounds : ndarray of float64, shape (2, 2)
        Smallest and largest row and column of the neighbourhoods used, in pixels.
    residual_px : float
        Median distance of the local shifts used from the model.
    predicted_px : float
        Median distance of a local shift from its prediction by those that share no pixel with it.
    uncertainty_px : float
        Standard deviation of the model by bootstrap, median over the places measured.
    used, of : int
        Number of local shifts that the model fits, and of all measured.
    family : object
        Order and stiffness, for `predict_shifts`.
    """

    order: int | str
    model: Model
    bounds: Points
    residual_px: float
    predicted_px: float
    uncertainty_px: float
    used: int
    of: int
    family: _Family

    def at(self, row: float, col: float) -> tuple[float, float]:
        """Return the shift (rows, cols) at a place, in pixels; outside the bounds that of the edge."""
        rows, cols = self.shifts(np.array([[row, col]], float))[0]
        return float(rows), float(cols)

    def shifts(self, places: Points) -> Points:
        """Return the shifts (place, 2) at places (place, 2), as `at` does."""
        return self.model(np.clip(places, self.bounds[0], self.bounds[1]) / _UNIT)

    def facts(self) -> dict[str, Any]:
        """Return order (0 to 2, or "spline"), residual_px, predicted_px, uncertainty_px, used and of."""
        return {
            "order": self.order,
            "residual_px": round(self.residual_px, 3),
            "predicted_px": round(self.predicted_px, 3),
            "uncertainty_px": round(self.uncertainty_px, 3),
            "used": self.used,
            "of": self.of,
        }


class Aligner(Protocol):
    """Finds local shifts between a SAR and an EO image, and the drift that explains them.

    An aligner with an attribute ``polarisations`` gets these, in this order, instead of their mean, and the
    EO image's colours. A method ``fits_gsd`` is asked whether pixels of these sizes on the ground, in metres,
    suit it.
    """

    neighbourhood_px: int
    """Side of the square images that `displacement` takes."""

    def displacement(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find the shift of one neighbourhood, of amplitude and grey values; NaN where invalid.

        With polarisations, shapes are (polarisation, row, col) and (row, col, 3), else (row, col).
        """
        ...

    def drift(self, displacements: Sequence[Displacement]) -> SceneDrift | None:
        """Fit the drift of one scene pair; None if too few shifts agree."""
        ...


def fit_drift(
    displacements: Sequence[Displacement], *, apart_px: float, seed: int = 2025
) -> SceneDrift | None:
    """Fit the smooth shift of a scene to the sure ones of local shifts, some of which are wrong.

    Local shifts at least `apart_px`, the side of the neighbourhoods, apart share no pixel; the bootstrap has
    a seed. None if too few shifts are sure, too few of them agree, or predictions are off by too much.
    """
    sure = [d for d in displacements if d.sure and np.isfinite([d.rows, d.cols]).all()]
    if len(sure) < _LEAST:
        return None
    at = np.array([(d.row, d.col) for d in sure], float) / _UNIT
    shifts = np.array([(d.rows, d.cols) for d in sure], float)
    supported = _find_supported(at, shifts)
    if supported.sum() < max(_LEAST, _LEAST_SHARE * len(sure)):
        return None
    start = np.where(supported, 1.0, _TRACE)
    best, least = None, np.inf
    for family in _FAMILIES:
        if not family.can_fit(at):
            continue
        model, weights = _fit_robustly(family, at, shifts, start)
        errors = _predict_held_out(family, at, shifts, weights, apart_px / _UNIT)
        # Shifts without support are far from every model, and would make all models look alike.
        known = errors[supported & np.isfinite(errors)]
        error = float(np.sqrt(np.mean(np.minimum(known, _FAR) ** 2))) if known.size else np.inf
        # Splines differ only in stiffness: among them the best, by however little.
        if best is None or error < least * (1 if best[0].penalty else _BETTER):
            best, least = (family, model, weights, errors), error
    return None if best is None else _assess(*best, at, shifts, len(displacements), apart_px, seed)


def predict_shifts(displacements: Sequence[Displacement], drift: SceneDrift, places: Points) -> Points:
    """Predict shifts at places, shape (place, 2), by a model of the same order and stiffness as a drift's.

    Places are rows and columns in pixels. The local shifts may be others than the drift was fitted to. NaN if
    there are too few.
    """
    at = np.array([(d.row, d.col) for d in displacements], float).reshape(-1, 2) / _UNIT
    shifts = np.array([(d.rows, d.cols) for d in displacements], float).reshape(-1, 2)
    if len(at) < _LEAST or not drift.family.can_fit(at):
        return np.full_like(places, np.nan)
    model, _ = _fit_robustly(drift.family, at, shifts, np.where(_find_supported(at, shifts), 1.0, _TRACE))
    return model(np.clip(places, drift.bounds[0], drift.bounds[1]) / _UNIT)


def _terms(at: Points, order: int) -> Points:
    return np.stack(
        [at[:, 0] ** i * at[:, 1] ** j for i in range(order + 1) for j in range(order + 1 - i)], 1
    )


def _distances(model: Model, at: Points, shifts: Points) -> npt.NDArray[np.float64]:
    return np.asarray(np.hypot(*(model(at) - shifts).T))


def _find_supported(at: Points, shifts: Points) -> npt.NDArray[np.bool_]:
    """Return which shifts are similar to enough of their neighbours."""
    _, near = cKDTree(at).query(at, k=_NEIGHBOURS)
    # The nearest of all is the place itself.
    apart = np.hypot(*np.moveaxis(shifts[near[:, 1:]] - shifts[:, None], 2, 0))
    return np.asarray((apart < _SUPPORT_PX).sum(axis=1) >= _SUPPORT)


def _fit_robustly(
    family: _Family, at: Points, shifts: Points, weights: npt.NDArray[np.float64]
) -> tuple[Model, npt.NDArray[np.float64]]:
    """Fit with weights that fall with the distance from the fit, until they agree (Geman-McClure)."""
    for _ in range(8):
        model = family.fit(at, shifts, weights)
        distances = _distances(model, at, shifts)
        scale = max(1.5 * float(np.median(distances[weights > _TRACE])), _NEAR)
        weights = np.maximum((1 + (distances / scale) ** 2) ** -2.0, _TRACE)
    return family.fit(at, shifts, weights), weights


def _predict_held_out(
    family: _Family, at: Points, shifts: Points, weights: npt.NDArray[np.float64], apart: float
) -> npt.NDArray[np.float64]:
    """Return the distance of shifts from predictions by those that share no pixel with them, or NaN."""
    errors = np.full(len(at), np.nan)
    for one in np.unique(np.linspace(0, len(at) - 1, min(_HELD_OUT, len(at))).round().astype(int)):
        far = np.abs(at - at[one]).max(axis=1) >= apart - 1e-9
        if family.can_fit(at[far]):
            model = family.fit(at[far], shifts[far], weights[far])
            errors[one] = _distances(model, at[one : one + 1], shifts[one : one + 1])[0]
    return errors


def _assess(
    family: _Family,
    model: Model,
    weights: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    at: Points,
    shifts: Points,
    of: int,
    apart_px: float,
    seed: int,
) -> SceneDrift | None:
    """Measure the uncertainty of a model; None if it is too large."""
    distances = _distances(model, at, shifts)
    used = distances < _NEAR
    known = errors[np.isfinite(errors)]
    predicted = float(np.median(known)) if known.size else np.inf
    if used.sum() < max(_LEAST, _LEAST_SHARE * len(at)) or not predicted <= _LEAST_SURE_PX:
        return None
    draw, again = np.random.Generator(np.random.Philox(seed)), []
    for _ in range(_RESAMPLES):
        # Each point counts as often as it is drawn; never drawn, it keeps a trace of weight.
        counts = np.bincount(draw.integers(len(at), size=len(at)), minlength=len(at))
        again.append(family.fit(at, shifts, np.maximum(weights * counts, _TRACE))(at))
    deviation = np.sqrt(np.var(again, axis=0).sum(axis=1))
    return SceneDrift(
        order=family.name,
        model=model,
        bounds=_UNIT * np.array([at[used].min(axis=0), at[used].max(axis=0)])
        + np.array([[-apart_px / 2], [apart_px / 2]]),
        residual_px=float(np.median(distances[used])),
        predicted_px=predicted,
        uncertainty_px=float(np.median(deviation)),
        used=int(used.sum()),
        of=of,
        family=family,
    )
