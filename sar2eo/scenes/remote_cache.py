"""Stored blocks of remote rasters, kept for a while: each is transferred once, whichever windows share it.

GDAL's own cache belongs to a handle, and there is a handle for each thread; and of an image in strips, every
window would transfer the strips anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from sar2eo.geo.windows import Window

__all__ = ["CACHE_BYTES", "read_blocks"]

CACHE_BYTES = 128 * 2**20
"""In each process: a row of blocks of a wide scene in two polarisations."""

Planes = tuple[npt.NDArray[np.generic], ...]
"""Arrays of different types, and shape (plane, row, col), of one window."""

_kept: OrderedDict[Hashable, Planes] = OrderedDict()
_lock = threading.Lock()
_fetching: dict[Hashable, threading.Lock] = {}


def read_blocks(
    name: Hashable,
    window: Window,
    shape: tuple[int, int],
    block_shape: tuple[int, int],
    read: Callable[[Window], Planes],
) -> Planes:
    """Read a window from blocks that are kept, and those that are not in as few pieces as can be.

    Parameters
    ----------
    name : hashable
        Of what is read: files, their content, bands.
    window : Window
        Rows and columns inside of `shape`.
    shape, block_shape : tuple of int
        Rows and columns of the whole, and of its blocks.
    read : callable
        Reads a window of whole blocks; by one thread at a time.
    """
    high, wide = block_shape
    places = [
        Window(row, col, min(high, shape[0] - row), min(wide, shape[1] - col))
        for row in range(window.row // high * high, window.stop_row, high)
        for col in range(window.col // wide * wide, window.stop_col, wide)
    ]
    found = _found(name, places)
    if len(found) < len(places):
        with _lock:
            fetching = _fetching.setdefault(name, threading.Lock())
        with fetching:
            # Another thread may have fetched them while this one waited.
            found |= _found(name, [place for place in places if place not in found])
            missing = [place for place in places if place not in found]
            if missing:
                found |= _fetched(name, missing, read)
    return _cut(window, found)


def _fetched(
    name: Hashable, missing: Sequence[Window], read: Callable[[Window], Planes]
) -> dict[Window, Planes]:
    blocks = {}
    for area in _rectangles(missing):
        planes = read(area)
        for place in missing:
            if area.intersection(place) is not None:
                rows, cols = place.shifted(-area.row, -area.col).slices
                blocks[place] = tuple(plane[:, rows, cols].copy() for plane in planes)
    _keep(name, blocks)
    return blocks


def _rectangles(blocks: Sequence[Window]) -> list[Window]:
    """Join blocks, in order of rows and columns, to few rectangles that hold nothing else."""
    runs: list[Window] = []
    for block in blocks:
        last = runs[-1] if runs else None
        if last is not None and (last.row, last.stop_col) == (block.row, block.col):
            runs[-1] = last._replace(width=last.width + block.width)
        else:
            runs.append(block)
    joined: list[Window] = []
    for run in runs:
        above = [w for w in joined if (w.stop_row, w.col, w.width) == (run.row, run.col, run.width)]
        if above:
            joined[joined.index(above[0])] = above[0]._replace(height=above[0].height + run.height)
        else:
            joined.append(run)
    return joined


def _found(name: Hashable, places: Sequence[Window]) -> dict[Window, Planes]:
    with _lock:
        found = {place: _kept[name, place] for place in places if (name, place) in _kept}
        for place in found:
            _kept.move_to_end((name, place))
    return found


def _keep(name: Hashable, blocks: dict[Window, Planes]) -> None:
    with _lock:
        for place, planes in blocks.items():
            _kept[name, place] = planes
        size = sum(plane.nbytes for planes in _kept.values() for plane in planes)
        while size > CACHE_BYTES:
            size -= sum(plane.nbytes for plane in _kept.popitem(last=False)[1])


def _cut(window: Window, blocks: dict[Window, Planes]) -> Planes:
    kinds = next(iter(blocks.values()))
    out = tuple(np.empty((len(kind), window.height, window.width), kind.dtype) for kind in kinds)
    for place, planes in blocks.items():
        common = window.intersection(place)
        assert common is not None  # noqa: S101  (only blocks that touch are looked for)
        there = common.shifted(-window.row, -window.col).slices
        here = common.shifted(-place.row, -place.col).slices
        for target, plane in zip(out, planes, strict=True):
            target[:, *there] = plane[:, *here]
    return out
