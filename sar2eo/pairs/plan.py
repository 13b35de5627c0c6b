"""Plan a build: open and outline the scenes, find those that overlap, and the cells to try."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime as Datetime
from math import inf, isinf
from pathlib import Path
from typing import Any, NamedTuple

import shapely
import xarray as xr

from sar2eo.errors import PairsError, SettingsError
from sar2eo.geo.chip_lattice import Cell, list_cells, project_to_grid
from sar2eo.scenes import parse_source
from sar2eo.scenes.extent import SceneFootprint, complete_source, read_footprint
from sar2eo.scenes.identity import digest
from sar2eo.scenes.metadata import iso_datetime
from sar2eo.scenes.optical import EoScene, open_eo_scene
from sar2eo.scenes.sar_scene import SarScene, open_sar_scene
from sar2eo.scenes.sources import Source, expand_sources
from sar2eo.settings import PairsSettings, SceneSettings
from sar2eo.store.task_results import TaskResults

FORMAT = 1
"""Format of pairs: it rises when the same settings give other chips."""

Footprints = tuple[list[SceneFootprint], list[SceneFootprint]]

_THREADS = 8


@dataclass(frozen=True, eq=False)
class Scenes:
    """All scenes of a build, opened, without their pixels; `sources` are those of SAR and EO scenes."""

    sar: list[SarScene]
    eo: list[EoScene]
    arrays: list[xr.DataArray]
    sources: tuple[list[Source], list[Source]]

    def named(self, found: Sequence[Meeting]) -> dict[str, Any]:
        """Return the scenes of scene pairs by `Meeting.sar_key` and `Meeting.eo_key`, for tasks."""
        named: dict[str, Any] = {}
        for each in found:
            named |= {each.sar_key: self.sar[each.sar], each.eo_key: self.eo[each.eo]}
        return named

    def fingerprint(self, settings: PairsSettings, scene: SceneSettings, aligner: Any) -> dict[str, Any]:
        """Return everything that the result depends on, as JSON values."""
        is_record = dataclasses.is_dataclass(aligner) and not isinstance(aligner, type)
        how = dataclasses.asdict(aligner) if is_record else {}
        opened: tuple[Sequence[Any], ...] = self.arrays, self.eo
        acquired = [
            [
                _source_facts(complete_source(source, scene))
                for source, scene in zip(sources, role, strict=True)
            ]
            for sources, role in zip(self.sources, opened, strict=True)
        ]
        return {
            "format": FORMAT,
            "settings": dataclasses.asdict(settings),
            "scene": dataclasses.asdict(dataclasses.replace(scene, force=False)),
            "aligner": None if aligner is None else {"kind": type(aligner).__name__, **how},
            "sar": [each.reader.identity() for each in self.sar],
            "eo": [each.identity() for each in self.eo],
            "acquired": {"sar": acquired[0], "eo": acquired[1]},
            "radiometry": [[each.quantity, each.calibration, each.dtype] for each in self.sar],
        }


@dataclass(frozen=True, eq=False)
class Meeting:
    """A scene pair that overlaps, by the numbers of its scenes, and the cells to try.

    `day_gap` is in days; None if unknown. Both have data in `overlap`, in longitude and latitude, and
    `within`, in the CRS of the SAR scene's grid.
    """

    sar: int
    eo: int
    day_gap: float | None
    overlap: Any
    within: Any
    cells: list[Cell]

    @property
    def label(self) -> str:
        """Name of the scene pair in ids of chips and tasks."""
        return f"s{self.sar:04d}e{self.eo:04d}"

    @property
    def sar_key(self) -> str:
        """Name of the SAR scene in a graph."""
        return f"scene-sar-{self.sar}"

    @property
    def eo_key(self) -> str:
        """Name of the EO scene in a graph."""
        return f"scene-eo-{self.eo}"


@dataclass(frozen=True, eq=False)
class _Outline:
    """A scene to outline; an object, so that Dask does not look into the lazy array."""

    source: Source
    scene: Any

    def run(self) -> str:
        return str(shapely.to_wkb(read_footprint(self.source, self.scene).area, hex=True))


def open_scenes(
    sar: Sequence[str], eo: Sequence[str], settings: PairsSettings, scene: SceneSettings, out: Path
) -> Scenes:
    """Find and open all scenes.

    Raises `SettingsError` if a scene lies in the folder that is built, or options do not apply; `PairsError`
    or `SceneError` if there are none, or one cannot be opened.
    """
    # Sorted, so that ids and fingerprint do not depend on the order of arguments.
    sources = (
        _sort_sources(expand_sources(sar, "sar")),
        _sort_sources(expand_sources(eo, "eo", settings.eo_bands)),
    )
    for source in (*sources[0], *sources[1]):
        if Path(source.href).absolute().is_relative_to(out.absolute()):
            raise SettingsError(f"{source.href} lies in --out {out}: build pairs into a folder of their own")
    low, high = settings.eo_range
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = list(pool.map(lambda source: open_sar_scene(source.href, settings, scene), sources[0]))
        optical = list(
            pool.map(
                lambda source: open_eo_scene(source, eo_range=(low, high), eo_bands=settings.eo_bands),
                sources[1],
            )
        )
    return Scenes([each for each, _ in opened], optical, [array for _, array in opened], sources)


def _sort_sources(sources: Sequence[Source]) -> list[Source]:
    """Name local files by absolute paths, which workers and readers of the index find; sort by name."""
    named = [dataclasses.replace(source, href=_absolute(source.href)) for source in sources]
    return sorted(named, key=lambda source: source.href)


def _source_facts(source: Source) -> list[str | None]:
    """Return the facts from tables, items and tags that chips and index depend on, as JSON values."""
    area = None if source.footprint is None else digest(shapely.to_wkb(source.footprint, hex=True))
    return [source.datetime, source.platform, source.orbit_direction, area]


def _absolute(href: str) -> str:
    parsed = parse_source(href)
    if isinstance(parsed, dict):
        return ",".join(f"{name}={_absolute(file)}" for name, file in parsed.items())
    # A STAC item of a collection is named by what follows the mark.
    path, mark, name = href.partition("#")
    return f"{Path(path).absolute()}{mark}{name}" if Path(path).exists() else href


def survey(scenes: Scenes, results: TaskResults) -> Footprints:
    """Outline all scenes, in parallel; return the footprints of the SAR and of the EO scenes."""
    roles = ("sar", scenes.sources[0], scenes.arrays), ("eo", scenes.sources[1], scenes.eo)
    opened: dict[str, tuple[Source, Any]] = {
        f"outline-{role}-{at}": pair
        for role, *lists in roles
        for at, pair in enumerate(zip(*lists, strict=True))
    }
    found = results.compute({name: (_Outline.run, _Outline(*pair)) for name, pair in opened.items()})
    placed = [
        read_footprint(dataclasses.replace(source, footprint=shapely.from_wkb(found[name])), scene)
        for name, (source, scene) in opened.items()
    ]
    return placed[: len(scenes.sar)], placed[len(scenes.sar) :]


def find_meetings(scenes: Scenes, footprints: Footprints, settings: PairsSettings) -> list[Meeting]:
    """Find the scene pairs that share a cell, and the cells of each.

    Raises `PairsError` if no scenes overlap closely enough in time.
    """
    met = []
    for i, j, day_gap, overlap in find_candidates(*footprints, max_days=settings.max_days):
        grid = scenes.sar[i].grid
        within = project_to_grid(overlap, grid)
        cells = list_cells(
            grid, size=settings.size, stride=settings.stride, within=within, min_valid=settings.min_valid
        )
        if cells:
            met.append(Meeting(i, j, day_gap, overlap, within, cells))
    return met


_SECONDS_PER_DAY = 86_400.0
_SHOWN = 3


class Candidate(NamedTuple):
    """Two scenes to pair, by their numbers: the gap in days, or None; the overlap in EPSG:4326."""

    sar: int
    eo: int
    day_gap: float | None
    overlap: Any


def find_candidates(
    sar: Sequence[SceneFootprint], eo: Sequence[SceneFootprint], *, max_days: float
) -> list[Candidate]:
    """Find the pairs of scenes that overlap and were taken within `max_days` of each other.

    With infinite `max_days`, times need not be known. Sorted by SAR scene; for each, the smallest gap first
    (unknown ones last), then the larger overlap.

    Raises `PairsError` if a time is missing that is needed, or nothing is found: the message says whether
    place or time is to blame, and how large the smallest gap is.
    """
    overlaps = _overlaps(sar, eo)
    if not overlaps:
        raise PairsError(
            f"no EO scene overlaps a SAR scene: SAR lies in {_bounds(sar)}, EO in {_bounds(eo)} (west, "
            "south, east, north)"
        )
    if not isinf(max_days):
        _check_times([*(sar[i] for i, _ in overlaps), *(eo[j] for _, j in overlaps)])
    found = [
        Candidate(i, j, _day_gap(sar[i], eo[j]), overlap) for (i, j), overlap in sorted(overlaps.items())
    ]
    kept = [each for each in found if each.day_gap is None or each.day_gap <= max_days]
    if not kept:
        near = min(found, key=lambda each: each.day_gap or 0.0)
        raise PairsError(
            f"{len(found)} pairs of scenes overlap, none taken within max_days={max_days:g}: the closest are "
            f"{near.day_gap:.1f} days apart ({sar[near.sar].source.href}, {eo[near.eo].source.href})"
        )
    return sorted(kept, key=lambda c: (c.sar, inf if c.day_gap is None else c.day_gap, -c.overlap.area, c.eo))


def _overlaps(sar: Sequence[SceneFootprint], eo: Sequence[SceneFootprint]) -> dict[tuple[int, int], Any]:
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
    """Leave out lines and points, where areas only touch."""
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


def _bounds(scenes: Sequence[SceneFootprint]) -> str:
    areas = [each.area for each in scenes if not each.area.is_empty]
    if not areas:
        return "no place (no valid pixels)"
    return ", ".join(f"{value:.2f}" for value in shapely.total_bounds(areas))
