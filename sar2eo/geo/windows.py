"""Windows of pixels, and the lattice of overlapping tiles over a scene: integers only.

A lattice belongs to the whole scene. A region selects tiles of it and never moves them, so that a part of a
result equals the same part of the whole (moving a tile moves the model's receptive field, and the picture
changes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sar2eo.errors import SettingsError


class Window(NamedTuple):
    """A rectangle of pixels: first row and column, height and width.

    A tile may reach past the scene's edge: what is outside is padding.
    """

    row: int
    col: int
    height: int
    width: int

    @property
    def stop_row(self) -> int:
        """The row after the last."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """The column after the last."""
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices of an array in the same frame."""
        return slice(self.row, self.stop_row), slice(self.col, self.stop_col)

    def intersection(self, other: Window) -> Window | None:
        """Return the common rectangle, or None where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.stop_row, other.stop_row) - row
        width = min(self.stop_col, other.stop_col) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def shifted(self, rows: int, cols: int) -> Window:
        """Return the window moved down by `rows` and right by `cols`."""
        return Window(self.row + rows, self.col + cols, self.height, self.width)

    def tiles(self, height: int, width: int) -> Iterator[Window]:
        """Cut the window into parts of at most this size, from its corner, row by row."""
        for row in range(self.row, self.stop_row, height):
            for col in range(self.col, self.stop_col, width):
                yield Window(row, col, min(height, self.stop_row - row), min(width, self.stop_col - col))


def axis_origins(size: int, tile: int, overlap: int, factor: int) -> tuple[int, ...]:
    """Place tiles along one axis of `size` pixels; `tile` and `overlap` are multiples of the VAE's `factor`.

    Returns their first pixels: rising multiples of `factor`, from 0, ``tile - overlap`` apart. The last is
    pulled back to the edge: its tile reaches past it by fewer than `factor` pixels (or by ``tile - size``
    where the scene is smaller than a tile).
    """
    last = max(0, -(-(size - tile) // factor) * factor)
    return (*range(0, last, tile - overlap), last)


@dataclass(frozen=True)
class Lattice:
    """Tiles of one size over a scene, numbered row by row.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the whole scene.
    tile, overlap : int
        Side of a tile and overlap of neighbours in pixels, multiples of `factor`; at most half overlaps.
    factor : int, optional (default: 1)
        Downsampling factor of the VAE.

    Raises `SettingsError` for sizes that are not multiples of the factor, or an overlap that is too large.
    """

    shape: tuple[int, int]
    tile: int
    overlap: int
    factor: int = 1

    def __post_init__(self) -> None:
        if self.factor < 1 or self.tile < self.factor or self.tile % self.factor:
            raise SettingsError(
                f"tile={self.tile}: must be a positive multiple of the model's factor {self.factor}"
            )
        if not 0 <= self.overlap <= self.tile // 2 or self.overlap % self.factor:
            raise SettingsError(
                f"overlap={self.overlap}: must be a multiple of {self.factor}, "
                f"from 0 to half of the tile ({self.tile // 2})"
            )
        if min(self.shape) < 1:
            raise SettingsError(f"shape={self.shape}: a scene has at least one row and column")

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First rows of the tiles."""
        return axis_origins(self.shape[0], self.tile, self.overlap, self.factor)

    @cached_property
    def cols(self) -> tuple[int, ...]:
        """First columns of the tiles."""
        return axis_origins(self.shape[1], self.tile, self.overlap, self.factor)

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        i, j = divmod(index, len(self.cols))
        return Window(self.rows[i], self.cols[j], self.tile, self.tile)

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    @property
    def scene(self) -> Window:
        """The whole scene as a window."""
        return Window(0, 0, *self.shape)

    def touching(self, region: Window) -> list[int]:
        """Return the numbers, rising, of the tiles that share a pixel with `region`."""
        rows = [i for i, r in enumerate(self.rows) if r < region.stop_row and region.row < r + self.tile]
        cols = [j for j, c in enumerate(self.cols) if c < region.stop_col and region.col < c + self.tile]
        return [i * len(self.cols) + j for i in rows for j in cols]

    def batch(self, number: int, size: int) -> range:
        """Return the numbers of the tiles in one batch: `size` of them in lattice order, fewer at the end.

        A batch depends on the lattice and `size` alone, never on the region asked for or on what is finished.
        So a tile is always computed in the same company.
        """
        return range(number * size, min((number + 1) * size, len(self)))
