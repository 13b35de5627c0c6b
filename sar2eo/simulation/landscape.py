"""The landscape of a seed: sea and mountains, rivers, roads, towns and fields, and the land cover."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize
from scipy import ndimage
from scipy.interpolate import CubicSpline
from shapely import affinity

from sar2eo.simulation.fields import (
    GSD_M,
    MARGIN,
    FloatArray,
    SimulationSettings,
    pixels,
    resize,
    smoothstep,
    spectral_noise,
    stream,
)

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int32]
Points = npt.NDArray[np.float64]

LOTS = 1 << 16
"""Entries of the tables that give each building lot its own look."""

COLUMNS = 128
"""Parcels along each axis of a district, at most."""

RIDGES_M = ((1300.0, 105.0), (520.0, 36.0))
"""Spacing of ridges, and how far they rise over the valleys between."""

GULLY_SPACING_M, GULLY_DEPTH_M = 140.0, 22.0


class LandCover(IntEnum):
    """What covers the ground; 0 is kept for nodata."""

    WATER = 1
    BARE = 2
    GRASS = 3
    SHRUB = 4
    FOREST = 5
    FIELD = 6
    PAVED = 7
    RESIDENTIAL = 8
    BUILDING = 9


class DistrictKind(IntEnum):
    """What most of a district is used for."""

    WILD = 0
    FARM = 1
    RESIDENTIAL = 2
    INDUSTRIAL = 3
    CENTRE = 4
    HARBOUR = 5


# Width and height of a parcel, and distance of lots, by kind of district.
PARCELS_M = ((400.0, 400.0), (260.0, 420.0), (85.0, 210.0), (130.0, 170.0), (100.0, 120.0), (150.0, 340.0))
LOTS_M = (21.0, 21.0, 21.0, 55, 38, 26)
SHARES = (
    (DistrictKind.CENTRE, 0.05),
    (DistrictKind.INDUSTRIAL, 0.10),
    (DistrictKind.RESIDENTIAL, 0.35),
    (DistrictKind.FARM, 0.38),
)


@dataclass(frozen=True)
class Terrain:
    """Sea, coast, plain and mountains; arrays have the canvas' shape."""

    coast_px: FloatArray  # distance from the coastline, negative at sea, clipped to 200
    mountain: FloatArray  # from 0 on plains and at sea to 1 in mountains
    relief_m: (
        FloatArray  # height; 0 outside of mountains, so that flat land is not displaced in the SAR image
    )
    seaward: tuple[float, float]  # unit vector, rows and columns, from the land to the sea


@dataclass(frozen=True)
class Harbour:
    """A port on the coast, in pixels, x = column and y = row."""

    centre: tuple[float, float]  # row and column on the coastline
    angle: float  # direction of the quays, in radians
    platform: shapely.Geometry  # paved land: yards and piers
    basins: shapely.Geometry  # dug water between piers
    breakwater: shapely.Geometry


@dataclass(frozen=True)
class Districts:
    """A partition of the canvas; all but `label` by district."""

    label: npt.NDArray[np.int16]  # the district of each pixel
    kind: ByteArray  # `DistrictKind`
    site: FloatArray  # row and column of the centre
    angle: FloatArray  # direction of the parcels, in radians
    borders: list[shapely.Geometry]  # x = column, y = row


@dataclass(frozen=True)
class Parcels:
    """Rectangles within districts; arrays have the canvas' shape."""

    label: IntArray  # the parcel of each pixel; numbers have gaps
    along: FloatArray  # place within the parcel, in pixels from its first edges
    across: FloatArray
    along_left: FloatArray  # pixels to the last edge
    edge: FloatArray  # distance from the nearest edge, in pixels

    @property
    def main(self) -> tuple[BoolArray, BoolArray]:
        """Whether the first edge along, and that across, is a main street."""
        return (self.label // COLUMNS) % COLUMNS % 5 == 0, self.label % COLUMNS % 4 == 0


@dataclass(frozen=True)
class Landscape:
    """A landscape on the canvas of a scene."""

    settings: SimulationSettings
    cover: ByteArray  # `LandCover` of each pixel
    terrain: Terrain
    districts: Districts
    parcels: Parcels  # fields and blocks of houses
    lot: npt.NDArray[np.uint16]  # a number that pixels of one house or yard share, random between them
    building_m: FloatArray  # height of large buildings, else 0
    texture: FloatArray  # a rough field, mean 0 and standard deviation 1
    moisture: FloatArray  # a smooth field of the same, high where vegetation is lush

    def of_kind(self, *kinds: DistrictKind) -> BoolArray:
        """Return the mask of districts of the given kinds."""
        chosen: BoolArray = np.isin(self.districts.kind, kinds)[self.districts.label]
        return chosen


def make_landscape(settings: SimulationSettings) -> Landscape:
    """Make the landscape of a seed."""
    terrain = _make_terrain(settings)
    harbour = _make_harbour(settings, terrain)
    districts = _make_districts(settings, terrain, harbour)
    parcels = _make_parcels(settings, districts)
    draw = stream(settings.seed, "textures")
    texture = spectral_noise(draw, settings.canvas, longest=pixels(400), slope=1.3)
    moisture = spectral_noise(draw, settings.canvas, longest=pixels(2500), shortest=pixels(120), slope=1.7)
    lot = _number_lots(districts, parcels)
    cover, heights = np.zeros(settings.canvas, np.uint8), np.zeros(settings.canvas, np.float32)
    land = Landscape(settings, cover, terrain, districts, parcels, lot, heights, texture, moisture)
    _cover_ground(land)
    _draw_waters(land, harbour)
    _draw_roads(land)
    heights[cover != LandCover.BUILDING] = 0
    return land


def _make_terrain(settings: SimulationSettings) -> Terrain:
    """Put a sea on one side and mountains on the other."""
    draw = stream(settings.seed, "terrain")
    shape, extent = settings.canvas, float(min(settings.shape))
    angle = draw.uniform(0, 2 * np.pi)
    seaward = (float(np.sin(angle)), float(np.cos(angle)))
    rows = (np.arange(shape[0], dtype=np.float32) - shape[0] / 2)[:, None] * np.float32(seaward[0])
    cols = (np.arange(shape[1], dtype=np.float32) - shape[1] / 2)[None, :] * np.float32(seaward[1])
    tilt: FloatArray = ((rows + cols) * np.float32(3.4 / extent)).astype(np.float32)

    height = 0.45 * spectral_noise(draw, shape, longest=0.7 * extent, shortest=extent / 14) - tilt
    height += 0.05 * spectral_noise(draw, shape, longest=extent / 8, shortest=pixels(160), slope=1.2)
    coast = _line_distance(height - np.float32(np.quantile(height[::8, ::8], draw.uniform(0.16, 0.24))))

    upland = 0.7 * spectral_noise(draw, shape, longest=0.5 * extent, shortest=extent / 12) - 0.7 * tilt
    start, full = np.quantile(upland[::8, ::8], (0.66, 0.86))
    mountain = smoothstep(upland, start, full)
    mountain *= smoothstep(coast, 6, 30)

    relief = np.zeros(shape, dtype=np.float32)
    for spacing_m, height_m in RIDGES_M:
        spacing = pixels(spacing_m)
        wave = spectral_noise(draw, shape, longest=1.5 * spacing, shortest=max(2.0, 0.4 * spacing), slope=2.5)
        # A sharp crest where the field crosses zero; the mean of |normal| is taken out so that mountains
        # stand as much below the reference surface as above it.
        relief += np.float32(height_m) * (np.float32(0.8) - np.abs(wave))
    relief += np.float32(GULLY_DEPTH_M) * _gullies(draw, relief)
    relief *= mountain
    return Terrain(coast, mountain, relief, seaward)


def _line_distance(field: FloatArray) -> FloatArray:
    """Return the distance in pixels from the zero line of a field.

    Near the line it is field over gradient, which is exact to first order and finer than a pixel; farther
    away the distance transform of every fourth pixel.
    """
    gradient = np.gradient(field)
    slope = np.sqrt(np.maximum(gradient[0] ** 2 + gradient[1] ** 2, np.float32(1e-10)))
    close = np.clip(field / slope, -8, 8)
    land = field[::4, ::4] > 0
    coarse = ndimage.distance_transform_edt(land) - ndimage.distance_transform_edt(~land)
    coarse -= np.where(land, 0.5, -0.5)  # from the line, not from the next cell's centre
    far = np.clip(resize(4 * coarse.astype(np.float32), field.shape, 4), -200, 200)
    distance: FloatArray = np.where(np.abs(far) < 8, close, far).astype(np.float32)
    return distance


def _gullies(draw: np.random.Generator, relief: FloatArray) -> FloatArray:
    """Cut gullies that run down the slopes: noise averaged along the line of steepest descent.

    Line integral convolution (Cabral and Leedom, 1993), on a grid of half the resolution.
    """
    half = np.ascontiguousarray(relief[::2, ::2])
    spacing = max(2.0, pixels(GULLY_SPACING_M) / 2)
    noise = spectral_noise(draw, half.shape, longest=2 * spacing, shortest=spacing, slope=1.0)
    gradient = np.gradient(ndimage.gaussian_filter(half, pixels(60) / 2))
    steep = np.sqrt(gradient[0] ** 2 + gradient[1] ** 2) + np.float32(1e-3)
    down, right = gradient[0] / steep, gradient[1] / steep
    row = np.arange(half.shape[0], dtype=np.float32)[:, None]
    col = np.arange(half.shape[1], dtype=np.float32)[None, :]
    total = noise.copy()
    for part in (-1.2, -0.8, -0.4, 0.4, 0.8, 1.2):
        reach = np.float32(part * spacing)
        at = [row + reach * down, col + reach * right]
        total += ndimage.map_coordinates(noise, at, order=1, mode="nearest")
    total /= total.std()
    return resize(np.float32(0.8) - np.abs(total), relief.shape, 2)


def _make_harbour(settings: SimulationSettings, terrain: Terrain) -> Harbour | None:
    """Build a port with piers where the coast has room, or None where the scene has no coast."""
    draw = stream(settings.seed, "harbour")
    coast = np.argwhere(np.abs(terrain.coast_px[::4, ::4]) < 3) * 4.0
    inner = np.array(settings.canvas) / 2
    central = np.abs(coast - inner) < (inner - MARGIN) * 0.72
    flat = terrain.mountain[tuple(coast.astype(int).T)] < 0.05
    inland = np.clip(coast - np.array(terrain.seaward) * pixels(500), 0, 2 * inner - 1).astype(int)
    coast = coast[central.all(axis=1) & flat & (terrain.mountain[tuple(inland.T)] < 0.3)]
    if not len(coast):
        return None
    row, col = coast[draw.integers(len(coast))]
    # The quays follow the coast at large, not its roughness.
    reach = min(settings.shape) // 16
    around = tuple(slice(max(0, int(at) - reach), int(at) + reach) for at in (row, col))
    down, right = (float(-g.mean()) for g in np.gradient(terrain.coast_px[around]))
    angle = float(np.arctan2(down, right)) - np.pi / 2
    scale = float(np.clip(min(settings.shape) / 1100, 0.28, 1.0)) * pixels(10)

    def place(shape: shapely.Geometry) -> shapely.Geometry:
        # Drawn with y towards the sea from the coastline, x along the quays.
        scaled = affinity.scale(shape, scale, scale, origin=(0, 0))
        return affinity.translate(affinity.rotate(scaled, np.degrees(angle), (0, 0)), col, row)

    platform, basins = _port(draw)
    mole = draw.uniform(95, 130)
    line = shapely.LineString([(-190, mole * 0.7), (-60, mole), (60, mole + 6), (210, mole * 0.8)])
    gap = affinity.translate(shapely.box(-14, mole - 60, 14, mole + 60), draw.uniform(-30, 70), 0)
    breakwater = place(line.difference(gap)).buffer(0.9)
    return Harbour((row, col), angle, place(platform), place(basins), breakwater)


def _port(draw: np.random.Generator) -> tuple[shapely.Geometry, shapely.Geometry]:
    """Draw yards and piers, and basins, in a frame of 10 m units."""
    piers, basins, x = [], [], -150.0
    while x < 120:
        width, length = draw.uniform(34, 62), draw.uniform(20, 78)
        lean = draw.normal(0, 5)
        far = (x + width + lean, length - draw.uniform(0, 14))
        piers.append(shapely.Polygon([(x, -5), (x + lean, length), far, (x + width, -5)]))
        slip = draw.uniform(12, 26)
        basins.append(shapely.box(x + width, -draw.uniform(8, 48), x + width + slip, 90))
        x += width + slip
    dug = shapely.union_all(basins)
    land = shapely.union_all([shapely.box(-165, -52, x, 6), *piers])
    return land.difference(dug), dug.intersection(land.convex_hull)


def _make_districts(settings: SimulationSettings, terrain: Terrain, harbour: Harbour | None) -> Districts:
    """Divide the canvas into districts around jittered points, and make the port a district of its own."""
    draw = stream(settings.seed, "districts")
    rows, cols = settings.canvas
    frame = shapely.box(0, 0, cols, rows)
    spacing = float(np.clip(min(settings.shape) / 7, 56, pixels(1900)))
    grid = np.stack(np.meshgrid(np.arange(0, rows, spacing), np.arange(0, cols, spacing), indexing="ij"), -1)
    points = grid.reshape(-1, 2) + draw.uniform(0, 0.9, (grid.size // 2, 2)) * spacing
    cells = shapely.voronoi_polygons(shapely.MultiPoint(points[:, ::-1]), extend_to=frame).geoms
    cells = [cell for cell in cells if cell.intersects(frame)]
    label = rasterize([(cell, i) for i, cell in enumerate(cells)], out_shape=(rows, cols), dtype=np.int16)
    centroids = [shapely.intersection(cell, frame).centroid for cell in cells]
    site = np.array([[p.y, p.x] for p in centroids], dtype=np.float32)
    # Neighbouring towns often share one grid of streets.
    angle = draw.choice(draw.uniform(0, np.pi / 2, 5), len(cells)) + draw.normal(0, 0.02, len(cells))
    kind = _choose_kinds(draw, settings, terrain, site, harbour)
    borders = [cell.boundary for cell in cells]
    if harbour is not None:
        label[_stamp([harbour.platform], label.shape)] = len(cells)
        kind = np.append(kind, np.uint8(DistrictKind.HARBOUR))
        site = np.append(site, np.array([harbour.centre], dtype=np.float32), axis=0)
        angle = np.append(angle, harbour.angle)
        borders = [border.difference(harbour.platform) for border in borders]
    return Districts(label, kind, site, angle.astype(np.float32), borders)


def _choose_kinds(
    draw: np.random.Generator,
    settings: SimulationSettings,
    terrain: Terrain,
    site: FloatArray,
    harbour: Harbour | None,
) -> ByteArray:
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
    start = 0
    for name, share in SHARES:
        stop = start + max(1, round(share * len(ranked)))
        kind[ranked[start:stop]] = name
        start = stop
    # Some industry lies at the edge of a town.
    swap = draw.permutation(np.flatnonzero(kind == DistrictKind.RESIDENTIAL))
    industry = np.flatnonzero(kind == DistrictKind.INDUSTRIAL)
    half = min(len(swap), len(industry) // 2)
    kind[industry[:half]], kind[swap[:half]] = DistrictKind.RESIDENTIAL, DistrictKind.INDUSTRIAL
    return kind


def _make_parcels(settings: SimulationSettings, districts: Districts) -> Parcels:
    """Cut every district into columns of uneven width, and these into parcels.

    Columns of fields are cut independently; streets of towns run through.
    """
    draw = stream(settings.seed, "parcels")
    count = len(districts.kind)
    sizes = np.array(PARCELS_M)[districts.kind]
    sizes = np.maximum(sizes / GSD_M * draw.uniform(0.85, 1.3, (count, 1)), 3)
    farm = (districts.kind == DistrictKind.FARM)[:, None]
    uneven = np.where(farm, 1.0, 0.25)
    widths = sizes[:, :1] * (1 + uneven * draw.uniform(-0.5, 0.5, (count, COLUMNS)))
    heights = sizes[:, 1:] * (1 + farm * draw.uniform(-0.5, 0.7, (count, COLUMNS)))
    offsets = farm * draw.uniform(0, 1, (count, COLUMNS)) * heights

    # Coordinates turned by each district's angle, from its centre.
    y = np.arange(settings.canvas[0], dtype=np.float32)[:, None] - districts.site[:, 0][districts.label]
    x = np.arange(settings.canvas[1], dtype=np.float32)[None, :] - districts.site[:, 1][districts.label]
    cos, sin = (turn(districts.angle)[districts.label] for turn in (np.cos, np.sin))
    along, across = x * cos + y * sin, y * cos - x * sin

    starts = np.concatenate([np.zeros((count, 1)), np.cumsum(widths, axis=1)[:, :-1]], axis=1)
    starts -= starts[:, COLUMNS // 2 : COLUMNS // 2 + 1]
    # The column of a pixel, by a table of quarter pixels.
    reach = int(np.abs(along).max()) + 2
    edges = np.arange(-4 * reach, 4 * reach) / 4
    table = np.stack([np.searchsorted(row, edges, side="right") - 1 for row in starts])
    table = np.clip(table, 0, COLUMNS - 1).astype(np.int16)
    at = np.floor(along * 4).astype(np.int32) + 4 * reach
    column = table.ravel()[districts.label.astype(np.int32) * len(edges) + at].astype(np.int32)
    key = districts.label.astype(np.int32) * COLUMNS + column
    start, width, height, offset = (
        values.astype(np.float32).ravel()[key] for values in (starts, widths, heights, offsets)
    )
    along -= start
    across += offset
    cell = np.floor(across / height)
    across -= cell * height
    label = key * COLUMNS + np.clip(cell.astype(np.int32) + COLUMNS // 2, 0, COLUMNS - 1)
    left = width - along
    edge = np.minimum(np.minimum(along, left), np.minimum(across, height - across))
    return Parcels(label, along, across, left, edge)


def _number_lots(districts: Districts, parcels: Parcels) -> npt.NDArray[np.uint16]:
    """Give the pixels of one lot one number, a hash of its parcel and its place there."""
    sizes = np.array([pixels(size) for size in LOTS_M], dtype=np.float32)
    inverse = (1 / sizes)[districts.kind][districts.label]
    along = (parcels.along * inverse).astype(np.uint32)
    across = (parcels.across * inverse).astype(np.uint32)
    mixed = parcels.label.astype(np.uint32) * np.uint32(0x9E3779B1)
    mixed ^= along * np.uint32(0x85EBCA6B) + across * np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    return (mixed >> np.uint32(16)).astype(np.uint16)


def _cover_ground(land: Landscape) -> None:
    """Cover the ground by district and parcel, and raise large buildings, in place."""
    cover, districts, parcels = land.cover, land.districts, land.parcels
    draw = stream(land.settings.seed, "cover")
    kind, edge = districts.kind[districts.label], parcels.edge
    chance = draw.random(len(districts.kind) << 14, dtype=np.float32)[parcels.label]
    green = land.moisture + np.float32(0.5) * land.texture
    plants = [LandCover.FOREST, LandCover.SHRUB]
    cover[:] = np.select([green > 0.9, green > -0.1], plants, LandCover.GRASS)
    farm = kind == DistrictKind.FARM
    cover[farm] = LandCover.FIELD
    cover[farm & (edge < 0.35)] = LandCover.BARE
    town = kind >= DistrictKind.RESIDENTIAL
    cover[town] = LandCover.RESIDENTIAL
    main_along, main_across = parcels.main
    shops = (kind == DistrictKind.RESIDENTIAL) & (main_along | main_across) & (chance < 0.3)
    works = (kind >= DistrictKind.INDUSTRIAL) | shops
    cover[works] = LandCover.PAVED
    # Halls fill a parcel or its lots; in the port are stacks of containers.
    lot_chance = draw.random(LOTS, dtype=np.float32)[land.lot]
    inside = edge > pixels(18)
    built = works & inside & ((chance < 0.4) | ((lot_chance < 0.55) & (chance < 0.88)))
    lane = np.mod(parcels.along, pixels(50)) < pixels(32)
    stacks = lane & inside & (chance < 0.75) & (lot_chance < 0.85)
    built = np.where(kind == DistrictKind.HARBOUR, stacks, built)
    tower = np.float32(10) + 90 * lot_chance**3
    height = np.where(kind == DistrictKind.CENTRE, tower, np.float32(7) + 6 * lot_chance)
    cover[built] = LandCover.BUILDING
    street = np.minimum(parcels.along, parcels.across) < pixels(9)
    street |= main_along & (parcels.along < pixels(19))
    street |= main_across & (parcels.across < pixels(19))
    cover[town & street] = LandCover.PAVED
    parks = town & (kind != DistrictKind.HARBOUR) & ((chance > 0.965) | (land.moisture > 2.0))
    cover[parks & ~street] = LandCover.GRASS
    hills = land.terrain.mountain > 0.3 + 0.07 * land.texture
    cover[hills] = np.select([green > 1.1, green > -1.2], plants, LandCover.GRASS)[hills]
    land.building_m[:] = height * built


def _stamp(geometries: list[shapely.Geometry], shape: tuple[int, int]) -> BoolArray:
    """Return a mask of the pixels whose centres lie in any of the geometries."""
    drawn = [(g, 1) for g in geometries if not g.is_empty]
    if not drawn:
        return np.zeros(shape, dtype=bool)
    mask: ByteArray = rasterize(drawn, out_shape=shape, dtype=np.uint8)
    return mask.view(np.bool_)


def _draw_waters(land: Landscape, harbour: Harbour | None) -> None:
    """Draw lakes, the river, the sea with its beach, and the port's basins, in place."""
    cover, terrain, districts = land.cover, land.terrain, land.districts
    port = _stamp([] if harbour is None else [harbour.platform], cover.shape)
    yards = cover[port]
    wet = districts.site[districts.kind <= DistrictKind.RESIDENTIAL]
    lakes = _lakes(land.settings, wet.astype(np.float64))
    river = _river(land.settings, terrain)

    def paint(kind: LandCover, geometries: list[shapely.Geometry]) -> None:
        cover[_stamp(geometries, cover.shape)] = kind

    paint(LandCover.GRASS, [lake.buffer(pixels(15)) for lake in lakes])
    paint(LandCover.WATER, lakes)
    paint(LandCover.BARE, [river.buffer(pixels(55))])
    paint(LandCover.WATER, [river.buffer(pixels(28))])
    cover[terrain.coast_px < pixels(45)] = LandCover.BARE
    cover[terrain.coast_px < 0] = LandCover.WATER
    if harbour is not None:
        paint(LandCover.WATER, [harbour.basins])
        off_coast = terrain.coast_px < -pixels(120)
        cover[_stamp([harbour.breakwater], cover.shape) & off_coast] = LandCover.BARE
        cover[port] = yards


def _lakes(settings: SimulationSettings, sites: Points) -> list[shapely.Polygon]:
    """Outline still waters, most of them small, around some of the sites (rows, columns)."""
    draw = stream(settings.seed, "lakes")
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    found = []
    for site in draw.permutation(sites)[: max(1, len(sites) // 7)]:
        radius = pixels(float(np.clip(draw.lognormal(5.1, 0.55), 60, 700)))
        outline = radius * np.ones(48)
        for wave in range(2, 6):
            outline *= 1 + draw.normal(0, 0.35 / wave) * np.cos(wave * angle + draw.uniform(0, 2 * np.pi))
        x, y = outline * np.cos(angle), outline * draw.uniform(0.4, 1) * np.sin(angle)
        ring = shapely.Polygon(np.stack([x, y], axis=1)).buffer(0)
        turned = affinity.rotate(ring, draw.uniform(0, 180), origin=(0, 0))
        found.append(affinity.translate(turned, *(site[::-1] + draw.normal(0, radius, 2))))
    return found


def _river(settings: SimulationSettings, terrain: Terrain) -> shapely.LineString:
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
    count = max(4, int(length / max(18, pixels(700))))
    t = np.linspace(0, 1, count)[:, None]
    normal = np.array([end[1] - start[1], start[0] - end[0]]) / max(length, 1)
    bend = np.cumsum(draw.normal(0, 1, count))
    bend -= t[:, 0] * bend[-1]
    bend = bend / max(np.ptp(bend), 1) * 0.25 * length + draw.normal(0, 0.018 * length, count)
    bend *= np.sin(np.pi * t[:, 0]) ** 0.5
    knots = start + t * (end - start) + bend[:, None] * normal
    return _smooth_line(knots[:, ::-1], 1.5)


def _draw_roads(land: Landscape) -> None:
    """Draw roads between districts and motorways, in place; none cross the sea."""
    cover, districts = land.cover, land.districts
    towns = districts.site[districts.kind >= DistrictKind.RESIDENTIAL].astype(np.float64)
    roads = _stamp([line.buffer(pixels(30)) for line in _motorways(land.settings, towns)], cover.shape)
    used = districts.kind[districts.label] != DistrictKind.WILD
    used &= cover != LandCover.WATER
    roads |= _stamp([b.buffer(pixels(9)) for b in districts.borders], cover.shape) & used
    cover[roads & (land.terrain.coast_px > 0)] = LandCover.PAVED


def _motorways(settings: SimulationSettings, towns: Points) -> list[shapely.LineString]:
    """Lay a few roads across the canvas that pass near towns, given as rows and columns."""
    draw = stream(settings.seed, "motorways")
    rows, cols = settings.canvas
    wander = 0.06 * min(rows, cols)
    lines = []
    for number in range(2 + min(settings.shape) // 1200):
        through = towns[draw.integers(len(towns))][::-1] + draw.normal(0, wander, 2)
        last, first = draw.uniform(0.15, 0.85), draw.uniform(0.15, 0.85)
        if number % 2:
            ends = np.array([[-20, rows * first], [cols + 20, rows * last]])
        else:
            ends = np.array([[cols * first, -20], [cols * last, rows + 20]])
        knots = np.array([ends[0], (ends[0] + through) / 2, through, (ends[1] + through) / 2, ends[1]])
        knots[[1, 3]] += draw.normal(0, wander, (2, 2))
        lines.append(_smooth_line(knots, 2))
    return lines


def _smooth_line(knots: Points, spacing: float) -> shapely.LineString:
    """Draw a smooth curve through knots of (x, y)."""
    steps = np.hypot(*np.diff(knots, axis=0).T)
    at = np.concatenate([[0], np.cumsum(np.maximum(steps, 1e-3))])
    dense = np.linspace(0, at[-1], max(8, int(at[-1] / spacing)))
    return shapely.LineString(CubicSpline(at, knots)(dense))
