"""Images of data sets read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PairsError

__all__ = ["Raster", "picture", "raster"]


class Raster(NamedTuple):
    """Values of shape (band, row, col), and where they are, of shape (row, col)."""

    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]


def raster(path: Path) -> Raster:
    """Read a GeoTIFF with its mask; a scale and an offset are applied.

    Raises
    ------
    PairsError
        If it cannot be read.
    """
    import rasterio
    from rasterio.errors import RasterioError

    # A chip has no sidecar files, and looking for some lists a folder of thousands each time.
    environment = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
    try:
        with environment, rasterio.open(path) as file:
            values, valid = file.read(), file.dataset_mask() > 0
            scales, offsets = file.scales, file.offsets
    except (RasterioError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: is the folder complete? ({_line(error)})") from error
    if any(scale != 1 for scale in scales) or any(offsets):
        values = values * _by_band(scales) + _by_band(offsets)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return Raster(values, valid)


def picture(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    """Read a PNG or JPEG as shape (band, row, col), of Pillow's `mode` (L or RGB).

    Raises
    ------
    PairsError
        If it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: is the folder complete? ({_line(error)})") from error
    return np.moveaxis(np.atleast_3d(values), -1, 0)


def _by_band(numbers: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.asarray(numbers, np.float32)[:, None, None]


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
