"""Small views of a finished COG, read through its overviews."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.io import DatasetReader, MemoryFile

from sar2eo.durable import write_atomically
from sar2eo.quiet import unplaced_is_fine

__all__ = ["quicklook", "valid_pixels"]


def quicklook(cog: Path, png: Path, longest: int = 1024) -> None:
    """Draw a COG of an EO image small, from its overviews; invalid pixels are transparent.

    What the tag ``synthetic`` of the COG says is the picture's description.

    Parameters
    ----------
    cog : Path
        COG with red, green and blue.
    png : Path
        PNG to write; it appears whole or not at all.
    longest : int, optional (default: 1024)
        Pixels of the longer side.

    Raises
    ------
    OutputError
        If the PNG cannot be written.
    """
    with unplaced_is_fine(), rasterio.open(cog) as raster:
        shape = _small_shape(raster, longest)
        rgb = raster.read((1, 2, 3), out_shape=(3, *shape), resampling=Resampling.average)
        alpha = raster.dataset_mask(out_shape=shape)
        said = raster.tags().get("synthetic")
    with MemoryFile(ext=".png") as memory, unplaced_is_fine():
        layout = {"driver": "PNG", "dtype": "uint8", "count": 4, "height": shape[0], "width": shape[1]}
        layout |= {} if said is None else {"DESCRIPTION": f"synthetic={said}"}
        with memory.open(**layout) as picture:
            picture.write(np.concatenate([rgb, alpha[None]]))
        write_atomically(png, memory.getbuffer())


def valid_pixels(cog: Path, longest: int = 1024) -> npt.NDArray[np.bool_]:
    """Read which pixels of a COG are valid, decimated through its overviews.

    Parameters
    ----------
    cog : Path
        COG with a mask or a nodata value.
    longest : int, optional (default: 1024)
        Pixels of the longer side.

    Returns
    -------
    ndarray of bool, shape (row, col)
        Of the same extent as the COG.
    """
    with unplaced_is_fine(), rasterio.open(cog) as raster:
        return np.asarray(raster.dataset_mask(out_shape=_small_shape(raster, longest)) > 0)


def _small_shape(raster: DatasetReader, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(raster.shape))
    rows, cols = (max(1, round(size * scale)) for size in raster.shape)
    return rows, cols
