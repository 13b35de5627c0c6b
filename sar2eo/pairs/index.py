"""The index of a folder of pairs: one row for each chip pair, as GeoParquet."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from sar2eo._version import __version__
from sar2eo.errors import PairsError
from sar2eo.geo.chip_lattice import corners_lonlat, name_lattice
from sar2eo.geo.footprint import to_lonlat
from sar2eo.pairs.plan import Footprints, Meeting, Scenes
from sar2eo.scenes.gdal import display_name, parse_source
from sar2eo.scenes.metadata import iso_datetime
from sar2eo.scenes.sources import Source
from sar2eo.store.atomic import checksum, write_file

COLUMNS = (
    "id", "split", "sar_chip", "eo_chip", "sar_href", "eo_href", "sar_datetime", "eo_datetime", "day_gap",
    "crs", "transform", "row", "col", "height", "width", "valid_share", "cloud_share", "quantity",
    "calibration", "polarisations", "scaling", "platform", "orbit_direction", "eo_mean", "eo_std",
    "shift_rows", "shift_cols", "align_score", "block", "geometry",
)  # fmt: skip
"""Columns of the index."""

_TIMES = ("sar_datetime", "eo_datetime")
_NULLABLE = ("day_gap", "cloud_share", "shift_rows", "shift_cols", "align_score")
_TEXTS = ("calibration", "platform", "orbit_direction")

Row = dict[str, Any]


def compute_corners(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Return the corners of chips in longitude and latitude, shape (chip, 4, 2)."""
    corners = np.empty((len(rows), 4, 2))
    kinds: dict[tuple[str, int, int], list[int]] = {}
    for at, row in enumerate(rows):
        kinds.setdefault((row["crs"], row["height"], row["width"]), []).append(at)
    for (crs, height, width), places in kinds.items():
        transforms = np.array([rows[at]["transform"] for at in places], dtype=np.float64)
        corners[places] = corners_lonlat(crs, transforms, (height, width))
    return corners


def create_index(rows: Sequence[Row], corners: npt.NDArray[np.float64]) -> gpd.GeoDataFrame:
    """Create the index, in EPSG:4326, sorted by id.

    `rows` have all `COLUMNS` but the geometry, times as ISO 8601 text or None; `corners` are from
    `compute_corners`.
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
    """Write an index as GeoParquet, whole or not at all; return a checksum of its bytes."""
    buffer = io.BytesIO()
    index.to_parquet(buffer, index=False, compression="zstd")
    data = buffer.getvalue()
    write_file(path, data)
    return checksum(data)


def read_index(folder: Path) -> gpd.GeoDataFrame:
    """Read the index of a finished folder of pairs; `PairsError` if there is none, or it is not one."""
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


def list_chip_files(folder: Path) -> set[str]:
    """Return the names of the files of all chips in a folder's index."""
    index = read_index(folder)
    return {Path(path).name for column in ("sar_chip", "eo_chip") for path in index[column]}


_ONE_PASS = timedelta(minutes=10)


def collect_columns(
    each: Meeting,
    scenes: Scenes,
    footprints: Footprints,
    scaling: tuple[float, ...],
) -> dict[str, Any]:
    """Return the columns of the index that all chips of a scene pair share."""
    sar, eo = scenes.sar[each.sar], scenes.eo[each.eo]
    source, optical = footprints[0][each.sar].source, footprints[1][each.eo].source
    return {
        "pair": each.label,
        "scenes": [each.sar, each.eo],
        "sar_href": display_name(sar.href),
        "eo_href": display_name(eo.href),
        "sar_datetime": source.datetime,
        "eo_datetime": optical.datetime,
        "day_gap": each.day_gap,
        "quantity": sar.quantity,
        "calibration": sar.calibration,
        "polarisations": list(sar.reader.polarisations),
        "scaling": list(scaling),
        "platform": source.platform,
        "orbit_direction": source.orbit_direction,
    }


def create_chip_tags(common: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a chip's file, with which it can be read without the index."""
    tags = {
        "QUANTITY": common["quantity"],
        "CALIBRATION": common["calibration"],
        "POLARIZATION": " ".join(common["polarisations"]),
        "SCALING_P99": ",".join(f"{value:.9g}" for value in common["scaling"]),
        "SAR_SOURCE": _file_names(common["sar_href"]),
        "EO_SOURCE": Path(common["eo_href"]).name,
        "SAR_DATETIME": common["sar_datetime"],
        "EO_DATETIME": common["eo_datetime"],
        "TIFFTAG_SOFTWARE": f"sar2eo {__version__}",
    }
    return {name: value for name, value in tags.items() if value is not None}


def _file_names(href: str) -> str:
    parsed = parse_source(href)
    if isinstance(parsed, str):
        return Path(parsed).name
    return ",".join(f"{polarisation}={Path(file).name}" for polarisation, file in parsed.items())


def drop_duplicates(rows: Sequence[Row], scenes: Scenes, footprints: Footprints) -> tuple[list[Row], int]:
    """Keep one chip of each cell, SAR pass and EO pass: the most valid, then the closest in time."""
    lattices = [name_lattice(sar.grid) for sar in scenes.sar]
    places: dict[Any, list[Row]] = {}
    gaps = {row["id"]: inf if row["day_gap"] is None else row["day_gap"] for row in rows}
    for row in sorted(rows, key=lambda row: (-row["valid_share"], gaps[row["id"]], row["id"])):
        places.setdefault((lattices[row["scenes"][0]], *row["cell"]), []).append(row)

    @cache
    def pass_names(role: int, which: frozenset[int]) -> dict[int, str]:
        chosen = sorted(which)
        return dict(zip(chosen, name_passes([footprints[role][at].source for at in chosen]), strict=True))

    kept: list[Row] = []
    for there in places.values():
        # Passes are those over this place: somewhere else there may be a scene at any time of the day.
        of_sar, of_eo = (pass_names(role, frozenset(row["scenes"][role] for row in there)) for role in (0, 1))
        best: dict[Any, Row] = {}
        for row in there:
            best.setdefault((of_sar[row["scenes"][0]], of_eo[row["scenes"][1]]), row)
        kept += best.values()
    return sorted(kept, key=lambda row: str(row["id"])), len(rows) - len(kept)


def name_passes(sources: Sequence[Source]) -> list[str]:
    """Name the pass that each of several scenes of one place was taken in.

    Scenes of one orbit follow each other within minutes, so those of one satellite less than ten minutes
    from the next are one pass. A scene without a time stands for itself.
    """
    timed = sorted(
        (source.platform or "", datetime.fromisoformat(iso_datetime(source.datetime)), at)
        for at, source in enumerate(sources)
        if source.datetime is not None
    )
    names = [f"scene {at}" for at in range(len(sources))]
    start = previous = None
    for platform, time, at in timed:
        if start is None or previous is None or platform != previous[0] or time - previous[1] > _ONE_PASS:
            start = time
        previous = platform, time
        names[at] = f"{platform} {start.isoformat()}"
    return names
