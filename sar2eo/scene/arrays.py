"""Arrays that did not come from `open_scene`, or were changed since, made fit to be translated."""

from __future__ import annotations

from math import isnan

import numpy as np
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr

from sar2eo.errors import RadiometryError, SceneError, SettingsError
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
        NaN where the array declares nodata (``scene.rio.nodata``), the amplitude of complex samples, and
        all bands in one chunk. What a reader is under is returned as it is.

    Raises
    ------
    RadiometryError
        If the quantity is missing or unknown, or complex samples are not said to be amplitude.
    SceneError
        If attrs["datetime"] is no time.
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
    return scene if reader_of(scene) is not None else _values(scene, str(quantity))


def _values(scene: xr.DataArray, quantity: str) -> xr.DataArray:
    nodata = scene.rio.nodata
    if nodata is not None and not isnan(nodata):
        if scene.dtype.kind == "f":  # as the values have it: 32 bits know no -3.4e38 of 64
            nodata = np.asarray(nodata).astype(scene.dtype)
        scene = scene.where(scene != nodata)
    if scene.dtype.kind == "c":
        if quantity != "amplitude":
            raise RadiometryError(
                f"complex samples, and attrs['quantity']={quantity!r}: their magnitude is amplitude"
            )
        scene = scene.copy(data=abs(scene.data))
    return scene if scene.chunks is None or len(scene.chunks[0]) == 1 else scene.chunk(band=-1)
