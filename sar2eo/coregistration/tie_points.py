"""Tie points: where templates of the optical scene lie in the SAR scene, on the reference's grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sar2eo.compute import counters
from sar2eo.compute.dask_run import Progress, compute_keys, reporting
from sar2eo.coregistration.scene_pair import LEAST_VALID, OpticalView, RadarView, ScenePair, bands_for
from sar2eo.geo.chip_lattice import Cell
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.matching.dcdm.aligner import find_learned, open_calibrated
from sar2eo.matching.shifts import Displacement, LocalShift
from sar2eo.matching.structure import Method, StructuralAligner, match
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.settings import CoregisterSettings
from sar2eo.store.task_results import PartStore

__all__ = ["Finder", "TieRun", "finder_of", "measure_ties", "views_of"]

FloatArray = npt.NDArray[np.float32]

# Of one task.
_RUN_TIES = 4


class Finder(Protocol):
    """Finds templates in search images, which are larger by the radius on every side."""

    @property
    def side(self) -> int:
        """Of a template, in pixels."""
        ...

    @property
    def radius(self) -> int:
        """Largest shift along either axis."""
        ...

    def find(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find a template (row, col, 3) in a search image (polarisation, row, col)."""
        ...

    def facts(self) -> dict[str, Any]:
        """Say how, as JSON values."""
        ...


@dataclass(frozen=True)
class ClassicalFinder:
    """Finds templates by a method that is not learned; limits are those of `StructuralAligner`.

    Parameters
    ----------
    method : {"structure", "phase", "ncc"}
    side, radius : int
    """

    method: Method
    side: int
    radius: int

    def find(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """See `Finder`; polarisations count alike."""
        found = match(sar.mean(axis=0), eo, method=self.method, radius_px=self.radius)
        rows, cols = found.rows - self.radius, found.cols - self.radius
        inside = max(abs(rows), abs(cols)) <= self.radius - 1
        return LocalShift(rows, cols, found.score, inside and StructuralAligner().is_sure(found, self.method))

    def facts(self) -> dict[str, Any]:
        """See `Finder`."""
        limits = StructuralAligner()
        least = limits.min_score if self.method == "structure" else None
        return {"score_at_least": least, "peak_over_rival_at_least": limits.min_ratio}


@dataclass(frozen=True)
class LearnedFinder:
    """Finds templates by a trained matcher; its card says what it refuses.

    Parameters
    ----------
    side, radius : int
    folder, device, threads, steps, seed
        As of `sar2eo.matching.dcdm.aligner.find_learned`.
    threshold : float
        Of its card.
    sha256 : str
        Of its files.
    """

    side: int
    radius: int
    folder: str
    device: str
    threads: int | None
    steps: int | None
    seed: int
    threshold: float
    sha256: str

    def find(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """See `Finder`."""
        how = {"device": self.device, "threads": self.threads, "steps": self.steps, "seed": self.seed}
        return find_learned(sar, eo, folder=self.folder, **how)  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """See `Finder`."""
        return {"score_at_least": self.threshold, "model_sha256": self.sha256}


def finder_of(settings: CoregisterSettings) -> Finder:
    """Return the finder that settings ask for.

    Raises
    ------
    CheckpointError
        If there is no such matcher, or it is not calibrated.
    """
    if settings.method != "dcdm":
        radius = StructuralAligner.radius_px if settings.radius is None else settings.radius
        return ClassicalFinder(settings.method, settings.grid, radius)
    folder, card = open_calibrated(str(settings.matcher))
    radius = (card.search_px - card.template_px) // 2 if settings.radius is None else settings.radius
    return LearnedFinder(
        side=min(settings.grid, card.template_px),
        radius=radius,
        folder=str(folder.path),
        device=settings.device,
        threads=settings.threads,
        steps=settings.steps,
        seed=settings.seed,
        threshold=float(card.threshold or 0),
        sha256=folder.sha256(),
    )


def views_of(pair: ScenePair, settings: CoregisterSettings) -> tuple[RadarView, OpticalView]:
    """Return both scenes as a finder wants to see them: amplitude scaled, polarisations chosen.

    Raises
    ------
    RadiometryError
        If it cannot be scaled.
    """
    optical, sar = OpticalView(pair.eo), pair.sar
    if settings.method != "dcdm":
        return RadarView(sar, sar.percentiles()), optical
    _, card = open_calibrated(str(settings.matcher))
    divisors = sar.percentiles() if card.scaling == "p99" else (1.0,) * len(sar.reader.polarisations)
    return RadarView(sar, divisors, bands_for(sar, card)), optical


@dataclass(frozen=True)
class TieRun:
    """Tie points of one task.

    Parameters
    ----------
    name : str
        Under which they are kept.
    cells : tuple of Cell
        Of the lattice on the reference's grid, `spacing` pixels apart.
    spacing : int
    grid : Grid
        Of the reference.
    moving_is_sar : bool
    """

    name: str
    cells: tuple[Cell, ...]
    spacing: int
    grid: Grid
    moving_is_sar: bool

    def measure(
        self, radar: RadarView, optical: OpticalView, finder: Finder, store: PartStore
    ) -> list[Displacement | None]:
        """Measure and keep them; None where less than half of a template is valid in either scene."""
        found = []
        for cell in self.cells:
            with counters.timed("tie_seconds"):
                found.append(self._measured(cell, radar, optical, finder))
            counters.add("ties_done", 1)
        store.save(self.name, [tie and dataclasses.astuple(tie) for tie in found])
        return found

    def _measured(
        self, cell: Cell, radar: RadarView, optical: OpticalView, finder: Finder
    ) -> Displacement | None:
        margin, reach, side = (self.spacing - finder.side) // 2, finder.radius, finder.side
        window = Window(cell.row + margin, cell.col + margin, side, side)
        eo = optical.read(self.grid.crop(window))
        if np.isfinite(eo[..., 0]).mean() < LEAST_VALID:
            return None
        around = Window(window.row - reach, window.col - reach, side + 2 * reach, side + 2 * reach)
        sar = radar.read(self.grid.crop(around))
        inner = sar[:, reach : reach + side, reach : reach + side]
        if np.isfinite(inner).all(axis=0).mean() < LEAST_VALID:
            return None
        shift = finder.find(sar, eo)
        row, col = window.row + side / 2, window.col + side / 2
        values = float(shift.score), bool(shift.sure)
        if self.moving_is_sar:
            return Displacement(row, col, float(shift.rows), float(shift.cols), *values)
        # What the reference, the SAR, shows here, the moving scene shows where the template was cut.
        if not np.isfinite([shift.rows, shift.cols]).all():
            return Displacement(row, col, float("nan"), float("nan"), *values)
        return Displacement(
            row + float(shift.rows), col + float(shift.cols), -float(shift.rows), -float(shift.cols), *values
        )


def measure_ties(
    pair: ScenePair,
    cells: Sequence[Cell],
    settings: CoregisterSettings,
    finder: Finder,
    store: PartStore,
    progress: Progress | None = None,
) -> list[Displacement]:
    """Measure tie points on Dask's scheduler in force, but those that are kept from before.

    Parameters
    ----------
    pair : ScenePair
    cells : sequence of Cell
        From `sar2eo.coregistration.scene_pair.tie_cells`.
    settings : CoregisterSettings
    finder : Finder
    store : PartStore
        Where they are kept, of the same pair, cells, settings and finder.
    progress : callable, optional
        Called with the counters ties_total, ties_resumed and ties_done.

    Returns
    -------
    list of Displacement
        Of all templates that have data in both scenes: what the reference shows at (row, col) of its grid
        is found `rows` and `cols` farther in the moving scene. NaN where nothing was found.
    """
    radar, optical = views_of(pair, settings)
    shared = {"radar": radar, "optical": optical, "finder": finder, "store": store}
    is_sar = isinstance(pair.moving, SarScene)
    runs = [
        TieRun(f"ties-{start:05d}", tuple(cells[start : start + _RUN_TIES]), settings.grid, pair.grid, is_sar)
        for start in range(0, len(cells), _RUN_TIES)
    ]
    found: dict[str, list[Displacement | None]] = {
        name: [tie and Displacement(*tie) for tie in kept] for name, kept in store.load().items()
    }
    counters.add("ties_resumed", sum(map(len, found.values())))
    tasks = {("ties", run.name): (TieRun.measure, run, *shared) for run in runs if run.name not in found}
    with reporting(progress, {"ties_total": len(cells)}):
        computed = compute_keys({**shared, **tasks}, list(tasks)) if tasks else []
    found |= {name: ties for (_, name), ties in zip(tasks, computed, strict=True)}
    return [tie for run in runs for tie in found[run.name] if tie is not None]
