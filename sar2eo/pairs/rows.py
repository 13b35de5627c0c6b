"""What index and files say of all chips of a scene pair, and which of several chips of a cell stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from sar2eo._version import __version__
from sar2eo.pairs.cells import lattice_of
from sar2eo.pairs.footprints import SceneFootprint
from sar2eo.pairs.index import Row
from sar2eo.pairs.planning import Meeting, Scenes
from sar2eo.pairs.sources import Source
from sar2eo.scene import parse_source, shown_source
from sar2eo.scene.handles import shown
from sar2eo.scene.metadata import iso_datetime

__all__ = ["common_columns", "passes", "tags_of", "without_duplicates"]

_ONE_PASS = timedelta(minutes=10)

Footprints = tuple[list[SceneFootprint], list[SceneFootprint]]


def common_columns(
    each: Meeting,
    scenes: Scenes,
    footprints: Footprints,
    scaling: tuple[float, ...],
) -> dict[str, Any]:
    """Columns of the index that all chips of a scene pair share."""
    sar, eo = scenes.sar[each.sar], scenes.eo[each.eo]
    source, optical = footprints[0][each.sar].source, footprints[1][each.eo].source
    return {
        "pair": each.label,
        "scenes": [each.sar, each.eo],
        "sar_href": shown_source(sar.href),
        "eo_href": shown(eo.href),
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


def tags_of(common: Mapping[str, Any]) -> dict[str, str]:
    """Tell what a chip's file says of itself, so that it can be read without the index."""
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


def _gap(row: Row) -> float:
    return inf if row["day_gap"] is None else float(row["day_gap"])


def without_duplicates(rows: Sequence[Row], scenes: Scenes, footprints: Footprints) -> tuple[list[Row], int]:
    """Keep one chip of each cell, SAR pass and EO pass: the most valid, then the closest in time."""
    lattices = [lattice_of(sar.grid) for sar in scenes.sar]
    places: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-row["valid_share"], _gap(row), row["id"])):
        places.setdefault((lattices[row["scenes"][0]], *row["cell"]), []).append(row)

    @cache
    def named(role: int, which: frozenset[int]) -> dict[int, str]:
        chosen = sorted(which)
        return dict(zip(chosen, passes([footprints[role][at].source for at in chosen]), strict=True))

    kept: list[Row] = []
    for there in places.values():
        # Passes are those over this place: somewhere else there may be a scene at any time of the day.
        of_sar, of_eo = (named(role, frozenset(row["scenes"][role] for row in there)) for role in (0, 1))
        best: dict[Any, Row] = {}
        for row in there:
            best.setdefault((of_sar[row["scenes"][0]], of_eo[row["scenes"][1]]), row)
        kept += best.values()
    return sorted(kept, key=lambda row: str(row["id"])), len(rows) - len(kept)


def passes(sources: Sequence[Source]) -> list[str]:
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
