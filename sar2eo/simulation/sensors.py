"""What the two sensors see of a landscape: backscatter with relief and speckle, and colours in the sun."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sar2eo.simulation.fields import GSD_M, MARGIN, FloatArray, SimulationSettings, pixels, smoothstep, stream
from sar2eo.simulation.landscape import LOTS, DistrictKind, LandCover, Landscape
from sar2eo.simulation.objects import CROPS, ObjectKind, Objects, ObjectState

LOOKS = 4.4
"""Equivalent number of looks: that of Sentinel-1 IW GRDH."""

INCIDENCE = np.radians(38.5)
"""Angle of the line of sight from the vertical. The sensor is in the east (a descending pass)."""

NOISE_DB = -27.5
"""Noise-equivalent sigma nought."""

TALL_M = 25.0
"""Buildings lower than this are not laid over: that would move whole towns by a fraction of a pixel."""

RESOLUTION_M = 11.0
"""Standard deviation of the amplitude's point spread."""

SUN_ELEVATION = np.radians(40.0)
SUN_AZIMUTH = np.radians(155.0)
"""From north over east."""

HAZE = (30.0, 58.0, 92.0)
"""Light that the air adds, in the units of the picture."""


class Look(NamedTuple):
    """How a class of land cover looks to the two sensors."""

    cross_db: float  # sigma nought of VH and HV
    co_db: float  # what VV adds to that
    lots_db: float  # standard deviation of sigma nought from lot to lot
    colour: tuple[int, int, int]
    grain: float  # strength of what varies from pixel to pixel


LOOK_OF = {
    LandCover.WATER: Look(-29.5, 11.0, 0, (41, 79, 119), 0),
    LandCover.BARE: Look(-23.5, 9.0, 0, (214, 196, 178), 0.06),
    LandCover.GRASS: Look(-20.5, 7.5, 0, (152, 130, 126), 0.07),
    LandCover.SHRUB: Look(-16.2, 6.5, 0, (88, 98, 112), 0.09),
    LandCover.FOREST: Look(-14.2, 6.0, 0, (54, 80, 92), 0.12),
    LandCover.FIELD: Look(-20.0, 7.5, 0, (140, 140, 150), 0.025),
    LandCover.PAVED: Look(-21.8, 8.0, 2.0, (146, 158, 174), 0.07),
    LandCover.RESIDENTIAL: Look(-16.2, 8.0, 3.3, (112, 134, 142), 0.08),
    LandCover.BUILDING: Look(-19.0, 9.0, 3.5, (196, 202, 210), 0.05),
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
BODIES = ((238, 240, 244), (60, 70, 92))


def _by_cover(landscape: Landscape, values: list[float]) -> FloatArray:
    """Give every pixel the value of its land cover."""
    return np.array([0, *values], dtype=np.float32)[landscape.cover]


def expected_power(landscape: Landscape, objects: Objects, polarisation: str) -> FloatArray:
    """Return the mean intensity (sigma nought, linear) of each pixel of the scene, noise floor included.

    This is what infinitely many looks would show: in the image geometry of the SAR, shifted as the settings
    ask.
    """
    settings = landscape.settings
    power = _ground_power(landscape, objects, polarisation)
    tall = landscape.building_m * (landscape.building_m > TALL_M)
    to_pixels = np.float32(1 / GSD_M)
    power = project_to_range(power, landscape.terrain.relief_m * to_pixels, tall * to_pixels)
    spread = pixels(RESOLUTION_M) / math.sqrt(2)
    power = ndimage.gaussian_filter(power, spread, truncate=3.0)
    rows, cols = settings.shape
    if any(settings.shift):
        power = ndimage.shift(power, settings.shift, order=3, mode="nearest")
    inner = power[MARGIN : MARGIN + rows, MARGIN : MARGIN + cols]
    found: FloatArray = np.maximum(inner, np.float32(0)) + np.float32(10 ** (NOISE_DB / 10))
    return found


def _ground_power(landscape: Landscape, objects: Objects, polarisation: str) -> FloatArray:
    """Return sigma nought by land cover, on flat ground and before any geometry."""
    settings = landscape.settings
    draw = stream(settings.seed, "scattering")
    cross = polarisation in ("VH", "HV")
    decibel = _by_cover(landscape, [_class_db(cover, polarisation) for cover in LandCover])
    rough = _by_cover(landscape, [LOOK_OF[cover].lots_db for cover in LandCover])
    decibel += rough * draw.standard_normal(LOTS, dtype=np.float32)[landscape.lot]
    # Vegetation varies with its density, and water with the wind.
    vary = {LandCover.GRASS: 0.9, LandCover.SHRUB: 0.9, LandCover.FOREST: 0.9, LandCover.WATER: 0.45}
    strength = _by_cover(landscape, [vary.get(cover, 0) for cover in LandCover])
    decibel += strength * (landscape.moisture + np.float32(0.4) * landscape.texture)
    # Fields have the crop of the SAR's date.
    at = np.flatnonzero(landscape.cover == LandCover.FIELD)
    parcel = landscape.parcels.label.ravel()[at]
    levels = np.array([crop.cross_db for crop in CROPS], dtype=np.float32)
    wetness = draw.normal(0, 0.7, len(objects.crop_sar)).astype(np.float32)
    offset = np.float32(_class_db(LandCover.FIELD, polarisation) - LOOK_OF[LandCover.FIELD].cross_db)
    uneven = np.float32(0.35) * landscape.texture.ravel()[at]
    decibel.ravel()[at] = levels[objects.crop_sar[parcel]] + wetness[parcel] + offset + uneven
    _add_towns(landscape, decibel, draw)
    power: FloatArray = np.exp(decibel * np.float32(math.log(10) / 10))
    # Ships and vehicles that were there at the SAR's date: metal, and brightest of all.
    draw = stream(settings.seed, "metal")
    for kind, mean_db in ((ObjectKind.SHIP, -5.5), (ObjectKind.VEHICLE, -7.0)):
        mean_db += 0.0 if cross else 7.0
        level = (mean_db + draw.normal(0, 1.5, len(objects.planted) + 1)).astype(np.float32)
        seen = np.flatnonzero(objects.mask(kind, ObjectState.UNCHANGED, ObjectState.SAR_ONLY))
        glint = level[objects.label.ravel()[seen]] + draw.normal(0, 3, len(seen)).astype(np.float32)
        power.ravel()[seen] += 10 ** (glint / 10)
    return power


def _class_db(cover: LandCover, polarisation: str) -> float:
    look, added = LOOK_OF[cover], 0.0
    if polarisation in ("VH", "HV"):
        return look.cross_db
    if polarisation == "HH":  # less over water, and more where walls reflect twice
        added = {LandCover.RESIDENTIAL: 2.0, LandCover.BUILDING: 2.0, LandCover.WATER: -2.5}.get(cover, 0.0)
    return look.cross_db + look.co_db + added


def _add_towns(landscape: Landscape, decibel: FloatArray, draw: np.random.Generator) -> None:
    """Brighten streets that run square to the line of sight, walls that face it, and corner reflectors."""
    districts = landscape.districts
    turn = np.mod(districts.angle + np.pi / 4, np.pi / 2) - np.pi / 4
    cardinal = np.float32(4.5) * np.exp(-((turn / np.radians(7)) ** 2)) - np.float32(0.6)
    cardinal += draw.normal(0, 0.7, len(turn)).astype(np.float32)
    built = np.isin(landscape.cover, (LandCover.RESIDENTIAL, LandCover.BUILDING))
    decibel[built] += cardinal.astype(np.float32)[districts.label[built]]
    roof = landscape.building_m > 0
    wall = np.zeros_like(roof)
    wall[:, :-1] = roof[:, :-1] & ~roof[:, 1:]
    tall = np.float32(6) + np.float32(0.08) * landscape.building_m[wall]
    decibel[wall] = np.maximum(decibel[wall] + tall, -15)
    decibel[landscape.of_kind(DistrictKind.HARBOUR) & roof] += np.float32(7)
    decibel[landscape.of_kind(DistrictKind.CENTRE) & roof] += np.float32(3)
    corner = built & (draw.random(built.shape, dtype=np.float32) < 0.009)
    decibel[corner] += draw.exponential(3.5, int(corner.sum())).astype(np.float32) + np.float32(4)


def project_to_range(power: FloatArray, relief_px: FloatArray, buildings_px: FloatArray) -> FloatArray:
    """Project heights along the line of sight, on the ground range of flat land.

    A point at height h appears ``h / tan(incidence)`` nearer to the sensor, so that slopes towards it are
    squeezed (foreshortening) or fold over (layover); each facet carries the energy that its area across the
    line of sight intercepts, ``1 + slope tan(incidence)`` of that of flat ground. What lies behind something
    higher along the ray is in shadow and gives nothing.

    Parameters
    ----------
    power : ndarray of float32, shape (H, W)
        Backscatter of the ground, columns from west to east; the sensor is in the east.
    relief_px, buildings_px : ndarray of float32, shape (H, W)
        Height of the ground, and of what stands on it, in pixels. Only the ground's slopes change the energy.
    """
    # From here on columns run away from the sensor.
    power, relief = power[:, ::-1], relief_px[:, ::-1]
    height = relief + buildings_px[:, ::-1]
    tangent = math.tan(INCIDENCE)
    rows, cols = height.shape
    facing = np.maximum(1 + np.gradient(relief, axis=1) * np.float32(tangent), 0)
    column = np.arange(cols, dtype=np.float32)
    ray = column + height * np.float32(tangent)
    lit = ray >= np.maximum.accumulate(ray, axis=1) - np.float32(1e-3)
    energy = (power * facing * lit).ravel()
    at = np.clip(column - height / np.float32(tangent), 0, cols - 1)
    near = np.minimum(np.floor(at), cols - 2)
    share = (at - near).ravel()
    index = (near.astype(np.int32) + np.arange(rows, dtype=np.int32)[:, None] * cols).ravel()
    image = np.bincount(index, energy * (1 - share), rows * cols)
    image += np.bincount(index + 1, energy * share, rows * cols)
    return np.ascontiguousarray(image.reshape(rows, cols)[:, ::-1], dtype=np.float32)


def speckled_amplitude(settings: SimulationSettings, power: FloatArray, polarisation: str) -> FloatArray:
    """Multiply by multi-look speckle, correlated over the resolution cell, and take the amplitude.

    Each look is the squared magnitude of a complex Gaussian field; the last of the five is weighted so that
    the equivalent number of looks, mean squared over variance of the intensity, is `LOOKS`. (That a gamma
    distribution with this number describes multi-look intensity is in Lee and Pottier, Polarimetric Radar
    Imaging, 2009, section 4.3.)
    """
    draw = stream(settings.seed, f"speckle {polarisation}")
    weights = look_weights(LOOKS)
    speckle = np.zeros(power.shape, dtype=np.float32)
    spread = pixels(RESOLUTION_M)
    # The sum of squares of the blur's kernel: what it leaves of the variance of white noise.
    impulse = np.zeros(2 * int(3 * spread + 0.5) + 1)
    impulse[len(impulse) // 2] = 1
    line = ndimage.gaussian_filter1d(impulse, spread, truncate=3.0, mode="constant")
    energy = float((line**2).sum() ** 2)
    for weight in weights:
        for _ in ("real", "imaginary"):
            part = draw.standard_normal(power.shape, dtype=np.float32)
            # "wrap" keeps the variance equal up to the edges.
            part = ndimage.gaussian_filter(part, spread, truncate=3.0, mode="wrap")
            part *= part
            part *= np.float32(weight / energy)
            speckle += part
    speckle *= power
    speckle /= np.float32(2 * sum(weights))
    np.sqrt(speckle, out=speckle)
    return speckle


def look_weights(looks: float) -> list[float]:
    """Return weights of looks, the last below 1, whose weighted mean has `looks` equivalent looks.

    `looks` is more than 1. Solves ``(n + a)^2 / (n + a^2) = looks`` for the last weight a, n being the whole
    looks.
    """
    whole = math.ceil(looks) - 1
    last = (whole - math.sqrt(whole**2 - (looks - 1) * whole * (looks - whole))) / (looks - 1)
    return [1.0] * whole + [last]


def render_eo(landscape: Landscape, objects: Objects) -> npt.NDArray[np.uint8]:
    """Render red, green and blue of the canvas, shape (3, H, W): reflectance over its 99th percentile."""
    settings = landscape.settings
    draw = stream(settings.seed, "optics")
    light = _light(landscape)
    # Lightness that varies from pixel to pixel.
    tone = draw.standard_normal(landscape.cover.shape, dtype=np.float32)
    tone += landscape.texture
    tone *= _by_cover(landscape, [LOOK_OF[cover].grain for cover in LandCover])
    tone += 1
    # Every lot has one of the colours, lighter or darker.
    roofs, containers = (
        np.array(colours, dtype=np.float32)[draw.integers(len(colours), size=LOTS)]
        * draw.normal(1, 0.1, (LOTS, 1)).astype(np.float32)
        for colours in (ROOFS, CONTAINERS)
    )
    gardens = draw.random(LOTS, dtype=np.float32)
    field_tone = draw.normal(1, 0.07, len(objects.crop_eo)).astype(np.float32)
    picture = np.empty((3, *settings.canvas), dtype=np.uint8)
    for band in range(3):
        image = _by_cover(landscape, [LOOK_OF[cover].colour[band] for cover in LandCover])
        _paint_plants(landscape, objects, image, band, field_tone)
        _paint_towns(landscape, image, band, roofs, containers, gardens)
        image *= tone
        image -= np.float32(HAZE[band])
        image *= light
        image += np.float32(HAZE[band])
        _paint_water(landscape, image, band)
        _paint_objects(settings, objects, image, band)
        image = _spread(image)
        image += draw.standard_normal(image.shape, dtype=np.float32) * np.float32(1.6)
        picture[band] = np.clip(np.rint(image), 1, 255).astype(np.uint8)
    return picture


def _light(landscape: Landscape) -> FloatArray:
    """Return direct light on relief, 1 on flat ground, with the cast shadows of buildings and crests."""
    height = landscape.terrain.relief_m
    south, east = np.gradient(height, np.float32(GSD_M))
    towards_sun = south * np.float32(np.cos(SUN_AZIMUTH)) - east * np.float32(np.sin(SUN_AZIMUTH))
    light: FloatArray = (1 + towards_sun / np.float32(np.tan(SUN_ELEVATION))) / np.sqrt(
        1 + south * south + east * east
    )
    np.clip(light, 0.3, 1.3, out=light)
    surface = height + landscape.building_m
    dark = np.zeros(surface.shape, dtype=bool)
    for reach in (1, 2, 3, 5, 8):
        rows, cols = round(-np.cos(SUN_AZIMUTH) * reach), round(np.sin(SUN_AZIMUTH) * reach)
        rise = np.float32(np.hypot(rows, cols) * GSD_M * np.tan(SUN_ELEVATION))
        # The pixel towards the sun (down and to the right in a morning) shades this one.
        shaded = np.s_[: surface.shape[0] - rows, : surface.shape[1] - cols]
        dark[shaded] |= surface[rows:, cols:] - surface[shaded] > rise
    light[dark] *= np.float32(0.45)
    return light


def _paint_plants(
    landscape: Landscape, objects: Objects, image: FloatArray, band: int, field_tone: FloatArray
) -> None:
    """Shift wild plants from dry and reddish to lush; colour fields by crop, with rows and uneven growth."""
    flat, cover, moisture = image.ravel(), landscape.cover.ravel(), landscape.moisture.ravel()
    wild = np.flatnonzero(np.isin(cover, (LandCover.GRASS, LandCover.SHRUB, LandCover.FOREST)))
    flat[wild] += np.float32((-11, -1, -5)[band]) * moisture[wild]
    town = landscape.of_kind(DistrictKind.RESIDENTIAL, DistrictKind.CENTRE, DistrictKind.INDUSTRIAL)
    flat[town.ravel() & (cover == LandCover.GRASS)] = (78, 132, 104)[band]  # parks
    at = np.flatnonzero(cover == LandCover.FIELD)
    parcel = landscape.parcels.label.ravel()[at]
    crop = objects.crop_eo[parcel]
    colour = np.array([c.colour[band] for c in CROPS], dtype=np.float32)
    stripes = np.array([c.stripes for c in CROPS], dtype=np.float32)
    rows = np.sin(landscape.parcels.along.ravel()[at] * np.float32(2.3)) * stripes[crop]
    flat[at] = colour[crop] * field_tone[parcel] * (1 + rows + moisture[at] * np.float32(0.03))


def _paint_towns(
    landscape: Landscape,
    image: FloatArray,
    band: int,
    roofs: FloatArray,
    containers: FloatArray,
    gardens: FloatArray,
) -> None:
    """Paint roofs and gardens lot by lot, and the containers of the port."""
    flat, cover, lots = image.ravel(), landscape.cover.ravel(), landscape.lot.ravel()
    parcels = landscape.parcels
    at = np.flatnonzero(cover == LandCover.RESIDENTIAL)
    garden = gardens[lots[at]]
    green = (80, 106, 122)[band] + 44 * garden
    # Houses stand along the streets with gardens behind; old quarters are leafy, new ones are not.
    setback = np.minimum(parcels.along.ravel()[at], parcels.along_left.ravel()[at] + pixels(9))
    share = 0.35 + 0.4 * (setback > pixels(34)) + 0.1 * landscape.moisture.ravel()[at]
    flat[at] = np.where(garden < share, green, roofs[lots[at], band])
    port = landscape.of_kind(DistrictKind.HARBOUR).ravel()
    at = np.flatnonzero(port & (cover == LandCover.BUILDING))
    flat[at] = containers[lots[at], band]
    at = np.flatnonzero(~port & (cover == LandCover.BUILDING))
    roof = gardens[(parcels.label.ravel()[at] * 40503) & (LOTS - 1)]
    flat[at] = np.where(roof < 0.25, 130 + 60 * roof, 180 + 75 * roof) + np.float32((0, 4, 8)[band])


def _paint_water(landscape: Landscape, image: FloatArray, band: int) -> None:
    """Lighten the water towards the shore, where it is shallow and turbid."""
    water = np.flatnonzero(landscape.cover == LandCover.WATER)
    shallow = 1 - smoothstep(-landscape.terrain.coast_px.ravel()[water], 0, pixels(900))
    image.ravel()[water] = (
        np.float32(LOOK_OF[LandCover.WATER].colour[band])
        + np.float32((9, 14, 8)[band]) * shallow
        + np.float32(2.0) * landscape.moisture.ravel()[water]
    )


def _paint_objects(settings: SimulationSettings, objects: Objects, image: FloatArray, band: int) -> None:
    """Paint the ships and vehicles that were there at the EO's date."""
    draw = stream(settings.seed, "paint")
    for kind, colours in ((ObjectKind.SHIP, HULLS), (ObjectKind.VEHICLE, BODIES)):
        chosen = draw.integers(len(colours), size=len(objects.planted) + 1)
        seen = np.flatnonzero(objects.mask(kind, ObjectState.UNCHANGED, ObjectState.EO_ONLY))
        image.ravel()[seen] = np.array(colours, dtype=np.float32)[chosen, band][objects.label.ravel()[seen]]


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
