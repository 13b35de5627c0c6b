"""Attributes of scenes and results, as netCDF and Zarr can hold them, and back.

These formats know text, numbers and lists of them: what has parts becomes JSON, what is not known is left
out. So ``scene.to_netcdf(...)`` works, and the attributes of what it wrote still say all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from sar2eo.grid import Grid

__all__ = ["attributes_of", "to_attributes"]

_GRIDS = ("grid", "scene_grid")
_TRUTHS = ("terrain_corrected",)
_LISTS = ("polarisations",)  # netCDF gives one of a single item back as the item


def to_attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as attributes: text, numbers, and lists of them.

    Parameters
    ----------
    values : mapping
        Also `Grid`, mappings of JSON values, booleans; None is left out.
    """
    return {name: _stored(value) for name, value in values.items() if value is not None}


def attributes_of(array: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Return the attributes of a scene or a result as the values that `to_attributes` was given.

    Of other attributes, and of what users have put in place of ours, the values as they are.
    """
    return {str(name): _read(str(name), value) for name, value in array.attrs.items()}


def _stored(value: Any) -> Any:
    if isinstance(value, Grid):
        return json.dumps(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, bool):
        return int(value)
    return value


def _read(name: str, value: Any) -> Any:
    if name in _TRUTHS and value is not None:
        return bool(value)
    if name in _LISTS and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return value
    if name not in _GRIDS:
        return read
    return Grid(read["crs"], tuple(read["transform"]), tuple(read["shape"]))
