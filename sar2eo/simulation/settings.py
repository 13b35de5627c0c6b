"""What a simulated scene is to be, and the canvas it is made on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sar2eo.errors import PolarisationError, SettingsError
from sar2eo.geo.radiometry import POLARISATIONS

__all__ = ["MARGIN", "MAX_SHIFT", "SimulationSettings"]

MARGIN = 48
"""Pixels of landscape around the scene, so that its edges are like its middle. The same for every shift."""

MAX_SHIFT = 32.0
"""Largest shift along one axis, in pixels; the rest of the margin is for displacement by relief."""

MIN_SIZE, MAX_SIZE = 64, 8192
MIN_GSD_M, MAX_GSD_M = 2.5, 40.0


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Settings of a simulated pair; the same settings give the same pixels.

    Parameters
    ----------
    size : int or tuple of int, optional (default: 2048)
        Rows and columns, or one number for both.
    seed : int, optional (default: 1)
        Of the landscape, the objects and the speckle.
    polarisations : tuple of str, optional (default: ("VH",))
        Bands of the SAR scene, in order.
    shift : tuple of float, optional (default: (0, 0))
        How far the SAR lies from the EO, in pixels down and to the right. What the EO shows at
        ``(row, col)`` the SAR shows at ``(row + shift[0], col + shift[1])``. May be fractional.
    gsd_m : float, optional (default: 10)
        Ground sample distance in metres. Objects keep their size in metres.
    nodata_edges : bool, optional (default: True)
        Whether slanted edges of the two products cut the scene.
    discrepancies : bool, optional (default: True)
        Whether some of the planted objects differ between the two dates; else both sensors see all of
        them, in the same places.

    Raises
    ------
    SettingsError
        For a size, shift, seed or ground sample distance that is not allowed.
    PolarisationError
        For unknown, repeated or no polarisations.
    """

    size: int | tuple[int, int] = 2048
    seed: int = 1
    polarisations: tuple[str, ...] = field(default=("VH",))
    shift: tuple[float, ...] = (0.0, 0.0)
    gsd_m: float = 10.0
    nodata_edges: bool = True
    discrepancies: bool = True

    def __post_init__(self) -> None:
        shape = self.shape
        if len(shape) != 2 or not all(MIN_SIZE <= n <= MAX_SIZE for n in shape):
            raise SettingsError(
                f"size={self.size}: rows and columns must be from {MIN_SIZE} to {MAX_SIZE} pixels"
            )
        if self.seed < 0:
            raise SettingsError(f"seed={self.seed}: must not be negative")
        if len(self.shift) != 2 or not all(math.isfinite(s) and abs(s) <= MAX_SHIFT for s in self.shift):
            raise SettingsError(
                f"shift={self.shift}: must be two numbers, rows and columns, of at most {MAX_SHIFT:g} pixels"
            )
        if not MIN_GSD_M <= self.gsd_m <= MAX_GSD_M:
            raise SettingsError(f"gsd_m={self.gsd_m}: must be from {MIN_GSD_M:g} to {MAX_GSD_M:g} metres")
        known = set(self.polarisations) <= set(POLARISATIONS)
        if not self.polarisations or not known or len(set(self.polarisations)) < len(self.polarisations):
            raise PolarisationError(
                f"polarisations={self.polarisations}: must be some of {', '.join(POLARISATIONS)}, each once"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns with the margin."""
        return self.shape[0] + 2 * MARGIN, self.shape[1] + 2 * MARGIN

    def pixels(self, metres: float) -> float:
        """Return a length on the ground in pixels."""
        return metres / self.gsd_m
