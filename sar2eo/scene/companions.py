"""Whether the files of one scene, one for each polarisation, belong together."""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta

from sar2eo.errors import Sar2eoWarning, SceneError
from sar2eo.scene.handles import shown
from sar2eo.scene.raster import Raster

__all__ = ["check_companions"]

_ONE_DAY = timedelta(days=1)


def check_companions(first: Raster, other: Raster) -> None:
    """Refuse two files that cannot be polarisations of one scene, by what their headers say.

    Raises
    ------
    SceneError
        If they lie on different grids, hold different quantities, or are calibrated in different ways.

    Warns
    -----
    Sar2eoWarning
        If they were acquired a day or more apart.
    """
    names = f"{shown(first.path)} and {shown(other.path)}"
    _check_place(first, other, names)
    a, b = first.facts, other.facts
    if (first.kind, a.quantity) != (other.kind, b.quantity):
        raise SceneError(
            f"{names} hold different quantities ({a.quantity or first.kind}, {b.quantity or other.kind})"
        )
    if a.calibration and b.calibration and a.calibration != b.calibration:
        raise SceneError(
            f"{names} are calibrated to {a.calibration} and {b.calibration}: the polarisations of a scene "
            "must be alike"
        )
    if a.datetime and b.datetime:
        apart = datetime.fromisoformat(a.datetime) - datetime.fromisoformat(b.datetime)
        if abs(apart) >= _ONE_DAY:
            # Not refused: what a file calls its date may be that of processing.
            warnings.warn(
                f"{names} are of {a.datetime} and {b.datetime}, and taken for one scene, of the first: is "
                "one of another acquisition?",
                Sar2eoWarning,
                stacklevel=2,
            )


def _check_place(first: Raster, other: Raster, names: str) -> None:
    a, b = first.grid, other.grid
    drift = max(abs(p - q) for p, q in zip(a.transform, b.transform, strict=True))
    pixel = max(abs(a.transform[0]), abs(a.transform[1]))
    same_points = first.ground_control == other.ground_control
    if a.crs != b.crs or a.shape != b.shape or drift > 1e-3 * pixel or not same_points:
        raise SceneError(
            f"{names} are not on one grid ({a.crs}, {a.shape}, corner "
            f"{a.transform[2]:.10g} {a.transform[5]:.10g}; {b.crs}, {b.shape}, corner "
            f"{b.transform[2]:.10g} {b.transform[5]:.10g}): resample one of them first"
        )
