"""Tie points: where templates of the optical scene lie in the SAR scene; measured, listed and drawn."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from sar2eo._version import __version__
from sar2eo.compute.dask_run import Progress, add_count, timed
from sar2eo.coregistration.scene_pair import LEAST_VALID, RadarView, ScenePair, choose_bands, read_optical
from sar2eo.coregistration.transforms import Evidence
from sar2eo.geo.chip_lattice import Cell
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.matching.dcdm.aligner import find_learned, open_calibrated
from sar2eo.matching.shifts import Displacement, LocalShift
from sar2eo.matching.structure import Method, StructuralAligner, match
from sar2eo.scenes.optical import EoScene
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.settings import CoregisterSettings
from sar2eo.store.task_results import TaskResults

FloatArray = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

# Tie points of one task.
_RUN_TIES = 4


@dataclass(frozen=True)
class ClassicalFinder:
    """Finds templates by structure, phase or correlation; limits are those of `StructuralAligner`."""

    method: Method
    side: int
    radius: int

    def find(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find a template (row, col, 3) in a search image (polarisation, row, col), whose mean is taken."""
        found = match(sar.mean(axis=0), eo, method=self.method, radius_px=self.radius)
        rows, cols = found.rows - self.radius, found.cols - self.radius
        inside = max(abs(rows), abs(cols)) <= self.radius - 1
        return LocalShift(rows, cols, found.score, inside and StructuralAligner().is_sure(found, self.method))

    def facts(self) -> dict[str, Any]:
        """Return what decides on sure tie points, as JSON values."""
        limits = StructuralAligner()
        least = limits.min_score if self.method == "structure" else None
        return {"score_at_least": least, "peak_over_rival_at_least": limits.min_ratio}


@dataclass(frozen=True)
class LearnedFinder:
    """Finds templates by a trained matcher, whose card says which scores are sure."""

    settings: CoregisterSettings
    folder: str
    side: int
    radius: int
    threshold: float
    sha256: str

    def find(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find a template (row, col, 3) in a search image (polarisation, row, col)."""
        how = self.settings
        return find_learned(
            sar,
            eo,
            folder=self.folder,
            device=how.device,
            threads=how.threads,
            steps=how.steps,
            seed=how.seed,
        )

    def facts(self) -> dict[str, Any]:
        """Return what decides on sure tie points, as JSON values."""
        return {"score_at_least": self.threshold, "model_sha256": self.sha256}


Finder = ClassicalFinder | LearnedFinder
"""Finds templates of `side` pixels in search images that are larger by `radius` on every side."""


def create_finder(settings: CoregisterSettings) -> Finder:
    """Create the finder for settings; `CheckpointError` if the matcher is missing or not calibrated."""
    if settings.method != "dcdm":
        radius = StructuralAligner.radius_px if settings.radius is None else settings.radius
        return ClassicalFinder(settings.method, settings.grid, radius)
    folder, card = open_calibrated(str(settings.matcher))
    radius = (card.search_px - card.template_px) // 2 if settings.radius is None else settings.radius
    side, threshold = min(settings.grid, card.template_px), float(card.threshold or 0)
    return LearnedFinder(settings, str(folder.path), side, radius, threshold, folder.sha256())


def _open_radar(sar: SarScene, settings: CoregisterSettings) -> RadarView:
    """Return the SAR scene as a finder reads it: amplitude scaled, polarisations chosen."""
    if settings.method != "dcdm":
        return RadarView(sar, sar.percentiles())
    _, card = open_calibrated(str(settings.matcher))
    divisors = sar.percentiles() if card.scaling == "p99" else (1.0,) * len(sar.reader.polarisations)
    return RadarView(sar, divisors, choose_bands(sar, card))


def measure_ties(
    pair: ScenePair,
    cells: Sequence[Cell],
    settings: CoregisterSettings,
    finder: Finder,
    results: TaskResults,
    progress: Progress | None = None,
) -> list[Displacement]:
    """Measure tie points on Dask's active scheduler, except those that are kept from an interrupted run.

    `cells` are templates on the reference's grid, from `sar2eo.coregistration.scene_pair.place_templates`;
    kept results are of the same pair, cells, settings and finder. `progress` is called with ties_total,
    ties_resumed and ties_done.

    Returned are all templates with data in both scenes: what the reference shows at (row, col) of its grid is
    found `rows` and `cols` farther in the moving scene. NaN where nothing was found.
    """
    shared = {"radar": _open_radar(pair.sar, settings), "optical": pair.eo, "finder": finder}
    where = settings.grid, pair.grid, isinstance(pair.moving, SarScene)
    tasks = {
        f"ties-{settings.grid}-{start:05d}": (_measure_run, *shared, cells[start : start + _RUN_TIES], *where)
        for start in range(0, len(cells), _RUN_TIES)
    }
    add_count("ties_resumed", sum(map(len, results.known.values())))
    found = results.compute(tasks, shared, progress=progress, counts={"ties_total": len(cells)})
    return [Displacement(*tie) for ties in found.values() for tie in ties if tie is not None]


def _measure_run(
    radar: RadarView,
    optical: EoScene,
    finder: Finder,
    cells: Sequence[Cell],
    spacing: int,
    grid: Grid,
    moving_is_sar: bool,
) -> list[tuple[Any, ...] | None]:
    """Measure the tie points of a task; return the fields of each `Displacement`."""
    found = []
    for cell in cells:
        with timed("tie_seconds"):
            tie = _measure(cell, radar, optical, finder, spacing, grid)
        if tie is not None and not moving_is_sar:
            # What the reference, the SAR, shows here, the moving scene shows where the template was cut.
            rows, cols = (tie.rows, tie.cols) if np.isfinite([tie.rows, tie.cols]).all() else (0.0, 0.0)
            tie = dataclasses.replace(
                tie, row=tie.row + rows, col=tie.col + cols, rows=-tie.rows, cols=-tie.cols
            )
        add_count("ties_done", 1)
        found.append(None if tie is None else dataclasses.astuple(tie))
    return found


def _measure(
    cell: Cell, radar: RadarView, optical: EoScene, finder: Finder, spacing: int, grid: Grid
) -> Displacement | None:
    """Find a template of the optical scene in the SAR scene; None where less than half of it is valid."""
    margin, reach, side = (spacing - finder.side) // 2, finder.radius, finder.side
    window = Window(cell.row + margin, cell.col + margin, side, side)
    eo = read_optical(optical, grid.crop(window))
    if np.isfinite(eo[..., 0]).mean() < LEAST_VALID:
        return None
    around = Window(window.row - reach, window.col - reach, side + 2 * reach, side + 2 * reach)
    sar = radar.read(grid.crop(around))
    inner = sar[:, reach : reach + side, reach : reach + side]
    if np.isfinite(inner).all(axis=0).mean() < LEAST_VALID:
        return None
    shift = finder.find(sar, eo)
    row, col = window.row + side / 2, window.col + side / 2
    return Displacement(row, col, float(shift.rows), float(shift.cols), float(shift.score), bool(shift.sure))


# Coordinates in degrees; a millionth is 0.1 m.
_DEGREES = 7
_LIBRARIES = ("numpy", "scipy", "scikit-image", "rasterio")
_INCH = 5.0
# Arrows are drawn so long, as a share of the distance of tie points.
_ARROW = 0.8


def versions(*, learned: bool) -> dict[str, str]:
    """Return versions of what the result depends on."""
    from rasterio import __gdal_version__

    names = (*_LIBRARIES, "torch") if learned else _LIBRARIES
    found = {name: importlib.metadata.version(name) for name in names}
    return {"sar2eo": __version__, "python": platform.python_version(), **found, "gdal": __gdal_version__}


def list_ties(
    ties: Sequence[Displacement], evidence: Evidence, size: tuple[float, float]
) -> list[dict[str, Any]]:
    """Return every tie point as JSON values; null is unknown.

    Fields: row and col of the reference; shift_rows, shift_cols and shift_m; score; accepted, by the method;
    inlier, by the fit; residual_rows, residual_cols, residual_px and residual_m, against a fit without the
    point. `size` is the height and width of a pixel in metres.
    """
    sure = iter(zip(evidence.shifts - evidence.predicted, evidence.inlier, strict=True))
    rows = []
    for tie in ties:
        accepted = tie.sure and bool(np.isfinite([tie.rows, tie.cols]).all())
        residual, inlier = next(sure) if accepted else (np.array([np.nan, np.nan]), False)
        shift = np.array([tie.rows, tie.cols])
        row = {
            "row": tie.row,
            "col": tie.col,
            "shift_rows": tie.rows,
            "shift_cols": tie.cols,
            "shift_m": np.hypot(*(shift * size)),
            "score": tie.score,
            "residual_rows": residual[0],
            "residual_cols": residual[1],
            "residual_px": np.hypot(*residual),
            "residual_m": np.hypot(*(residual * size)),
        }
        plain = {name: round(float(v), 4) if np.isfinite(v) else None for name, v in row.items()}
        rows.append({**plain, "accepted": accepted, "inlier": bool(inlier)})
    return rows


def encode_geojson(rows: Sequence[dict[str, Any]], grid: Grid) -> bytes:
    """Encode tie points as GeoJSON (RFC 7946: longitude and latitude), with the fields of `list_ties`."""
    places = np.array([(row["row"], row["col"]) for row in rows], float).reshape(-1, 2)
    a, b, c, d, e, f = grid.transform
    row, col = places.T
    x, y = a * col + b * row + c, d * col + e * row + f
    lon, lat = Transformer.from_crs(grid.pyproj_crs, "EPSG:4326", always_xy=True).transform(x, y)
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Point",
                "coordinates": [round(float(east), _DEGREES), round(float(north), _DEGREES)],
            },
            "properties": properties,
        }
        for east, north, properties in zip(np.atleast_1d(lon), np.atleast_1d(lat), rows, strict=True)
    ]
    return (json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False) + "\n").encode()


def draw_ties(rows: Sequence[dict[str, Any]], grid: Grid, spacing: int, path: Path) -> None:
    """Draw a PNG of the shifts of tie points (`list_ties`), and of their residuals, as arrows over a grid.

    `spacing` is the distance of tie points in pixels of that grid, the reference's.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * _INCH, 1.15 * _INCH), layout="constrained")
    for axes, title, prefix in zip(
        figure.subplots(1, 2),
        ("shifts", "held-out residuals"),
        ("shift", "residual"),
        strict=True,
    ):
        drawn = [row for row in rows if row[f"{prefix}_rows"] is not None and row["accepted"]]
        refused = [row for row in rows if not row["accepted"]]
        axes.plot(_of(refused, "col"), _of(refused, "row"), ".", color="0.7", markersize=3, label="refused")
        inliers = [row for row in drawn if row["inlier"]]
        lengths = np.hypot(_of(inliers, f"{prefix}_rows"), _of(inliers, f"{prefix}_cols"))
        longest = max(float(np.quantile(lengths, 0.95)) if len(lengths) else 0.0, 0.1)
        for chosen, colour, label in (
            (inliers, "tab:blue", "agree"),
            ([row for row in drawn if not row["inlier"]], "tab:red", "disagree"),
        ):
            axes.quiver(
                _of(chosen, "col"), _of(chosen, "row"),
                _of(chosen, f"{prefix}_cols"), _of(chosen, f"{prefix}_rows"),
                color=colour, label=label, angles="xy", scale_units="xy", width=0.004,
                scale=longest / (_ARROW * spacing),
            )  # fmt: skip
        axes.set(
            title=f"{title} (one spacing: {longest / _ARROW:.2g} px)",
            xlabel="column", ylabel="row", xlim=(0, grid.shape[1]), ylim=(grid.shape[0], 0), aspect="equal",
        )  # fmt: skip
    # Beside the axes: there is no corner without tie points.
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(path)


def _of(rows: Sequence[dict[str, Any]], name: str) -> Points:
    return np.array([row[name] for row in rows], float)
