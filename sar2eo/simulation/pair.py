"""Simulated scenes: SAR alone, or SAR and EO with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from sar2eo.geo.grid import Grid
from sar2eo.simulation.landscape import Landscape, make_landscape
from sar2eo.simulation.objects import ObjectKind, Objects, ObjectState, PlantedObject, plant_objects
from sar2eo.simulation.optics import render_eo
from sar2eo.simulation.radar import expected_power, speckled_amplitude
from sar2eo.simulation.settings import MARGIN, SimulationSettings
from sar2eo.simulation.spectral import FloatArray, stream

__all__ = ["SimulatedPair", "SimulatedScene", "simulate_pair", "simulate_scene"]

CRS = "EPSG:32611"
"""UTM zone 11 north."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SimulatedScene:
    """A simulated SAR scene.

    Parameters
    ----------
    settings : SimulationSettings
        What it was made from.
    grid : Grid
        Its place, in UTM.
    sar : ndarray of float32
        Amplitude, the square root of sigma nought, shape (polarisation, row, col); NaN without data.
    backscatter : ndarray of float32
        The same without speckle, everywhere: the square root of the expected intensity.
    sar_valid : ndarray of bool
        Where the SAR has data.
    """

    settings: SimulationSettings
    grid: Grid
    sar: FloatArray
    backscatter: FloatArray
    sar_valid: BoolArray


@dataclass(frozen=True, kw_only=True)
class SimulatedPair(SimulatedScene):
    """A simulated SAR scene, the EO scene of the same place, and what is true there.

    The truth is in the EO's geometry: with a shift, the SAR shows an object that far from its mask.

    Parameters
    ----------
    eo : ndarray of uint8
        Red, green, blue, shape (3, row, col); 0 without data.
    eo_valid : ndarray of bool
        Where the EO has data.
    land_cover : ndarray of uint8
        `LandCover` of each pixel.
    label : ndarray of uint16
        Number of the planted object at each pixel, 0 for none.
    objects : tuple of PlantedObject
        Every planted object, by number.
    """

    eo: npt.NDArray[np.uint8]
    eo_valid: BoolArray
    land_cover: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint16]
    objects: tuple[PlantedObject, ...]

    def mask(self, *states: ObjectState, kinds: tuple[ObjectKind, ...] = tuple(ObjectKind)) -> BoolArray:
        """Return the mask of all objects in any of the states, of the given kinds."""
        chosen = [False, *(found.state in states and found.kind in kinds for found in self.objects)]
        mask: BoolArray = np.array(chosen)[self.label]
        return mask


def simulate_pair(settings: SimulationSettings) -> SimulatedPair:
    """Simulate a SAR and an EO scene of one place, a few days apart, with known truth.

    Returns
    -------
    SimulatedPair
        Scenes, masks and truth on one grid. The same settings give the same pixels; another shift gives the
        same place, another set of polarisations the same bands where they agree.
    """
    landscape, objects, sar_valid, eo_valid = _place(settings)
    eo = _inner(settings, render_eo(settings, landscape, objects))
    eo[:, ~eo_valid] = 0
    backscatter, sar = _sar(settings, landscape, objects, sar_valid)
    return SimulatedPair(
        settings=settings,
        grid=_grid(settings),
        sar=sar,
        backscatter=backscatter,
        sar_valid=sar_valid,
        eo=eo,
        eo_valid=eo_valid,
        land_cover=_inner(settings, landscape.cover),
        label=_inner(settings, objects.label),
        objects=objects.planted,
    )


def simulate_scene(settings: SimulationSettings) -> SimulatedScene:
    """Simulate only the SAR scene of `simulate_pair`, to the same pixels, in less time."""
    landscape, objects, sar_valid, _ = _place(settings)
    backscatter, sar = _sar(settings, landscape, objects, sar_valid)
    return SimulatedScene(
        settings=settings, grid=_grid(settings), sar=sar, backscatter=backscatter, sar_valid=sar_valid
    )


def _place(settings: SimulationSettings) -> tuple[Landscape, Objects, BoolArray, BoolArray]:
    landscape = make_landscape(settings)
    sar_valid, eo_valid = _edges(settings)
    both = np.zeros(settings.canvas, dtype=bool)
    _inner(settings, both)[:] = sar_valid & eo_valid
    return landscape, plant_objects(settings, landscape, both), sar_valid, eo_valid


def _inner(settings: SimulationSettings, canvas: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the scene's part of an array of the canvas' shape."""
    rows, cols = settings.shape
    return canvas[..., MARGIN : MARGIN + rows, MARGIN : MARGIN + cols]


def _sar(
    settings: SimulationSettings, landscape: Landscape, objects: Objects, valid: BoolArray
) -> tuple[FloatArray, FloatArray]:
    backscatter = np.empty((len(settings.polarisations), *settings.shape), dtype=np.float32)
    sar = np.empty_like(backscatter)
    for band, polarisation in enumerate(settings.polarisations):
        power = expected_power(settings, landscape, objects, polarisation)
        sar[band] = speckled_amplitude(settings, power, polarisation)
        np.sqrt(power, out=backscatter[band])
    sar[:, ~valid] = np.nan
    return backscatter, sar


def _edges(settings: SimulationSettings) -> tuple[BoolArray, BoolArray]:
    """Return the valid pixels of the SAR and of the EO, each cut by the slanted edge of its product."""
    rows, cols = settings.shape
    if not settings.nodata_edges:
        return np.ones((rows, cols), dtype=bool), np.ones((rows, cols), dtype=bool)
    draw = stream(settings.seed, "edges")
    row = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    col = np.linspace(0, 1, cols, dtype=np.float32)[None, :]
    slant = np.float32(draw.uniform(0.05, 0.11))
    sar = (col > slant * row) & (row > slant * 0.6 * (1 - col))
    slant = np.float32(draw.uniform(0.06, 0.12))
    eo = col < 1 - slant * (1 - row)
    return sar, np.broadcast_to(eo, (rows, cols)).copy()


def _grid(settings: SimulationSettings) -> Grid:
    draw = stream(settings.seed, "place")
    east, north = (float(draw.integers(*limits)) * 400 for limits in ((800, 1500), (9300, 9700)))
    return Grid.create(CRS, Affine(settings.gsd_m, 0, east, 0, -settings.gsd_m, north), settings.shape)
