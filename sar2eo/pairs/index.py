"""The index of a folder of pairs: one row for each chip pair, as GeoParquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from sar2eo.durable import write_atomically
from sar2eo.errors import PairsError
from sar2eo.footprint import to_lonlat
from sar2eo.pairs.cells import corners_lonlat
from sar2eo.pairs.chips import checksum

__all__ = ["COLUMNS", "chip_corners", "chip_names", "index_of", "read_index", "write_index"]

COLUMNS = (
    "id",
    "split",
    "sar_chip",
    "eo_chip",
    "sar_href",
    "eo_href",
    "sar_datetime",
    "eo_datetime",
    "day_gap",
    "crs",
    "transform",
    "row",
    "col",
    "height",
    "width",
    "valid_share",
    "cloud_share",
    "quantity",
    "calibration",
    "polarisations",
    "scaling",
    "platform",
    "orbit_direction",
    "eo_mean",
    "eo_std",
    "shift_rows",
    "shift_cols",
    "align_score",
    "block",
    "geometry",
)
_TIMES = ("sar_datetime", "eo_datetime")
_NULLABLE = ("day_gap", "cloud_share", "shift_rows", "shift_cols", "align_score")
_TEXTS = ("calibration", "platform", "orbit_direction")

Row = dict[str, Any]


def chip_corners(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Return the corners of chips in longitude and latitude, shape (chip, 4, 2)."""
    corners = np.empty((len(rows), 4, 2))
    kinds: dict[tuple[str, int, int], list[int]] = {}
    for at, row in enumerate(rows):
        kinds.setdefault((row["crs"], row["height"], row["width"]), []).append(at)
    for (crs, height, width), places in kinds.items():
        transforms = np.array([rows[at]["transform"] for at in places], dtype=np.float64)
        corners[places] = corners_lonlat(crs, transforms, (height, width))
    return corners


def index_of(rows: Sequence[Row], corners: npt.NDArray[np.float64]) -> gpd.GeoDataFrame:
    """Make the index.

    Parameters
    ----------
    rows : sequence of dict
        With all `COLUMNS` but the geometry; times as ISO 8601 text or None.
    corners : ndarray of float64, shape (chip, 4, 2)
        Of the chips, in longitude and latitude; see `chip_corners`.

    Returns
    -------
    GeoDataFrame
        In EPSG:4326, sorted by id.
    """
    outlines: npt.NDArray[Any] = shapely.polygons(corners)
    wide = np.ptp(corners[..., 0], axis=1) > 180
    for at in np.flatnonzero(wide).tolist():
        a, _, c, _, e, f = rows[at]["transform"]
        height, width = rows[at]["height"], rows[at]["width"]
        box = shapely.box(c, f + e * height, c + a * width, f)
        outlines[at] = to_lonlat(box, rows[at]["crs"])
    frame = pd.DataFrame(list(rows), columns=[name for name in COLUMNS if name != "geometry"])
    for name in _TIMES:
        frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601").astype("datetime64[us, UTC]")
    for name in _NULLABLE:
        frame[name] = frame[name].astype("float64")
    for name in _TEXTS:
        frame[name] = frame[name].astype("object").where(frame[name].notna(), None)
    found = gpd.GeoDataFrame(frame, geometry=outlines, crs="EPSG:4326")
    return found.sort_values("id", ignore_index=True)[list(COLUMNS)]


def write_index(index: gpd.GeoDataFrame, path: Path) -> str:
    """Write an index as GeoParquet, whole or not at all; return a checksum of its bytes.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    index.to_parquet(buffer, index=False, compression="zstd")
    data = buffer.getvalue()
    write_atomically(path, data)
    return checksum(data)


def read_index(folder: Path) -> gpd.GeoDataFrame:
    """Read the index of a finished folder of pairs.

    Raises
    ------
    PairsError
        If there is none, or it is not one.
    """
    path = Path(folder) / "pairs.parquet"
    if not path.is_file():
        raise PairsError(f"{folder}: holds no pairs.parquet: is it a finished --out of build-pairs?")
    try:
        index = gpd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PairsError(f"{path}: not a readable GeoParquet file: {error}") from error
    missing = [name for name in COLUMNS if name not in index]
    if missing:
        raise PairsError(f"{path}: lacks {', '.join(missing)}: was it made by build-pairs?")
    return index


def chip_names(folder: Path) -> set[str]:
    """Return the names of the files of all chips in a folder's index."""
    index = read_index(folder)
    return {Path(path).name for column in ("sar_chip", "eo_chip") for path in index[column]}
