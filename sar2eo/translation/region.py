"""Regions of scenes: bounding boxes, pixel windows and areas of interest.

A region is cut out of the scene before translating; the slice keeps its place in the whole. The polygons of
an area of interest further mask the result, and blocks outside of them are never computed. They are
rasterised once, so that thousands cost little.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from sar2eo.errors import SceneError, SettingsError
from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.geo.windows import Window
from sar2eo.model.spec import ModelSpec
from sar2eo.scenes import find_reader, open_scene
from sar2eo.scenes.gdal import check_readable
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.sources import read_vectors
from sar2eo.settings import RegionSettings, TranslateRecipe
from sar2eo.translation.dataset import translate

# Blocks of the journal: wide, so that there are few tasks, but not so wide that memory follows the scene.
_BLOCK = (512, 2048)

_PARTS = 1000  # segments along the longest side of a grid: an area's edges are densified before reprojection
_SMALL_AREA = 1 << 24  # pixels: smaller areas may lie between pixel centres
_GRID_SAMPLES = 33  # along either axis of a grid
_POLE = 90 + 1e-6
_MARGIN = 0.25  # around a grid, as a fraction of its sides


FINGERPRINT = "fingerprint"
"""The tag of a COG that holds the fingerprint of its `Region`, as JSON."""

# Where and how fast a model ran: results of two machines belong to one archive.
_FREE = ("device", "batch", "compile", "threads", "torch", "diffusers")


class Region(NamedTuple):
    """The part of a scene that a recipe translates, opened but not read.

    `scene` is the DataArray, `area` the area of interest in the scene's CRS (or None), `fingerprint` what
    distinguishes its result from others (`fingerprint_result`).
    """

    scene: xr.DataArray
    area: Any
    fingerprint: dict[str, Any]


def open_region(source: str, recipe: TranslateRecipe, spec: ModelSpec) -> Region:
    """Open a scene and cut out the region of a recipe; no pixels are read."""
    options = dataclasses.asdict(recipe.scene)
    whole = open_scene(source, **options | {"force": recipe.scene.force or recipe.settings.force})
    scene, area = cut_region(whole, decode_attributes(whole)["scene_grid"], recipe.region)
    return Region(scene, area, fingerprint_result(scene, area, recipe, spec))


def fingerprint_result(
    scene: xr.DataArray, area: Any, recipe: TranslateRecipe, spec: ModelSpec
) -> dict[str, Any]:
    """Return what distinguishes a finished result from those of other settings or input, as JSON values.

    `scene` is the opened slice, `area` the shapely geometry outside of which pixels are masked, or None. Of
    the model, neither the machine nor versions of libraries count.
    """
    read = find_reader(scene)
    assert read is not None  # noqa: S101  (of a scene just opened)
    settings, attrs = recipe.settings, scene.attrs
    return {
        "input": read[0].identity(),
        "scene": {name: attrs.get(name) for name in ("quantity", "calibration", "datetime")},
        "region": [list(read[1]), None if area is None else hashlib.sha256(area.wkb).hexdigest()[:20]],
        "model": {name: value for name, value in spec.fingerprint().items() if name not in _FREE},
        "settings": {name: getattr(settings, name) for name in ("tile", "overlap", "scaling")},
        "compress": recipe.compress,
    }


def translate_region(region: Region, recipe: TranslateRecipe, spec: ModelSpec) -> xr.Dataset:
    """Translate a region lazily, and mask the result outside of the area of interest."""
    dataset = translate(region.scene, spec, settings=recipe.settings, block=_BLOCK)
    return (
        dataset if region.area is None else clip_to(dataset, region.area, decode_attributes(dataset)["grid"])
    )


def cut_region(scene: xr.DataArray, grid: Grid, region: RegionSettings) -> tuple[xr.DataArray, Any]:
    """Cut a region out of a whole scene with dims (band, y, x).

    Returns
    -------
    tuple
        The slice, and the area of interest (a shapely geometry in the CRS of the grid) or None.

    Raises
    ------
    SettingsError
        If the region does not touch the scene.
    """
    from pyproj.exceptions import CRSError

    area = None
    if region.aoi is not None:
        import shapely

        area = _crop(read_area(Path(region.aoi), grid), shapely.box(*grid.bounds))
        if not area.area:
            raise SettingsError(f"--aoi {region.aoi}: none of its polygons touches the scene")
        window = grid.window_of(area.bounds)
        if (
            window.height * window.width <= _SMALL_AREA
            and not _rasterise(shapely.get_parts(area), grid.crop(window)).any()
        ):
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
    """Read the polygons of a file as one shapely geometry in the CRS of a grid; they may overlap."""
    import shapely
    from pyproj import Transformer

    try:
        check_readable(str(path))
        table = read_vectors(path)
    except (SceneError, SettingsError) as error:
        raise SettingsError(f"--aoi {error}") from error
    area = _collect(table.geometry.dropna())
    if area.is_empty:
        raise SettingsError(f"--aoi {path}: has no polygon")
    west, south, east, north = area.bounds
    nowhere = table.crs.is_geographic and not -_POLE <= south <= north <= _POLE
    nowhere |= not np.isfinite([west, south, east, north]).all()
    if table.crs != grid.pyproj_crs:
        area = area if nowhere else _crop_around(area, table.crs, grid)
        to_grid = Transformer.from_crs(table.crs, grid.pyproj_crs, always_xy=True)
        area = shapely.transform(area, lambda xy: np.column_stack(to_grid.transform(xy[:, 0], xy[:, 1])))
    if nowhere or not np.isfinite(shapely.get_coordinates(area)).all():
        raise SettingsError(
            f"--aoi {path}: has no place in {grid.crs}; its CRS is {table.crs.to_string()} (GeoJSON is in "
            "degrees, longitude before latitude)"
        )
    area = _collect(area)
    return _wrap_longitudes(area, shapely.box(*grid.bounds)) if grid.pyproj_crs.is_geographic else area


def _collect(geometries: Any) -> Any:
    """Return all parts with an area as one geometry, not joined: of thousands that takes minutes."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(geometries))
    broken = np.isfinite(shapely.bounds(parts)).all(axis=-1) & ~shapely.is_valid(parts)
    if broken.any():
        mended = shapely.get_parts(shapely.get_parts(shapely.make_valid(parts[broken])))
        parts = np.concatenate([parts[~broken], mended])
    parts = parts[(shapely.get_dimensions(parts) == 2) & (shapely.area(parts) != 0)]
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def _crop(area: Any, frame: Any) -> Any:
    """Return the parts of an area inside of a rectangle; those across its edge are cut."""
    import shapely

    parts = shapely.get_parts(area)
    parts = parts[shapely.intersects(parts, frame)]
    across = ~shapely.covers(frame, parts)
    parts[across] = shapely.intersection(parts[across], frame)
    return _collect(parts)


def _wrap_longitudes(area: Any, frame: Any) -> Any:
    """Return the part of an area in degrees inside a frame, after shifts by whole turns of longitude."""
    from shapely.affinity import translate

    (west, _, east, _), (left, _, right, _) = area.bounds, frame.bounds
    turns = [turn for turn in (-360.0, 0.0, 360.0) if west + turn < right and left < east + turn]
    return _collect([_crop(translate(area, xoff=turn) if turn else area, frame) for turn in turns])


def _crop_around(area: Any, crs: Any, grid: Grid) -> Any:
    """Return the part of an area around a grid, in the area's CRS: half a world folds when projected."""
    import shapely
    from pyproj import Transformer

    # Over all of the grid, not along its edge: a pole may be inside.
    rows, cols = np.meshgrid(*(np.linspace(0, n, _GRID_SAMPLES) for n in grid.shape), indexing="ij")
    a, b, c, d, e, f = grid.transform
    to_area = Transformer.from_crs(grid.pyproj_crs, crs, always_xy=True)
    x, y = to_area.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    middle = x[_GRID_SAMPLES // 2, _GRID_SAMPLES // 2]
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
    near = _wrap_longitudes(area, frame) if crs.is_geographic else _crop(area, frame)
    # A straight line in one CRS is a curve in another.
    return shapely.segmentize(near, max(east - west, north - south) / _PARTS)


def clip_to(dataset: xr.Dataset, area: Any, grid: Grid) -> xr.Dataset:
    """Mask a translated Dataset outside of an area, lazily.

    A pixel is inside if its centre is. Outside ``eo`` is 0, ``valid`` False and the others NaN. `area` is a
    shapely geometry in the CRS of `grid`, which is that of the Dataset.
    """
    fills = {"eo": 0, "valid": False, "confidence": np.nan, "spread": np.nan}
    masks = _mask_blocks(area, grid, *dataset["eo"].data.chunks[-2:])
    token = tokenize(masks)
    clipped = {
        name: dataset[name].copy(data=_clip(dataset[name].data, masks, token, fill))
        for name, fill in fills.items()
        if name in dataset
    }
    return dataset.assign(clipped)


def _mask_blocks(
    area: Any, grid: Grid, rows: tuple[int, ...], cols: tuple[int, ...]
) -> dict[tuple[int, int], bytes]:
    """Rasterise an area once, by rows of blocks: the packed bits of the blocks that it meets."""
    import shapely

    parts = shapely.get_parts(area)
    tree = shapely.STRtree(parts)
    lefts, top, masks = np.cumsum((0, *cols)).tolist(), 0, {}
    for i, height in enumerate(rows):
        strip = grid.crop(Window(top, 0, height, grid.shape[1]))
        inside = _rasterise(parts[np.sort(tree.query(shapely.box(*strip.bounds)))], strip)
        for j, width in enumerate(cols):
            block = inside[:, lefts[j] : lefts[j] + width]
            if block.any():
                masks[i, j] = np.packbits(block).tobytes()
        top += height
    return masks


def _clip(array: da.Array, masks: Mapping[tuple[int, int], bytes], token: str, fill: Any) -> da.Array:
    name = f"clip-{tokenize(array.name, token)}"
    leading = array.shape[:-2]
    layer: dict[Any, Any] = {}
    for i, height in enumerate(array.chunks[-2]):
        for j, width in enumerate(array.chunks[-1]):
            at = (0,) * len(leading) + (i, j)
            if (i, j) in masks:
                layer[name, *at] = (_mask_block, (array.name, *at), masks[i, j], fill)
            else:
                layer[name, *at] = (np.full, [*leading, height, width], fill, str(array.dtype))
    below: Any = [array]
    graph = HighLevelGraph.from_collections(name, layer, dependencies=below)
    return da.Array(graph, name, array.chunks, dtype=array.dtype)


def _mask_block(block: npt.NDArray[Any], mask: bytes, fill: Any) -> npt.NDArray[Any]:
    shape = block.shape[-2:]
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=shape[0] * shape[1])
    return np.asarray(np.where(bits.reshape(shape) == 1, block, block.dtype.type(fill)))


def _rasterise(polygons: npt.NDArray[np.object_], place: Grid) -> npt.NDArray[np.uint8]:
    """Return 1 for the pixels of a grid whose centre is in one of the polygons, else 0."""
    from rasterio.features import rasterize

    inside = np.zeros(place.shape, np.uint8)
    if len(polygons):
        with ignore_missing_georeference():
            rasterize(polygons, out=inside, transform=place.affine)
    return inside
