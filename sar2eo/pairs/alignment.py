"""What an aligner is, and how the displacements of one scene pair are measured.

The rooms of pairs know the matcher through these protocols alone.

A shift (rows, cols) says: what the EO image shows at pixel (r, c) is found in the SAR image at
(r + rows, c + cols).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PairsError, PolarisationError
from sar2eo.grid import Grid
from sar2eo.pairs.cells import Cell, cells_of
from sar2eo.pairs.chips import Eo
from sar2eo.pairs.scenes import SarScene
from sar2eo.pairs.shifting import read_shifted
from sar2eo.radiometry import to_amplitude

__all__ = [
    "Aligner",
    "Displacement",
    "Drift",
    "LocalShift",
    "check_aligner",
    "measure",
    "nearest",
    "neighbourhoods",
]

FloatArray = npt.NDArray[np.float32]

# Enough for a low-order model of a scene many times over.
_MOST = 600
# Of a neighbourhood, in both images; what has less is not measured.
_LEAST_VALID = 0.5


class LocalShift(NamedTuple):
    """Where one neighbourhood of an EO image is found in the SAR image.

    Parameters
    ----------
    rows, cols : float
        The shift, in pixels.
    score : float
        Similarity at the shift; larger is better.
    sure : bool
        Whether the evidence carries the shift.
    """

    rows: float
    cols: float
    score: float
    sure: bool


@dataclass(frozen=True)
class Displacement:
    """A local shift and the place it was measured at.

    Parameters
    ----------
    row, col : float
        Centre of the neighbourhood, in pixels of the SAR scene's grid.
    rows, cols, score, sure
        See `LocalShift`.
    """

    row: float
    col: float
    rows: float
    cols: float
    score: float
    sure: bool


class Drift(Protocol):
    """The smooth shift of one SAR scene against one EO scene."""

    def at(self, row: float, col: float) -> tuple[float, float]:
        """Return the shift (rows, cols) at a place in the SAR scene's grid, in pixels."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return order, residual_px, and how many displacements were used of how many."""
        ...


class Aligner(Protocol):
    """Finds local shifts between a SAR and an EO image, and the drift that explains them.

    One that has an attribute ``polarisations`` is given these, in this order, instead of their mean, and the
    EO image's colours; one that has a method ``fits_gsd`` is asked whether it is made for pixels of these
    sides on the ground, in metres.
    """

    neighbourhood_px: int
    """Side of the square windows that `displacement` wants."""

    def displacement(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find the shift of one neighbourhood.

        Parameters
        ----------
        sar, eo : ndarray of float32, shape (row, col)
            Amplitude and grey values of the same place; NaN where invalid. To an aligner with polarisations
            they come as (polarisation, row, col) and (row, col, 3).
        """
        ...

    def drift(self, displacements: Sequence[Displacement]) -> Drift | None:
        """Fit the drift of one scene pair; None where the evidence is too thin."""
        ...


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
    found = cells_of(grid, size=side, stride=max(1, side // 2), within=within, min_valid=_LEAST_VALID)
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
