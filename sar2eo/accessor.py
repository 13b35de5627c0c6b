"""The accessor ``.sar2eo`` of xarray objects: the package's functions as methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from rioxarray.raster_array import RasterArray

from sar2eo.geo.grid import Grid
from sar2eo.model.folder import BUNDLED
from sar2eo.model.spec import ModelSpec
from sar2eo.translation.dataset import find_place, translate
from sar2eo.translation.writer import write_cog


@xr.register_dataarray_accessor("sar2eo")
class SceneAccessor:
    """``scene.sar2eo``: methods of a SAR scene, opened by `sar2eo.open_scene`."""

    def __init__(self, scene: xr.DataArray) -> None:
        self._scene = scene

    @property
    def grid(self) -> Grid:
        """The grid of this array, also of a slice."""
        whole, window = find_place(self._scene)
        return whole.crop(window)

    def translate(self, model: str | Path | ModelSpec = BUNDLED, **options: Any) -> xr.Dataset:
        """Translate the scene: `sar2eo.translate`."""
        return translate(self._scene, model, **options)


@xr.register_dataset_accessor("sar2eo")
class DatasetAccessor:
    """``eo.sar2eo``: methods of a translated Dataset, or of one of a scene's polarisations."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def translate(self, model: str | Path | ModelSpec = BUNDLED, **options: Any) -> xr.Dataset:
        """Translate a scene whose polarisations are variables: `sar2eo.translate`."""
        return translate(self._dataset, model, **options)

    def write_cog(self, path: str | Path, **options: Any) -> dict[str, Any]:
        """Compute and write the Dataset: `sar2eo.write_cog`."""
        return write_cog(self._dataset, path, **options)


def _reproject(raster: Any, *args: Any, _warp: Any = RasterArray.reproject, **options: Any) -> xr.DataArray:
    """Warp an array as rioxarray does, and one of truth values, such as ``eo.valid``, as bytes."""
    array = raster._obj
    if array.dtype != bool:
        return _warp(raster, *args, **options)  # type: ignore[no-any-return]
    bytes_ = array.astype("uint8").rio.write_nodata(0).rio.reproject(*args, **options)
    return bytes_.astype(bool).drop_attrs(deep=False).assign_attrs(array.attrs)  # type: ignore[no-any-return]


# It fails on truth values, and so would ``eo.rio.reproject``.
RasterArray.reproject = _reproject  # type: ignore[assignment, method-assign]
