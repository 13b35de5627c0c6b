"""What the SAR sees: backscatter by class, relief in range projection, point targets, speckle."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sar2eo.simulation.districts import DistrictKind
from sar2eo.simulation.landscape import LOTS, LandCover, Landscape
from sar2eo.simulation.objects import CROPS, ObjectKind, Objects, ObjectState
from sar2eo.simulation.settings import MARGIN, SimulationSettings
from sar2eo.simulation.spectral import FloatArray, stream

__all__ = ["LOOKS", "expected_power", "look_weights", "project_to_range", "speckled_amplitude"]

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

CROSS_DB = {
    LandCover.WATER: -29.5,
    LandCover.BARE: -23.5,
    LandCover.GRASS: -20.5,
    LandCover.SHRUB: -16.2,
    LandCover.FOREST: -14.2,
    LandCover.FIELD: -20.0,
    LandCover.PAVED: -21.8,
    LandCover.RESIDENTIAL: -16.2,
    LandCover.BUILDING: -19.0,
}
"""Sigma nought of VH and HV over each class."""

CO_OFFSET_DB = {
    LandCover.WATER: 11.0,
    LandCover.BARE: 9.0,
    LandCover.GRASS: 7.5,
    LandCover.SHRUB: 6.5,
    LandCover.FOREST: 6.0,
    LandCover.FIELD: 7.5,
    LandCover.PAVED: 8.0,
    LandCover.RESIDENTIAL: 8.0,
    LandCover.BUILDING: 9.0,
}
"""What VV adds to that; HH has less over water and more where walls reflect twice."""

SCATTER_DB = {LandCover.RESIDENTIAL: 3.3, LandCover.BUILDING: 3.5, LandCover.PAVED: 2.0}
"""Standard deviation from lot to lot in towns."""


def expected_power(
    settings: SimulationSettings, landscape: Landscape, objects: Objects, polarisation: str
) -> FloatArray:
    """Return the mean intensity (sigma nought, linear) of each pixel of the scene, noise floor included.

    This is what infinitely many looks would show: in the image geometry of the SAR, shifted as the settings
    ask.

    Returns
    -------
    ndarray of float32
        Shape of the scene; positive.
    """
    power = _ground_power(settings, landscape, objects, polarisation)
    tall = landscape.building_m * (landscape.building_m > TALL_M)
    to_pixels = np.float32(1 / settings.gsd_m)
    power = project_to_range(power, landscape.terrain.relief_m * to_pixels, tall * to_pixels)
    spread = settings.pixels(RESOLUTION_M) / math.sqrt(2)
    power = ndimage.gaussian_filter(power, spread, truncate=3.0)
    rows, cols = settings.shape
    if any(settings.shift):
        power = ndimage.shift(power, settings.shift, order=3, mode="nearest")
    inner = power[MARGIN : MARGIN + rows, MARGIN : MARGIN + cols]
    found: FloatArray = np.maximum(inner, np.float32(0)) + np.float32(10 ** (NOISE_DB / 10))
    return found


def _ground_power(
    settings: SimulationSettings, landscape: Landscape, objects: Objects, polarisation: str
) -> FloatArray:
    """Sigma nought by land cover, on flat ground and before any geometry."""
    draw = stream(settings.seed, "scattering")
    covers = list(LandCover)
    level = np.array([0, *(_class_db(cover, polarisation) for cover in covers)], dtype=np.float32)
    rough = np.array([0, *(SCATTER_DB.get(cover, 0) for cover in covers)], dtype=np.float32)
    decibel = level[landscape.cover]
    decibel += rough[landscape.cover] * draw.standard_normal(LOTS, dtype=np.float32)[landscape.lot]
    _add_texture(landscape, decibel)
    _add_fields(landscape, objects, decibel, draw, polarisation)
    _add_towns(landscape, decibel, draw)
    power: FloatArray = np.exp(decibel * np.float32(math.log(10) / 10))
    _add_objects(settings, objects, power, polarisation)
    return power


def _class_db(cover: LandCover, polarisation: str) -> float:
    level = CROSS_DB[cover]
    if polarisation in ("VH", "HV"):
        return level
    built = cover in (LandCover.RESIDENTIAL, LandCover.BUILDING)
    horizontal = (
        (2.0 if built else -2.5 if cover == LandCover.WATER else 0.0) if polarisation == "HH" else 0.0
    )
    return level + CO_OFFSET_DB[cover] + horizontal


def _add_texture(landscape: Landscape, decibel: FloatArray) -> None:
    """Vary vegetation with its density, and water with the wind."""
    strength = np.zeros(max(LandCover) + 1, dtype=np.float32)
    strength[[LandCover.GRASS, LandCover.SHRUB, LandCover.FOREST]] = 0.9
    strength[LandCover.WATER] = 0.45
    decibel += strength[landscape.cover] * (landscape.moisture + np.float32(0.4) * landscape.texture)


def _add_fields(
    landscape: Landscape, objects: Objects, decibel: FloatArray, draw: np.random.Generator, polarisation: str
) -> None:
    """Set fields to the crop of the SAR's date."""
    at = np.flatnonzero(landscape.cover == LandCover.FIELD)
    parcel = landscape.parcels.label.ravel()[at]
    levels = np.array([crop.cross_db for crop in CROPS], dtype=np.float32)
    wetness = draw.normal(0, 0.7, len(objects.crop_sar)).astype(np.float32)
    offset = _class_db(LandCover.FIELD, polarisation) - CROSS_DB[LandCover.FIELD]
    uneven = np.float32(0.35) * landscape.texture.ravel()[at]
    decibel.ravel()[at] = levels[objects.crop_sar[parcel]] + wetness[parcel] + np.float32(offset) + uneven


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
    port = landscape.of_kind(DistrictKind.HARBOUR) & roof
    decibel[port] += np.float32(7)
    centre = landscape.of_kind(DistrictKind.CENTRE) & roof
    decibel[centre] += np.float32(3)
    corner = built & (draw.random(built.shape, dtype=np.float32) < 0.009)
    decibel[corner] += draw.exponential(3.5, int(corner.sum())).astype(np.float32) + np.float32(4)


def _add_objects(
    settings: SimulationSettings, objects: Objects, power: FloatArray, polarisation: str
) -> None:
    """Add the ships and vehicles that were there at the SAR's date: metal, and brightest of all."""
    draw = stream(settings.seed, "metal")
    count = len(objects.planted) + 1
    co = 0.0 if polarisation in ("VH", "HV") else 7.0
    for kind, mean_db in ((ObjectKind.SHIP, -5.5), (ObjectKind.VEHICLE, -7.0)):
        level = (mean_db + co + draw.normal(0, 1.5, count)).astype(np.float32)
        seen = np.flatnonzero(objects.mask(kind, ObjectState.UNCHANGED, ObjectState.SAR_ONLY))
        glint = level[objects.label.ravel()[seen]] + draw.normal(0, 3, len(seen)).astype(np.float32)
        power.ravel()[seen] += 10 ** (glint / 10)


def project_to_range(power: FloatArray, relief_px: FloatArray, buildings_px: FloatArray) -> FloatArray:
    """Project heights along the line of sight, on the ground range of flat land.

    A point at height h appears ``h / tan(incidence)`` nearer to the sensor, so that slopes towards it are
    squeezed (foreshortening) or fold over (layover); each facet carries the energy that its area across the
    line of sight intercepts, ``1 + slope tan(incidence)`` of that of flat ground. What lies behind something
    higher along the ray is in shadow and gives nothing.

    Parameters
    ----------
    power : ndarray of float32
        Backscatter of the ground, columns from west to east; the sensor is in the east.
    relief_px, buildings_px : ndarray of float32
        Height of the ground, and of what stands on it, in pixels. Only the ground's slopes change the energy.

    Returns
    -------
    ndarray of float32
        Of the same shape.
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
    spread = settings.pixels(RESOLUTION_M)
    for weight in weights:
        for _ in ("real", "imaginary"):
            part = draw.standard_normal(power.shape, dtype=np.float32)
            # "wrap" keeps the variance equal up to the edges.
            part = ndimage.gaussian_filter(part, spread, truncate=3.0, mode="wrap")
            part *= part
            part *= np.float32(weight / _kernel_energy(spread))
            speckle += part
    speckle *= power
    speckle /= np.float32(2 * sum(weights))
    np.sqrt(speckle, out=speckle)
    return speckle


def look_weights(looks: float) -> list[float]:
    """Weights of whole looks, the last a part, whose weighted mean has `looks` equivalent looks.

    `looks` is more than 1. Solves ``(n + a)^2 / (n + a^2) = looks`` for the last weight a, n being the whole
    looks.
    """
    whole = math.ceil(looks) - 1
    last = (whole - math.sqrt(whole**2 - (looks - 1) * whole * (looks - whole))) / (looks - 1)
    return [1.0] * whole + [last]


def _kernel_energy(spread: float) -> float:
    """Sum of squares of the two-dimensional kernel: what it leaves of the variance of white noise."""
    impulse = np.zeros(2 * int(3 * spread + 0.5) + 1)
    impulse[len(impulse) // 2] = 1
    line: npt.NDArray[np.float64] = ndimage.gaussian_filter1d(impulse, spread, truncate=3.0, mode="constant")
    return float((line**2).sum() ** 2)
