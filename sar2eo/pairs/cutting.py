"""Runs of chips of one scene pair: the tasks of a build."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sar2eo import telemetry
from sar2eo.pairs.alignment import Aligner, Displacement, measure
from sar2eo.pairs.cells import Cell
from sar2eo.pairs.chips import ChipPair, cut_pair, write_pair
from sar2eo.pairs.optical import EoScene
from sar2eo.pairs.scenes import SarScene
from sar2eo.pairs.work import PartStore
from sar2eo.recipe import PairsSettings

__all__ = ["CellPlan", "CutRun", "MeasureRun", "cut_run", "measure_run"]


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
        with telemetry.timed("align_seconds"):
            found.append(measure(sar, eo, cell, aligner, run.scaling))
        telemetry.add("neighbourhoods_done", 1)
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
        with telemetry.timed("cut_seconds"):
            pair = cut_pair(
                sar, eo, plan.cell, size=settings.size, shift=plan.applied, min_valid=settings.min_valid
            )
        reason = _refusal(pair, settings)
        if reason or pair is None:
            refused[reason or "sar nodata"] += 1
        else:
            with telemetry.timed("write_seconds"):
                rows.append(_written(store, sar, run, plan, pair))
            telemetry.add("chips_written", 1)
        telemetry.add("cells_done", 1)
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
