"""Ships, vehicles and fields that differ between the two dates, and as many that do not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize
from scipy import ndimage
from shapely import affinity

from sar2eo.simulation.fields import SimulationSettings, pixels, stream
from sar2eo.simulation.landscape import DistrictKind, LandCover, Landscape

BoolArray = npt.NDArray[np.bool_]


class ObjectKind(IntEnum):
    """What an object is."""

    SHIP = 1
    VEHICLE = 2
    FIELD = 3


class ObjectState(IntEnum):
    """Which sensor saw an object. A changed field was seen by both, with another crop at each date."""

    UNCHANGED = 1
    SAR_ONLY = 2
    EO_ONLY = 3
    CHANGED = 4


class Crop(NamedTuple):
    """What grows on a field: its red, green and blue (0 to 255) and cross-polarised backscatter in dB."""

    name: str
    colour: tuple[float, float, float]
    cross_db: float
    stripes: float
    share: float


CROPS = (
    Crop("bare soil", (139, 133, 148), -20.9, 0.03, 0.26),
    Crop("tilled soil", (166, 154, 156), -19.8, 0.04, 0.13),
    Crop("stubble", (188, 172, 152), -20.3, 0.02, 0.12),
    Crop("seedlings", (112, 130, 128), -19.2, 0.04, 0.12),
    Crop("leafy crop", (42, 106, 84), -17.4, 0.04, 0.19),
    Crop("tall crop", (62, 124, 92), -15.8, 0.03, 0.10),
    Crop("orchard", (60, 84, 88), -14.8, 0.07, 0.05),
    Crop("plastic mulch", (206, 214, 222), -18.2, 0.06, 0.03),
)

MIN_PIXELS = 2
"""Pixels of the smallest ship or vehicle."""

CHANGE_DB = 2.2
"""Least difference of backscatter between the two crops of a changed field."""


class PlantedObject(NamedTuple):
    """One object of the truth: its number in the label raster, kind, state and area in pixels."""

    number: int
    kind: ObjectKind
    state: ObjectState
    pixels: int


@dataclass(frozen=True)
class Objects:
    """Everything planted, on the canvas."""

    label: npt.NDArray[np.uint16]  # number of the object a pixel belongs to, or 0
    planted: tuple[PlantedObject, ...]  # sorted by number
    crop_sar: npt.NDArray[np.uint8]  # index into `CROPS` of every parcel label, at the date of the SAR
    crop_eo: npt.NDArray[np.uint8]

    def mask(self, kind: ObjectKind, *states: ObjectState) -> BoolArray:
        """Return the mask of all objects of one kind in any of the states."""
        chosen = [False, *(found.kind == kind and found.state in states for found in self.planted)]
        mask: BoolArray = np.array(chosen)[self.label]
        return mask


def plant_objects(landscape: Landscape, valid: BoolArray) -> Objects:
    """Plant ships, vehicles and field changes where both sensors have data.

    Of ships and of vehicles a quarter is seen by the SAR only, a quarter by the EO only, and half by both; of
    the fields that are recorded half changed. Without discrepancies the same objects are all unchanged.
    Kinds that a scene has no room for are left out, always in whole groups, so that changed and unchanged
    objects are equal in number.
    """
    settings = landscape.settings
    # Open water, a little off the shore and the breakwater; paved yards of industry, centres and port.
    sea = (landscape.cover == LandCover.WATER) & (landscape.terrain.coast_px < -pixels(30))
    yards = landscape.of_kind(DistrictKind.INDUSTRIAL, DistrictKind.HARBOUR, DistrictKind.CENTRE)
    label = np.zeros(settings.canvas, dtype=np.uint16)
    planted: list[PlantedObject] = []
    for kind, place, lengths_m, slimness in (
        (ObjectKind.SHIP, ndimage.binary_erosion(sea, iterations=3), (45, 330), (5.0, 8.0)),
        (ObjectKind.VEHICLE, yards & (landscape.cover == LandCover.PAVED), (22, 45), (1.4, 2.6)),
    ):
        outlines = _place_outlines(settings, kind, place & valid, lengths_m, slimness)
        first, quarter = len(planted) + 1, len(outlines) // 4
        if outlines:
            rasterize([(outline, first + i) for i, outline in enumerate(outlines)], out=label)
        one_each = [ObjectState.SAR_ONLY, ObjectState.EO_ONLY, ObjectState.UNCHANGED]
        states = np.repeat(one_each, [quarter, quarter, 2 * quarter])
        states = stream(settings.seed, f"states {kind.name}").permutation(states)
        if not settings.discrepancies:
            states[:] = ObjectState.UNCHANGED
        counts = np.bincount(label.ravel(), minlength=first + len(outlines))
        for number, state in enumerate(states, start=first):
            planted.append(PlantedObject(number, kind, ObjectState(int(state)), int(counts[number])))
    crop_sar, crop_eo = _plant_fields(landscape, valid, label, planted)
    return Objects(label, tuple(planted), crop_sar, crop_eo)


def _place_outlines(
    settings: SimulationSettings,
    kind: ObjectKind,
    room: BoolArray,
    lengths_m: tuple[float, float],
    slimness: tuple[float, float],
) -> list[shapely.Polygon]:
    """Place hulls of random size and heading that lie in the room and keep apart."""
    draw = stream(settings.seed, f"objects {kind.name}")
    wanted = 4 * int(np.clip(np.prod(settings.shape) / 200_000, 2, 60))
    places = np.flatnonzero(room.ravel())
    taken = ~room
    found: list[shapely.Polygon] = []
    for place in draw.choice(places, min(len(places), 12 * wanted), replace=False):
        row, col = divmod(int(place), room.shape[1])
        shortest, longest = lengths_m
        length = pixels(shortest * (longest / shortest) ** draw.random() ** 1.7)
        width = max(length / draw.uniform(*slimness), 1.5)
        bow, shoulder, beam = length / 2, length / 2 - width, width / 2
        hull = shapely.Polygon(
            [
                (-bow, -beam),
                (shoulder, -beam),
                (bow, -beam / 3),
                (bow, beam / 3),
                (shoulder, beam),
                (-bow, beam),
            ]
        )
        hull = affinity.translate(affinity.rotate(hull, draw.uniform(0, 180)), col + 0.5, row + 0.5)
        near = int(np.ceil(length / 2)) + 2
        left, top = max(0, col - near), max(0, row - near)
        around = taken[top : row + near + 1, left : col + near + 1]
        moved = affinity.translate(hull, -left, -top)
        within = rasterize([moved], out_shape=around.shape, dtype=np.uint8).view(bool)
        if within.sum() >= MIN_PIXELS and not around[within].any():
            around[:] = True
            found.append(hull)
        if len(found) == wanted:
            break
    return found[: len(found) // 4 * 4]


def _plant_fields(
    landscape: Landscape, valid: BoolArray, label: npt.NDArray[np.uint16], planted: list[PlantedObject]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Sow every parcel, and change the crop of some between the dates."""
    settings = landscape.settings
    draw = stream(settings.seed, "fields")
    parcel = landscape.parcels.label
    shares = np.array([crop.share for crop in CROPS])
    sown = draw.choice(len(CROPS), len(landscape.districts.kind) << 14, p=shares / shares.sum())
    crop_sar: npt.NDArray[np.uint8] = sown.astype(np.uint8)
    crop_eo = crop_sar.copy()

    field = landscape.cover == LandCover.FIELD
    area = np.bincount(parcel[field & valid], minlength=len(crop_sar))
    outside = np.bincount(parcel[field & ~valid], minlength=len(crop_sar))
    smallest, largest = pixels(80) ** 2, pixels(500) ** 2
    candidates = np.flatnonzero((area >= smallest) & (area <= largest) & (outside == 0))
    pairs = min(len(candidates) // 3, int(np.clip(np.prod(settings.shape) / 60_000, 3, 120)))
    chosen = draw.choice(candidates, 2 * pairs, replace=False)
    level = np.array([crop.cross_db for crop in CROPS])
    changed = pairs if settings.discrepancies else 0
    number = np.zeros(len(crop_sar), dtype=np.uint16)
    for i, one in enumerate(chosen):
        if i < changed:
            different = np.abs(level - level[crop_sar[one]]) >= CHANGE_DB
            crop_eo[one] = draw.choice(len(CROPS), p=shares * different / (shares * different).sum())
        state = ObjectState.CHANGED if i < changed else ObjectState.UNCHANGED
        number[one] = len(planted) + 1
        planted.append(PlantedObject(int(number[one]), ObjectKind.FIELD, state, int(area[one])))
    label[field] = np.where(number[parcel[field]] > 0, number[parcel[field]], label[field])
    return crop_sar, crop_eo
