"""What the variables of a result look like as rasters, and their blocks seen as one raster."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sar2eo.errors import JournalError
from sar2eo.grid import Grid
from sar2eo.journal import Journal
from sar2eo.windows import Window

__all__ = ["BLOCK", "LAYERS", "Layer", "mosaic"]

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
