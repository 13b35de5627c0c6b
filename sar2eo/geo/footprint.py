"""Footprints: the outline of valid pixels, in the CRS of a grid and in longitude and latitude."""

from __future__ import annotations

from typing import Any

import antimeridian
import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine
from pyproj import Transformer
from shapely.geometry import MultiPolygon, Polygon, shape
from shapely.geometry.polygon import orient

from sar2eo.errors import GeoreferenceError
from sar2eo.geo.grid import Grid, ignore_missing_georeference

# Straight edges of a projected footprint are curves on the globe: points along the longer side, at least.
_POINTS_PER_SIDE = 20


def trace_footprint(valid: npt.NDArray[np.bool_], grid: Grid, smallest: int = 16) -> Polygon | MultiPolygon:
    """Outline the valid pixels of a scene, to about one pixel of `valid`; empty where nothing is valid.

    `valid` is bool, shape (row, col), over the extent of `grid`, usually decimated. Holes and islands of
    fewer than `smallest` pixels are left out; the largest island never is. The outline is in the grid's CRS.
    """
    cell = Affine.scale(grid.shape[1] / valid.shape[1], grid.shape[0] / valid.shape[0])
    # In pixels of `valid` first, so that sizes are counted in pixels whatever the CRS is.
    with ignore_missing_georeference():
        outlines = list(rasterio.features.shapes(valid.astype(np.uint8), mask=valid, connectivity=4))
    islands = [shape(outline) for outline, _ in outlines]
    if not islands:
        return Polygon()
    largest = max(island.area for island in islands)
    kept = [
        Polygon(island.exterior, [ring for ring in island.interiors if Polygon(ring).area >= smallest])
        for island in islands
        if island.area >= min(smallest, largest)
    ]
    simple = shapely.make_valid(shapely.union_all(kept).simplify(0.75, preserve_topology=True))
    placed = shapely.transform(
        simple, lambda xy: np.column_stack((grid.affine @ cell) @ (xy[:, 0], xy[:, 1]))
    )
    return _multipolygon(placed)


def to_lonlat(area: Polygon | MultiPolygon, crs: Any) -> Polygon | MultiPolygon:
    """Transform a polygon to longitude and latitude (WGS 84), as GeoJSON wants it.

    It is split at the antimeridian, closed over a pole that it contains, and has exterior rings
    counter-clockwise (RFC 7946, sections 3.1.6 and 3.1.9). Raises `GeoreferenceError` if part of it has no
    longitude and latitude.
    """
    to_wgs84 = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    parts: list[Any] = []
    for polygon in _polygons(area):
        west, south, east, north = polygon.bounds
        dense = polygon.segmentize(max(east - west, north - south) / _POINTS_PER_SIDE)
        whole = _transform_ring(dense.exterior, to_wgs84)
        for ring in dense.interiors:
            whole = whole.difference(_transform_ring(ring, to_wgs84))
        parts.append(whole)
    return _multipolygon(shapely.union_all(parts))


def _transform_ring(ring: Any, to_wgs84: Transformer) -> Any:
    """Return the inside of a ring in longitude and latitude: split at 180 degrees, closed over a pole."""
    lonlat = shapely.transform(
        orient(Polygon(ring)), lambda xy: np.column_stack(to_wgs84.transform(xy[:, 0], xy[:, 1]))
    )
    if not np.isfinite(shapely.get_coordinates(lonlat)).all():
        raise GeoreferenceError("part of the scene has no longitude and latitude: is its CRS right?")
    return shapely.make_valid(antimeridian.fix_polygon(lonlat, fix_winding=True, great_circle=False))


def lonlat_bounds(area: Polygon | MultiPolygon) -> tuple[float, float, float, float]:
    """Return west, south, east, north of an area in longitude and latitude.

    West is larger than east where the area touches the antimeridian from both sides and does not hold all
    longitudes (RFC 7946, section 5.2). `antimeridian.bbox` leaves out parts of areas that consist of many.
    """
    west, south, east, north = area.bounds
    if west == -180 and east == 180:
        eastern = [p.bounds[0] for p in _polygons(area) if p.bounds[0] >= 0]
        western = [p.bounds[2] for p in _polygons(area) if p.bounds[2] <= 0]
        if len(eastern) + len(western) == len(_polygons(area)):
            west, east = min(eastern), max(western)
    return west, south, east, north


def _polygons(area: Any) -> list[Polygon]:
    return [part for part in shapely.get_parts(area, return_index=False) if part.geom_type == "Polygon"]


def _multipolygon(area: Any) -> Polygon | MultiPolygon:
    """Keep the parts that have an area, with exterior rings counter-clockwise."""
    flat = shapely.get_parts(shapely.get_parts(area))
    polygons = [orient(part) for part in flat if part.geom_type == "Polygon" and part.area > 0]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons) if polygons else Polygon()
