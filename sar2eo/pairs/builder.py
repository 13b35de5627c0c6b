"""Build a folder of pairs: open scenes, find their overlaps, align, cut chips, split, publish.

The work is done in tasks of about a second, each of some chips or some neighbourhoods for the alignment. The
result of each is kept, so a build that was stopped goes on where it was.
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
from sar2eo.errors import PairsError, PairsWarning, SettingsError
from sar2eo.geo.splits import SPLITS, assign
from sar2eo.matching.shifts import Aligner
from sar2eo.pairs.alignment import align
from sar2eo.pairs.chips import CellPlan, CutRun, cut_run
from sar2eo.pairs.index import (
    Row,
    collect_columns,
    compute_corners,
    create_chip_tags,
    create_index,
    drop_duplicates,
    read_index,
    write_index,
)
from sar2eo.pairs.output_folder import UnfinishedPairs, check_target, read_record
from sar2eo.pairs.plan import Footprints, Meeting, Scenes, find_meetings, open_scenes, survey
from sar2eo.results.targets import check_report, write_report
from sar2eo.scenes.gdal import display_name
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.settings import PairsSettings, SceneSettings, replace_settings
from sar2eo.store.atomic import json_values, write_json
from sar2eo.store.task_results import TaskResults

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

# Cells of one task: a second of work or so, which a run that is stopped loses.
_RUN_CELLS = 32


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

    As `build_pairs`, with an aligner of any kind, or None where ``settings.align`` is "off".
    """
    started = time.perf_counter()
    own = [report] if report is not None and report.resolve().parent == out.resolve() else []
    check_report(report, overwrite=overwrite, outputs=own)
    scenes = open_scenes(sar, eo, settings, scene, out)
    fingerprint = json_values(scenes.fingerprint(settings, scene, aligner))
    check_report(report, overwrite=overwrite, identity=fingerprint)
    if check_target(out, fingerprint, overwrite=overwrite):
        UnfinishedPairs.clear(out, fingerprint)
        return _read_finished(out, report, done_before=True)
    reset_telemetry()
    work = UnfinishedPairs.begin(out, fingerprint, overwrite=overwrite)
    try:
        if not work.publishing:
            _make_pairs(scenes, settings, aligner, work, progress, fingerprint, started)
        work.publish()
    finally:
        work.journal.release()
    return _read_finished(out, report, done_before=False)


def _read_finished(out: Path, report: Path | None, *, done_before: bool) -> gpd.GeoDataFrame:
    """Read the index and the report of finished pairs; write the report where it is asked for."""
    index, record = read_index(out), read_record(out) or {}
    found = {name: value for name, value in record.items() if name not in ("fingerprint", "index_crc32")}
    found["done_before"] = done_before
    write_report(report, found)
    # Pandas copies attributes with every selection, and there may be hundreds of thousands of these.
    for pair in found.get("scene_pairs", ()):
        (pair["alignment"] or {}).pop("displacements", None)
    index.attrs["report"] = found
    return index


def _make_pairs(
    scenes: Scenes,
    settings: PairsSettings,
    aligner: Aligner | None,
    work: UnfinishedPairs,
    progress: Progress | None,
    fingerprint: Mapping[str, Any],
    started: float,
) -> None:
    """Do all steps of a build, and leave the result ready to be published."""
    results = work.results()
    footprints = survey(scenes, results)
    try:
        found = find_meetings(scenes, footprints, settings)
    except PairsError:
        work.abandon()
        raise
    shared = scenes.named(found)
    sar_keys = {each.sar: each.sar_key for each in found}
    tasks = {f"scaling-{at}": (SarScene.percentiles, key) for at, key in sar_keys.items()}
    percentiles = results.compute(tasks, shared)
    scaling = {at: tuple(percentiles[f"scaling-{at}"]) for at in sar_keys}
    planned, alignment = align(found, scenes, settings, aligner, scaling, results, progress)
    cut = _cut_tasks(found, scenes, settings, planned, scaling, footprints, work.chips)
    done = [results.known[name] for name in cut if name in results.known]
    counts = {
        "cells_total": sum(map(len, planned.values())),
        "cells_resumed": sum(len(one["rows"]) + sum(one["refused"].values()) for one in done),
    }
    refused: Counter[str] = Counter()
    rows: list[Row] = []
    for value in results.compute(cut, shared, progress=progress, counts=counts).values():
        rows += value["rows"]
        refused.update(value["refused"])
    rows, refused["duplicate"] = drop_duplicates(rows, scenes, footprints)
    refused["not aligned"] = sum(len(each.cells) - len(planned[each.label]) for each in found)
    if not rows:
        work.abandon()
        reasons = ", ".join(f"{count} {name}" for name, count in refused.items() if count)
        raise PairsError(
            f"no chip is left ({reasons or 'no cell fits'}): is --size right, or --min-valid or --max-cloud "
            "too strict?"
        )
    corners = compute_corners(rows)
    assigned = assign(corners, settings)
    audit = assigned.audit
    for row, block, split in zip(rows, assigned.block, assigned.split, strict=True):
        row |= {"block": block, "split": split}
    kept = [row for row, stays in zip(rows, assigned.kept, strict=True) if stays]
    _warn_of_empty_splits(audit)
    chips = Counter(row["pair"] for row in kept)
    index = create_index(kept, corners[assigned.kept])
    seconds = time.perf_counter() - started
    counters = collect_telemetry()
    ready = work.ready
    ready.mkdir(exist_ok=True)
    record = {
        "software": f"sar2eo {__version__}",
        "settings": dataclasses.asdict(settings),
        "scene_settings": fingerprint["scene"],
        "chips": {split: int((index["split"] == split).sum()) for split in SPLITS},
        "refused": {**refused, "distance": sum(audit["dropped_for_distance"].values())},
        "audit": audit,
        "eo": [each.facts() for each in scenes.eo],
        "scene_pairs": [
            {
                "sar": display_name(scenes.sar[each.sar].href),
                "eo": display_name(scenes.eo[each.eo].href),
                "day_gap": each.day_gap,
                "cells": len(each.cells),
                "chips": chips[each.label],
                "alignment": alignment[each.label],
            }
            for each in found
        ],
        # By runs that were stopped; the seconds are those of the last run.
        "cells_resumed": counts["cells_resumed"],
        "seconds": {
            "total": seconds,
            **{name: counters.get(f"{name}_seconds", 0.0) for name in ("align", "cut", "write")},
        },
        "peak_rss_bytes": counters["peak_rss_bytes"],
        "index_crc32": write_index(index, ready / "pairs.parquet"),
        "fingerprint": fingerprint,
    }
    write_json(ready / "audit.json", audit)
    write_json(ready / "pairs.json", record)  # last: with it, the pairs are ready


def _cut_tasks(
    found: Sequence[Meeting],
    scenes: Scenes,
    settings: PairsSettings,
    planned: Mapping[str, list[CellPlan]],
    scaling: Mapping[int, tuple[float, ...]],
    footprints: Footprints,
    folder: Path,
) -> dict[str, tuple[Any, ...]]:
    """Return the tasks that cut all cells into chips in `folder`, by name."""
    tasks: dict[str, tuple[Any, ...]] = {}
    for each in found:
        common = collect_columns(each, scenes, footprints, scaling[each.sar])
        plans = planned[each.label]
        for start in range(0, len(plans), _RUN_CELLS):
            chosen = tuple(plans[start : start + _RUN_CELLS])
            run = CutRun(each.label, chosen, common, create_chip_tags(common), settings, folder)
            tasks[f"cut-{each.label}-{start:06d}"] = (cut_run, each.sar_key, each.eo_key, run)
    return tasks


def _warn_of_empty_splits(audit: Mapping[str, Any]) -> None:
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

    The work runs on Dask's active scheduler. The same call goes on where a stopped one was, and returns the
    finished pairs when all is done.

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
    sources = _as_list(sar), _as_list(eo)
    aligner = _aligner(settings, matcher)
    if dry_run:
        return _dry_run(open_scenes(*sources, settings, scene, Path(out)), settings)
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


def _dry_run(scenes: Scenes, settings: PairsSettings) -> gpd.GeoDataFrame:
    """Return a row for each scene pair: sar_href, eo_href, day_gap, cells, and the overlap in EPSG:4326."""
    found = find_meetings(scenes, survey(scenes, TaskResults(None)), settings)
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


def _aligner(settings: PairsSettings, matcher: str | Path | None) -> Aligner | None:
    if settings.align == "off":
        if matcher is not None:
            raise SettingsError(f"matcher={str(matcher)!r}: goes with align score or shift, not with off")
        return None
    if matcher is not None:
        from sar2eo.matching.dcdm.aligner import DcdmAligner

        return DcdmAligner(matcher)
    from sar2eo.matching.structure import StructuralAligner

    return StructuralAligner()


def _as_list(paths: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
