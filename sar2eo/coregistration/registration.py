"""Coregistration of two scenes: the steps, the journal, and the report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from sar2eo._version import __version__
from sar2eo.compute.dask_run import Progress, collect_telemetry, reset_telemetry
from sar2eo.coregistration.moved_scene import (
    MovedReader,
    map_moved,
    needed_bytes,
    read_layout,
    write_moved,
)
from sar2eo.coregistration.scene_pair import ScenePair, check_fit, open_pair, place_templates
from sar2eo.coregistration.tie_points import (
    Finder,
    create_finder,
    draw_ties,
    encode_geojson,
    list_ties,
    measure_ties,
    versions,
)
from sar2eo.coregistration.transforms import LEAST, Evidence, MovingTransform, weigh
from sar2eo.errors import CoregistrationError, Sar2eoWarning, SettingsError
from sar2eo.matching.dcdm.aligner import open_calibrated
from sar2eo.matching.shifts import Displacement
from sar2eo.results.cog import check_space, publish
from sar2eo.results.targets import check_file, check_raster, check_report, write_report
from sar2eo.scenes.gdal import display_name
from sar2eo.scenes.identity import digest, is_part
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.settings import CoregisterSettings, SceneSettings, replace_settings
from sar2eo.store.atomic import refuse
from sar2eo.store.journal import Journal
from sar2eo.store.task_results import TaskResults

# Settings that change where and how fast it runs, or what is insisted on, but not the result.
_FREE = ("device", "threads", "force", "model")
# The tag of a result that says what it was made of, and facts that are not in its other tag.
_FINGERPRINT = "COREGISTRATION_FINGERPRINT"
_ELSEWHERE = ("points", "reference", "moving", "grid")
# Templates are made no smaller, in pixels, where tie points are too few.
_FINEST = 128


def coregister(
    reference: str | Path,
    moving: str | Path,
    out: str | Path,
    *,
    settings: CoregisterSettings | None = None,
    scene: SceneSettings | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Coregister a SAR and an optical scene: move one of them onto the grid of the other.

    Templates on a lattice over the overlap are matched on Dask's active scheduler, a transform is fitted to
    those that agree, and the moving scene is read through it on the reference's grid, so that equal pixels
    show equal places. Beside `out` the tie points are written with their residuals, ``<stem>_ties.geojson``,
    and drawn, ``<stem>_ties.png``. Until all is done, tie points are kept in ``<out>.partial``: the same call
    goes on where one was interrupted, and does nothing where one was finished. Where too few tie points are
    sure, they are measured anew at half the distance.

    Parameters
    ----------
    reference, moving : path
        What `sar2eo.open_scene` opens, or an optical raster, Sentinel-2 product or STAC item. They may differ
        in CRS and pixel size.
    out : path
        COG, with bands, type, nodata and tags of the moving file.
    settings : CoregisterSettings, optional
        How tie points are matched, and which transform is fitted.
    scene : SceneSettings, optional
        How the SAR scene is opened.
    overwrite : bool, optional (default: False)
        Replace results, or unfinished work, of another call.
    dry_run : bool, optional (default: False)
        Open the scenes, count tie points, and write nothing.
    report : path, optional
        JSON file of what was found; written also where the evidence is too thin.
    progress : callable, optional
        Called about once a second with counters: ties_total, ties_resumed, ties_done, then blocks_total,
        blocks_done.
    **changes
        Fields of `settings` to change, as in ``transform="affine"``.

    Returns
    -------
    dict
        The report, as JSON values: ``transform``; ``ties``, counts; ``quality``, RMSE in pixels and metres
        before and after, of tie points against fits that did not see them; ``points``, each of them; and
        ``done_before``, if an earlier call wrote the result.

    Raises
    ------
    CoregistrationError
        If the scenes share too little, or the evidence is too thin; nothing but the report is written.
    SettingsError
        For settings that do not go together, two scenes of one kind, or a result that would replace one.
    SceneError, CheckpointError, OutputError
        If something cannot be read or written, is not what a matcher was trained on, or does not fit on the
        disk; before any tie point.
    JournalError
        If unfinished work of another call is there.

    Examples
    --------
    >>> import sar2eo
    >>> done = sar2eo.coregister("eo.tif", "sar.tif", "sar_on_eo.tif")  # doctest: +SKIP
    >>> done["quality"]["after"]["rmse_px"]  # doctest: +SKIP
    """
    started = time.perf_counter()
    settings = replace_settings(settings or CoregisterSettings(), changes)
    scene = dataclasses.replace(scene or SceneSettings(), force=settings.force)
    if scene.resolution is not None or scene.allow_ungeoreferenced:
        raise SettingsError("scene: resolution and allow_ungeoreferenced do not go with coregistering")
    target, report_path = Path(out), None if report is None else Path(report)
    scenes = (str(reference), str(moving))
    pair = open_pair(
        str(reference),
        str(moving),
        scene=scene,
        eo_range=(settings.eo_range[0], settings.eo_range[1]),
        eo_bands=settings.eo_bands,
        learned=settings.matcher is not None,
    )
    if settings.matcher is not None:
        check_fit(pair, open_calibrated(settings.matcher)[1], force=settings.force)
    finder = create_finder(settings)
    fingerprint = _fingerprint(pair, scene, settings, finder)
    known = None if overwrite or dry_run else _read_finished(target, fingerprint)
    read = fingerprint["reference"], fingerprint["moving"]
    done = dry_run or known is not None
    _check_targets(target, report_path, scenes, overwrite=overwrite, done=done, identity=read)
    if known is not None:
        known = {**_describe_request(pair, settings, finder, 0), **known}
        write_report(report_path, known)
        return known
    needed = needed_bytes(read_layout(pair.moving)[1], pair.grid.window_of(pair.overlap.bounds))
    cells = place_templates(pair, settings.grid, settings.points)
    while len(cells) < LEAST[settings.transform] and (finer := _refine(settings, finder)) is not None:
        settings, finder = finer, create_finder(finer)
        cells = place_templates(pair, settings.grid, settings.points)
    facts = {**_describe_request(pair, settings, finder, len(cells)), "disk_bytes": needed}
    if len(cells) < LEAST[settings.transform]:
        refusal = (
            f"{reference} and {moving} share room for {len(cells)} templates of {settings.grid} pixels, and "
            f"{settings.transform} needs {LEAST[settings.transform]}: is there more overlap?"
        )
        if not dry_run:
            write_report(report_path, {**facts, "accepted": False, "refusal": refusal})
        raise CoregistrationError(refusal)
    if dry_run:
        return facts
    if not settings.force:
        check_space([(target.absolute().parent, needed)], elsewhere="--out")
    reset_telemetry()
    with _open_journal(target, fingerprint, overwrite=overwrite) as journal:
        # Again, under the lock: another run may just have ended.
        _check_targets(target, report_path, scenes, overwrite=overwrite, identity=read)
        results = TaskResults(journal.blocks / "parts")
        while True:
            ties = measure_ties(pair, cells, settings, finder, results, progress)
            lattice = np.array([(cell.row, cell.col) for cell in cells], float) + settings.grid / 2
            evidence = weigh(ties, lattice, settings, finder.radius)
            finer = _refine(settings, finder)
            more = [] if finer is None else place_templates(pair, finer.grid, finer.points)
            if len(evidence.at) >= LEAST[settings.transform] or finer is None or len(more) <= len(cells):
                break
            warnings.warn(
                f"{len(evidence.at)} of {len(ties)} tie points are sure with templates of {settings.grid} "
                f"pixels: measured anew with {finer.grid}",
                Sar2eoWarning,
                stacklevel=2,
            )
            settings, finder, cells = finer, create_finder(finer), more
        facts |= _describe_request(pair, settings, finder, len(cells))
        facts |= _describe_evidence(pair, len(cells), ties, evidence)
        if evidence.refusal is None and evidence.transform is not None:
            _write(pair, settings, evidence.transform, facts, fingerprint, target, journal, progress)
            facts["out"] = str(target)
        facts |= _describe_costs(started)
        write_report(report_path, facts)
        if evidence.refusal is not None:
            raise CoregistrationError(f"{moving} is not laid on {reference}: {evidence.refusal}")
    return facts


@contextmanager
def _open_journal(target: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Iterator[Journal]:
    """Begin, or go on where an interrupted run of the same fingerprint was.

    Its blocks hold ``parts``, the tie points that are measured. They go with success, and where the evidence
    is too thin, which another run would not change.
    """
    with Journal.resume(_journal_folder(target), fingerprint, overwrite=overwrite) as journal:
        parts = journal.blocks / "parts"
        try:
            parts.mkdir(exist_ok=True)
            yield journal
        except CoregistrationError:
            journal.remove()
            raise
        finally:
            with suppress(OSError):
                parts.rmdir()  # without a tie point there is nothing to keep


def _refine(settings: CoregisterSettings, finder: Finder) -> CoregisterSettings | None:
    """Return the settings with half the distance of tie points, while templates show enough; or None."""
    grid = settings.grid // 2
    least = _FINEST if settings.matcher is None else finder.side
    return dataclasses.replace(settings, grid=grid) if grid >= least else None


def _read_finished(out: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the report of a result that is there already, if it is of this fingerprint."""
    try:
        if not all(path.is_file() for path in result_paths(out)):
            return None
        with rasterio.open(out) as raster:
            tags = raster.tags()
        if tags.get(_FINGERPRINT) != digest(fingerprint):
            return None
        features = json.loads(result_paths(out)[0].read_bytes())["features"]
        points = [feature["properties"] for feature in features]
        return {**json.loads(tags["COREGISTRATION"]), "points": points, "out": str(out), "done_before": True}
    except (rasterio.errors.RasterioError, OSError, ValueError, LookupError, TypeError):
        return None


def _journal_folder(target: Path) -> Path:
    return target.absolute().with_name(f"{target.name}.partial")


def _fingerprint(
    pair: ScenePair, scene: SceneSettings, settings: CoregisterSettings, finder: Finder
) -> dict[str, Any]:
    """Return everything that the result depends on, as JSON values."""
    sar, eo = pair.sar.reader.identity(), pair.eo.identity()
    named = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _FREE}
    return {
        "software": f"sar2eo {__version__}",
        "reference": sar if pair.reference is pair.sar else eo,
        "moving": sar if pair.moving is pair.sar else eo,
        "scene": dataclasses.asdict(dataclasses.replace(scene, force=False)),
        "settings": named,
        "matching": {"template_px": finder.side, "radius_px": finder.radius, **finder.facts()},
    }


def result_paths(out: Path) -> tuple[Path, Path, Path]:
    """Return the files that come of a coregistration: GeoJSON, picture, COG."""
    return out.with_name(f"{out.stem}_ties.geojson"), out.with_name(f"{out.stem}_ties.png"), out


def _check_targets(
    out: Path,
    report: Path | None,
    scenes: tuple[str, str],
    *,
    overwrite: bool,
    identity: Any,
    done: bool = False,
) -> None:
    """Refuse results that cannot be written, or would replace a scene or another file of the user's.

    Results that are `done`, or were being replaced, are not in the way.
    """
    parts = [part.split("=")[-1] for scene in scenes for part in (scene, *scene.split(","))]
    inputs = {Path(part).resolve() for part in parts}
    again = overwrite or Journal.is_publishing(_journal_folder(out))
    for path in result_paths(out):
        if path.resolve() in inputs or is_part(path, identity):
            raise SettingsError(f"{path} is one of the scenes: give the result another name")
        (check_raster if path == out else check_file)(path, overwrite=again or done)
    check_report(report, overwrite=overwrite, inputs=inputs, outputs=result_paths(out), identity=identity)


def _describe_request(
    pair: ScenePair, settings: CoregisterSettings, finder: Finder, cells: int
) -> dict[str, Any]:
    """Return what will be done, as JSON values."""
    grid = pair.grid
    roles = ("sar", "eo") if isinstance(pair.reference, SarScene) else ("eo", "sar")
    return {
        "software": f"sar2eo {__version__}",
        "versions": versions(learned=settings.method == "dcdm"),
        "reference": {"href": display_name(pair.reference.href), "kind": roles[0]},
        "moving": {"href": display_name(pair.moving.href), "kind": roles[1]},
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "settings": dataclasses.asdict(settings),
        "matching": {"template_px": finder.side, "radius_px": finder.radius, **finder.facts()},
        "ties": {"templates": cells},
    }


def _describe_costs(started: float) -> dict[str, Any]:
    """Return time and memory, as JSON values."""
    counters = collect_telemetry()
    return {
        "ties_resumed": int(counters.get("ties_resumed", 0)),
        "seconds": {
            "total": round(time.perf_counter() - started, 3),
            **{name: round(counters.get(f"{name}_seconds", 0.0), 3) for name in ("tie", "warp")},
        },
        "peak_rss_bytes": int(counters["peak_rss_bytes"]),
    }


def _describe_evidence(
    pair: ScenePair, cells: int, ties: list[Displacement], evidence: Evidence
) -> dict[str, Any]:
    """Return the tie points and the transform, as JSON values."""
    across, down = pair.grid.ground_sample_distance_m()
    size = down, across
    transform = evidence.transform
    return {
        "accepted": evidence.refusal is None,
        "refusal": evidence.refusal,
        "ties": {
            "templates": cells,
            "measured": len(ties),
            "sure": len(evidence.at),
            "agree": int(evidence.inlier.sum()),
            "spread": round(evidence.spread, 4),
        },
        "transform": None if transform is None else transform.facts(),
        "pixel_m": [round(down, 4), round(across, 4)],
        "quality": evidence.quality(size),
        "points": list_ties(ties, evidence, size),
    }


def _write(
    pair: ScenePair,
    settings: CoregisterSettings,
    transform: MovingTransform,
    facts: dict[str, Any],
    fingerprint: Mapping[str, Any],
    target: Path,
    journal: Journal,
    progress: Progress | None,
) -> None:
    """Write all files in the journal, then publish them, the COG last."""
    source, layout = read_layout(pair.moving)
    is_sar = isinstance(pair.moving, SarScene)
    quantity = pair.moving.quantity if isinstance(pair.moving, SarScene) else None
    mapping = map_moved(pair.moving.reader, pair.grid, transform)
    reader = MovedReader(source, mapping, pair.grid, quantity, layout.nearest)
    tags = {
        "TIFFTAG_SOFTWARE": facts["software"],
        "COREGISTERED_TO": facts["reference"]["href"],
        "COREGISTERED_FROM": facts["moving"]["href"],
        "COREGISTRATION": json.dumps(
            {name: value for name, value in facts.items() if name not in _ELSEWHERE}
        ),
        _FINGERPRINT: digest(fingerprint),
    }
    # Of amplitude, intensities are averaged.
    overviews = "RMS" if is_sar and quantity in ("dn", "amplitude") else "AVERAGE"
    overviews = "NEAREST" if any(layout.nearest) else overviews
    folder = journal.folder / "assembled"
    try:
        folder.mkdir()
    except OSError as error:
        refuse(error, folder)
    try:
        moved = write_moved(
            reader, layout, pair.grid, folder, tags=tags, overviews=overviews, progress=progress
        )
        made = folder / "ties.geojson", folder / "ties.png", moved
        made[0].write_bytes(encode_geojson(facts["points"], pair.grid))
        draw_ties(facts["points"], pair.grid, settings.grid, made[1])
        journal.begin_publishing()
        publish(list(zip(made, result_paths(target), strict=True)))
    except OSError as error:
        refuse(error, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
