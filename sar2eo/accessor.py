"""The accessor ``.sar2eo`` of xarray objects: the package's functions as methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

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
    """``eo.sar2eo``: methods of a translated Dataset, returned by `sar2eo.translate`."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def write_cog(self, path: str | Path, **options: Any) -> dict[str, Any]:
        """Compute and write the Dataset: `sar2eo.write_cog`."""
        return write_cog(self._dataset, path, **options)
