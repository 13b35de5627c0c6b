"""The reader under a lazy scene: reads any window of it, always in the same way."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@runtime_checkable
class SceneReader(Protocol):
    """Read windows of one scene.

    A reader is small, can be pickled, and may be used from several threads at once. Reading in pieces equals
    reading whole, bit for bit.

    Attributes
    ----------
    grid : Grid
        Place and shape of the whole scene.
    polarisations : tuple of str
        Names of the first axis.
    block_shape : tuple of int
        Rows and columns of a storage block, the natural unit of reading.
    """

    grid: Grid
    polarisations: tuple[str, ...]
    block_shape: tuple[int, int]

    @abstractmethod
    def read(self, window: Window) -> FloatArray:
        """Read a window that lies inside the grid.

        Returns
        -------
        ndarray of float32, shape (polarisation, row, col)
            NaN where there is no data.
        """
        ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return JSON values that change whenever the values or the place of the scene change."""
        ...

    def read_validity(self, longest: int) -> BoolArray:
        """Read which pixels are valid, decimated to `longest` cells; each has the pixel at its middle."""
        shape = self.grid.shape
        rows, cols = (cell_middles(size, longest, shape) for size in shape)
        lines = [self.read(Window(int(row), 0, 1, shape[1]))[:, 0, cols] for row in rows]
        return np.stack([np.isfinite(line).all(axis=0) for line in lines])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Polarisations, rows and columns."""
        return (len(self.polarisations), *self.grid.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Always float32."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    def __getitem__(self, key: Any) -> FloatArray:
        """Read by basic slicing, as NumPy does: integers, slices with any step, an ellipsis."""
        band, row, col = _full_key(key, self.ndim)
        top, height, rows = _span(row, self.shape[1])
        left, width, cols = _span(col, self.shape[2])
        if height == 0 or width == 0:
            block = np.empty((self.shape[0], height, width), dtype=np.float32)
        else:
            block = self.read(Window(top, left, height, width))
        found: FloatArray = block[band, rows, cols]
        return found


class WrappingReader(SceneReader):
    """Read another reader's pixels, changed one by one: same place, shape and blocks."""

    source: SceneReader

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """That of the source."""
        return self.source.grid

    @property
    def polarisations(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the source."""
        return self.source.polarisations

    @property
    def block_shape(self) -> tuple[int, int]:  # type: ignore[override]
        """That of the source."""
        return self.source.block_shape


def decimated_shape(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Return rows and columns of a scene in cells, `longest` of them along the longer side at most."""
    rows, cols = (max(1, round(size * min(1.0, longest / max(shape)))) for size in shape)
    return rows, cols


def cell_middles(size: int, longest: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the pixels of an axis of `size` at the middles of the cells of `decimated_shape`."""
    count = max(1, round(size * min(1.0, longest / max(shape))))
    return ((np.arange(count) + 0.5) * size / count).astype(np.int64)


def _full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    parts = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    parts += [slice(None)] * (ndim - len(parts))
    if len(parts) != ndim or not all(isinstance(p, slice | int | np.integer) for p in parts):
        raise IndexError(f"{key!r}: a scene is indexed by at most {ndim} integers or slices")
    return tuple(parts)


def _span(part: Any, size: int) -> tuple[int, int, Any]:
    """Return the first pixel and the count to read along an axis, and the index into what was read."""
    if isinstance(part, slice):
        chosen = range(*part.indices(size))
        if not chosen:
            return 0, 0, slice(0, 0)
        first, last = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
        return first, last - first + 1, slice(None, None, chosen.step)
    index = int(part) + (size if part < 0 else 0)
    if not 0 <= index < size:
        raise IndexError(f"index {part} of an axis of {size}")
    return index, 1, 0
