"""Distances on the ground between chips, wherever on Earth they lie.

Chips are found by their centres in Earth-centred coordinates, which know neither an antimeridian nor
poles, and measured in the plane that touches the ellipsoid at one of the two: over 50 km that is wrong by
less than a metre, over 5 km by less than a millimetre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer
from scipy.spatial import cKDTree

__all__ = ["Chips", "near", "smallest_distance"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_EARTH_M = 6_371_008.8
_PLANE_M = 50_000.0
# Chips that share less of their area than this touch: a lattice is not exact to the last digit.
_TOUCHING = 1e-3


@dataclass(frozen=True, eq=False)
class Chips:
    """Quadrilaterals on the ellipsoid.

    Parameters
    ----------
    corners : ndarray of float64, shape (chip, 4, 2)
        Longitude and latitude in degrees, in order around the chip.
    """

    corners: FloatArray

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, chosen: npt.NDArray[np.integer] | BoolArray) -> Chips:
        return Chips(self.corners[chosen])

    @cached_property
    def points(self) -> FloatArray:
        """Corners in Earth-centred metres, shape (chip, 4, 3)."""
        to_earth = Transformer.from_crs("EPSG:4326", "EPSG:4978", always_xy=True)
        lon, lat = self.corners[..., 0], self.corners[..., 1]
        return np.stack(to_earth.transform(lon, lat, np.zeros_like(lon)), axis=-1)

    @cached_property
    def centres(self) -> FloatArray:
        """Means of the corners in Earth-centred metres, shape (chip, 3)."""
        return np.asarray(self.points.mean(axis=1))

    @cached_property
    def radius(self) -> float:
        """Largest distance of a corner from its chip's centre, in metres; 0 without chips."""
        offsets = self.points - self.centres[:, None]
        return float(np.linalg.norm(offsets, axis=-1).max(initial=0.0))

    @cached_property
    def tree(self) -> cKDTree:
        """Index of the centres."""
        return cKDTree(self.centres)


def near(chips: Chips, others: Chips, metres: float) -> BoolArray:
    """Tell which chips are nearer than `metres` to one of the others, or share ground with it.

    Returns
    -------
    ndarray of bool, shape (chip,)
    """
    found = np.zeros(len(chips), dtype=bool)
    if not len(chips) or not len(others):
        return found
    left, right = _pairs(chips, others, metres + chips.radius + others.radius)
    distance, shared = _measured(chips, others, left, right)
    found[left[(distance < metres) | (shared > _TOUCHING)]] = True
    return found


def smallest_distance(chips: Chips, others: Chips) -> float | None:
    """Return the smallest distance in metres between one set of chips and another; None if one is empty."""
    if not len(chips) or not len(others):
        return None
    reach = chips.radius + others.radius
    nearest, index = others.tree.query(chips.centres)
    best = int(nearest.argmin())
    bound, _ = _measured(chips, others, np.array([best]), np.array([int(index[best])]))
    # No pair with centres farther apart than this can be nearer than the pair just measured.
    left, right = _pairs(chips, others, float(bound[0]) + reach + 1.0)
    distance, _ = _measured(chips, others, left, right)
    return float(distance.min())


def _pairs(chips: Chips, others: Chips, metres: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Index pairs of chips and others with centres no farther apart than `metres`."""
    lists = others.tree.query_ball_point(chips.centres, metres)
    counts = np.array([len(found) for found in lists], dtype=np.intp)
    left = np.repeat(np.arange(len(chips)), counts)
    right = np.array([at for found in lists for at in found], dtype=np.intp)
    return left, right


def _measured(
    chips: Chips, others: Chips, left: npt.NDArray[np.intp], right: npt.NDArray[np.intp]
) -> tuple[FloatArray, FloatArray]:
    """Distances in metres of pairs of chips, and the share of the smaller one that both cover."""
    origin = chips.centres[left]
    up = origin / np.linalg.norm(origin, axis=-1, keepdims=True)
    # Any two directions across `up` will do: distances do not care where east is.
    helper = np.where(np.abs(up[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    east = np.cross(helper, up)
    east /= np.linalg.norm(east, axis=-1, keepdims=True)
    north = np.cross(up, east)

    def flat(points: FloatArray) -> npt.NDArray[np.object_]:
        offsets = points - origin[:, None]
        plane = np.stack([(offsets * east[:, None]).sum(-1), (offsets * north[:, None]).sum(-1)], axis=-1)
        polygons: npt.NDArray[np.object_] = shapely.polygons(plane)
        return polygons

    ours, theirs = flat(chips.points[left]), flat(others.points[right])
    distance = shapely.distance(ours, theirs)
    smaller = np.minimum(shapely.area(ours), shapely.area(theirs))
    shared = np.where(distance == 0, shapely.area(shapely.intersection(ours, theirs)) / smaller, 0.0)
    far = distance > _PLANE_M
    if far.any():
        ends = chips.points[left[far]][:, :, None] - others.points[right[far]][:, None]
        chord = np.linalg.norm(ends, axis=-1).min(axis=(1, 2))
        distance[far] = 2 * _EARTH_M * np.arcsin(np.minimum(chord / (2 * _EARTH_M), 1.0))
    return distance, shared
