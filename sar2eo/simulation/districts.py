"""Districts of a landscape, and the parcels that fields and blocks of houses are cut into."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize

from sar2eo.simulation.features import Harbour
from sar2eo.simulation.settings import SimulationSettings
from sar2eo.simulation.spectral import FloatArray, stream
from sar2eo.simulation.terrain import Terrain

__all__ = ["DistrictKind", "Districts", "Parcels", "make_districts", "make_parcels", "stamp"]

IntArray = npt.NDArray[np.int32]

COLUMNS = 128
"""Parcels along each axis of a district, at most."""


class DistrictKind(IntEnum):
    """What most of a district is used for."""

    WILD = 0
    FARM = 1
    RESIDENTIAL = 2
    INDUSTRIAL = 3
    CENTRE = 4
    HARBOUR = 5


PARCEL_SIZES_M = {
    DistrictKind.WILD: (400.0, 400.0),
    DistrictKind.FARM: (260.0, 420.0),
    DistrictKind.RESIDENTIAL: (85.0, 210.0),
    DistrictKind.INDUSTRIAL: (130.0, 170.0),
    DistrictKind.CENTRE: (100.0, 120.0),
    DistrictKind.HARBOUR: (150.0, 340.0),
}


@dataclass(frozen=True)
class Districts:
    """A partition of the canvas.

    Parameters
    ----------
    label : ndarray of int16
        Which district a pixel is in.
    kind : ndarray of uint8
        `DistrictKind` of each district.
    site : ndarray of float32
        Row and column of each district's centre, shape (district, 2).
    angle : ndarray of float32
        Direction of each district's parcels, in radians.
    borders : list of shapely geometries
        Lines between districts, in pixels, x = column, y = row.
    """

    label: npt.NDArray[np.int16]
    kind: npt.NDArray[np.uint8]
    site: FloatArray
    angle: FloatArray
    borders: list[shapely.Geometry]


@dataclass(frozen=True)
class Parcels:
    """Rectangles within districts, all arrays of the canvas' shape.

    Parameters
    ----------
    label : ndarray of int32
        Which parcel a pixel is in; numbers have gaps.
    along, across : ndarray of float32
        Place within the parcel, in pixels from its first edges.
    along_left, across_left : ndarray of float32
        Pixels to its other edges.
    """

    label: IntArray
    along: FloatArray
    across: FloatArray
    along_left: FloatArray
    across_left: FloatArray

    @property
    def column(self) -> IntArray:
        """Which column of its district a parcel is in."""
        return (self.label // COLUMNS) % COLUMNS

    @property
    def row(self) -> IntArray:
        """Which parcel of its column it is."""
        return self.label % COLUMNS

    @property
    def edge(self) -> FloatArray:
        """Distance from the nearest edge, in pixels."""
        return np.minimum(np.minimum(self.along, self.along_left), np.minimum(self.across, self.across_left))


def stamp(geometries: list[shapely.Geometry], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask of the pixels whose centres lie in any of the geometries."""
    drawn = [(g, 1) for g in geometries if not g.is_empty]
    if not drawn:
        return np.zeros(shape, dtype=bool)
    mask: npt.NDArray[np.uint8] = rasterize(drawn, out_shape=shape, dtype=np.uint8)
    return mask.view(np.bool_)


def make_districts(settings: SimulationSettings, terrain: Terrain, harbour: Harbour | None) -> Districts:
    """Divide the canvas into districts around jittered points, and make the port a district of its own."""
    draw = stream(settings.seed, "districts")
    rows, cols = settings.canvas
    spacing = float(np.clip(min(settings.shape) / 7, 56, settings.pixels(1900)))
    grid = np.stack(np.meshgrid(np.arange(0, rows, spacing), np.arange(0, cols, spacing), indexing="ij"), -1)
    points = grid.reshape(-1, 2) + draw.uniform(0, 0.9, (grid.size // 2, 2)) * spacing
    cells = shapely.voronoi_polygons(
        shapely.MultiPoint(points[:, ::-1]), extend_to=shapely.box(0, 0, cols, rows)
    ).geoms
    cells = [cell for cell in cells if cell.intersects(shapely.box(0, 0, cols, rows))]
    label = rasterize([(cell, i) for i, cell in enumerate(cells)], out_shape=(rows, cols), dtype=np.int16)
    inside = [shapely.intersection(cell, shapely.box(0, 0, cols, rows)).centroid for cell in cells]
    site = np.array([[p.y, p.x] for p in inside], dtype=np.float32)
    # Neighbouring towns often share one grid of streets.
    angle = draw.choice(draw.uniform(0, np.pi / 2, 5), len(cells)) + draw.normal(0, 0.02, len(cells))
    kind = _kinds(draw, settings, terrain, site, harbour)
    borders = [cell.boundary for cell in cells]
    if harbour is not None:
        label[stamp([harbour.platform], label.shape)] = len(cells)
        kind = np.append(kind, np.uint8(DistrictKind.HARBOUR))
        site = np.append(site, np.array([harbour.centre], dtype=np.float32), axis=0)
        angle = np.append(angle, harbour.angle)
        borders = [border.difference(harbour.platform) for border in borders]
    return Districts(label, kind, site, angle.astype(np.float32), borders)


def _kinds(
    draw: np.random.Generator,
    settings: SimulationSettings,
    terrain: Terrain,
    site: FloatArray,
    harbour: Harbour | None,
) -> npt.NDArray[np.uint8]:
    at = tuple(np.clip(site.astype(int), 0, np.array(settings.canvas) - 1).T)
    kind = np.full(len(site), DistrictKind.WILD, dtype=np.uint8)
    land = np.flatnonzero((terrain.coast_px[at] > 0) & (terrain.mountain[at] < 0.4))
    if not len(land):
        return kind
    # A town is a cluster: rank districts by the distance from a few town centres on the plain.
    towns = site[draw.choice(land, min(len(land), 2 + len(site) // 60), replace=False)]
    if harbour is not None:
        towns[:1] = harbour.centre
    distance = np.hypot(*(site[land, None] - towns[None]).transpose(2, 0, 1)).min(axis=1)
    ranked = land[np.argsort(distance + draw.uniform(0, 0.25, len(land)) * np.ptp(distance))]
    shares = {
        DistrictKind.CENTRE: 0.05,
        DistrictKind.INDUSTRIAL: 0.10,
        DistrictKind.RESIDENTIAL: 0.35,
        DistrictKind.FARM: 0.38,
    }
    start = 0
    for name, share in shares.items():
        stop = start + max(1, round(share * len(ranked)))
        kind[ranked[start:stop]] = name
        start = stop
    # Some industry lies at the edge of a town.
    swap = draw.permutation(np.flatnonzero(kind == DistrictKind.RESIDENTIAL))
    industry = np.flatnonzero(kind == DistrictKind.INDUSTRIAL)
    half = min(len(swap), len(industry) // 2)
    kind[industry[:half]], kind[swap[:half]] = DistrictKind.RESIDENTIAL, DistrictKind.INDUSTRIAL
    return kind


def make_parcels(settings: SimulationSettings, districts: Districts) -> Parcels:
    """Cut every district into columns of uneven width, and these into parcels.

    Columns of fields are cut independently; streets of towns run through.
    """
    draw = stream(settings.seed, "parcels")
    count = len(districts.kind)
    sizes = np.array([PARCEL_SIZES_M[DistrictKind(k)] for k in range(len(DistrictKind))])[districts.kind]
    sizes = np.maximum(sizes / settings.gsd_m * draw.uniform(0.85, 1.3, (count, 1)), 3)
    uneven = np.where(districts.kind == DistrictKind.FARM, 1.0, 0.25)[:, None]
    widths = sizes[:, :1] * (1 + uneven * draw.uniform(-0.5, 0.5, (count, COLUMNS)))
    heights = sizes[:, 1:] * (1 + (uneven == 1) * draw.uniform(-0.5, 0.7, (count, COLUMNS)))
    offsets = (uneven == 1) * draw.uniform(0, 1, (count, COLUMNS)) * heights

    along, across = _local(settings, districts)
    starts = np.concatenate([np.zeros((count, 1)), np.cumsum(widths, axis=1)[:, :-1]], axis=1)
    starts -= starts[:, COLUMNS // 2 : COLUMNS // 2 + 1]
    column = _column(districts.label, along, starts)
    key = districts.label.astype(np.int32) * COLUMNS + column
    along -= starts.astype(np.float32).ravel()[key]
    height = heights.astype(np.float32).ravel()[key]
    across += offsets.astype(np.float32).ravel()[key]
    cell = np.floor(across / height)
    across -= cell * height
    label = key * COLUMNS + np.clip(cell.astype(np.int32) + COLUMNS // 2, 0, COLUMNS - 1)
    left = widths.astype(np.float32).ravel()[key] - along
    return Parcels(label, along, across, left, height - across)


def _local(settings: SimulationSettings, districts: Districts) -> tuple[FloatArray, FloatArray]:
    """Coordinates turned by each district's angle, from its centre."""
    rows, cols = settings.canvas
    y = np.arange(rows, dtype=np.float32)[:, None] - districts.site[:, 0][districts.label]
    x = np.arange(cols, dtype=np.float32)[None, :] - districts.site[:, 1][districts.label]
    cos = np.cos(districts.angle)[districts.label]
    sin = np.sin(districts.angle)[districts.label]
    return x * cos + y * sin, y * cos - x * sin


def _column(label: npt.NDArray[np.int16], along: FloatArray, starts: npt.NDArray[np.float64]) -> IntArray:
    """Which of a district's columns a pixel is in, by a table of quarter pixels."""
    reach = int(np.abs(along).max()) + 2
    edges = np.arange(-4 * reach, 4 * reach) / 4
    table = np.stack([np.searchsorted(row, edges, side="right") - 1 for row in starts])
    table = np.clip(table, 0, COLUMNS - 1).astype(np.int16)
    at = np.floor(along * 4).astype(np.int32) + 4 * reach
    found: IntArray = table.ravel()[label.astype(np.int32) * len(edges) + at].astype(np.int32)
    return found
