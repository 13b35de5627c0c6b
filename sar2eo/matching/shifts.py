"""Shifts between a SAR and an EO image, and what finds them.

A shift (rows, cols): what the EO image shows at pixel (r, c) lies in the SAR image at (r + rows, c + cols).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Aligner", "Displacement", "Drift", "LocalShift"]

FloatArray = npt.NDArray[np.float32]


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
