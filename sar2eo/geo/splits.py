"""Splits: train, val and test by place, and the distances between them, measured.

The Earth is divided into squares of one size in an equal-area CRS; a hash of the seed and the square decides
on the split. So scenes that overlap agree, whichever run they come from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer
from scipy.spatial import cKDTree

from sar2eo.settings import PairsSettings

SPLITS = ("train", "val", "test")
BLOCK_CRS = "EPSG:6933"
"""NSIDC EASE-Grid 2.0 Global: cylindrical, equal-area, in metres."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """The splits of chips, in their order: the square that each lies in, its split, and whether it is kept.

    A chip is dropped that is too near to one of another split. `audit` holds counts, and the smallest
    distances measured among the chips that are kept.
    """

    block: list[str]
    split: list[str]
    kept: npt.NDArray[np.bool_]
    audit: dict[str, Any]


def name_blocks(lonlat: npt.NDArray[np.float64], block: float) -> list[str]:
    """Name the squares that points lie in: ``x_y``, counted from longitude and latitude 0.

    `lonlat` is in degrees, shape (point, 2); `block` is the side in metres of EPSG:6933, in which areas are
    those on the ground.
    """
    if not len(lonlat):
        return []
    lon = (lonlat[:, 0] + 180.0) % 360.0 - 180.0
    x, y = Transformer.from_crs("EPSG:4326", BLOCK_CRS, always_xy=True).transform(lon, lonlat[:, 1])
    cells = np.floor(np.stack([x, y], axis=1) / block).astype(int)
    return [f"{i}_{j}" for i, j in cells.tolist()]


def choose_split(block_name: str, *, val: float, test: float, seed: int) -> str:
    """Return the split of a square: "test", "val" or "train", as a hash decides that is uniform in 0 to 1."""
    digest = hashlib.sha256(f"{seed}/{block_name}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if drawn < test else "val" if drawn < test + val else "train"


def assign(corners: npt.NDArray[np.float64], settings: PairsSettings) -> Assignment:
    """Assign chips to splits, and drop those that are too near to chips of another.

    Training chips give way to all others, and validation chips to test chips; test chips stay. `corners` are
    longitude and latitude, shape (chip, 4, 2).
    """
    chips = Chips(corners)
    names = name_blocks(_centres_lonlat(chips), settings.block)
    by_block = {
        name: choose_split(name, val=settings.val, test=settings.test, seed=settings.seed)
        for name in set(names)
    }
    split = [by_block[name] for name in names]
    label = np.array(split, dtype=object)
    kept = np.ones(len(chips), dtype=bool)
    for ours, theirs in (("val", ["test"]), ("train", ["val", "test"])):
        mine = np.flatnonzero(label == ours)
        others = np.flatnonzero(np.isin(label, theirs) & kept)
        kept[mine[find_near(chips[mine], chips[others], settings.buffer)]] = False
    return Assignment(names, split, kept, _audit(chips, label, names, kept, settings))


def _centres_lonlat(chips: Chips) -> npt.NDArray[np.float64]:
    """Return centres through Earth-centred coordinates, which know no antimeridian."""
    to_lonlat = Transformer.from_crs("EPSG:4978", "EPSG:4326", always_xy=True)
    x, y, z = chips.centres[:, 0], chips.centres[:, 1], chips.centres[:, 2]
    lon, lat, _ = to_lonlat.transform(x, y, z)
    return np.stack([lon, lat], axis=1)


def _audit(
    chips: Chips,
    label: npt.NDArray[np.object_],
    names: list[str],
    kept: npt.NDArray[np.bool_],
    settings: PairsSettings,
) -> dict[str, Any]:
    parts = {split: chips[(label == split) & kept] for split in SPLITS}
    between = {
        f"{a}-{b}": measure_distance(parts[a], parts[b])
        for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
    }
    measured = [distance for distance in between.values() if distance is not None]
    taken = {names[at]: str(label[at]) for at in np.flatnonzero(kept).tolist()}
    blocks = Counter(taken.values())
    return {
        "chips": {split: len(parts[split]) for split in SPLITS},
        "blocks": {split: blocks[split] for split in SPLITS},
        "dropped_for_distance": {s: int(((label == s) & ~kept).sum()) for s in ("train", "val")},
        "smallest_distance_m": {"any": min(measured, default=None), **between},
        "buffer_m": settings.buffer,
        "block_m": settings.block,
        "block_crs": BLOCK_CRS,
        "val": settings.val,
        "test": settings.test,
        "seed": settings.seed,
    }


FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_EARTH_M = 6_371_008.8
_PLANE_M = 50_000.0
# Chips that share less of their area than this touch: a lattice is not exact to the last digit.
_TOUCHING = 1e-3
# Pairs of chips that are measured at once, or little more: about 1 kB each.
_AT_ONCE = 500_000


@dataclass(frozen=True, eq=False)
class Chips:
    """Quadrilaterals on the ellipsoid; `corners` are longitude and latitude in order, shape (chip, 4, 2)."""

    corners: FloatArray

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, chosen: npt.NDArray[np.integer] | BoolArray) -> Chips:
        return Chips(self.corners[chosen])

    @cached_property
    def distinct(self) -> tuple[Chips, npt.NDArray[np.intp]]:
        """Chips of different corners, and which of them each chip is; of many dates, one place is left."""
        flat, which = np.unique(self.corners.reshape(len(self), -1), axis=0, return_inverse=True)
        return Chips(flat.reshape(-1, *self.corners.shape[1:])), which.reshape(-1)

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


def find_near(chips: Chips, others: Chips, metres: float) -> BoolArray:
    """Find the chips nearer than `metres` to one of the others, or overlapping it; bool, shape (chip,)."""
    if not len(chips) or not len(others):
        return np.zeros(len(chips), dtype=bool)
    (ours, which), (theirs, _) = chips.distinct, others.distinct
    found = np.zeros(len(ours), dtype=bool)
    for left, right in _pairs(ours, theirs, metres + ours.radius + theirs.radius):
        distance, shared = _measure(ours, theirs, left, right)
        found[left[(distance < metres) | (shared > _TOUCHING)]] = True
    return np.asarray(found[which])


def measure_distance(chips: Chips, others: Chips) -> float | None:
    """Return the smallest distance in metres between one set of chips and another; None if one is empty."""
    if not len(chips) or not len(others):
        return None
    (ours, _), (theirs, _) = chips.distinct, others.distinct
    nearest, index = theirs.tree.query(ours.centres)
    best = int(nearest.argmin())
    bound, _ = _measure(ours, theirs, np.array([best]), np.array([int(index[best])]))
    # No pair with centres farther apart than this can be nearer than the pair just measured.
    pairs = _pairs(ours, theirs, float(bound[0]) + ours.radius + theirs.radius + 1.0)
    return min(float(_measure(ours, theirs, left, right)[0].min()) for left, right in pairs)


def _pairs(
    chips: Chips, others: Chips, metres: float
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Yield pairs of chips and others, as indexes, with centres no farther apart than `metres`."""
    counts = others.tree.query_ball_point(chips.centres, metres, return_length=True)
    runs = np.cumsum(counts) // _AT_ONCE
    for run in np.split(np.arange(len(chips)), np.flatnonzero(np.diff(runs)) + 1):
        if counts[run].any():
            lists = others.tree.query_ball_point(chips.centres[run], metres)
            right = np.array([at for found in lists for at in found], dtype=np.intp)
            yield np.repeat(run, counts[run]), right


def _measure(
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
