"""Things drawn as lines and outlines: rivers, lakes, motorways and a harbour (x = column, y = row)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from scipy.interpolate import CubicSpline
from shapely import affinity

from sar2eo.simulation.settings import MARGIN, SimulationSettings
from sar2eo.simulation.spectral import stream
from sar2eo.simulation.terrain import Terrain

__all__ = ["Harbour", "lakes", "make_harbour", "motorways", "river"]

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Harbour:
    """A port on the coast, in pixels.

    Parameters
    ----------
    centre : tuple of float
        Row and column on the coastline.
    angle : float
        Direction of the quays, in radians.
    platform : shapely geometry
        Paved land: yards and piers.
    basins : shapely geometry
        Dug water between piers.
    breakwater : shapely geometry
        A line of rock off the coast.
    """

    centre: tuple[float, float]
    angle: float
    platform: shapely.Geometry
    basins: shapely.Geometry
    breakwater: shapely.Geometry


def _smooth_line(knots: Points, spacing: float) -> shapely.LineString:
    """Draw a smooth curve through knots of (x, y)."""
    steps = np.hypot(*np.diff(knots, axis=0).T)
    at = np.concatenate([[0], np.cumsum(np.maximum(steps, 1e-3))])
    dense = np.linspace(0, at[-1], max(8, int(at[-1] / spacing)))
    return shapely.LineString(CubicSpline(at, knots)(dense))


def motorways(settings: SimulationSettings, towns: Points) -> list[shapely.LineString]:
    """Lay a few roads across the canvas that pass near towns, given as rows and columns."""
    draw = stream(settings.seed, "motorways")
    rows, cols = settings.canvas
    lines = []
    for number in range(2 + min(settings.shape) // 1200):
        wander = 0.06 * min(rows, cols)
        through = towns[draw.integers(len(towns))][::-1] + draw.normal(0, wander, 2)
        aside = draw.uniform(0.15, 0.85)
        if number % 2:
            ends = np.array([[-20, rows * draw.uniform(0.15, 0.85)], [cols + 20, rows * aside]])
        else:
            ends = np.array([[cols * draw.uniform(0.15, 0.85), -20], [cols * aside, rows + 20]])
        knots = [ends[0], (ends[0] + through) / 2, through, (ends[1] + through) / 2, ends[1]]
        bent = np.array(knots)
        bent[[1, 3]] += draw.normal(0, wander, (2, 2))
        lines.append(_smooth_line(bent, 2))
    return lines


def river(settings: SimulationSettings, terrain: Terrain) -> shapely.LineString:
    """Run a meandering river from the foot of the mountains to the sea."""
    draw = stream(settings.seed, "river")
    spring = np.argwhere(terrain.mountain[::8, ::8] > 0.3)
    mouth = np.argwhere(terrain.coast_px[::8, ::8] < -4)
    start = np.zeros(2)
    if len(spring):
        # The one of a few that lies farthest from the sea.
        few = spring[draw.integers(len(spring), size=8)] * 8.0
        start = few[np.argmin(few @ np.array(terrain.seaward))]
    distance = np.hypot(*(mouth * 8.0 - start).T)
    near = mouth[np.argsort(distance)[: max(1, len(mouth) // 6)]]
    end = near[draw.integers(len(near))] * 8.0
    length = float(np.hypot(*(end - start)))
    count = max(4, int(length / max(18, settings.pixels(700))))
    t = np.linspace(0, 1, count)[:, None]
    normal = np.array([end[1] - start[1], start[0] - end[0]]) / max(length, 1)
    bend = np.cumsum(draw.normal(0, 1, count))
    bend -= t[:, 0] * bend[-1]
    bend = bend / max(np.ptp(bend), 1) * 0.25 * length + draw.normal(0, 0.018 * length, count)
    bend *= np.sin(np.pi * t[:, 0]) ** 0.5
    knots = start + t * (end - start) + bend[:, None] * normal
    return _smooth_line(knots[:, ::-1], 1.5)


def lakes(settings: SimulationSettings, sites: Points) -> list[shapely.Polygon]:
    """Draw still waters, most of them small, around some of the sites (rows, columns)."""
    draw = stream(settings.seed, "lakes")
    found = []
    for site in draw.permutation(sites)[: max(1, len(sites) // 7)]:
        radius = settings.pixels(float(np.clip(draw.lognormal(5.1, 0.55), 60, 700)))
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        outline = radius * np.ones(48)
        for wave in range(2, 6):
            outline *= 1 + draw.normal(0, 0.35 / wave) * np.cos(wave * angle + draw.uniform(0, 2 * np.pi))
        x, y = outline * np.cos(angle), outline * draw.uniform(0.4, 1) * np.sin(angle)
        ring = shapely.Polygon(np.stack([x, y], axis=1)).buffer(0)
        turned = affinity.rotate(ring, draw.uniform(0, 180), origin=(0, 0))
        found.append(affinity.translate(turned, *(site[::-1] + draw.normal(0, radius, 2))))
    return found


def make_harbour(settings: SimulationSettings, terrain: Terrain) -> Harbour | None:
    """Build a port with piers where the coast has room, or None where the scene has no coast."""
    draw = stream(settings.seed, "harbour")
    distance = terrain.coast_px[::4, ::4]
    coast = np.argwhere(np.abs(distance) < 3) * 4.0
    inner = np.array(settings.canvas) / 2
    central = np.abs(coast - inner) < (inner - MARGIN) * 0.72
    flat = terrain.mountain[tuple(coast.astype(int).T)] < 0.05
    inland = np.clip(coast - np.array(terrain.seaward) * settings.pixels(500), 0, 2 * inner - 1).astype(int)
    coast = coast[central.all(axis=1) & flat & (terrain.mountain[tuple(inland.T)] < 0.3)]
    if not len(coast):
        return None
    row, col = coast[draw.integers(len(coast))]
    # The quays follow the coast at large, not its roughness.
    reach = min(settings.shape) // 16
    window = terrain.coast_px[
        max(0, int(row) - reach) : int(row) + reach, max(0, int(col) - reach) : int(col) + reach
    ]
    down, right = (float(-g.mean()) for g in np.gradient(window))
    angle = float(np.arctan2(down, right)) - np.pi / 2
    scale = float(np.clip(min(settings.shape) / 1100, 0.28, 1.0)) * settings.pixels(10)

    def placed(shape: shapely.Geometry) -> shapely.Geometry:
        # Drawn with y towards the sea from the coastline, x along the quays.
        turned = affinity.rotate(
            affinity.scale(shape, scale, scale, origin=(0, 0)), np.degrees(angle), (0, 0)
        )
        return affinity.translate(turned, col, row)

    platform, basins = _port(draw)
    mole = draw.uniform(95, 130)
    line = shapely.LineString([(-190, mole * 0.7), (-60, mole), (60, mole + 6), (210, mole * 0.8)])
    gap = affinity.translate(shapely.box(-14, mole - 60, 14, mole + 60), draw.uniform(-30, 70), 0)
    return Harbour(
        (row, col), angle, placed(platform), placed(basins), placed(line.difference(gap)).buffer(0.9)
    )


def _port(draw: np.random.Generator) -> tuple[shapely.Geometry, shapely.Geometry]:
    """Yards, piers and basins in a frame of 10 m units."""
    piers, basins, x = [], [], -150.0
    while x < 120:
        width, length = draw.uniform(34, 62), draw.uniform(20, 78)
        lean = draw.normal(0, 5)
        corners = [
            (x, -5),
            (x + lean, length),
            (x + width + lean, length - draw.uniform(0, 14)),
            (x + width, -5),
        ]
        piers.append(shapely.Polygon(corners))
        slip = draw.uniform(12, 26)
        basins.append(shapely.box(x + width, -draw.uniform(8, 48), x + width + slip, 90))
        x += width + slip
    dug = shapely.union_all(basins)
    land = shapely.union_all([shapely.box(-165, -52, x, 6), *piers])
    return land.difference(dug), dug.intersection(land.convex_hull)
