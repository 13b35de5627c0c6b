"""The alignment of scene pairs: local shifts measured in parallel, and the shift of every cell."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sar2eo.errors import PairsWarning
from sar2eo.pairs.alignment import Aligner, Displacement, Drift, check_aligner, nearest, neighbourhoods
from sar2eo.pairs.cells import Cell
from sar2eo.pairs.cutting import CellPlan, MeasureRun, measure_run
from sar2eo.pairs.planning import Meeting, Scenes
from sar2eo.pairs.running import Runner
from sar2eo.recipe import PairsSettings

__all__ = ["measured_shifts", "planned_cells"]

# Of one task.
_RUN_NEIGHBOURHOODS = 4


def measured_shifts(
    found: Sequence[Meeting],
    scenes: Scenes,
    aligner: Aligner,
    scaling: Mapping[int, tuple[float, ...]],
    runner: Runner,
) -> dict[str, list[Displacement]]:
    """Measure the local shifts of scene pairs.

    Parameters
    ----------
    found : sequence of Meeting
    scenes : Scenes
    aligner : Aligner
    scaling : mapping
        Of the SAR scenes, by their places.
    runner : Runner

    Returns
    -------
    dict
        Displacements by the label of the scene pair.

    Raises
    ------
    PolarisationError, PairsError
        If the aligner is made for other scenes.
    """
    for at in sorted({each.sar for each in found}):
        check_aligner(aligner, scenes.sar[at])
    tasks: dict[str, tuple[Any, ...]] = {}
    owner, total = {}, 0
    for each in found:
        cells = neighbourhoods(scenes.sar[each.sar].grid, aligner.neighbourhood_px, each.within)
        for start in range(0, len(cells), _RUN_NEIGHBOURHOODS):
            name = f"align-{each.label}-{start:05d}"
            run = MeasureRun(name, tuple(cells[start : start + _RUN_NEIGHBOURHOODS]), scaling[each.sar])
            total += 0 if name in runner.known else len(run.cells)
            tasks[name] = (measure_run, runner.store, each.sar_key, each.eo_key, "aligner", run)
            owner[name] = each.label
    results = runner.compute(tasks, {"aligner": aligner}, {"neighbourhoods_total": total})
    measured: dict[str, list[Displacement]] = {each.label: [] for each in found}
    for name, values in results.items():
        measured[owner[name]] += [Displacement(*value) for value in values]
    return measured


def planned_cells(
    each: Meeting,
    scenes: Scenes,
    settings: PairsSettings,
    aligner: Aligner | None,
    measured: Sequence[Displacement],
) -> tuple[list[CellPlan], dict[str, Any] | None]:
    """Plan the shift of every cell of a scene pair.

    Returns
    -------
    tuple of list of CellPlan and dict or None
        The plans, none where the evidence is too thin to shift by; and how well the alignment is known, as
        JSON values, None where nothing was measured.

    Warns
    -----
    PairsWarning
        If the evidence is too thin.
    """
    if aligner is None:
        return [CellPlan(cell) for cell in each.cells], None
    facts: dict[str, Any] = {"displacements": [_told(one) for one in measured]}
    drift = None
    if settings.align == "shift":
        drift = aligner.drift(measured)
        facts = {"drift": None if drift is None else drift.facts(), **facts}
        if drift is None:
            sure = sum(one.sure for one in measured)
            warnings.warn(
                f"{scenes.sar[each.sar].href} and {scenes.eo[each.eo].href}: {sure} of {len(measured)} local "
                f"shifts are sure, too thin evidence to align by: {len(each.cells)} cells are left out",
                PairsWarning,
                stacklevel=2,
            )
            return [], facts
    elif not any(one.sure for one in measured):
        warnings.warn(
            f"{scenes.sar[each.sar].href} and {scenes.eo[each.eo].href}: none of {len(measured)} local "
            "shifts is sure: how well these pairs are registered is not known",
            PairsWarning,
            stacklevel=2,
        )
    return [_plan(cell, settings.size, measured, drift) for cell in each.cells], facts


def _told(one: Displacement) -> dict[str, Any]:
    """Return JSON values, null where nothing could be compared."""
    values = dataclasses.asdict(one)
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _plan(cell: Cell, size: int, measured: Sequence[Displacement], drift: Drift | None) -> CellPlan:
    row, col = cell.row + size / 2, cell.col + size / 2
    local = nearest(measured, row, col)
    score = None if local is None else local.score
    if drift is None:
        rows, cols = (None, None) if local is None else (local.rows, local.cols)
        return CellPlan(cell, rows=rows, cols=cols, score=score)
    shift = drift.at(row, col)
    applied = float(shift[0]), float(shift[1])
    return CellPlan(cell, applied=applied, rows=applied[0], cols=applied[1], score=score)
