"""What index and files say of all chips of a scene pair, and which of several chips of a cell stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sar2eo._version import __version__
from sar2eo.pairs.cells import lattice_of
from sar2eo.pairs.footprints import SceneFootprint
from sar2eo.pairs.index import Row
from sar2eo.pairs.planning import Meeting, Scenes
from sar2eo.pairs.sources import Source
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
        "sar_href": sar.href,
        "eo_href": eo.href,
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
        "SAR_SOURCE": Path(common["sar_href"]).name,
        "EO_SOURCE": Path(common["eo_href"]).name,
        "SAR_DATETIME": common["sar_datetime"],
        "EO_DATETIME": common["eo_datetime"],
        "TIFFTAG_SOFTWARE": f"sar2eo {__version__}",
    }
    return {name: value for name, value in tags.items() if value is not None}


def without_duplicates(rows: Sequence[Row], scenes: Scenes, footprints: Footprints) -> tuple[list[Row], int]:
    """Keep one chip of each cell, SAR pass and EO pass: the most valid, then the closest in time."""
    lattices = [lattice_of(sar.grid) for sar in scenes.sar]
    of_sar, of_eo = (passes([each.source for each in role]) for role in footprints)
    best: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: (-row["valid_share"], row["day_gap"] or 0.0, row["id"])):
        sar, eo = row["scenes"]
        best.setdefault((lattices[sar], *row["cell"], of_sar[sar], of_eo[eo]), row)
    kept = sorted(best.values(), key=lambda row: str(row["id"]))
    return kept, len(rows) - len(kept)


def passes(sources: Sequence[Source]) -> list[str]:
    """Name the pass that each scene was taken in.

    Scenes of one orbit follow each other within minutes, so those less than ten minutes from the next are
    one pass. A scene without a time stands for itself.
    """
    timed = sorted(
        (datetime.fromisoformat(iso_datetime(source.datetime)), at)
        for at, source in enumerate(sources)
        if source.datetime is not None
    )
    names = [f"scene {at}" for at in range(len(sources))]
    start = previous = None
    for time, at in timed:
        if start is None or previous is None or time - previous > _ONE_PASS:
            start = time
        previous = time
        names[at] = start.isoformat()
    return names
