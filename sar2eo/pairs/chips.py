"""One chip pair: cut, judged, and written as two small GeoTIFFs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from sar2eo.geo.chip_lattice import Cell
from sar2eo.geo.grid import Grid
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.scenes.warp import read_shifted
from sar2eo.store.atomic import refuse
from sar2eo.store.fingerprint import checksum

__all__ = ["ChipPair", "Eo", "cut_pair", "write_pair"]

BoolArray = npt.NDArray[np.bool_]
_BLOCK = 512


class Eo(Protocol):
    """What is needed of an EO scene (`sar2eo.scenes.optical.EoScene`)."""

    def read_onto(self, grid: Grid) -> Any:
        """Return rgb uint8 (3, row, col), valid bool (row, col), cloud bool (row, col) or None."""
        ...


@dataclass(frozen=True, eq=False)
class ChipPair:
    """A SAR and an EO chip on one grid.

    Parameters
    ----------
    sar : ndarray, shape (polarisation, row, col)
        In the scene's stored type; 0 where invalid.
    sar_valid : ndarray of bool, shape (row, col)
        Where all polarisations are valid.
    eo : ndarray of uint8, shape (3, row, col)
        0 where invalid.
    eo_valid : ndarray of bool, shape (row, col)
    cloud_share : float or None
        Share of cloud among the EO's valid pixels, where the EO scene tells.
    grid : Grid
        Of both.
    """

    sar: npt.NDArray[Any]
    sar_valid: BoolArray
    eo: npt.NDArray[np.uint8]
    eo_valid: BoolArray
    cloud_share: float | None
    grid: Grid

    @property
    def valid_share(self) -> float:
        """Share of pixels valid in both."""
        return float((self.sar_valid & self.eo_valid).mean())

    def eo_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of red, green and blue, in levels, over valid pixels."""
        levels = np.arange(256)
        # Of bytes, counts say all, and sooner than the pixels themselves.
        counts = np.stack([np.bincount(band[self.eo_valid], minlength=256) for band in self.eo])
        mean = counts @ levels / self.eo_valid.sum()
        variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / self.eo_valid.sum()
        return mean.tolist(), np.sqrt(variance).tolist()


def cut_pair(
    sar: SarScene,
    eo: Eo,
    cell: Cell,
    *,
    size: int,
    shift: tuple[float, float] = (0.0, 0.0),
    min_valid: float = 0.0,
) -> ChipPair | None:
    """Cut a cell out of both scenes.

    Parameters
    ----------
    sar : SarScene
    eo : Eo
        The EO scene, which is read onto the cell's own pixels.
    cell : Cell
        Of the SAR scene's lattice.
    size : int
        Side in pixels.
    shift : tuple of float, optional (default: (0, 0))
        Rows and columns by which the SAR scene shows things farther down and right than the EO.
    min_valid : float, optional (default: 0)
        Cells with a smaller share of valid SAR pixels are given up before the EO is read.

    Returns
    -------
    ChipPair or None
        None where the SAR has too few valid pixels.
    """
    values = read_shifted(sar.reader, cell.window(size), *shift, sar.quantity)
    sar_valid = np.asarray(np.isfinite(values).all(axis=0))
    if sar_valid.mean() < max(min_valid, 1e-9):
        return None
    grid = sar.grid.crop(cell.window(size))
    patch = eo.read_onto(grid)
    cloudy = None if patch.cloud is None else patch.cloud[patch.valid]
    return ChipPair(
        sar=_stored(np.where(sar_valid, values, 0), sar.dtype),
        sar_valid=sar_valid,
        eo=np.where(patch.valid, patch.rgb, np.uint8(0)),
        eo_valid=patch.valid,
        cloud_share=None if cloudy is None or not cloudy.size else float(cloudy.mean()),
        grid=grid,
    )


def _stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype == "float32":
        return values.astype(np.float32, copy=False)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)


def write_pair(
    pair: ChipPair, polarisations: Sequence[str], tags: Mapping[str, str], sar_path: Path, eo_path: Path
) -> tuple[str, str]:
    """Write both chips, each as a whole or not at all.

    They are not flushed to disk one by one, which would take longer than all else: who counts on them must
    check them by their checksums after a crash.

    Parameters
    ----------
    pair : ChipPair
    polarisations : sequence of str
        Become the names of the SAR's bands.
    tags : mapping
        Of both files; ``quantity`` and the like.
    sar_path, eo_path : Path

    Returns
    -------
    tuple of str
        Checksums of the files' bytes: SAR, EO.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    grey = [ColorInterp.gray, *[ColorInterp.undefined] * (len(polarisations) - 1)]
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    checksums = []
    for path, bands, valid, names, roles in (
        (sar_path, pair.sar, pair.sar_valid, list(polarisations), grey),
        (eo_path, pair.eo, pair.eo_valid, ["red", "green", "blue"], colours),
    ):
        data = _encoded(bands, valid, pair.grid, names, roles, tags)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            # On a full disk, what was written of it takes space that the next run needs.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            refuse(error, path.parent, len(data))
        checksums.append(checksum(data))
    return checksums[0], checksums[1]


def _encoded(
    bands: npt.NDArray[Any],
    valid: BoolArray,
    grid: Grid,
    names: list[str],
    roles: list[ColorInterp],
    tags: Mapping[str, str],
) -> bytes:
    height, width = valid.shape
    layout = {
        "driver": "GTiff", "dtype": bands.dtype.name, "count": len(bands), "height": height, "width": width,
        "crs": grid.crs, "transform": grid.affine, "interleave": "band" if len(bands) < 3 else "pixel",
        "compress": "deflate", "predictor": 3 if bands.dtype.kind == "f" else 2,
        "photometric": "RGB" if names[0] == "red" else "MINISBLACK",
    }  # fmt: skip
    if max(height, width) > _BLOCK:
        layout |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
    else:
        layout["blockysize"] = height
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(**layout) as raster:
            raster.colorinterp = roles
            raster.descriptions = names
            raster.update_tags(**tags)
            raster.write(bands)
            raster.write_mask(valid)
        return bytes(memory.getbuffer())
