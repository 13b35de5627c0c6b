"""Building a folder of pairs: open, outline, meet, align, cut, split, publish.

The work is a graph of few, fat tasks on Dask's scheduler in force: runs of chips, and of neighbourhoods for
the alignment. Each keeps its result as a part, so a build that is stopped at any moment goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np

from sar2eo._version import __version__
from sar2eo.compute.dask_run import Progress, collect_telemetry, reset_telemetry
from sar2eo.errors import OutputError, PairsError, PairsWarning, SettingsError
from sar2eo.matching.shifts import Aligner, Displacement
from sar2eo.pairs.index import (
    Footprints,
    Row,
    chip_corners,
    common_columns,
    index_of,
    read_index,
    tags_of,
    without_duplicates,
    write_index,
)
from sar2eo.pairs.output_folder import Work, check_target, finished_record
from sar2eo.pairs.plan import Meeting, Scenes, meetings, open_scenes, survey
from sar2eo.pairs.splits import SPLITS, assign
from sar2eo.pairs.tasks import CellPlan, CutRun, Runner, cut_run, measured_shifts, planned_cells
from sar2eo.scenes.gdal import display_name
from sar2eo.settings import PairsSettings, SceneSettings, replace_settings
from sar2eo.store.fingerprint import plain, write_record
from sar2eo.store.task_results import PartStore

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["build", "build_pairs", "plan"]

# Cells of one task: a second of work or so, which a run that is stopped loses.
_RUN_CELLS = 32


def plan(
    sar: Sequence[str], eo: Sequence[str], out: Path, *, settings: PairsSettings, scene: SceneSettings
) -> gpd.GeoDataFrame:
    """Say what a build would do; nothing is written.

    Returns
    -------
    GeoDataFrame
        A row for each scene pair: sar_href, eo_href, day_gap, cells, and the overlap in EPSG:4326.
        ``attrs["scenes"]`` counts the scenes.
    """
    scenes = open_scenes(sar, eo, settings, scene, out)
    footprints = survey(scenes, None, {})
    found = meetings(scenes, footprints, settings)
    table = gpd.GeoDataFrame(
        {
            "sar_href": [display_name(scenes.sar[each.sar].href) for each in found],
            "eo_href": [display_name(scenes.eo[each.eo].href) for each in found],
            "day_gap": np.array([each.day_gap for each in found], dtype=np.float64),
            "cells": [len(each.cells) for each in found],
        },
        geometry=[each.overlap for each in found],
        crs="EPSG:4326",
    )
    table.attrs["scenes"] = {"sar": len(scenes.sar), "eo": len(scenes.eo)}
    return table


def build(
    sar: Sequence[str],
    eo: Sequence[str],
    out: Path,
    *,
    settings: PairsSettings,
    scene: SceneSettings,
    aligner: Aligner | None = None,
    overwrite: bool = False,
    report: Path | None = None,
    progress: Progress | None = None,
) -> gpd.GeoDataFrame:
    """Build a folder of pairs, or go on building it, or return it if it is built.

    Parameters
    ----------
    sar, eo : sequence of str
        What `sar2eo.scenes.sources.expand_sources` takes.
    out : Path
        Folder.
    settings : PairsSettings
    scene : SceneSettings
        How SAR scenes are opened.
    aligner : Aligner, optional
        Needed unless ``settings.align`` is "off".
    overwrite : bool, optional (default: False)
        Replace pairs, or unfinished work, of other settings.
    report : Path, optional
        JSON file of what was done.
    progress : callable, optional
        Called about once a second with counters.

    Returns
    -------
    GeoDataFrame
        The index; ``attrs["report"]`` says what was done.

    Raises
    ------
    PairsError
        If no scenes meet, or no chip is left.
    OutputError
        If the folder cannot be written, or holds something else.

    Warns
    -----
    PairsWarning
        If scene pairs are left out for want of evidence of their alignment, or a split is empty.
    """
    started = time.perf_counter()
    if report is not None and not report.absolute().parent.is_dir():
        raise OutputError(f"--report {report}: there is no folder {report.parent}: make it first")
    if report is not None and report.is_dir():
        raise OutputError(f"--report {report}: is a folder: name a file in it")
    if (settings.align == "off") != (aligner is None):
        raise SettingsError(f"align={settings.align!r}: needs an aligner unless it is off")
    scenes = open_scenes(sar, eo, settings, scene, out)
    fingerprint = plain(scenes.fingerprint(settings, scene, aligner))
    if check_target(out, fingerprint, overwrite=overwrite):
        Work.clear(out, fingerprint)
        return _finished(out, report, done_before=True)
    reset_telemetry()
    work = Work.begin(out, fingerprint, overwrite=overwrite)
    try:
        if not work.publishing:
            _Build(scenes, settings, aligner, work, progress).run(fingerprint, started)
        work.publish()
    finally:
        work.journal.release()
    return _finished(out, report, done_before=False)


def _finished(out: Path, report: Path | None, *, done_before: bool) -> gpd.GeoDataFrame:
    """Read what was published."""
    index, record = read_index(out), finished_record(out) or {}
    told = {name: value for name, value in record.items() if name not in ("fingerprint", "index_crc32")}
    told["done_before"] = done_before
    if report is not None:
        write_record(report, told)
    # Pandas copies attributes with every selection, and there may be hundreds of thousands of these.
    for pair in told.get("scene_pairs", ()):
        (pair["alignment"] or {}).pop("displacements", None)
    index.attrs["report"] = told
    return index


class _Build:
    """One build: its stages, and what they share."""

    def __init__(
        self,
        scenes: Scenes,
        settings: PairsSettings,
        aligner: Aligner | None,
        work: Work,
        progress: Progress | None,
    ) -> None:
        self.scenes, self.settings, self.aligner, self.work = scenes, settings, aligner, work
        self.runner = Runner(work.store, progress)
        self.resumed = 0

    def run(self, fingerprint: Mapping[str, Any], started: float) -> None:
        """Do all stages, and leave the result ready to be published."""
        footprints = survey(self.scenes, self.runner.store, self.runner.known)
        try:
            found = meetings(self.scenes, footprints, self.settings)
        except PairsError:
            self.work.abandon()
            raise
        self.runner.share(found, self.scenes)
        scaling = self._scaling(found)
        planned, alignment = self._align(found, scaling)
        rows, refused = self._cut(found, planned, scaling, footprints)
        rows, refused["duplicate"] = without_duplicates(rows, self.scenes, footprints)
        refused["not aligned"] = sum(len(each.cells) - len(planned[each.label]) for each in found)
        if not rows:
            self.work.abandon()
            raise PairsError(_nothing_left(refused))
        corners = chip_corners(rows)
        assigned = assign(corners, self.settings)
        for row, block, split in zip(rows, assigned.block, assigned.split, strict=True):
            row |= {"block": block, "split": split}
        kept = [row for row, stays in zip(rows, assigned.kept, strict=True) if stays]
        _warn_of_empty(assigned.audit)
        chips = Counter(row["pair"] for row in kept)
        pairs = [
            {
                "sar": display_name(self.scenes.sar[each.sar].href),
                "eo": display_name(self.scenes.eo[each.eo].href),
                "day_gap": each.day_gap,
                "cells": len(each.cells),
                "chips": chips[each.label],
                "alignment": alignment[each.label],
            }
            for each in found
        ]
        seconds = time.perf_counter() - started
        index = index_of(kept, corners[assigned.kept])
        self._make_ready(index, assigned.audit, fingerprint, pairs, refused, seconds)

    def _scaling(self, found: Sequence[Meeting]) -> dict[int, tuple[float, ...]]:
        """Sample the scaling of every SAR scene that meets an EO scene."""
        names = {f"scaling-{at}": at for at in sorted({each.sar for each in found})}
        tasks = {name: (_scale, self.runner.store, name, f"scene-sar-{at}") for name, at in names.items()}
        return {names[name]: tuple(values) for name, values in self.runner.compute(tasks).items()}

    def _align(
        self, found: Sequence[Meeting], scaling: Mapping[int, tuple[float, ...]]
    ) -> tuple[dict[str, list[CellPlan]], dict[str, Any]]:
        """Plan the shift of every cell, by scene pair; and say how well it is known."""
        measured: dict[str, list[Displacement]] = {}
        if self.aligner is not None:
            measured = measured_shifts(found, self.scenes, self.aligner, scaling, self.runner)
        planned, facts = {}, {}
        for each in found:
            planned[each.label], facts[each.label] = planned_cells(
                each, self.scenes, self.settings, self.aligner, measured.get(each.label, [])
            )
        return planned, facts

    def _cut(
        self,
        found: Sequence[Meeting],
        planned: Mapping[str, list[CellPlan]],
        scaling: Mapping[int, tuple[float, ...]],
        footprints: Footprints,
    ) -> tuple[list[Row], Counter[str]]:
        """Cut all cells; return the rows of accepted chips, and counts of the others."""
        tasks: dict[str, tuple[Any, ...]] = {}
        for each in found:
            common = common_columns(each, self.scenes, footprints, scaling[each.sar])
            plans = planned[each.label]
            for start in range(0, len(plans), _RUN_CELLS):
                name = f"cut-{each.label}-{start:06d}"
                chosen = tuple(plans[start : start + _RUN_CELLS])
                run = CutRun(name, each.label, chosen, common, tags_of(common), self.settings)
                tasks[name] = (cut_run, self.runner.store, each.sar_key, each.eo_key, run)
        done = [self.runner.known[name] for name in tasks if name in self.runner.known]
        counts = {
            "cells_total": sum(map(len, planned.values())),
            "cells_resumed": sum(len(one["rows"]) + sum(one["refused"].values()) for one in done),
        }
        self.resumed = counts["cells_resumed"]
        results = self.runner.compute(tasks, counts=counts)
        refused: Counter[str] = Counter()
        rows: list[Row] = []
        for value in results.values():
            rows += value["rows"]
            refused.update(value["refused"])
        return rows, refused

    def _make_ready(
        self,
        index: gpd.GeoDataFrame,
        audit: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        pairs: Sequence[Mapping[str, Any]],
        refused: Mapping[str, int],
        seconds: float,
    ) -> None:
        """Write the index and what goes with it beside the chips; ``pairs.json`` last."""
        ready = self.work.ready
        ready.mkdir(exist_ok=True)
        checksum = write_index(index, ready / "pairs.parquet")
        write_record(ready / "audit.json", audit)
        counters = collect_telemetry()
        record = {
            "software": f"sar2eo {__version__}",
            "settings": dataclasses.asdict(self.settings),
            "scene_settings": fingerprint["scene"],
            "chips": {split: int((index["split"] == split).sum()) for split in SPLITS},
            "refused": {**refused, "distance": sum(audit["dropped_for_distance"].values())},
            "audit": dict(audit),
            "eo": [each.facts() for each in self.scenes.eo],
            "scene_pairs": list(pairs),
            # Cut by runs that were stopped; the seconds are those of the last run.
            "cells_resumed": self.resumed,
            "seconds": {
                "total": seconds,
                **{name: counters.get(f"{name}_seconds", 0.0) for name in ("align", "cut", "write")},
            },
            "peak_rss_bytes": counters["peak_rss_bytes"],
            "index_crc32": checksum,
            "fingerprint": fingerprint,
        }
        write_record(ready / "pairs.json", record)


def _nothing_left(refused: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in refused.items() if count)
    return (
        f"no chip is left ({counts or 'no cell fits'}): is --size right, or --min-valid or --max-cloud too "
        "strict?"
    )


def _scale(store: PartStore, name: str, sar: Any) -> list[float]:
    found = list(sar.percentiles())
    store.save(name, found)
    return found


def _warn_of_empty(audit: Mapping[str, Any]) -> None:
    wanted = {"train": 1.0, "val": audit["val"], "test": audit["test"]}
    empty = [split for split in SPLITS if not audit["chips"][split] and wanted[split] > 0]
    if empty:
        warnings.warn(
            f"no chips for {', '.join(empty)}: the scenes cover few blocks of {audit['block_m']:g} m; choose "
            "a smaller --block, another --seed, or more scenes",
            PairsWarning,
            stacklevel=2,
        )


def build_pairs(
    sar: str | Path | Sequence[str | Path],
    eo: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    settings: PairsSettings | None = None,
    scene: SceneSettings | None = None,
    matcher: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> GeoDataFrame:
    """Cut SAR and EO scenes into paired chips, split by place for training.

    The work runs on Dask's scheduler in force. The same call goes on where a stopped one was, and returns
    what is there when all is done.

    Parameters
    ----------
    sar, eo : path or sequence of paths
        Rasters, Sentinel-1 products, folders, globs, STAC items and item collections, footprint tables
        (GeoPackage, GeoParquet, GeoJSON) with a column ``href``. EO scenes are RGB bytes or reflectance.
    out : path
        Folder of ``pairs.parquet`` (the index), ``chips/``, ``audit.json`` and ``pairs.json``; see
        `sar2eo.pairs.index.COLUMNS`.
    settings : PairsSettings, optional
        Sizes, limits, alignment and splits.
    scene : SceneSettings, optional
        How SAR scenes are opened.
    matcher : path, optional
        Folder of a trained matcher to align with (see `sar2eo.train_matcher`); by default structure is
        matched. Pairs built with another one are other pairs.
    overwrite : bool, optional (default: False)
        Replace pairs, or unfinished work, of other settings.
    dry_run : bool, optional (default: False)
        Write nothing; return a row for each scene pair with the number of cells to try.
    report : path, optional
        JSON file of what was done.
    progress : callable, optional
        Called about once a second with counters: cells_total, cells_resumed, cells_done, chips_written;
        before that neighbourhoods_total and neighbourhoods_done.
    **changes
        Fields of `settings` to change, as in ``size=512``.

    Returns
    -------
    GeoDataFrame
        One row for each chip pair, in EPSG:4326; ``attrs["report"]`` says what was done (each local
        shift is in ``pairs.json`` only). Where
        ``align="shift"``, chips show the same place pixel by pixel, and shift_rows and shift_cols say how
        far the SAR was moved for it; where "score", they say how far it would have to be.

    Raises
    ------
    SettingsError
        For settings that are not allowed.
    CheckpointError
        If the matcher is none, or not calibrated.
    PairsError, SceneError
        If there are no scenes, they cannot be opened, or do not meet.
    OutputError
        If `out` cannot be written, or holds something else.

    Warns
    -----
    PairsWarning
        If scenes are not terrain-corrected, scene pairs are left out for want of evidence of their
        alignment, or a split is empty.

    Examples
    --------
    >>> import sar2eo
    >>> pairs = sar2eo.build_pairs("sar/", "eo/", "pairs", align="shift")  # doctest: +SKIP
    """
    settings = replace_settings(settings or PairsSettings(), changes)
    scene = scene or SceneSettings()
    if scene.resolution is not None:
        raise SettingsError(
            f"scene.resolution={scene.resolution:g}: the pixel size of chips is a setting of the pairs"
        )
    if scene.allow_ungeoreferenced:
        raise SettingsError("allow_ungeoreferenced: scenes without a georeference cannot be paired")
    sources = _several(sar), _several(eo)
    aligner = _aligner(settings, matcher)
    if dry_run:
        return plan(*sources, Path(out), settings=settings, scene=scene)
    return build(
        *sources,
        Path(out),
        settings=settings,
        scene=scene,
        aligner=aligner,
        overwrite=overwrite,
        report=None if report is None else Path(report),
        progress=progress,
    )


def _aligner(settings: PairsSettings, matcher: str | Path | None) -> Aligner | None:
    if settings.align == "off":
        if matcher is not None:
            raise SettingsError(f"matcher={str(matcher)!r}: goes with align score or shift, not with off")
        return None
    aligner: Aligner
    if matcher is not None:
        from sar2eo.matching.dcdm.aligner import DcdmAligner

        aligner = DcdmAligner(matcher)
    else:
        from sar2eo.matching.structure import StructuralAligner

        aligner = StructuralAligner()
    return aligner


def _several(paths: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
