"""The large forms of a landscape: sea, coast, plain and mountains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sar2eo.simulation.settings import SimulationSettings
from sar2eo.simulation.spectral import FloatArray, smoothstep, spectral_noise, stream

__all__ = ["Terrain", "make_terrain"]

RIDGE_HEIGHTS_M = ((1000.0, 150.0), (420.0, 62.0), (170.0, 22.0))
"""Spacing of ridges, and how far they rise over the valleys between."""


@dataclass(frozen=True)
class Terrain:
    """Large forms, all arrays of the canvas' shape.

    Parameters
    ----------
    coast_px : ndarray of float32
        Distance from the coastline in pixels, negative at sea; good near the coast, clipped to 200.
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
    """Turn a smooth field into the distance from its zero line: field over gradient, to first order."""
    down, right = np.gradient(field)
    down *= down
    down += right * right
    down = np.sqrt(np.maximum(down, np.float32(1e-10)))
    distance: FloatArray = np.clip(field / down, -200, 200).astype(np.float32)
    return distance


def _relief(draw: np.random.Generator, settings: SimulationSettings, mountain: FloatArray) -> FloatArray:
    relief = np.zeros(settings.canvas, dtype=np.float32)
    for spacing_m, height_m in RIDGE_HEIGHTS_M:
        wave = spectral_noise(
            draw,
            settings.canvas,
            longest=1.5 * settings.pixels(spacing_m),
            shortest=max(2.0, 0.5 * settings.pixels(spacing_m)),
            slope=2.5,
        )
        # A sharp crest where the field crosses zero; the mean of |normal| is taken out so that mountains
        # stand as much below the reference surface as above it.
        relief += np.float32(height_m) * (np.float32(0.8) - np.abs(wave))
    relief *= mountain
    return relief
