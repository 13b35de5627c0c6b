"""Thin-plate splines through scattered points, evaluated the same way wherever and however often.

SciPy has them too (`scipy.interpolate.RBFInterpolator`), but evaluates by a matrix product whose last
bits depend on how many points are asked for at once; a window of a scene must not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sar2eo.errors import GeoreferenceError

__all__ = ["ThinPlateSpline"]

Array = npt.NDArray[np.float64]

_POINTS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class ThinPlateSpline:
    """A smooth function of the plane through given points: of all of them, the least bent.

    ``f(p) = sum_k w_k phi(|p - p_k|) + a + b . p`` with ``phi(r) = r^2 log r`` (Duchon 1977;
    Wahba, Spline Models for Observational Data, 1990, section 2.4).

    Parameters
    ----------
    centre : ndarray, shape (2,)
        Subtracted from points before use.
    scale : float
        Points are divided by it.
    knots : ndarray, shape (point, 2)
        Normalised points.
    weights : ndarray, shape (point + 3, value)
        Of the radial functions, then of 1 and the two coordinates.
    """

    centre: Array
    scale: float
    knots: Array
    weights: Array

    @classmethod
    def fit(cls, points: Array, values: Array) -> ThinPlateSpline:
        """Fit a spline that takes the given values at the given points.

        Parameters
        ----------
        points : ndarray, shape (point, 2)
            At least three; of equal points the first counts.
        values : ndarray, shape (point, value)
            One row per point.

        Raises
        ------
        GeoreferenceError
            If all points lie on one line.
        """
        _, first = np.unique(points, axis=0, return_index=True)
        points, values = points[np.sort(first)], values[np.sort(first)]
        centre = points.mean(axis=0)
        scale = float(np.abs(points - centre).max()) or 1.0
        knots = (points - centre) / scale
        spread = np.linalg.svd(knots, compute_uv=False)
        if len(knots) < 3 or spread[-1] < 1e-6 * spread[0]:
            raise GeoreferenceError(f"{len(knots)} different ground control points on one line place nothing")
        n = len(knots)
        plane = np.column_stack([np.ones(n), knots])
        system = np.zeros((n + 3, n + 3))
        system[:n, :n] = _radial(knots, knots)
        system[:n, n:], system[n:, :n] = plane, plane.T
        weights = np.linalg.solve(system, np.vstack([values, np.zeros((3, values.shape[1]))])).astype(
            np.float64
        )
        return cls(centre, scale, knots, weights)

    def __call__(self, points: Array) -> Array:
        """Evaluate at points of shape (point, 2); returns shape (point, value)."""
        out = np.empty((len(points), self.weights.shape[1]))
        for start in range(0, len(points), _POINTS_AT_ONCE):
            part = (points[start : start + _POINTS_AT_ONCE] - self.centre) / self.scale
            radial = _radial(self.knots, part)  # (knot, point)
            for value, weight in enumerate(self.weights.T):
                # Summed knot by knot: the same additions in the same order for every point.
                total = weight[-3] + weight[-2] * part[:, 0] + weight[-1] * part[:, 1]
                for w, phi in zip(weight[:-3], radial, strict=True):
                    total = total + w * phi
                out[start : start + len(part), value] = total
        return out


def _radial(a: Array, b: Array) -> Array:
    """``r^2 log r`` between all points of `a` and all of `b`; 0 where they coincide."""
    squared = (a[:, None, 0] - b[None, :, 0]) ** 2 + (a[:, None, 1] - b[None, :, 1]) ** 2
    safe = np.where(squared > 0, squared, 1.0)
    return np.asarray(0.5 * squared * np.log(safe), dtype=np.float64)
