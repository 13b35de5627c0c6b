"""Tasks of a build: measure the shifts of a scene pair, and cut its chips, in runs of cells."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sar2eo.compute import counters
from sar2eo.compute.dask_run import Progress, compute_keys, reporting
from sar2eo.errors import PairsWarning
from sar2eo.geo.chip_lattice import Cell
from sar2eo.matching.shifts import Aligner, Displacement, SceneDrift
from sar2eo.pairs.chips import ChipPair, cut_pair, write_pair
from sar2eo.pairs.displacements import check_aligner, measure, nearest, neighbourhoods
from sar2eo.pairs.plan import Meeting, Scenes
from sar2eo.scenes.optical import EoScene
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.settings import PairsSettings
from sar2eo.store.task_results import PartStore

__all__ = [
    "CellPlan",
    "CutRun",
    "MeasureRun",
    "Runner",
    "cut_run",
    "measure_run",
    "measured_shifts",
    "planned_cells",
]


@dataclass(frozen=True)
class CellPlan:
    """A cell and how its SAR is shifted.

    Parameters
    ----------
    cell : Cell
    applied : tuple of float
        Rows and columns that the SAR window is moved by.
    rows, cols, score : float or None
        What the index says of the shift.
    """

    cell: Cell
    applied: tuple[float, float] = (0.0, 0.0)
    rows: float | None = None
    cols: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class CutRun:
    """Chips to cut from one scene pair.

    Parameters
    ----------
    name : str
        Of the task.
    label : str
        Of the scene pair, in the chips' ids.
    plans : tuple of CellPlan
    common : dict
        Columns of the index that all chips of the run share.
    tags : dict of str
        Of the chips' files.
    settings : PairsSettings
    """

    name: str
    label: str
    plans: tuple[CellPlan, ...]
    common: dict[str, Any]
    tags: dict[str, str]
    settings: PairsSettings


@dataclass(frozen=True)
class MeasureRun:
    """Neighbourhoods of one scene pair in which shifts are measured.

    Parameters
    ----------
    name : str
        Of the task.
    cells : tuple of Cell
    scaling : tuple of float
        Of the SAR scene.
    """

    name: str
    cells: tuple[Cell, ...]
    scaling: tuple[float, ...]


def measure_run(
    store: PartStore | None, sar: SarScene, eo: EoScene, aligner: Aligner, run: MeasureRun
) -> list[list[Any]]:
    """Measure shifts, keep and return them as lists of the fields of `Displacement`."""
    found: list[Displacement | None] = []
    for cell in run.cells:
        with counters.timed("align_seconds"):
            found.append(measure(sar, eo, cell, aligner, run.scaling))
        counters.add("neighbourhoods_done", 1)
    values = [[d.row, d.col, d.rows, d.cols, d.score, d.sure] for d in found if d is not None]
    if store is not None:
        store.save(run.name, values)
    return values


def cut_run(store: PartStore, sar: SarScene, eo: EoScene, run: CutRun) -> dict[str, Any]:
    """Cut, judge and write the chips of a run, then keep and return what came of it.

    Returns
    -------
    dict
        ``rows`` of the index, and ``refused``: counts of cells by reason.
    """
    settings, rows, refused = run.settings, [], Counter[str]()
    for plan in run.plans:
        with counters.timed("cut_seconds"):
            pair = cut_pair(
                sar, eo, plan.cell, size=settings.size, shift=plan.applied, min_valid=settings.min_valid
            )
        reason = _refusal(pair, settings)
        if reason or pair is None:
            refused[reason or "sar nodata"] += 1
        else:
            with counters.timed("write_seconds"):
                rows.append(_written(store, sar, run, plan, pair))
            counters.add("chips_written", 1)
        counters.add("cells_done", 1)
    found = {"rows": rows, "refused": dict(refused)}
    store.save(run.name, found)
    return found


def _refusal(pair: ChipPair | None, settings: PairsSettings) -> str | None:
    if pair is None:
        return "sar nodata"
    if pair.valid_share == 0 or pair.valid_share < settings.min_valid:
        return "nodata"
    if pair.cloud_share is not None and pair.cloud_share > settings.max_cloud:
        return "cloud"
    return None


def _written(store: PartStore, sar: SarScene, run: CutRun, plan: CellPlan, pair: ChipPair) -> dict[str, Any]:
    cell, (height, width) = plan.cell, pair.grid.shape
    name = f"{run.label}_r{cell.row:05d}_c{cell.col:05d}"
    paths = {key: store.chips / f"{name}_{key}.tif" for key in ("sar", "eo")}
    tags = {**run.tags, "ID": name}
    if any(plan.applied):
        tags["SAR_SHIFT"] = f"{plan.applied[0]:.3f} rows, {plan.applied[1]:.3f} columns"
    checksums = write_pair(pair, sar.reader.polarisations, tags, paths["sar"], paths["eo"])
    mean, deviation = pair.eo_statistics()
    return {
        **run.common,
        "id": name,
        "sar_chip": f"chips/{paths['sar'].name}",
        "eo_chip": f"chips/{paths['eo'].name}",
        "crs": pair.grid.crs,
        "transform": list(pair.grid.transform),
        "checksums": checksums,
        "cell": [cell.i, cell.j],
        "row": cell.row,
        "col": cell.col,
        "height": height,
        "width": width,
        "valid_share": pair.valid_share,
        "cloud_share": pair.cloud_share,
        "eo_mean": mean,
        "eo_std": deviation,
        "shift_rows": plan.rows,
        "shift_cols": plan.cols,
        "align_score": plan.score,
    }


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


def _plan(cell: Cell, size: int, measured: Sequence[Displacement], drift: SceneDrift | None) -> CellPlan:
    row, col = cell.row + size / 2, cell.col + size / 2
    local = nearest(measured, row, col)
    score = None if local is None else local.score
    if drift is None:
        rows, cols = (None, None) if local is None else (local.rows, local.cols)
        return CellPlan(cell, rows=rows, cols=cols, score=score)
    shift = drift.at(row, col)
    applied = float(shift[0]), float(shift[1])
    return CellPlan(cell, applied=applied, rows=applied[0], cols=applied[1], score=score)


class Runner:
    """Runs named tasks on Dask's scheduler in force; a task keeps its result in the store by itself.

    Parameters
    ----------
    store : PartStore
        Of results.
    progress : callable or None
        Called about once a second with counters.
    """

    def __init__(self, store: PartStore, progress: Progress | None) -> None:
        self.store, self.progress = store, progress
        self.known = store.load()
        self._scenes: dict[str, Any] = {}

    def share(self, found: Sequence[Meeting], scenes: Scenes) -> None:
        """Let tasks name scenes by `Meeting.sar_key` and `eo_key`, so that each is sent to a worker once."""
        for each in found:
            self._scenes |= {each.sar_key: scenes.sar[each.sar], each.eo_key: scenes.eo[each.eo]}

    def compute(
        self,
        tasks: Mapping[str, tuple[Any, ...]],
        shared: Mapping[str, Any] | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Run the tasks whose results are not known yet.

        Parameters
        ----------
        tasks : mapping
            Names to tuples of a function and its arguments, which may be names of what is shared.
        shared : mapping, optional
            Further values that tasks may name.
        counts : mapping, optional
            Totals to tell together with counters; without it, nothing is told.

        Returns
        -------
        dict
            Results of all tasks, by name.
        """
        todo = {name: task for name, task in tasks.items() if name not in self.known}
        if todo:
            # Keys are no names: Dask takes an argument that equals a key for the key's result.
            graph = {("part", name): task for name, task in todo.items()}
            with reporting(None if counts is None else self.progress, counts or {}):
                values = compute_keys({**self._scenes, **(shared or {}), **graph}, list(graph))
            self.known |= zip(todo, values, strict=True)
        return {name: self.known[name] for name in tasks}
