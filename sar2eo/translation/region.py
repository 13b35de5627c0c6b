"""Parts of scenes: bounds, windows and areas of interest.

A part is cut out of the scene before translating (the slice keeps its place in the whole); polygons
further mask the result, and blocks that lie outside of them are never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from sar2eo.errors import SettingsError
from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.geo.windows import Window
from sar2eo.scenes.sources import read_vectors
from sar2eo.settings import RegionSettings

__all__ = ["clip_to", "cut", "read_area"]

_PARTS = 1000  # of the longest side of a grid: of these lengths, an area's edges are brought to another CRS
_LOOKED_AT = 1 << 24  # pixels around an area that may lie between their centres
_LOOKS = 33  # along either axis of a grid
_POLE = 90 + 1e-6
_MARGIN = 0.25  # around a grid, of its own sides


def cut(scene: xr.DataArray, grid: Grid, region: RegionSettings) -> tuple[xr.DataArray, Any]:
    """Cut a region out of a whole scene.

    Parameters
    ----------
    scene : DataArray, dims (band, y, x)
        A whole scene.
    grid : Grid
        Its grid.
    region : RegionSettings
        What to cut.

    Returns
    -------
    tuple
        The slice, and the area of interest in the CRS of the grid, or None.

    Raises
    ------
    SettingsError
        If the region does not touch the scene.
    """
    from pyproj.exceptions import CRSError

    area = None
    if region.aoi is not None:
        import shapely

        inside = shapely.intersection(read_area(Path(region.aoi), grid), shapely.box(*grid.bounds))
        area = _polygons([inside])
        if not area.area:
            raise SettingsError(f"--aoi {region.aoi}: none of its polygons touches the scene")
        window = grid.window_of(area.bounds)
        if window.height * window.width <= _LOOKED_AT and _outside(area, grid.crop(window)).all():
            raise SettingsError(
                f"--aoi {region.aoi}: no pixel has its centre in the polygons, which are smaller "
                "than pixels or thinner"
            )
    elif region.bbox is not None:
        west, south, east, north = region.bbox
        try:
            window = grid.window_of((west, south, east, north), region.bbox_crs)
        except CRSError as error:
            raise SettingsError(
                f"bbox_crs={region.bbox_crs!r}: not a CRS, or bbox {region.bbox} is not in its range"
            ) from error
    elif region.window is not None:
        asked = Window(*region.window)
        found = asked.intersection(grid.window)
        if found is None or found != asked:
            raise SettingsError(
                f"window={tuple(asked)}: must be row, column, height, width inside of the scene, "
                f"which has {grid.shape[0]} rows and {grid.shape[1]} columns"
            )
        window = asked
    else:
        return scene, None
    rows, cols = window.slices
    return scene.isel(y=rows, x=cols), area


def read_area(path: Path, grid: Grid) -> Any:
    """Read the polygons of a file as one shapely geometry in the CRS of a grid.

    Raises
    ------
    SettingsError
        If the file cannot be read, or holds no polygon.
    """
    import shapely
    from pyproj import Transformer

    try:
        table = read_vectors(path)
    except SettingsError as error:
        raise SettingsError(f"--aoi {error}") from error
    members = shapely.get_parts(shapely.get_parts(table.geometry.dropna()))  # of collections, too
    parts = [p for p in members if p.geom_type in ("Polygon", "MultiPolygon") and not p.is_empty]
    if not parts:
        raise SettingsError(f"--aoi {path}: holds no polygon")
    area = _polygons([shapely.make_valid(part) for part in parts])
    _, south, _, north = area.bounds
    nowhere = table.crs.is_geographic and not -_POLE <= south <= north <= _POLE
    if table.crs != grid.pyproj_crs:
        area = area if nowhere else _around(area, table.crs, grid)
        to_grid = Transformer.from_crs(table.crs, grid.pyproj_crs, always_xy=True)
        area = shapely.transform(area, lambda xy: np.column_stack(to_grid.transform(xy[:, 0], xy[:, 1])))
    if nowhere or not np.isfinite(shapely.get_coordinates(area)).all():
        raise SettingsError(
            f"--aoi {path}: has no place in {grid.crs}; its CRS is {table.crs.to_string()} (GeoJSON is in "
            "degrees, longitude before latitude)"
        )
    area = _polygons([shapely.make_valid(area)])
    return _turned(area, shapely.box(*grid.bounds)) if grid.pyproj_crs.is_geographic else area


def _polygons(geometries: Sequence[Any]) -> Any:
    """Return the union of what has an area: where polygons only touch, lines are left."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(geometries))
    return shapely.union_all(parts[shapely.area(parts) > 0])


def _turned(area: Any, frame: Any) -> Any:
    """Return what of an area in degrees lies in a frame, its longitudes moved by whole turns."""
    import shapely
    from shapely.affinity import translate

    moved = [translate(area, xoff=360.0 * turn) for turn in (-1, 0, 1)]
    return _polygons(shapely.intersection(moved, frame))


def _around(area: Any, crs: Any, grid: Grid) -> Any:
    """Return what of an area lies around a grid, still in its own CRS: half a world folds when projected."""
    import shapely
    from pyproj import Transformer

    # Over all of the grid, not along its edge: a pole may be inside.
    rows, cols = np.meshgrid(*(np.linspace(0, n, _LOOKS) for n in grid.shape), indexing="ij")
    a, b, c, d, e, f = grid.transform
    to_area = Transformer.from_crs(grid.pyproj_crs, crs, always_xy=True)
    x, y = to_area.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    middle = x[_LOOKS // 2, _LOOKS // 2]
    if crs.is_geographic:
        x = middle + (x - middle + 180) % 360 - 180
    seen = np.isfinite(x) & np.isfinite(y)
    if not (seen.any() and np.isfinite(middle)):
        return area
    west, east, south, north = x[seen].min(), x[seen].max(), y[seen].min(), y[seen].max()
    width, height = _MARGIN * (east - west), _MARGIN * (north - south)
    if crs.is_geographic:
        west, east = max(west, middle - 180 + width), min(east, middle + 180 - width)
    frame = shapely.box(west - width, south - height, east + width, north + height)
    near = _turned(area, frame) if crs.is_geographic else _polygons([shapely.intersection(area, frame)])
    # What is straight in one CRS is a curve in another.
    return shapely.segmentize(near, max(east - west, north - south) / _PARTS)


def clip_to(dataset: xr.Dataset, area: Any, grid: Grid) -> xr.Dataset:
    """Mask a translated Dataset outside of an area.

    Parameters
    ----------
    dataset : Dataset
        As `sar2eo.translate` returns it, on `grid`.
    area : shapely geometry
        In the CRS of the grid. A pixel is inside if its centre is.
    grid : Grid
        Of the Dataset.

    Returns
    -------
    Dataset
        The same variables; where outside, ``eo`` is 0, ``valid`` False and the others NaN.
    """
    fills = {"eo": 0, "valid": False, "confidence": np.nan, "spread": np.nan}
    clipped = {
        name: (dataset[name].dims, _clip(dataset[name].data, area, grid, fill))
        for name, fill in fills.items()
        if name in dataset
    }
    return dataset.assign(clipped)


def _clip(array: da.Array, area: Any, grid: Grid, fill: Any) -> da.Array:
    import shapely

    shapely.prepare(area)
    name = f"clip-{tokenize(array.name, shapely.to_wkb(area))}"
    rows, cols = array.chunks[-2:]
    tops, lefts = np.cumsum((0, *rows)).tolist(), np.cumsum((0, *cols)).tolist()
    leading = array.shape[:-2]
    layer: dict[Any, Any] = {}
    for i, height in enumerate(rows):
        for j, width in enumerate(cols):
            at = (0,) * len(leading) + (i, j)
            place = grid.crop(Window(tops[i], lefts[j], height, width))
            if shapely.intersects(area, shapely.box(*place.bounds)):
                layer[name, *at] = (_masked, (array.name, *at), area, place, fill)
            else:
                layer[name, *at] = (np.full, [*leading, height, width], fill, str(array.dtype))
    below: Any = [array]
    graph = HighLevelGraph.from_collections(name, layer, dependencies=below)
    return da.Array(graph, name, array.chunks, dtype=array.dtype)


def _masked(block: npt.NDArray[Any], area: Any, place: Grid, fill: Any) -> npt.NDArray[Any]:
    masked: npt.NDArray[Any] = np.where(_outside(area, place), block.dtype.type(fill), block)
    return masked


def _outside(area: Any, place: Grid) -> npt.NDArray[np.bool_]:
    """Return which pixels of a grid have their centre outside of an area."""
    from rasterio.features import geometry_mask

    with ignore_missing_georeference():
        outside: npt.NDArray[np.bool_] = geometry_mask([area], place.shape, place.affine)
    return outside
