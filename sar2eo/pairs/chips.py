"""Chip pairs: cut from two scenes, checked, and written as two small GeoTIFFs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from sar2eo.compute.dask_run import add_count, timed
from sar2eo.geo.chip_lattice import Cell
from sar2eo.geo.grid import Grid
from sar2eo.scenes.optical import EoScene
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.scenes.warp import read_shifted
from sar2eo.settings import PairsSettings
from sar2eo.store.atomic import checksum, write_file

BoolArray = npt.NDArray[np.bool_]
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class ChipPair:
    """A SAR and an EO chip on one grid.

    `sar`, shape (polarisation, row, col), is in the scene's stored type, and 0 where invalid; `eo`, shape (3,
    row, col), too. `sar_valid` says where all polarisations are valid. `cloud_share` is that of the EO's
    valid pixels; None if unknown.
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
    eo: EoScene,
    cell: Cell,
    *,
    size: int,
    shift: tuple[float, float] = (0.0, 0.0),
    min_valid: float = 0.0,
) -> ChipPair | None:
    """Cut a cell of the SAR scene's lattice out of both scenes; the EO is read onto its pixels.

    `size` is the side in pixels. `shift` says by how many rows and columns the SAR scene shows things farther
    down and right than the EO. None where less than `min_valid` of the SAR is valid; the EO is not read then.
    """
    values = read_shifted(sar.reader, cell.window(size), *shift, sar.quantity)
    sar_valid = np.asarray(np.isfinite(values).all(axis=0))
    if sar_valid.mean() < max(min_valid, 1e-9):
        return None
    grid = sar.grid.crop(cell.window(size))
    patch = eo.read_onto(grid)
    cloudy = None if patch.cloud is None else patch.cloud[patch.valid]
    return ChipPair(
        sar=_encode_values(np.where(sar_valid, values, 0), sar.dtype),
        sar_valid=sar_valid,
        eo=np.where(patch.valid, patch.rgb, np.uint8(0)),
        eo_valid=patch.valid,
        cloud_share=None if cloudy is None or not cloudy.size else float(cloudy.mean()),
        grid=grid,
    )


def _encode_values(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype == "float32":
        return values.astype(np.float32, copy=False)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)


def write_pair(
    pair: ChipPair, polarisations: Sequence[str], tags: Mapping[str, str], sar_path: Path, eo_path: Path
) -> tuple[str, str]:
    """Write both chips, each whole or not at all; return the checksums of their bytes, SAR and EO.

    They are not flushed to disk one by one, which would take longer than all else: after a crash their
    checksums must be checked.
    """
    grey = [ColorInterp.gray, *[ColorInterp.undefined] * (len(polarisations) - 1)]
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    checksums = []
    for path, bands, valid, names, roles in (
        (sar_path, pair.sar, pair.sar_valid, list(polarisations), grey),
        (eo_path, pair.eo, pair.eo_valid, ["red", "green", "blue"], colours),
    ):
        data = _encode_chip(bands, valid, pair.grid, names, roles, tags)
        write_file(path, data, durable=False)
        checksums.append(checksum(data))
    return checksums[0], checksums[1]


def _encode_chip(
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


@dataclass(frozen=True)
class CellPlan:
    """A cell, and how its SAR chip is shifted: `applied` rows and columns.

    `rows`, `cols` and `score` are the shift and the score for the index.
    """

    cell: Cell
    applied: tuple[float, float] = (0.0, 0.0)
    rows: float | None = None
    cols: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class CutRun:
    """Chips of one scene pair that one task cuts.

    `label` begins the ids of its chips. They share `common` columns of the index, and `tags`; their files go
    to `folder`.
    """

    label: str
    plans: tuple[CellPlan, ...]
    common: dict[str, Any]
    tags: dict[str, str]
    settings: PairsSettings
    folder: Path


def cut_run(sar: SarScene, eo: EoScene, run: CutRun) -> dict[str, Any]:
    """Cut, check and write the chips of a task; return ``rows`` of the index and ``refused``, by reason."""
    settings, rows, refused = run.settings, [], Counter[str]()
    for plan in run.plans:
        with timed("cut_seconds"):
            pair = cut_pair(
                sar, eo, plan.cell, size=settings.size, shift=plan.applied, min_valid=settings.min_valid
            )
        if pair is None:
            refused["sar nodata"] += 1
        elif pair.valid_share == 0 or pair.valid_share < settings.min_valid:
            refused["nodata"] += 1
        elif pair.cloud_share is not None and pair.cloud_share > settings.max_cloud:
            refused["cloud"] += 1
        else:
            with timed("write_seconds"):
                rows.append(_write_chip(sar.reader.polarisations, run, plan, pair))
            add_count("chips_written", 1)
        add_count("cells_done", 1)
    return {"rows": rows, "refused": dict(refused)}


def _write_chip(polarisations: Sequence[str], run: CutRun, plan: CellPlan, pair: ChipPair) -> dict[str, Any]:
    """Write a chip pair; return its row of the index."""
    cell, (height, width) = plan.cell, pair.grid.shape
    name = f"{run.label}_r{cell.row:05d}_c{cell.col:05d}"
    paths = [run.folder / f"{name}_{role}.tif" for role in ("sar", "eo")]
    tags = {**run.tags, "ID": name}
    if any(plan.applied):
        tags["SAR_SHIFT"] = f"{plan.applied[0]:.3f} rows, {plan.applied[1]:.3f} columns"
    checksums = write_pair(pair, polarisations, tags, *paths)
    mean, deviation = pair.eo_statistics()
    return {
        **run.common,
        "id": name,
        "sar_chip": f"chips/{paths[0].name}",
        "eo_chip": f"chips/{paths[1].name}",
        "crs": pair.grid.crs,
        "transform": list(pair.grid.transform),
        "checksums": checksums,
        "cell": [cell.i, cell.j],
        "row": cell.row,
        "col": cell.col,
        "height": height,
        "width": width,
        "valid_share": pair.valid_share,
        "cloud_share": pair.cloud_share,
        "eo_mean": mean,
        "eo_std": deviation,
        "shift_rows": plan.rows,
        "shift_cols": plan.cols,
        "align_score": plan.score,
    }
