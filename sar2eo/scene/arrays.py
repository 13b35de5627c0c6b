"""Arrays that did not come from `open_scene`, or were changed since, made fit to be translated."""

from __future__ import annotations

from typing import Any

import numpy as np
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr

from sar2eo.errors import RadiometryError, SceneError, SettingsError, one_line
from sar2eo.radiometry import QUANTITIES
from sar2eo.scene.lazy import reader_of
from sar2eo.scene.metadata import iso_datetime

__all__ = ["settled"]


def settled(scene: xr.DataArray) -> xr.DataArray:
    """Check what an array says of itself, and bring its values into the form of `open_scene`.

    Parameters
    ----------
    scene : DataArray, dims (band, y, x)
        Of any type of number, with attrs["quantity"].

    Returns
    -------
    DataArray
        NaN where the array declares nodata (``scene.rio.nodata``), the amplitude of complex samples, values
        by the scale and offset that its attrs declare, and all bands in one chunk. What a reader is under
        keeps its values.

    Raises
    ------
    RadiometryError
        If the quantity is missing or unknown, or complex samples are not said to be amplitude.
    SceneError
        If attrs["datetime"] is no time, or scale and offset are no numbers or differ between bands.
    """
    quantity, acquired = scene.attrs.get("quantity"), scene.attrs.get("datetime")
    if quantity not in QUANTITIES:
        raise RadiometryError(
            f"the scene's attrs['quantity']={quantity!r}: set it to one of {', '.join(QUANTITIES)}"
        )
    try:
        known = acquired is None or (isinstance(acquired, str) and bool(iso_datetime(acquired)))
    except SettingsError:
        known = False
    if not known:
        raise SceneError(
            f"the scene's attrs['datetime']={acquired!r}: must be ISO 8601 text, as 2020-11-07T13:52:41Z"
        )
    scene = scene if reader_of(scene) is not None else _values(scene, str(quantity))
    return scene if scene.chunks is None or len(scene.chunks[0]) == 1 else scene.chunk(band=-1)


def _values(scene: xr.DataArray, quantity: str) -> xr.DataArray:
    nodata = _nodata(scene)
    if nodata is not None:
        scene = scene.where(scene != nodata)
    if scene.dtype.kind == "c":
        if quantity != "amplitude":
            raise RadiometryError(
                f"complex samples, and attrs['quantity']={quantity!r}: their magnitude is amplitude"
            )
        scene = scene.copy(data=abs(scene.data))
    return _unpacked(scene)


def _unpacked(scene: xr.DataArray) -> xr.DataArray:
    """Apply the scale and the offset that GDAL's metadata declare, as `open_scene` does.

    rioxarray leaves them as attributes where it does not apply them (``mask_and_scale=False``, its default).
    """
    if "scales" in scene.attrs or "offsets" in scene.attrs:
        raise SceneError(
            "the scene's bands differ in scale or offset, by its attrs: open it with mask_and_scale=True, or "
            "by sar2eo.open_scene"
        )
    try:
        scale = float(scene.attrs.get("scale_factor", 1))
        offset = float(scene.attrs.get("add_offset", 0))
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scene's scale or offset is no number: {one_line(error, 200)}") from error
    if (scale, offset) == (1.0, 0.0):
        return scene
    kept = {name: said for name, said in scene.attrs.items() if name not in ("scale_factor", "add_offset")}
    values: xr.DataArray = scene.astype(np.float64) * scale + offset
    return values.astype(np.float32).assign_attrs(kept)


def _nodata(scene: xr.DataArray) -> Any:
    """Return the value that an array declares to mean nothing, as its values would have it, or None."""
    try:
        found = scene.rio.nodata
        if found is None or np.isnan(found):
            return None
        with np.errstate(over="ignore"):  # 32 bits know no -1.8e308
            return np.asarray(found).astype(scene.dtype) if scene.dtype.kind in "fc" else found
    except OverflowError:  # of a type that the values no longer have: none of them is it
        return None
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scene's nodata is no number: {one_line(error, 200)}") from error
