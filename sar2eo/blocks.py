"""Blocks of a result as small files, each whole under a name that says which it is and how to check it."""

from __future__ import annotations

import re
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.io import MemoryFile

from sar2eo.durable import sync_folder, write_durably
from sar2eo.windows import Window

__all__ = ["NAME", "BlockWriter"]

NAME = re.compile(r"([a-z0-9_]+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.([0-9a-f]{8})\.tif")
"""Variable, row, column, height, width, and CRC-32 of the file."""

_TILE = 512


@dataclass(frozen=True)
class BlockWriter:
    """Writes blocks into a journal from any thread, process or machine that sees its folder.

    Parameters
    ----------
    folder : str
        The journal's folder of blocks (`Journal.writer` knows it). It is never created here: a worker
        that outlives its run must not write into the journal of the next.
    """

    folder: str

    def write(self, variable: str, window: Window, bands: npt.NDArray[Any]) -> None:
        """Write one block: when this returns, it is on disk, whole.

        Parameters
        ----------
        variable : str
            Name of the variable; lower-case letters, digits and underscores.
        window : Window
            Where the block lies in the output.
        bands : ndarray of uint8 or float32, shape (band, height, width)
            Pixels. 512 x 512 tiles of nothing but 0 (uint8) or NaN (float32) take no disk space.

        Raises
        ------
        OutputError
            If it cannot be written: the message names the folder and the space needed.
        ValueError
            If name, shape or dtype are not as above.
        """
        if not re.fullmatch(r"[a-z0-9_]+", variable):
            raise ValueError(f"variable={variable!r}: lower-case letters, digits and underscores only")
        if bands.shape[1:] != (window.height, window.width) or bands.dtype not in (np.uint8, np.float32):
            raise ValueError(f"a block of {bands.dtype} {bands.shape} does not fit {window}")
        folder = Path(self.folder)
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        with _encoded(window, bands) as data:
            name = f"{variable}.{'.'.join(map(str, window))}.{zlib.crc32(data):08x}.tif"
            write_durably(temporary, folder / name, data)
        sync_folder(folder)


@contextmanager
def _encoded(window: Window, bands: npt.NDArray[Any]) -> Iterator[memoryview]:
    """Yield the bytes of a block as an uncompressed, tiled GeoTIFF."""
    count, height, width = bands.shape
    layout = {"tiled": True, "blockysize": _tile(height), "blockxsize": _tile(width), "interleave": "band"}
    nodata = {"nodata": float("nan")} if bands.dtype == np.float32 else {}
    # Never the identity, which would be taken for a lack of georeference and warned about.
    place = Affine.translation(window.col + 1, window.row + 1)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype=bands.dtype.name,
            count=count,
            height=height,
            width=width,
            transform=place,
            sparse_ok=True,
            **layout,
            **nodata,
        ) as raster:
            raster.write(bands)
        yield memoryview(memory.getbuffer())


def _tile(size: int) -> int:
    """Return the tile size along an axis: 512, or less for a smaller block."""
    # TIFF asks for multiples of 16.
    return min(_TILE, -(-size // 16) * 16)
