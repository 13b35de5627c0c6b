"""Which split a chip belongs to: by its place alone, and with a proof that splits keep their distance.

The Earth is divided into cells of one size in an equal-area CRS; a hash of the seed and the cell says
which split it is. So scenes that overlap agree, whichever run they come from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from sar2eo.pairs.distances import Chips, near, smallest_distance
from sar2eo.recipe import PairsSettings

__all__ = ["SPLITS", "Assignment", "assign", "block_names", "split_of"]

SPLITS = ("train", "val", "test")
BLOCK_CRS = "EPSG:6933"
"""NSIDC EASE-Grid 2.0 Global: cylindrical, equal-area, in metres."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Where chips belong.

    Attributes
    ----------
    block : list of str
        The cell of place of every chip.
    split : list of str
        "train", "val" or "test", as the hash of the block says.
    kept : ndarray of bool
        Whether a chip keeps its distance from chips of other splits.
    audit : dict
        Counts, and the smallest distances measured among the chips that are kept.
    """

    block: list[str]
    split: list[str]
    kept: npt.NDArray[np.bool_]
    audit: dict[str, Any]


def block_names(lonlat: npt.NDArray[np.float64], block: float) -> list[str]:
    """Name the cell of place of points.

    Parameters
    ----------
    lonlat : ndarray of float64, shape (point, 2)
        Longitude and latitude in degrees.
    block : float
        Side of a cell in metres of EPSG:6933; its area on the ground is the square of it everywhere.

    Returns
    -------
    list of str
        ``x_y``, counted from longitude and latitude 0.
    """
    if not len(lonlat):
        return []
    lon = (lonlat[:, 0] + 180.0) % 360.0 - 180.0
    x, y = Transformer.from_crs("EPSG:4326", BLOCK_CRS, always_xy=True).transform(lon, lonlat[:, 1])
    cells = np.floor(np.stack([x, y], axis=1) / block).astype(int)
    return [f"{i}_{j}" for i, j in cells.tolist()]


def split_of(block_name: str, *, val: float, test: float, seed: int) -> str:
    """Return the split of a cell of place: "test" below `test`, "val" below `test` + `val`, else "train".

    What is compared is a hash of the seed and the cell, uniform in 0 to 1.
    """
    digest = hashlib.sha256(f"{seed}/{block_name}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if drawn < test else "val" if drawn < test + val else "train"


def assign(corners: npt.NDArray[np.float64], settings: PairsSettings) -> Assignment:
    """Assign chips to splits, and drop those that are too near to chips of another.

    Training chips give way to all others, and validation chips to test chips; test chips stay.

    Parameters
    ----------
    corners : ndarray of float64, shape (chip, 4, 2)
        Longitude and latitude.
    settings : PairsSettings
        Block, val, test, buffer and seed are used.
    """
    chips = Chips(corners)
    names = block_names(_centres_lonlat(chips), settings.block)
    by_block = {
        name: split_of(name, val=settings.val, test=settings.test, seed=settings.seed) for name in set(names)
    }
    split = [by_block[name] for name in names]
    label = np.array(split, dtype=object)
    kept = np.ones(len(chips), dtype=bool)
    for ours, theirs in (("val", ["test"]), ("train", ["val", "test"])):
        mine = np.flatnonzero(label == ours)
        others = np.flatnonzero(np.isin(label, theirs) & kept)
        kept[mine[near(chips[mine], chips[others], settings.buffer)]] = False
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
        f"{a}-{b}": smallest_distance(parts[a], parts[b])
        for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
    }
    measured = [distance for distance in between.values() if distance is not None]
    taken = {names[at]: str(label[at]) for at in np.flatnonzero(kept).tolist()}
    blocks = Counter(taken.values())
    return {
        "chips": {split: len(parts[split]) for split in SPLITS},
        "blocks": {split: blocks[split] for split in SPLITS},
        "dropped_for_distance": {s: int(((label == s) & ~kept).sum()) for s in ("train", "val")},
        "smallest_distance_m": {
            "any": min(measured, default=None),
            **between,
        },
        "buffer_m": settings.buffer,
        "block_m": settings.block,
        "block_crs": BLOCK_CRS,
        "val": settings.val,
        "test": settings.test,
        "seed": settings.seed,
    }
