"""CRS, transform and shape as one frozen value: every stage says "same grid" by ``==``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sar2eo.errors import GeoreferenceError, SettingsError
from sar2eo.geo.windows import Window

if TYPE_CHECKING:
    from affine import Affine
    from pyproj import CRS

_ROUNDING = 1e-3  # pixels


_filters = threading.RLock()


@dataclass(frozen=True)
class Grid:
    """Place and shape of a raster on Earth, without pixels.

    Parameters
    ----------
    crs : str or None
        ``AUTHORITY:CODE`` where there is one, else WKT. None: not georeferenced.
    transform : tuple of float
        Affine coefficients a, b, c, d, e, f: ``x = a col + b row + c``, ``y = d col + e row + f``, of pixel
        corners.
    shape : tuple of int
        Rows and columns.
    """

    crs: str | None
    transform: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]

    @classmethod
    def create(cls, crs: Any, transform: Affine, shape: tuple[int, int]) -> Grid:
        """Make a grid from anything pyproj reads as a CRS, an affine transform and a shape.

        A rotation of less than a thousandth of a pixel over the whole grid is rounding, and dropped.

        Raises
        ------
        GeoreferenceError
            If the CRS cannot be read, or the transform gives pixels no place or no area.
        """
        numbers = _without_rounding(tuple(map(float, transform[:6])), shape)
        grid = cls(_crs_name(crs), numbers, (int(shape[0]), int(shape[1])))  # type: ignore[arg-type]
        _check_transform(grid.affine, shape)
        return grid

    @cached_property
    def affine(self) -> Affine:
        """The transform as an `affine.Affine`."""
        from affine import Affine

        return Affine(*self.transform)

    @cached_property
    def pyproj_crs(self) -> CRS:
        """The CRS as pyproj has it; a `GeoreferenceError` where there is none."""
        from pyproj import CRS

        if self.crs is None:
            raise GeoreferenceError("this needs a georeferenced scene, and this one has no CRS")
        return CRS.from_user_input(self.crs)

    @property
    def north_up(self) -> bool:
        """Whether rows run south and columns east, without rotation."""
        a, b, _, d, e, _ = self.transform
        return b == 0 and d == 0 and a > 0 and e < 0

    @property
    def window(self) -> Window:
        """The whole grid as a window."""
        return Window(0, 0, *self.shape)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north of all four corners, in the units of the CRS."""
        rows, cols = self.shape
        corners = [self.affine @ at for at in ((0, 0), (cols, 0), (0, rows), (cols, rows))]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def crop(self, window: Window) -> Grid:
        """Return the grid of one window of this one."""
        from affine import Affine

        transform = self.affine @ Affine.translation(window.col, window.row)
        return Grid(self.crs, transform[:6], (window.height, window.width))

    def ground_sample_distance_m(self) -> tuple[float, float]:
        """Measure the central pixel on the ellipsoid: metres along a row, and along a column.

        A "10 m" pixel of EPSG:3395 at 34 degrees north is 8.3 m.
        """
        from pyproj import Geod, Transformer

        row, col = self.shape[0] / 2, self.shape[1] / 2
        to_lonlat = Transformer.from_crs(self.pyproj_crs, "EPSG:4326", always_xy=True)
        at = [self.affine @ xy for xy in ((col, row), (col + 1, row), (col, row + 1))]
        lon, lat = to_lonlat.transform([x for x, _ in at], [y for _, y in at])
        geod = Geod(ellps="WGS84")
        _, _, along = geod.inv([lon[0]] * 2, [lat[0]] * 2, list(lon[1:]), list(lat[1:]))
        return float(along[0]), float(along[1])

    def window_of(self, bounds: tuple[float, float, float, float], crs: Any = None) -> Window:
        """Return the window of all pixels that `bounds` touches, clipped to the grid.

        Parameters
        ----------
        bounds : tuple of float
            West, south, east, north. In degrees west may be above east: across the antimeridian. A grid of
            degrees may count them from -180 or from 0.
        crs : optional
            CRS of `bounds`, anything pyproj reads; by default that of the grid.

        Raises
        ------
        SettingsError
            If the bounds are empty or lie outside of the grid.
        """
        from math import ceil, floor, isfinite

        from pyproj import CRS, Transformer

        west, south, east, north = bounds
        source = None if crs is None else CRS.from_user_input(crs)
        # Wider than half a turn: west and east are rather in the wrong order.
        across = source is not None and source.is_geographic and west - east > 180
        if not ((west < east or across) and south < north):
            raise SettingsError(f"bounds {bounds} are empty: the order is west, south, east, north")
        if source is not None:
            to_grid = Transformer.from_crs(source, self.pyproj_crs, always_xy=True)
            east += 360.0 * across
            west, south, east, north = to_grid.transform_bounds(west, south, east, north)
        if not all(map(isfinite, (west, south, east, north))):
            raise SettingsError(
                f"bounds {bounds} have no place in {self.crs}: the order is west, south, east, north, and "
                "degrees are longitude before latitude"
            )
        if source is not None and self.pyproj_crs.is_geographic:
            west, east = self._turn(west, east)
        to_pixel = ~self.affine
        corners = [to_pixel @ xy for xy in ((west, south), (west, north), (east, south), (east, north))]
        cols, rows = zip(*corners, strict=True)
        # A bound on a pixel edge must not reach into the next pixel by a rounding error.
        tolerance = 1e-6
        row, col = floor(min(rows) + tolerance), floor(min(cols) + tolerance)
        box = Window(row, col, ceil(max(rows) - tolerance) - row, ceil(max(cols) - tolerance) - col)
        found = self.window.intersection(box)
        if found is None:
            raise SettingsError(
                f"bounds {bounds} lie outside of the scene ({', '.join(f'{v:.6g}' for v in self.bounds)} "
                f"in {self.crs}): is the CRS of the bounds right?"
            )
        return found

    def _turn(self, west: float, east: float) -> tuple[float, float]:
        """Move longitudes by whole turns, so that east is above west and both are near the grid."""
        east += 360.0 * (east < west)
        left, _, right, _ = self.bounds
        turns = 360.0 * round(((left + right) - (west + east)) / 720.0)
        return west + turns, east + turns


def _check_transform(transform: Affine, shape: tuple[int, int]) -> None:
    """Refuse coefficients that are not finite, overflow, or have no inverse."""
    from math import isfinite

    a, b, c, d, e, f = map(float, transform[:6])
    far = abs(a * shape[1]) + abs(b * shape[0]) + abs(c), abs(d * shape[1]) + abs(e * shape[0]) + abs(f)
    flat = abs(a * e - b * d) <= 1e-12 * (abs(a * e) + abs(b * d))
    if flat or not all(map(isfinite, (*far, *(~transform)[:6]))):
        raise GeoreferenceError(
            f"geotransform {a:g}, {b:g}, {c:g}, {d:g}, {e:g}, {f:g} (a to f): must be finite numbers that "
            "give pixels a width and a height"
        )


def _without_rounding(numbers: tuple[float, ...], shape: tuple[int, int]) -> tuple[float, ...]:
    a, b, c, d, e, f = numbers
    aligned = abs(b) * shape[0] < _ROUNDING * abs(a) and abs(d) * shape[1] < _ROUNDING * abs(e)
    return (a, 0.0, c, 0.0, e, f) if aligned else numbers


def _crs_name(crs: Any) -> str | None:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    if crs is None or crs == "":
        return None
    try:
        read = CRS.from_user_input(crs.to_wkt() if hasattr(crs, "to_wkt") else crs)
    except CRSError as error:
        raise GeoreferenceError(f"crs={crs!r} is not a CRS: give EPSG:4326, WKT or PROJ text") from error
    authority = read.to_authority(min_confidence=100)
    return ":".join(authority) if authority else str(read.to_wkt())


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Silence rasterio's warnings about rasters without a georeference, in one thread at a time.

    Also around functions of `rasterio.features`, which silence the same warning about their own image in
    memory: warning filters belong to the process, not to a thread
    (https://docs.python.org/3.11/library/warnings.html#warnings.catch_warnings). Keep the block short.
    """
    # Imported here because it is slow, and some commands need no raster.
    from rasterio.errors import NotGeoreferencedWarning

    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
