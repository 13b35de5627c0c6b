"""Alignment of scene pairs: measure local shifts, and plan how far the SAR of each cell is shifted."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo.compute.dask_run import Progress, add_count, timed
from sar2eo.errors import PairsError, PairsWarning, PolarisationError
from sar2eo.geo.chip_lattice import Cell, list_cells
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.matching.shifts import Aligner, Displacement, FloatArray, SceneDrift
from sar2eo.pairs.chips import CellPlan
from sar2eo.pairs.plan import Meeting, Scenes
from sar2eo.scenes.optical import EoScene
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.scenes.warp import read_shifted
from sar2eo.settings import PairsSettings
from sar2eo.store.task_results import TaskResults

# Neighbourhoods of a scene pair: enough for a low-order model many times over.
_MOST = 600
# Valid share of a neighbourhood, in both images; below, it is not measured.
_LEAST_VALID = 0.5
_NEIGHBOURHOODS_PER_TASK = 4


def align(
    found: Sequence[Meeting],
    scenes: Scenes,
    settings: PairsSettings,
    aligner: Aligner | None,
    scaling: Mapping[int, tuple[float, ...]],
    results: TaskResults,
    progress: Progress | None,
) -> tuple[dict[str, list[CellPlan]], dict[str, Any]]:
    """Align scene pairs: measure local shifts, fit a drift, and plan the shift of every cell.

    `scaling` is the amplitude that counts as 1, for each polarisation, by the number of the SAR scene.
    Returns the plans by the label of the scene pair, none where the evidence is too thin to shift by (a
    `PairsWarning` says so); and how well each alignment is known, as JSON values, None where nothing was
    measured.

    Raises `PolarisationError` or `PairsError` if the aligner is made for other scenes.
    """
    if aligner is None:
        return {each.label: [CellPlan(cell) for cell in each.cells] for each in found}, {
            each.label: None for each in found
        }
    measured = _measure_shifts(found, scenes, aligner, scaling, results, progress)
    planned, facts = {}, {}
    for each in found:
        planned[each.label], facts[each.label] = _plan_cells(
            each, scenes, settings, aligner, measured[each.label]
        )
    return planned, facts


def _measure_shifts(
    found: Sequence[Meeting],
    scenes: Scenes,
    aligner: Aligner,
    scaling: Mapping[int, tuple[float, ...]],
    results: TaskResults,
    progress: Progress | None,
) -> dict[str, list[Displacement]]:
    """Measure local shifts in neighbourhoods spread over the overlap of each scene pair."""
    for at in sorted({each.sar for each in found}):
        _check_aligner(aligner, scenes.sar[at])
    tasks: dict[str, tuple[Any, ...]] = {}
    total = 0
    for each in found:
        side = aligner.neighbourhood_px
        cells = list_cells(
            scenes.sar[each.sar].grid,
            size=side,
            stride=max(1, side // 2),
            within=each.within,
            min_valid=_LEAST_VALID,
        )
        if len(cells) > _MOST:
            cells = [cells[at] for at in np.linspace(0, len(cells) - 1, _MOST).round().astype(int)]
        for start in range(0, len(cells), _NEIGHBOURHOODS_PER_TASK):
            name = f"align-{each.label}-{start:05d}"
            chosen = cells[start : start + _NEIGHBOURHOODS_PER_TASK]
            total += 0 if name in results.known else len(chosen)
            tasks[name] = (_measure_run, each.sar_key, each.eo_key, "aligner", chosen, scaling[each.sar])
    shared = {**scenes.named(found), "aligner": aligner}
    counts = {"neighbourhoods_total": total}
    measured: dict[str, list[Displacement]] = {each.label: [] for each in found}
    for name, values in results.compute(tasks, shared, progress=progress, counts=counts).items():
        measured[name.split("-")[1]] += [Displacement(*value) for value in values]
    return measured


def _measure_run(
    sar: SarScene, eo: EoScene, aligner: Aligner, cells: Sequence[Cell], scaling: Sequence[float]
) -> list[tuple[Any, ...]]:
    """Measure some neighbourhoods; return the fields of each `Displacement`."""
    found: list[Displacement | None] = []
    for cell in cells:
        with timed("align_seconds"):
            found.append(measure(sar, eo, cell, aligner, scaling))
        add_count("neighbourhoods_done", 1)
    return [dataclasses.astuple(each) for each in found if each is not None]


def measure(
    sar: SarScene,
    eo: EoScene,
    cell: Cell,
    aligner: Aligner,
    scaling: Sequence[float],
    shift: tuple[float, float] = (0.0, 0.0),
) -> Displacement | None:
    """Measure the shift of one neighbourhood; None where less than half of it is valid.

    Polarisations are averaged in amplitude, each over its own `scaling`, and colours too, unless the aligner
    wants certain ones; clouds do not count. The SAR is read at `shift` rows and columns: what remains after
    it is measured.
    """
    window = cell.window(aligner.neighbourhood_px)
    values = to_amplitude(read_shifted(sar.reader, window, *shift, sar.quantity), sar.quantity)
    scaled = values / np.asarray(scaling, np.float32)[:, None, None]
    amplitude = scaled.mean(axis=0)
    if np.isfinite(amplitude).mean() < _LEAST_VALID:
        return None
    patch = eo.read_onto(sar.grid.crop(window))
    clear = patch.valid if patch.cloud is None else patch.valid & ~patch.cloud
    if (np.isfinite(amplitude) & clear).mean() < _LEAST_VALID:
        return None
    wanted, names = getattr(aligner, "polarisations", None), sar.reader.polarisations
    radar = amplitude if wanted is None else scaled[[names.index(name) for name in wanted]]
    found = aligner.displacement(radar, _optical_image(patch.rgb, clear, colours=wanted is not None))
    row, col = window.row + window.height / 2, window.col + window.width / 2
    return Displacement(row, col, float(found.rows), float(found.cols), float(found.score), bool(found.sure))


def _optical_image(rgb: npt.NDArray[np.uint8], clear: npt.NDArray[np.bool_], *, colours: bool) -> FloatArray:
    """Return colours (row, col, 3) or grey values (row, col), 0 to 255; NaN under clouds."""
    if colours:
        return np.where(clear[..., None], np.moveaxis(rgb, 0, -1).astype(np.float32), np.float32(np.nan))
    return np.where(clear, rgb.mean(axis=0, dtype=np.float32), np.float32(np.nan))


def _check_aligner(aligner: Aligner, sar: SarScene) -> None:
    """Refuse an aligner that lacks the scene's polarisations, or is made for other pixel sizes."""
    names, wanted = sar.reader.polarisations, getattr(aligner, "polarisations", ())
    if not set(wanted) <= set(names):
        raise PolarisationError(
            f"{sar.href}: has {', '.join(names)}, and the matcher was trained on {', '.join(wanted)}: name "
            "its bands with --pol, or align without --matcher"
        )
    sizes_m = sar.grid.ground_sample_distance_m()
    if hasattr(aligner, "fits_gsd") and not aligner.fits_gsd(*sizes_m):
        raise PairsError(
            f"{sar.href}: its pixels are {sizes_m[0]:.3g} x {sizes_m[1]:.3g} m on the ground, the matcher "
            f"was trained at {getattr(aligner, 'gsd_m', 0):.3g} m: resample it, or align without --matcher"
        )


def _plan_cells(
    each: Meeting,
    scenes: Scenes,
    settings: PairsSettings,
    aligner: Aligner,
    measured: Sequence[Displacement],
) -> tuple[list[CellPlan], dict[str, Any]]:
    """Plan the cells of one scene pair; see `align`."""
    facts: dict[str, Any] = {"displacements": [dataclasses.asdict(one) for one in measured]}
    names = f"{scenes.sar[each.sar].href} and {scenes.eo[each.eo].href}"
    sure = sum(one.sure for one in measured)
    drift = None
    if settings.align == "shift":
        drift = aligner.drift(measured)
        facts = {"drift": None if drift is None else drift.facts(), **facts}
        if drift is None:
            warnings.warn(
                f"{names}: {sure} of {len(measured)} local shifts are sure, too thin evidence to align by: "
                f"{len(each.cells)} cells are left out",
                PairsWarning,
                stacklevel=3,
            )
            return [], facts
    elif not sure:
        warnings.warn(
            f"{names}: none of {len(measured)} local shifts is sure: how well these pairs are registered is "
            "not known",
            PairsWarning,
            stacklevel=3,
        )
    return [_plan_cell(cell, settings.size, measured, drift) for cell in each.cells], facts


def _plan_cell(cell: Cell, size: int, measured: Sequence[Displacement], drift: SceneDrift | None) -> CellPlan:
    row, col = cell.row + size / 2, cell.col + size / 2
    nearest = min(measured, key=lambda d: (d.row - row) ** 2 + (d.col - col) ** 2, default=None)
    score = None if nearest is None else nearest.score
    if drift is None:
        rows, cols = (None, None) if nearest is None else (nearest.rows, nearest.cols)
        return CellPlan(cell, rows=rows, cols=cols, score=score)
    rows, cols = (float(part) for part in drift.at(row, col))
    return CellPlan(cell, applied=(rows, cols), rows=rows, cols=cols, score=score)
