"""What the values are: as the caller says, as the metadata say, or as the values leave no doubt."""

from __future__ import annotations

import numpy as np

from sar2eo.errors import RadiometryError
from sar2eo.radiometry import QUANTITIES, sample_windows
from sar2eo.scene.reader import FloatArray, SceneReader

__all__ = ["certain_quantity"]

_ASK = f"say what they are with --quantity {'|'.join(QUANTITIES)}"
_DB_RANGE = (-100.0, 60.0)
_FILL = 0.001


def certain_quantity(reader: SceneReader, kind: str, said: str | None, label: str) -> str:
    """Settle the quantity of a scene whose caller did not give it.

    Parameters
    ----------
    reader : SceneReader
        Of the pixels as they are stored (complex ones as their amplitude).
    kind : {"unsigned", "signed", "float", "complex"}
        What the pixels are stored as, after scale and offset.
    said : str or None
        The quantity according to the metadata.
    label : str
        Names the scene in messages.

    Returns
    -------
    str
        Unsigned integers are dn, complex samples amplitude. Other numbers are dB if most are
        negative and all lie within -100 to 60, and signed integers without a negative one are dn.

    Raises
    ------
    RadiometryError
        If it is not certain, or metadata and values contradict each other, or nodata was not declared.
    """
    if kind == "complex":
        return "amplitude"
    if kind == "unsigned":
        if said == "db":
            raise RadiometryError(
                f"{label}: named as dB, but stored as unsigned integers without GDAL scale and offset; {_ASK}"
            )
        return said or "dn"
    values = _sample(reader, label)
    # Undeclared fill is often exactly 0, and says nothing about the rest.
    telling = values[values != 0]
    low, high = (float(telling.min()), float(telling.max())) if telling.size else (0.0, 0.0)
    in_range = _DB_RANGE[0] <= low and high <= _DB_RANGE[1]
    looks_db = bool(telling.size) and in_range and float(np.mean(telling < 0)) > 0.5
    shown = f"{label}: values from {low:g} to {high:g}"
    if said is not None:
        if (said == "db" and not in_range) or (said != "db" and looks_db):
            raise RadiometryError(
                f"{shown} do not look like {said}, which the metadata say; {_nodata(low)}{_ASK}"
            )
        return _without_fill(said, values, label)
    if looks_db:
        return _without_fill("db", values, label)
    if kind == "signed" and low >= 0:
        return "dn"
    raise RadiometryError(f"{shown} may be amplitude or intensity; {_nodata(low)}{_ASK}")


def _without_fill(quantity: str, values: FloatArray, label: str) -> str:
    """Refuse dB with many values of exactly 0: as fill they would count as brighter than nearly all land."""
    share = float(np.mean(values == 0)) if quantity == "db" else 0.0
    if share > _FILL:
        raise RadiometryError(
            f"{label}: dB, and {share:.1%} of the values are exactly 0, brighter than nearly all land: "
            "if 0 means nodata, give --nodata 0, else --quantity db"
        )
    return quantity


def _nodata(low: float) -> str:
    return f"if {low:g} means nodata, give --nodata {low:g}; " if low < _DB_RANGE[0] else ""


def _sample(reader: SceneReader, label: str) -> FloatArray:
    """Read valid values of a few seeded windows at full resolution; of many while all is nodata."""
    for strata, size in ((4, 64), (32, 64)):
        blocks = [reader.read(w) for w in sample_windows(reader.grid.shape, strata=strata, size=size)]
        valid = np.concatenate([block[np.isfinite(block)] for block in blocks])
        if valid.size:
            return valid
    raise RadiometryError(f"{label}: no valid pixel found to tell the quantity from; {_ASK}")
