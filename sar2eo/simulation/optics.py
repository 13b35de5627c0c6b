"""What the EO sensor sees: colour by land cover, relief in the sun, shadows, haze."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sar2eo.simulation.districts import DistrictKind
from sar2eo.simulation.landscape import LOTS, LandCover, Landscape
from sar2eo.simulation.objects import CROPS, ObjectKind, Objects, ObjectState
from sar2eo.simulation.settings import SimulationSettings
from sar2eo.simulation.spectral import FloatArray, smoothstep, stream

__all__ = ["render_eo"]

SUN_ELEVATION = np.radians(40.0)
SUN_AZIMUTH = np.radians(155.0)
"""From north over east."""

HAZE = (30.0, 58.0, 92.0)
"""Light that the air adds, in the units of the picture."""

COLOURS = {
    LandCover.WATER: (41, 79, 119),
    LandCover.BARE: (214, 196, 178),
    LandCover.GRASS: (152, 130, 126),
    LandCover.SHRUB: (88, 98, 112),
    LandCover.FOREST: (54, 80, 92),
    LandCover.FIELD: (140, 140, 150),
    LandCover.PAVED: (146, 158, 174),
    LandCover.RESIDENTIAL: (112, 134, 142),
    LandCover.BUILDING: (196, 202, 210),
}

CONTAINERS = (
    (186, 92, 92),
    (96, 118, 166),
    (208, 212, 218),
    (150, 120, 112),
    (112, 138, 140),
    (178, 150, 140),
)
ROOFS = ((160, 168, 180), (160, 146, 146), (150, 162, 178), (184, 194, 206), (134, 144, 162))
HULLS = ((182, 120, 112), (120, 116, 128), (206, 206, 210), (96, 112, 140))


def render_eo(settings: SimulationSettings, landscape: Landscape, objects: Objects) -> npt.NDArray[np.uint8]:
    """Render the scene's red, green and blue, shape (3, row, col) of the canvas.

    The values are like reflectance over its 99th percentile, times 255.
    """
    draw = stream(settings.seed, "optics")
    light = _light(settings, landscape)
    tone = _tone(draw, landscape)
    luts = {name: _lots(draw, colours) for name, colours in (("roofs", ROOFS), ("containers", CONTAINERS))}
    gardens = draw.random(LOTS, dtype=np.float32)
    field_tone = draw.normal(1, 0.07, len(objects.crop_eo)).astype(np.float32)
    picture = np.empty((3, *settings.canvas), dtype=np.uint8)
    for band in range(3):
        image = np.array([0, *(COLOURS[c][band] for c in LandCover)], dtype=np.float32)[landscape.cover]
        _paint_wild(landscape, image, band)
        _paint_fields(landscape, objects, image, band, field_tone)
        _paint_towns(settings, landscape, image, band, luts, gardens)
        image *= tone
        image -= np.float32(HAZE[band])
        image *= light
        image += np.float32(HAZE[band])
        _paint_water(settings, landscape, image, band)
        _paint_objects(settings, objects, image, band)
        image = _spread(image)
        image += draw.standard_normal(image.shape, dtype=np.float32) * np.float32(1.6)
        picture[band] = np.clip(np.rint(image), 1, 255).astype(np.uint8)
    return picture


def _lots(draw: np.random.Generator, colours: tuple[tuple[int, int, int], ...]) -> FloatArray:
    """Give every lot number one of the colours, lighter or darker, shape (lot, 3)."""
    chosen = np.array(colours, dtype=np.float32)[draw.integers(len(colours), size=LOTS)]
    lots: FloatArray = chosen * draw.normal(1, 0.1, (LOTS, 1)).astype(np.float32)
    return lots


def _light(settings: SimulationSettings, landscape: Landscape) -> FloatArray:
    """Direct light on relief, 1 on flat ground, with the cast shadows of buildings and crests."""
    height = landscape.terrain.relief_m
    south, east = np.gradient(height, np.float32(settings.gsd_m))
    towards_sun = south * np.float32(np.cos(SUN_AZIMUTH)) - east * np.float32(np.sin(SUN_AZIMUTH))
    light = (1 + towards_sun / np.float32(np.tan(SUN_ELEVATION))) / np.sqrt(1 + south * south + east * east)
    np.clip(light, 0.3, 1.3, out=light)
    surface = height + landscape.building_m
    dark = np.zeros(surface.shape, dtype=bool)
    step = (-np.cos(SUN_AZIMUTH), np.sin(SUN_AZIMUTH))
    for reach in (1, 2, 3, 5, 8):
        rows, cols = round(step[0] * reach), round(step[1] * reach)
        rise = np.float32(np.hypot(rows, cols) * settings.gsd_m * np.tan(SUN_ELEVATION))
        # The pixel towards the sun (down and to the right in a morning) shades this one.
        shaded = np.s_[: surface.shape[0] - rows, : surface.shape[1] - cols]
        dark[shaded] |= surface[rows:, cols:] - surface[shaded] > rise
    light[dark] *= np.float32(0.45)
    shaded_light: FloatArray = light
    return shaded_light


def _tone(draw: np.random.Generator, landscape: Landscape) -> FloatArray:
    """Lightness that varies from pixel to pixel, by class."""
    strength = np.zeros(max(LandCover) + 1, dtype=np.float32)
    for cover, amount in (
        (LandCover.BARE, 0.06), (LandCover.GRASS, 0.07), (LandCover.SHRUB, 0.09), (LandCover.FOREST, 0.12),
        (LandCover.FIELD, 0.025), (LandCover.PAVED, 0.07), (LandCover.RESIDENTIAL, 0.08),
        (LandCover.BUILDING, 0.05),
    ):  # fmt: skip
        strength[cover] = amount
    grain = draw.standard_normal(landscape.cover.shape, dtype=np.float32)
    grain += landscape.texture
    grain *= strength[landscape.cover]
    grain += 1
    return grain


def _paint_wild(landscape: Landscape, image: FloatArray, band: int) -> None:
    """Shift the colour of vegetation from dry and reddish to lush."""
    wild = np.flatnonzero(np.isin(landscape.cover, (LandCover.GRASS, LandCover.SHRUB, LandCover.FOREST)))
    lush = np.float32((-11, -1, -5)[band]) * landscape.moisture.ravel()[wild]
    image.ravel()[wild] += lush
    grass = np.flatnonzero(
        landscape.of_kind(DistrictKind.RESIDENTIAL, DistrictKind.CENTRE, DistrictKind.INDUSTRIAL)
    )
    parks = grass[landscape.cover.ravel()[grass] == LandCover.GRASS]
    image.ravel()[parks] = (78, 132, 104)[band]


def _paint_fields(
    landscape: Landscape, objects: Objects, image: FloatArray, band: int, field_tone: FloatArray
) -> None:
    """Colour fields by crop, with sowing rows and uneven growth."""
    at = np.flatnonzero(landscape.cover == LandCover.FIELD)
    parcel = landscape.parcels.label.ravel()[at]
    crop = objects.crop_eo[parcel]
    colour = np.array([c.colour[band] for c in CROPS], dtype=np.float32)
    stripes = np.array([c.stripes for c in CROPS], dtype=np.float32)
    rows = np.sin(landscape.parcels.along.ravel()[at] * np.float32(2.3)) * stripes[crop]
    uneven = landscape.moisture.ravel()[at] * np.float32(0.03)
    image.ravel()[at] = colour[crop] * field_tone[parcel] * (1 + rows + uneven)


def _paint_towns(
    settings: SimulationSettings,
    landscape: Landscape,
    image: FloatArray,
    band: int,
    luts: dict[str, FloatArray],
    gardens: FloatArray,
) -> None:
    """Paint roofs and gardens lot by lot, and the containers of the port."""
    lots = landscape.lot.ravel()
    at = np.flatnonzero(landscape.cover == LandCover.RESIDENTIAL)
    garden = gardens[lots[at]]
    green = (80, 106, 122)[band] + 44 * garden
    # Houses stand along the streets with gardens behind; old quarters are leafy, new ones are not.
    parcels = landscape.parcels
    setback = np.minimum(parcels.along.ravel()[at], parcels.along_left.ravel()[at] + settings.pixels(9))
    behind = setback > settings.pixels(34)
    share = 0.35 + 0.4 * behind + 0.1 * landscape.moisture.ravel()[at]
    image.ravel()[at] = np.where(garden < share, green, luts["roofs"][lots[at], band])
    port = landscape.of_kind(DistrictKind.HARBOUR).ravel()
    at = np.flatnonzero(port & (landscape.cover.ravel() == LandCover.BUILDING))
    image.ravel()[at] = luts["containers"][lots[at], band]
    at = np.flatnonzero(~port & (landscape.cover.ravel() == LandCover.BUILDING))
    roof = gardens[(landscape.parcels.label.ravel()[at] * 40503) & (LOTS - 1)]
    image.ravel()[at] = np.where(roof < 0.25, 130 + 60 * roof, 180 + 75 * roof) + np.float32((0, 4, 8)[band])


def _paint_water(settings: SimulationSettings, landscape: Landscape, image: FloatArray, band: int) -> None:
    """Lighten the water towards the shore, where it is shallow and turbid."""
    water = np.flatnonzero(landscape.cover == LandCover.WATER)
    offshore = -landscape.terrain.coast_px.ravel()[water]
    shallow = 1 - smoothstep(offshore, 0, settings.pixels(900))
    image.ravel()[water] = (
        np.float32(COLOURS[LandCover.WATER][band])
        + np.float32((9, 14, 8)[band]) * shallow
        + np.float32(2.0) * landscape.moisture.ravel()[water]
    )


def _paint_objects(settings: SimulationSettings, objects: Objects, image: FloatArray, band: int) -> None:
    """Paint the ships and vehicles that were there at the EO's date."""
    draw = stream(settings.seed, "paint")
    count = len(objects.planted) + 1
    hulls = np.array(HULLS, dtype=np.float32)[draw.integers(len(HULLS), size=count), band]
    bodies = np.array([[238, 240, 244], [60, 70, 92]], dtype=np.float32)[draw.integers(2, size=count), band]
    for kind, colours in ((ObjectKind.SHIP, hulls), (ObjectKind.VEHICLE, bodies)):
        seen = np.flatnonzero(objects.mask(kind, ObjectState.UNCHANGED, ObjectState.EO_ONLY))
        image.ravel()[seen] = colours[objects.label.ravel()[seen]]


def _spread(image: FloatArray) -> FloatArray:
    """Blur by the sensor's point spread: a 3 x 3 kernel with 0.16, 0.68, 0.16 along each axis."""
    side, centre = np.float32(0.16), np.float32(0.68)
    for axis in (0, 1):
        moved = np.moveaxis(image, axis, 0)
        blurred = moved * centre
        blurred[1:] += side * moved[:-1]
        blurred[:-1] += side * moved[1:]
        blurred[0] += side * moved[0]
        blurred[-1] += side * moved[-1]
        image = np.moveaxis(blurred, 0, axis)
    return image
