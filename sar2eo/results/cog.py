"""From finished blocks to a Cloud-Optimised GeoTIFF: assembled, validated, then renamed over the target.

GDAL's COG driver reads the blocks through a VRT, so the raster is never in memory. Georeference, names and
provenance are in the VRT before the COG is made: a COG that is edited afterwards loses its layout.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import rasterio.shutil

from sar2eo.errors import JournalError, OutputError, one_line
from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.geo.windows import Window
from sar2eo.settings import Compression
from sar2eo.store.atomic import refuse, sync_file, sync_folder
from sar2eo.store.journal import Journal

__all__ = [
    "BLOCK",
    "LAYERS",
    "Layer",
    "assemble",
    "check_space",
    "check_target",
    "cog_bytes",
    "copy_cog",
    "mosaic",
    "needed_bytes",
    "publish",
    "validate",
]

# More is not faster (at 4096, 8192 and 16384 squared), and fills up with the size of the scene.
_CACHE_BYTES = 8 * 2**20
_OPEN_BLOCKS = 64
_LOSSY: tuple[Compression, ...] = ("jpeg", "webp")
_LOSSY_QUALITY = 90
_SIDECARS = (".aux.xml", ".ovr", ".msk")

_LOG = logging.getLogger("rasterio._env")
_SIGNALLED = "GDAL signalled an error: "
_signals = threading.local()


def assemble(
    journal: Journal,
    variable: str,
    grid: Grid,
    windows: Iterable[Window],
    *,
    tags: Mapping[str, str],
    compress: Compression = "deflate",
    threads: int | Literal["ALL_CPUS"] = "ALL_CPUS",
) -> Path:
    """Build the COG of a variable in the journal, from its blocks.

    Parameters
    ----------
    journal, variable, grid, windows, tags
        As of `sar2eo.results.cog.mosaic`; tags named ``TIFFTAG_`` become TIFF tags.
    compress : {"deflate", "zstd", "jpeg", "webp"}
        The lossy two are for uint8; float32 then takes deflate.
    threads : int or "ALL_CPUS"
        That compress.

    Returns
    -------
    Path
        A valid COG, flushed to disk, for `publish`.

    Raises
    ------
    JournalError
        If a block is missing.
    OutputError
        If the COG cannot be written, or is not valid.
    """
    layer = LAYERS[variable]
    source = mosaic(journal, variable, grid, windows, tags)
    target = source.with_suffix(".tif")
    settings = {
        # Blocks lie in one folder by the thousand, which GDAL would list for each of them.
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_CACHEMAX": _CACHE_BYTES,
        "GDAL_MAX_DATASET_POOL_SIZE": _OPEN_BLOCKS,
    }
    try:
        with rasterio.Env(**settings):
            copy_cog(
                source,
                target,
                NUM_THREADS=threads,
                OVERVIEW_RESAMPLING=layer.overviews,
                **_compression(layer, compress),
            )
    except Exception as error:  # GDAL's errors have no public class, and a full disk has many faces
        space = needed_bytes(grid, [variable], compress) / 1e6
        raise OutputError(
            f"{target.parent}: the COG cannot be written ({one_line(error)}): "
            f"are {space:.0f} MB free there? Finished work is kept"
        ) from error
    validate(target)
    return target


def copy_cog(source: Path, target: Path, **options: str | int) -> None:
    """Copy a raster to a COG by GDAL's driver, with its creation options, and flush it to disk."""
    with signals_raised():
        rasterio.shutil.copy(
            str(source), str(target), driver="COG", BLOCKSIZE=BLOCK, BIGTIFF="IF_SAFER", **options
        )
    sync_file(target)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise errors that GDAL goes on after: on a disk that is full for a while, it leaves holes in the COG.

    rasterio takes a dataset that came about for success, and tells of the errors on the way in its log only.
    """
    told = _signals.told = []
    if _follow not in _LOG.filters:
        _LOG.addFilter(_follow)
        _LOG.setLevel(min(_LOG.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        _signals.told = None
    if told:
        raise OSError(told[0])


def _follow(record: logging.LogRecord) -> bool:
    """Note the errors of a thread that assembles; show what would be shown without this."""
    told, text = getattr(_signals, "told", None), record.getMessage()
    if told is not None and text.startswith(_SIGNALLED):
        told.append(text.removeprefix(_SIGNALLED))
    return _LOG.parent is None or record.levelno >= _LOG.parent.getEffectiveLevel()


def _compression(layer: Layer, compress: Compression) -> dict[str, str | int]:
    if layer.dtype == "float32" and compress in _LOSSY:
        compress = "deflate"
    if compress in _LOSSY:
        return {"COMPRESS": compress, "QUALITY": _LOSSY_QUALITY}
    return {"COMPRESS": compress, "PREDICTOR": "YES"}


def validate(path: Path) -> None:
    """Refuse a file that is not a valid COG.

    Raises
    ------
    OutputError
        If it is not.
    """
    from rio_cogeo.cogeo import cog_validate

    with ignore_missing_georeference():  # if the user allows scenes without a CRS
        valid, errors, remarks = cog_validate(str(path), strict=True, quiet=True)
    # The decimation of overviews is told by their width, and a single column does not get narrower; a raster
    # or an overview that is as wide as its tiles is taken for one in strips, which GDAL never writes.
    errors = [e for e in errors if not e.startswith("Invalid Decimation 1 ") and not e.endswith("not tiled")]
    if not valid and (errors or remarks):
        raise OutputError(f"{path} is not a valid COG: {'; '.join([*errors, *remarks])}")


def publish(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename assembled files over their targets, in this order.

    At any time a target is the old file or the whole new one. What comes from another file system is copied
    (to ``.<name>.tmp`` beside its target) before anything is replaced: a disk that is full then changes
    nothing. Sidecar files of a replaced target (``.aux.xml``, ``.ovr``, ``.msk``), which would speak of the
    old pixels, are deleted.

    Parameters
    ----------
    pairs : sequence of (Path, Path)
        Assembled file and target. Put the main output last: then its presence says that all is done.

    Raises
    ------
    OutputError
        If a target cannot be written.
    """
    with ExitStack() as copies:
        near = []
        for source, target in pairs:
            with _refusing(source, target):
                away = source.stat().st_dev != target.parent.stat().st_dev
                near.append((_copied(source, target, copies) if away else source, target))
        for source, target in near:
            with _refusing(source, target):
                _replace(source, target, copies)
                for suffix in _SIDECARS:
                    target.with_name(target.name + suffix).unlink(missing_ok=True)
                sync_folder(target.parent)


@contextmanager
def _refusing(source: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refuse(error, target.parent, source.stat().st_size if source.exists() else 0)


def _replace(source: Path, target: Path, copies: ExitStack) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Two mounts of one file system.
        _copied(source, target, copies).replace(target)


def _copied(source: Path, target: Path, copies: ExitStack) -> Path:
    """Copy a file beside its target, until the stack is closed."""
    copy = target.with_name(f".{target.name}.tmp")
    copies.callback(copy.unlink, missing_ok=True)
    shutil.copyfile(source, copy)
    sync_file(copy)
    return copy


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target that could not be written in the end, before any work.

    Parameters
    ----------
    path : Path
        Of a COG.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If the name is not valid UTF-8 or does not end in .tif or .tiff, the folder is missing or not
        writable, or the file exists and `overwrite` is False.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{str(path)!r}: the name is not valid UTF-8, and GDAL takes no other: give another --out"
        ) from error
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"{path}: the result is a GeoTIFF, its name must end in .tif or .tiff")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}: make it first, or check the spelling")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: pass --overwrite to replace it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: its folder is not writable")


def cog_bytes(grid: Grid, variables: Iterable[str], compress: Compression = "deflate") -> int:
    """Estimate the size of COGs with their overviews.

    Two thirds of their pixels when lossless, a quarter when lossy; Sentinel-2 content took a third and a
    twelfth. Arguments as of `needed_bytes`.
    """
    total = 0.0
    for layer in (LAYERS[variable] for variable in variables):
        share = 1 / 4 if compress in _LOSSY and layer.dtype == "uint8" else 2 / 3
        total += _pixels(grid) * layer.bytes_per_pixel * share
    return round(total)


def needed_bytes(grid: Grid, variables: Iterable[str], compress: Compression = "deflate") -> int:
    """Estimate the disk space a run needs at its peak: journal, COGs and their overviews in the making.

    The journal is not compressed and counted in full (blocks without a valid pixel take nothing).

    Parameters
    ----------
    grid : Grid
        Of the output.
    variables : iterable of str
        Of `LAYERS`.
    compress : {"deflate", "zstd", "jpeg", "webp"}
        Of uint8 COGs.

    Returns
    -------
    int
        Bytes.
    """
    names = list(variables)
    journal = sum(_pixels(grid) * LAYERS[name].bytes_per_pixel for name in names)
    return journal + cog_bytes(grid, names, compress)


def _pixels(grid: Grid) -> int:
    return grid.shape[0] * grid.shape[1]


def check_space(needs: Iterable[tuple[Path, int]], *, elsewhere: str = "--tmp or --out") -> None:
    """Refuse to begin what the disks cannot hold.

    Parameters
    ----------
    needs : iterable of (Path, int)
        Folders that exist, and the bytes that go there; those of one file system are added up.
    elsewhere : str, optional (default: "--tmp or --out")
        Flags by which the user chooses the folders, for the message.

    Raises
    ------
    OutputError
        If fewer are free.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        device = folder.stat().st_dev
        first, before = disks.get(device, (folder, 0))
        disks[device] = (first, before + needed)
    for folder, needed in disks.values():
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"{folder}: {free / 1e6:.0f} MB are free, and this takes about {needed / 1e6:.0f} MB: free "
                f"some, choose another {elsewhere}, or pass --force"
            )


BLOCK = 512
"""Rows and columns of a COG's tiles."""

# The transform of a raster without one.
_NOWHERE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one variable looks like as a raster.

    Parameters
    ----------
    dtype : {"uint8", "float32"}
        Of the pixels. uint8 blocks carry their mask as a last band (0 or 255), which becomes the COG's
        internal mask; float32 has NaN for nodata.
    bands : tuple of str
        Band names; "red", "green" and "blue" are also their colour interpretation.
    overviews : {"average", "nearest"}
        How overviews are made. Both leave out invalid pixels.
    """

    dtype: Literal["uint8", "float32"]
    bands: tuple[str, ...]
    overviews: Literal["average", "nearest"] = "average"

    @property
    def masked(self) -> bool:
        """Whether blocks have a mask as their last band."""
        return self.dtype == "uint8"

    @property
    def bytes_per_pixel(self) -> int:
        """Size of a pixel in the journal."""
        return int(np.dtype(self.dtype).itemsize) * (len(self.bands) + self.masked)


LAYERS: Mapping[str, Layer] = {
    "eo": Layer(dtype="uint8", bands=("red", "green", "blue")),
    # It spans seven orders of magnitude: an average would only tell where the largest value is.
    "confidence": Layer(dtype="float32", bands=("confidence",), overviews="nearest"),
    "spread": Layer(dtype="float32", bands=("spread",)),
}
"""The variables of a result, by name."""


def mosaic(
    journal: Journal, variable: str, grid: Grid, windows: Iterable[Window], tags: Mapping[str, str]
) -> Path:
    """Describe all blocks of a variable as one raster.

    Parameters
    ----------
    journal : Journal
        With the finished blocks.
    variable : str
        One of `LAYERS`.
    grid : Grid
        Of the output.
    windows : iterable of Window
        A partition of the grid.
    tags : mapping
        Provenance; names without ``:`` and ``=``.

    Returns
    -------
    Path
        A VRT in the journal.

    Raises
    ------
    JournalError
        If a block is missing.
    ValueError
        If the name of a tag is not allowed.
    """
    layer = LAYERS[variable]
    paths = journal.paths(variable)
    blocks = list(windows)
    missing = [window for window in blocks if window not in paths]
    if missing:
        raise JournalError(
            f"{journal.folder}: {len(missing)} of {len(blocks)} blocks of {variable!r} are missing: "
            "repeat the command"
        )
    root = ET.Element("VRTDataset", rasterXSize=str(grid.shape[1]), rasterYSize=str(grid.shape[0]))
    if grid.crs is not None:
        ET.SubElement(root, "SRS").text = grid.crs
    if grid.transform != _NOWHERE:
        a, b, c, d, e, f = grid.transform
        ET.SubElement(root, "GeoTransform").text = ", ".join(repr(value) for value in (c, a, b, f, d, e))
    metadata = ET.SubElement(root, "Metadata")
    for key, value in tags.items():
        if re.search("[:=]", key):
            raise ValueError(f"tag {key!r}: GDAL would split the name there")
        ET.SubElement(metadata, "MDI", key=key).text = value
    for number, name in enumerate(layer.bands, start=1):
        band = _band(root, layer, number, [(paths[window], window) for window in blocks])
        band.insert(0, _text("Description", name))
        if name in ("red", "green", "blue"):
            band.insert(1, _text("ColorInterp", name.capitalize()))
    if layer.masked:
        mask = ET.SubElement(root, "MaskBand")
        _band(mask, layer, len(layer.bands) + 1, [(paths[window], window) for window in blocks])
    target = journal.folder / "assembled" / f"{variable}.vrt"
    target.parent.mkdir(exist_ok=True)
    ET.ElementTree(root).write(target, encoding="utf-8")
    return target


def _text(tag: str, text: str) -> ET.Element:
    element = ET.Element(tag)
    element.text = text
    return element


def _band(parent: ET.Element, layer: Layer, number: int, blocks: list[tuple[Path, Window]]) -> ET.Element:
    """Add a VRT band (https://gdal.org/en/stable/drivers/raster/vrt.html) over band `number` of blocks."""
    data_type = {"uint8": "Byte", "float32": "Float32"}[layer.dtype]
    band = ET.SubElement(parent, "VRTRasterBand", dataType=data_type)
    if parent.tag != "MaskBand":
        band.set("band", str(number))
    band.set("blockXSize", str(BLOCK))
    band.set("blockYSize", str(BLOCK))
    if not layer.masked:
        ET.SubElement(band, "NoDataValue").text = "nan"
    for path, window in blocks:
        source = ET.SubElement(band, "SimpleSource")
        # Not shared: a shared source stays open for as long as the VRT does.
        name = ET.SubElement(source, "SourceFilename", relativeToVRT="1", shared="0")
        name.text = f"../{path.parent.name}/{path.name}"
        ET.SubElement(source, "SourceBand").text = str(number)
        size = {"xSize": str(window.width), "ySize": str(window.height)}
        properties = {"RasterXSize": size["xSize"], "RasterYSize": size["ySize"], "DataType": data_type}
        # With its properties known, a block is opened when it is read, and not before.
        ET.SubElement(source, "SourceProperties", properties)
        ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
        ET.SubElement(source, "DstRect", {"xOff": str(window.col), "yOff": str(window.row), **size})
    return band
