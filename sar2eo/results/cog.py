"""Cloud-Optimised GeoTIFFs: assembled from finished blocks, validated, then renamed over the target.

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
from sar2eo.results.targets import SIDECARS
from sar2eo.settings import Compression
from sar2eo.store.atomic import open_alone, refuse, sync_file, sync_folder
from sar2eo.store.journal import Journal

BLOCK = 512
"""Rows and columns of a COG's tiles."""

# More is not faster (at 4096, 8192 and 16384 squared), and fills up with the size of the scene.
_CACHE_BYTES = 8 * 2**20
_OPEN_BLOCKS = 64
_LOSSY: tuple[Compression, ...] = ("jpeg", "webp")
_LOSSY_QUALITY = 90
_NO_TRANSFORM = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

_LOG = logging.getLogger("rasterio._env")
_SIGNALLED = "GDAL signalled an error: "
_signals = threading.local()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How one variable is stored as a raster.

    Parameters
    ----------
    dtype : {"uint8", "float32"}
        uint8 blocks carry their mask as a last band (0 or 255), which becomes the COG's internal mask;
        float32 has NaN for nodata.
    bands : tuple of str
        Band names; "red", "green" and "blue" are also their colour interpretation.
    overviews : {"average", "nearest"}
        How overviews are resampled. Both leave out invalid pixels.
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
    # It spans seven orders of magnitude: an average would only say where the largest value is.
    "confidence": Layer(dtype="float32", bands=("confidence",), overviews="nearest"),
    "spread": Layer(dtype="float32", bands=("spread",)),
}
"""The variables of a result, by name."""


def assemble(
    journal: Journal,
    variable: str,
    grid: Grid,
    blocks: Iterable[Window],
    *,
    tags: Mapping[str, str],
    compress: Compression = "deflate",
    threads: int | Literal["ALL_CPUS"] = "ALL_CPUS",
) -> Path:
    """Build the COG of a variable in the journal, from its blocks.

    Parameters
    ----------
    journal : Journal
        With the finished blocks.
    variable : str
        One of `LAYERS`.
    grid : Grid
    blocks : iterable of Window
        A partition of the grid.
    tags : mapping
        Provenance; names without ``:`` and ``=``. Names that begin with ``TIFFTAG_`` become TIFF tags.
    compress : {"deflate", "zstd", "jpeg", "webp"}
        The lossy two are for uint8; float32 then takes deflate.
    threads : int or "ALL_CPUS"
        Threads that compress.

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
    ValueError
        If the name of a tag is not allowed.
    """
    layer = LAYERS[variable]
    source = _write_vrt(journal, variable, grid, list(blocks), tags)
    target = source.with_suffix(".tif")
    lossy = compress in _LOSSY and layer.dtype == "uint8"
    options: dict[str, str] = {"COMPRESS": "deflate" if compress in _LOSSY and not lossy else compress}
    options |= {"QUALITY": str(_LOSSY_QUALITY)} if lossy else {"PREDICTOR": "YES"}
    settings = {
        # Blocks lie in one folder by the thousand, which GDAL would list for each of them.
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_CACHEMAX": _CACHE_BYTES,
        "GDAL_MAX_DATASET_POOL_SIZE": _OPEN_BLOCKS,
    }
    try:
        with rasterio.Env(**settings):
            copy_cog(source, target, NUM_THREADS=threads, OVERVIEW_RESAMPLING=layer.overviews, **options)
    except Exception as error:  # GDAL's errors have no public class, and a full disk has many faces
        space = sum(estimate_bytes(grid, [variable], compress)) / 1e6
        raise OutputError(
            f"{target.parent}: the COG cannot be written ({one_line(error)}): "
            f"are {space:.0f} MB free there? Finished work is kept"
        ) from error
    validate(target)
    return target


def copy_cog(source: Path, target: Path, **options: str | int) -> None:
    """Copy a raster to a COG by GDAL's driver, with its creation options, and flush it to disk."""
    with raise_gdal_errors():
        rasterio.shutil.copy(
            str(source), str(target), driver="COG", BLOCKSIZE=BLOCK, BIGTIFF="IF_SAFER", **options
        )
    sync_file(target)


@contextmanager
def raise_gdal_errors() -> Iterator[None]:
    """Raise errors that GDAL ignores: if the disk is full for a while, it leaves holes in the COG.

    rasterio only logs errors on the way to a dataset that opens in the end.
    """
    errors = _signals.errors = []
    if _collect_signals not in _LOG.filters:
        _LOG.addFilter(_collect_signals)
        _LOG.setLevel(min(_LOG.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        _signals.errors = None
    if errors:
        raise OSError(errors[0])


def _collect_signals(record: logging.LogRecord) -> bool:
    """Collect GDAL's errors in a thread that assembles; a log filter that hides nothing else."""
    errors, text = getattr(_signals, "errors", None), record.getMessage()
    if errors is not None and text.startswith(_SIGNALLED):
        errors.append(text.removeprefix(_SIGNALLED))
    return _LOG.parent is None or record.levelno >= _LOG.parent.getEffectiveLevel()


def validate(path: Path) -> None:
    """Refuse a file that is not a valid COG, or was cut short."""
    from rio_cogeo.cogeo import cog_validate

    with ignore_missing_georeference():  # if the user allows scenes without a CRS
        valid, errors, remarks = cog_validate(str(path), strict=True, quiet=True)
    # The validator derives the decimation of overviews from their width, and a single column does not get
    # narrower. It takes a raster or overview as wide as its tiles for one in strips, which GDAL never writes.
    errors = [e for e in errors if not e.startswith("Invalid Decimation 1 ") and not e.endswith("not tiled")]
    if not valid and (errors or remarks):
        raise OutputError(f"{path} is not a valid COG: {'; '.join([*errors, *remarks])}")
    try:
        _read_last_block(path)
    except rasterio.errors.RasterioError as error:
        raise OutputError(f"{path} lacks its end ({one_line(error)}): is there space?") from error


def _read_last_block(path: Path) -> None:
    """Read what lies last in a file: GDAL is silent where a full disk takes no more when it is closed."""
    with ignore_missing_georeference(), rasterio.open(path) as raster:
        places = {
            int(offset): window
            for (row, col), window in raster.block_windows(1)
            if (offset := raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
        }
        if places:
            raster.read(window=places[max(places)])
            raster.dataset_mask(window=places[max(places)])


def publish(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename assembled files over their targets, in this order.

    At any time a target is the old file or the whole new one. Files from another file system are copied (to
    ``.<name>.tmp`` beside their targets) before anything is replaced, so that a full disk changes nothing.
    Sidecar files of replaced targets (``.aux.xml``, ``.ovr``, ``.msk``) describe the old pixels and are
    deleted.

    Parameters
    ----------
    pairs : sequence of (Path, Path)
        Assembled file and target. Put the main output last: its presence then says that all is done.

    Raises
    ------
    OutputError
        If a target cannot be written.
    """
    with ExitStack() as copies:
        try:
            near = []
            for source, target in pairs:
                away = source.stat().st_dev != target.parent.stat().st_dev
                near.append((_copy_beside(source, target, copies) if away else source, target))
            for source, target in near:
                try:
                    source.replace(target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    # Two mounts of one file system.
                    _copy_beside(source, target, copies).replace(target)
                for suffix in SIDECARS:
                    target.with_name(target.name + suffix).unlink(missing_ok=True)
                sync_folder(target.parent)
        except OSError as error:
            refuse(error, target.parent, source.stat().st_size if source.exists() else 0)


def _copy_beside(source: Path, target: Path, copies: ExitStack) -> Path:
    """Copy a file beside its target; closing the stack deletes the copy."""
    copy = target.with_name(f".{target.name}.tmp")
    copies.callback(os.close, open_alone(copy))
    copies.callback(copy.unlink, missing_ok=True)
    shutil.copyfile(source, copy)
    sync_file(copy)
    return copy


def estimate_bytes(grid: Grid, variables: Iterable[str], compress: Compression) -> tuple[int, int]:
    """Estimate the bytes of a journal, and of the COGs with their overviews that are made of it.

    The journal is not compressed and counted in full, though blocks without a valid pixel take nothing. COGs
    are taken for two thirds of their pixels if lossless and a quarter if lossy; Sentinel-2 content took a
    third and a twelfth. `variables` are names in `LAYERS`.
    """
    journal, cogs = 0, 0.0
    for layer in (LAYERS[variable] for variable in variables):
        size = grid.shape[0] * grid.shape[1] * layer.bytes_per_pixel
        journal += size
        cogs += size * (1 / 4 if compress in _LOSSY and layer.dtype == "uint8" else 2 / 3)
    return journal, round(cogs)


def check_space(needs: Iterable[tuple[Path, int]], *, elsewhere: str = "--tmp or --out") -> None:
    """Refuse a run that the disks cannot hold.

    Parameters
    ----------
    needs : iterable of (Path, int)
        Existing folders and bytes; the bytes of one file system are added up.
    elsewhere : str, optional (default: "--tmp or --out")
        Flags that choose the folders, for the message.

    Raises
    ------
    OutputError
        If fewer bytes are free.
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
                f"some, choose another {elsewhere}, or pass force=True"
            )


def _write_vrt(
    journal: Journal, variable: str, grid: Grid, blocks: list[Window], tags: Mapping[str, str]
) -> Path:
    """Write a VRT over all blocks of a variable (https://gdal.org/en/stable/drivers/raster/vrt.html)."""
    layer = LAYERS[variable]
    paths = journal.paths(variable)
    missing = [block for block in blocks if block not in paths]
    if missing:
        raise JournalError(
            f"{journal.folder}: {len(missing)} of {len(blocks)} blocks of {variable!r} are missing: "
            "repeat the command"
        )
    root = ET.Element("VRTDataset", rasterXSize=str(grid.shape[1]), rasterYSize=str(grid.shape[0]))
    if grid.crs is not None:
        ET.SubElement(root, "SRS").text = grid.crs
    if grid.transform != _NO_TRANSFORM:
        a, b, c, d, e, f = grid.transform
        ET.SubElement(root, "GeoTransform").text = ", ".join(repr(value) for value in (c, a, b, f, d, e))
    metadata = ET.SubElement(root, "Metadata")
    for key, value in tags.items():
        if re.search("[:=]", key):
            raise ValueError(f"tag {key!r}: GDAL would split the name there")
        ET.SubElement(metadata, "MDI", key=key).text = value
    files = [(paths[block], block) for block in blocks]
    for number, name in enumerate(layer.bands, start=1):
        band = ET.SubElement(root, "VRTRasterBand", band=str(number))
        ET.SubElement(band, "Description").text = name
        if name in ("red", "green", "blue"):
            ET.SubElement(band, "ColorInterp").text = name.capitalize()
        _fill_band(band, layer, number, files)
    if layer.masked:
        mask = ET.SubElement(ET.SubElement(root, "MaskBand"), "VRTRasterBand")
        _fill_band(mask, layer, len(layer.bands) + 1, files)
    target = journal.folder / "assembled" / f"{variable}.vrt"
    target.parent.mkdir(exist_ok=True)
    ET.ElementTree(root).write(target, encoding="utf-8")
    return target


def _fill_band(band: ET.Element, layer: Layer, number: int, files: list[tuple[Path, Window]]) -> None:
    """Let a VRT band show band `number` of all blocks."""
    data_type = {"uint8": "Byte", "float32": "Float32"}[layer.dtype]
    band.attrib |= {"dataType": data_type, "blockXSize": str(BLOCK), "blockYSize": str(BLOCK)}
    if not layer.masked:
        ET.SubElement(band, "NoDataValue").text = "nan"
    for path, block in files:
        source = ET.SubElement(band, "SimpleSource")
        # Not shared: a shared source stays open for as long as the VRT does.
        name = ET.SubElement(source, "SourceFilename", relativeToVRT="1", shared="0")
        name.text = f"../{path.parent.name}/{path.name}"
        ET.SubElement(source, "SourceBand").text = str(number)
        size = {"xSize": str(block.width), "ySize": str(block.height)}
        properties = {"RasterXSize": size["xSize"], "RasterYSize": size["ySize"], "DataType": data_type}
        # With its properties known, a block is opened when it is read, and not before.
        ET.SubElement(source, "SourceProperties", properties)
        ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
        ET.SubElement(source, "DstRect", {"xOff": str(block.col), "yOff": str(block.row), **size})
