"""The large forms of a landscape: sea, coast, plain and mountains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sar2eo.simulation.settings import SimulationSettings
from sar2eo.simulation.spectral import FloatArray, resized, smoothstep, spectral_noise, stream

__all__ = ["Terrain", "make_terrain"]

RIDGES_M = ((1300.0, 105.0), (520.0, 36.0))
"""Spacing of ridges, and how far they rise over the valleys between."""

GULLY_SPACING_M, GULLY_DEPTH_M = 140.0, 22.0


@dataclass(frozen=True)
class Terrain:
    """Large forms, all arrays of the canvas' shape.

    Parameters
    ----------
    coast_px : ndarray of float32
        Distance from the coastline in pixels, negative at sea; clipped to 200.
    mountain : ndarray of float32
        From 0 on plains and at sea to 1 in mountains.
    relief_m : ndarray of float32
        Height over the smooth surface that maps are referred to. Zero outside of mountains, so flat land is
        not displaced in the SAR image.
    seaward : tuple of float
        Unit vector, rows and columns, from the land to the sea.
    """

    coast_px: FloatArray
    mountain: FloatArray
    relief_m: FloatArray
    seaward: tuple[float, float]


def make_terrain(settings: SimulationSettings) -> Terrain:
    """Make the large forms of a landscape: a sea on one side, mountains on the other."""
    draw = stream(settings.seed, "terrain")
    shape, extent = settings.canvas, float(min(settings.shape))
    angle = draw.uniform(0, 2 * np.pi)
    seaward = (float(np.sin(angle)), float(np.cos(angle)))
    tilt = _tilt(shape, seaward, extent)

    height = 0.45 * spectral_noise(draw, shape, longest=0.7 * extent, shortest=extent / 14) - tilt
    height += 0.05 * spectral_noise(draw, shape, longest=extent / 8, shortest=settings.pixels(160), slope=1.2)
    coast = _distance(height - np.float32(np.quantile(height[::8, ::8], draw.uniform(0.16, 0.24))))

    upland = 0.7 * spectral_noise(draw, shape, longest=0.5 * extent, shortest=extent / 12) - 0.7 * tilt
    start, full = np.quantile(upland[::8, ::8], (0.66, 0.86))
    mountain = smoothstep(upland, start, full)
    mountain *= smoothstep(coast, 6, 30)
    return Terrain(coast, mountain, _relief(draw, settings, mountain), seaward)


def _tilt(shape: tuple[int, int], seaward: tuple[float, float], extent: float) -> FloatArray:
    rows = (np.arange(shape[0], dtype=np.float32) - shape[0] / 2)[:, None] * np.float32(seaward[0])
    cols = (np.arange(shape[1], dtype=np.float32) - shape[1] / 2)[None, :] * np.float32(seaward[1])
    tilt: FloatArray = ((rows + cols) * np.float32(3.4 / extent)).astype(np.float32)
    return tilt


def _distance(field: FloatArray) -> FloatArray:
    """Return the distance in pixels from the zero line of a field.

    Near the line field over gradient, which is exact to first order and finer than a pixel; farther away the
    distance transform of every fourth pixel.
    """
    gradient = np.gradient(field)
    slope = np.sqrt(np.maximum(gradient[0] ** 2 + gradient[1] ** 2, np.float32(1e-10)))
    close = np.clip(field / slope, -8, 8)
    land = field[::4, ::4] > 0
    coarse = ndimage.distance_transform_edt(land) - ndimage.distance_transform_edt(~land)
    coarse -= np.where(land, 0.5, -0.5)  # from the line, not from the next cell's centre
    far = np.clip(resized(4 * coarse.astype(np.float32), field.shape, 4), -200, 200)
    distance: FloatArray = np.where(np.abs(far) < 8, close, far).astype(np.float32)
    return distance


def _relief(draw: np.random.Generator, settings: SimulationSettings, mountain: FloatArray) -> FloatArray:
    relief = np.zeros(settings.canvas, dtype=np.float32)
    for spacing_m, height_m in RIDGES_M:
        spacing = settings.pixels(spacing_m)
        wave = spectral_noise(
            draw, settings.canvas, longest=1.5 * spacing, shortest=max(2.0, 0.4 * spacing), slope=2.5
        )
        # A sharp crest where the field crosses zero; the mean of |normal| is taken out so that mountains
        # stand as much below the reference surface as above it.
        relief += np.float32(height_m) * (np.float32(0.8) - np.abs(wave))
    relief += np.float32(GULLY_DEPTH_M) * _gullies(draw, settings, relief)
    relief *= mountain
    return relief


def _gullies(draw: np.random.Generator, settings: SimulationSettings, relief: FloatArray) -> FloatArray:
    """Cut gullies that run down the slopes: noise averaged along the line of steepest descent.

    Line integral convolution (Cabral and Leedom, 1993), on a grid of half the resolution.
    """
    half = np.ascontiguousarray(relief[::2, ::2])
    spacing = max(2.0, settings.pixels(GULLY_SPACING_M) / 2)
    noise = spectral_noise(draw, half.shape, longest=2 * spacing, shortest=spacing, slope=1.0)
    smooth: FloatArray = ndimage.gaussian_filter(half, settings.pixels(60) / 2)
    gradient = np.gradient(smooth)
    steep = np.sqrt(gradient[0] ** 2 + gradient[1] ** 2) + np.float32(1e-3)
    down, right = gradient[0] / steep, gradient[1] / steep
    row = np.arange(half.shape[0], dtype=np.float32)[:, None]
    col = np.arange(half.shape[1], dtype=np.float32)[None, :]
    total = noise.copy()
    for part in (-1.2, -0.8, -0.4, 0.4, 0.8, 1.2):
        reach = np.float32(part * spacing)
        total += ndimage.map_coordinates(
            noise, [row + reach * down, col + reach * right], order=1, mode="nearest"
        )
    total /= total.std()
    crest = np.float32(0.8) - np.abs(total)
    return resized(crest, relief.shape, 2)
