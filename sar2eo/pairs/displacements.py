"""Local shifts of a scene pair, measured by an aligner in neighbourhoods spread over the overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PairsError, PolarisationError
from sar2eo.geo.chip_lattice import Cell, list_cells
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.matching.shifts import Aligner, Displacement, FloatArray
from sar2eo.pairs.chips import Eo
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.scenes.warp import read_shifted

__all__ = ["check_aligner", "measure", "nearest", "neighbourhoods"]

# Enough for a low-order model of a scene many times over.
_MOST = 600
# Of a neighbourhood, in both images; what has less is not measured.
_LEAST_VALID = 0.5


def neighbourhoods(grid: Grid, side: int, within: Any) -> list[Cell]:
    """Choose the neighbourhoods of a scene pair in which shifts are measured.

    Parameters
    ----------
    grid : Grid
        Of the SAR scene.
    side : int
        Of a neighbourhood in pixels; neighbours overlap by half.
    within : Polygon or MultiPolygon
        Overlap of the two scenes, in the CRS of `grid`.

    Returns
    -------
    list of Cell
        At most 600, spread evenly.
    """
    found = list_cells(grid, size=side, stride=max(1, side // 2), within=within, min_valid=_LEAST_VALID)
    if len(found) <= _MOST:
        return found
    chosen = np.linspace(0, len(found) - 1, _MOST).round().astype(int)
    return [found[at] for at in chosen]


def measure(
    sar: SarScene,
    eo: Eo,
    cell: Cell,
    aligner: Aligner,
    scaling: Sequence[float],
    shift: tuple[float, float] = (0.0, 0.0),
) -> Displacement | None:
    """Measure the shift of one neighbourhood.

    Parameters
    ----------
    sar : SarScene
        Its polarisations are averaged in amplitude, each over its own scaling, unless the aligner wants
        certain ones.
    eo : Eo
        Its colours are averaged, unless the aligner knows them; clouds do not count.
    cell : Cell
        The neighbourhood.
    aligner : Aligner
    scaling : sequence of float
        Amplitude of each polarisation that counts as 1.
    shift : tuple of float, optional (default: (0, 0))
        Where the SAR is read: what remains after this shift is measured.

    Returns
    -------
    Displacement or None
        None where less than half of the neighbourhood is valid.
    """
    window = cell.window(aligner.neighbourhood_px)
    values = to_amplitude(read_shifted(sar.reader, window, *shift, sar.quantity), sar.quantity)
    scaled = values / np.asarray(scaling, np.float32)[:, None, None]
    amplitude = scaled.mean(axis=0)
    if np.isfinite(amplitude).mean() < _LEAST_VALID:
        return None
    patch = eo.read_onto(sar.grid.crop(window))
    clear = patch.valid if patch.cloud is None else patch.valid & ~patch.cloud
    if (np.isfinite(amplitude) & clear).mean() < _LEAST_VALID:
        return None
    found = aligner.displacement(_wanted(scaled, sar, aligner), _image(patch.rgb, clear, aligner))
    row, col = window.row + window.height / 2, window.col + window.width / 2
    return Displacement(row, col, float(found.rows), float(found.cols), float(found.score), bool(found.sure))


def _wanted(scaled: FloatArray, sar: SarScene, aligner: Aligner) -> FloatArray:
    """Return the polarisations that an aligner asks for, or the mean of all."""
    wanted, names = getattr(aligner, "polarisations", None), sar.reader.polarisations
    return (
        np.asarray(scaled.mean(axis=0)) if wanted is None else scaled[[names.index(name) for name in wanted]]
    )


def _image(rgb: npt.NDArray[np.uint8], clear: npt.NDArray[np.bool_], aligner: Aligner) -> FloatArray:
    """Return the colours of an EO image for an aligner that knows them, or grey values; NaN under clouds."""
    if hasattr(aligner, "polarisations"):
        return np.where(clear[..., None], np.moveaxis(rgb, 0, -1).astype(np.float32), np.float32(np.nan))
    return np.where(clear, rgb.mean(axis=0, dtype=np.float32), np.float32(np.nan))


def check_aligner(aligner: Aligner, sar: SarScene) -> None:
    """Refuse an aligner that is made for other scenes.

    Raises
    ------
    PolarisationError
        If it wants polarisations that the scene lacks.
    PairsError
        If the scene's pixels are much larger or smaller than those it knows.
    """
    names, wanted = sar.reader.polarisations, getattr(aligner, "polarisations", ())
    if not set(wanted) <= set(names):
        raise PolarisationError(
            f"{sar.href}: has {', '.join(names)}, and the matcher was trained on {', '.join(wanted)}: name "
            "its bands with --pol, or align without --matcher"
        )
    sizes_m = sar.grid.ground_sample_distance_m()
    if hasattr(aligner, "fits_gsd") and not aligner.fits_gsd(*sizes_m):
        raise PairsError(
            f"{sar.href}: its pixels are {sizes_m[0]:.3g} x {sizes_m[1]:.3g} m on the ground, the matcher "
            f"was trained at {getattr(aligner, 'gsd_m', 0):.3g} m: resample it, or align without --matcher"
        )


def nearest(displacements: Sequence[Displacement], row: float, col: float) -> Displacement | None:
    """Return the displacement measured nearest to a place; None if there is none."""
    return min(displacements, key=lambda d: (d.row - row) ** 2 + (d.col - col) ** 2, default=None)
