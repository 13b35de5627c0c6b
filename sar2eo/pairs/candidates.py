"""Which SAR and EO scenes overlap in place and are close in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime as Datetime
from math import inf, isinf
from typing import Any

import shapely

from sar2eo.errors import PairsError
from sar2eo.pairs.footprints import SceneFootprint
from sar2eo.scene.metadata import iso_datetime

__all__ = ["Candidate", "find_candidates"]

_SECONDS_PER_DAY = 86_400.0
_SHOWN = 3


@dataclass(frozen=True)
class Candidate:
    """Two scenes to pair.

    Parameters
    ----------
    sar, eo : int
        Their places in the lists.
    day_gap : float or None
        Days between the acquisitions, never negative; None where one is not known.
    overlap : Polygon or MultiPolygon
        Where both have data, in longitude and latitude (EPSG:4326).
    """

    sar: int
    eo: int
    day_gap: float | None
    overlap: Any


def find_candidates(
    sar: Sequence[SceneFootprint], eo: Sequence[SceneFootprint], *, max_days: float
) -> list[Candidate]:
    """Find the pairs of scenes that overlap and were taken within `max_days` of each other.

    Parameters
    ----------
    sar, eo : sequence of SceneFootprint
        Scenes; their areas are split at the antimeridian.
    max_days : float
        Largest gap in days; infinite: any, and times need not be known.

    Returns
    -------
    list of Candidate
        By SAR scene; for each, the smallest gap first (unknown ones last), then the larger overlap.

    Raises
    ------
    PairsError
        If a time is missing that is needed, or nothing is found: then it says whether place or time is to
        blame, and how large the smallest gap is.
    """
    meetings = _meetings(sar, eo)
    if not meetings:
        raise PairsError(f"no EO scene overlaps a SAR scene: {_whereabouts(sar, eo)}")
    if not isinf(max_days):
        _check_times([*(sar[i] for i, _ in meetings), *(eo[j] for _, j in meetings)])
    found = [
        Candidate(i, j, _day_gap(sar[i], eo[j]), overlap) for (i, j), overlap in sorted(meetings.items())
    ]
    kept = [each for each in found if each.day_gap is None or each.day_gap <= max_days]
    if not kept:
        near = min(found, key=lambda each: each.day_gap or 0.0)
        raise PairsError(
            f"{len(found)} pairs of scenes overlap, none taken within max_days={max_days:g}: the closest are "
            f"{near.day_gap:.1f} days apart ({sar[near.sar].source.href}, {eo[near.eo].source.href})"
        )
    return sorted(kept, key=lambda c: (c.sar, inf if c.day_gap is None else c.day_gap, -c.overlap.area, c.eo))


def _meetings(sar: Sequence[SceneFootprint], eo: Sequence[SceneFootprint]) -> dict[tuple[int, int], Any]:
    """Return the common area of every two scenes that have one."""
    if not sar or not eo:
        return {}
    tree = shapely.STRtree([each.area for each in eo])
    at_sar, at_eo = tree.query([each.area for each in sar], predicate="intersects")
    found = {}
    for i, j in zip(at_sar.tolist(), at_eo.tolist(), strict=True):
        overlap = _polygons(shapely.intersection(sar[i].area, eo[j].area))
        if not overlap.is_empty:
            found[i, j] = overlap
    return found


def _polygons(area: Any) -> Any:
    """Leave out what touches without an area."""
    flat = shapely.get_parts(shapely.get_parts(area))
    return shapely.union_all([part for part in flat if part.geom_type == "Polygon" and part.area > 0])


def _day_gap(sar: SceneFootprint, eo: SceneFootprint) -> float | None:
    if sar.source.datetime is None or eo.source.datetime is None:
        return None
    apart = _time(sar.source.datetime) - _time(eo.source.datetime)
    return abs(apart.total_seconds()) / _SECONDS_PER_DAY


def _time(text: str) -> Datetime:
    return Datetime.fromisoformat(iso_datetime(text))


def _check_times(scenes: Sequence[SceneFootprint]) -> None:
    names = dict.fromkeys(each.source.href for each in scenes if each.source.datetime is None)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise PairsError(
            f"no acquisition time is known of {', '.join(list(names)[:_SHOWN])}{more}: give times in a table "
            "of footprints, or --max-days inf to pair whatever the time"
        )


def _whereabouts(sar: Sequence[SceneFootprint], eo: Sequence[SceneFootprint]) -> str:
    return f"SAR lies in {_bounds(sar)}, EO in {_bounds(eo)} (west, south, east, north)"


def _bounds(scenes: Sequence[SceneFootprint]) -> str:
    areas = [each.area for each in scenes if not each.area.is_empty]
    if not areas:
        return "no place (no valid pixels)"
    return ", ".join(f"{value:.2f}" for value in shapely.total_bounds(areas))
