"""The land cover of a scene, with the textures that both sensors see in their own way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sar2eo.simulation.districts import DistrictKind, Districts, Parcels, make_districts, make_parcels, stamp
from sar2eo.simulation.features import Harbour, lakes, make_harbour, motorways, river
from sar2eo.simulation.settings import SimulationSettings
from sar2eo.simulation.spectral import FloatArray, spectral_noise, stream
from sar2eo.simulation.terrain import Terrain, make_terrain

__all__ = ["LandCover", "Landscape", "make_landscape"]

LOTS = 1 << 16
"""Entries of the tables that give each building lot its own look."""


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


@dataclass(frozen=True)
class Landscape:
    """A landscape on the canvas of a scene.

    Parameters
    ----------
    cover : ndarray of uint8
        `LandCover` of each pixel.
    terrain : Terrain
        Coast and relief.
    districts : Districts
        Where towns, farms and wild land are.
    parcels : Parcels
        Fields and blocks.
    lot : ndarray of uint16
        A number that pixels of one house or yard share, random from one to the next.
    building_m : ndarray of float32
        Height of large buildings, else 0.
    texture : ndarray of float32
        A rough field, mean 0 and standard deviation 1.
    moisture : ndarray of float32
        A smooth field, mean 0 and standard deviation 1: high where vegetation is lush.
    """

    cover: npt.NDArray[np.uint8]
    terrain: Terrain
    districts: Districts
    parcels: Parcels
    lot: npt.NDArray[np.uint16]
    building_m: FloatArray
    texture: FloatArray
    moisture: FloatArray

    def of_kind(self, *kinds: DistrictKind) -> npt.NDArray[np.bool_]:
        """Return the mask of districts of the given kinds."""
        chosen: npt.NDArray[np.bool_] = np.isin(self.districts.kind, kinds)[self.districts.label]
        return chosen


def make_landscape(settings: SimulationSettings) -> Landscape:
    """Make the landscape of a seed."""
    terrain = make_terrain(settings)
    harbour = make_harbour(settings, terrain)
    districts = make_districts(settings, terrain, harbour)
    parcels = make_parcels(settings, districts)
    draw = stream(settings.seed, "textures")
    texture = spectral_noise(draw, settings.canvas, longest=settings.pixels(400), slope=1.3)
    moisture = spectral_noise(
        draw, settings.canvas, longest=settings.pixels(2500), shortest=settings.pixels(120), slope=1.7
    )
    lot = _lots(settings, districts, parcels)
    cover, building = _cover(settings, terrain, districts, parcels, lot, texture, moisture)
    _draw_waters(settings, terrain, districts, harbour, cover)
    _draw_roads(settings, terrain, districts, cover)
    building[cover != LandCover.BUILDING] = 0
    return Landscape(cover, terrain, districts, parcels, lot, building, texture, moisture)


def _lots(settings: SimulationSettings, districts: Districts, parcels: Parcels) -> npt.NDArray[np.uint16]:
    """Give the pixels of one lot one number: houses about 20 m apart, larger halls in industry."""
    sizes = np.full(len(DistrictKind), settings.pixels(21.0), dtype=np.float32)
    sizes[DistrictKind.INDUSTRIAL] = settings.pixels(55)
    sizes[DistrictKind.CENTRE] = settings.pixels(38)
    sizes[DistrictKind.HARBOUR] = settings.pixels(26)
    inverse = (1 / sizes)[districts.kind][districts.label]
    along = (parcels.along * inverse).astype(np.uint32)
    across = (parcels.across * inverse).astype(np.uint32)
    mixed = parcels.label.astype(np.uint32) * np.uint32(0x9E3779B1)
    mixed ^= along * np.uint32(0x85EBCA6B) + across * np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    return (mixed >> np.uint32(16)).astype(np.uint16)


def _cover(
    settings: SimulationSettings,
    terrain: Terrain,
    districts: Districts,
    parcels: Parcels,
    lot: npt.NDArray[np.uint16],
    texture: FloatArray,
    moisture: FloatArray,
) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Cover by district and parcel, and heights of large buildings."""
    draw = stream(settings.seed, "cover")
    kind = districts.kind[districts.label]
    edge, label = parcels.edge, parcels.label
    chance = draw.random(len(districts.kind) << 14, dtype=np.float32)[label]
    green = moisture + np.float32(0.5) * texture

    cover = np.select(
        [green > 0.9, green > -0.1], [LandCover.FOREST, LandCover.SHRUB], LandCover.GRASS
    ).astype(np.uint8)
    farm = kind == DistrictKind.FARM
    cover[farm] = LandCover.FIELD
    cover[farm & (edge < 0.35)] = LandCover.BARE
    town = kind >= DistrictKind.RESIDENTIAL
    cover[town] = LandCover.RESIDENTIAL
    main_street = (parcels.column % 5 == 0) | (parcels.row % 4 == 0)
    shops = (kind == DistrictKind.RESIDENTIAL) & main_street & (chance < 0.3)
    works = (kind >= DistrictKind.INDUSTRIAL) | shops
    cover[works] = LandCover.PAVED
    built, building = _buildings(settings, draw, kind, parcels, chance, lot, works)
    cover[built] = LandCover.BUILDING
    street = np.minimum(parcels.along, parcels.across) < settings.pixels(9)
    avenue = (parcels.column % 5 == 0) & (parcels.along < settings.pixels(19))
    avenue |= (parcels.row % 4 == 0) & (parcels.across < settings.pixels(19))
    cover[town & (street | avenue)] = LandCover.PAVED
    parks = town & (kind != DistrictKind.HARBOUR) & ((chance > 0.965) | (moisture > 2.0))
    cover[parks & ~street & ~avenue] = LandCover.GRASS
    hills = terrain.mountain > 0.3 + 0.07 * texture
    slopes = np.where(green > 1.1, LandCover.FOREST, np.where(green > -1.2, LandCover.SHRUB, LandCover.GRASS))
    cover[hills] = slopes[hills]
    return cover, building


def _buildings(
    settings: SimulationSettings,
    draw: np.random.Generator,
    kind: npt.NDArray[np.uint8],
    parcels: Parcels,
    chance: FloatArray,
    lot: npt.NDArray[np.uint16],
    works: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Halls that fill a parcel or its lots, and stacks of containers in the port."""
    setback = settings.pixels(18)
    whole = chance < 0.4
    lot_chance = draw.random(LOTS, dtype=np.float32)[lot]
    built = works & (parcels.edge > setback) & (whole | ((lot_chance < 0.55) & (chance < 0.88)))
    port = kind == DistrictKind.HARBOUR
    lane = np.mod(parcels.along, settings.pixels(50)) < settings.pixels(32)
    built = np.where(port, lane & (parcels.edge > setback) & (chance < 0.75) & (lot_chance < 0.85), built)
    height = np.float32(7) + 6 * lot_chance
    tower = np.float32(10) + 90 * lot_chance**3
    height = np.where(kind == DistrictKind.CENTRE, tower, height)
    return built, (height * built).astype(np.float32)


def _draw_waters(
    settings: SimulationSettings,
    terrain: Terrain,
    districts: Districts,
    harbour: Harbour | None,
    cover: npt.NDArray[np.uint8],
) -> None:
    """Draw lakes, the river, the sea with its beach, and the port's basins, in place."""
    port = np.zeros(cover.shape, dtype=bool) if harbour is None else stamp([harbour.platform], cover.shape)
    yards = cover[port]
    wet = districts.site[
        np.isin(districts.kind, [DistrictKind.WILD, DistrictKind.FARM, DistrictKind.RESIDENTIAL])
    ]
    ponds = lakes(settings, wet.astype(np.float64))
    cover[stamp([pond.buffer(settings.pixels(15)) for pond in ponds], cover.shape)] = LandCover.GRASS
    cover[stamp(ponds, cover.shape)] = LandCover.WATER
    stream_bed = river(settings, terrain)
    cover[stamp([stream_bed.buffer(settings.pixels(55))], cover.shape)] = LandCover.BARE
    cover[stamp([stream_bed.buffer(settings.pixels(28))], cover.shape)] = LandCover.WATER
    cover[terrain.coast_px < settings.pixels(45)] = LandCover.BARE
    cover[terrain.coast_px < 0] = LandCover.WATER
    if harbour is not None:
        cover[stamp([harbour.basins], cover.shape)] = LandCover.WATER
        off_coast = terrain.coast_px < -settings.pixels(120)
        cover[stamp([harbour.breakwater], cover.shape) & off_coast] = LandCover.BARE
        cover[port] = yards


def _draw_roads(
    settings: SimulationSettings, terrain: Terrain, districts: Districts, cover: npt.NDArray[np.uint8]
) -> None:
    """Draw roads between districts and motorways, in place; none cross the sea."""
    towns = districts.site[districts.kind >= DistrictKind.RESIDENTIAL].astype(np.float64)
    wide = [line.buffer(settings.pixels(30)) for line in motorways(settings, towns)]
    roads = stamp(wide, cover.shape)
    settled = districts.kind[districts.label] != DistrictKind.WILD
    settled &= cover != LandCover.WATER
    roads |= stamp([b.buffer(settings.pixels(9)) for b in districts.borders], cover.shape) & settled
    cover[roads & (terrain.coast_px > 0)] = LandCover.PAVED
