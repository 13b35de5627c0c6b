"""Maps between the pixels of a source and places on the ground, which can be evaluated anywhere.

Rows and columns are those of pixel corners: the centre of the first pixel is (0.5, 0.5). Coordinates are
ndarrays of float64 of any equal shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Geod, Transformer

from sar2eo.errors import GeoreferenceError
from sar2eo.geo.grid import Grid
from sar2eo.scenes.identity import digest
from sar2eo.scenes.raster import GroundControl

Array = npt.NDArray[np.float64]

MIN_POINTS = 4
_MAX_POINTS = 2500
_FOLDS = 10
# How much more a CRS may stretch one distance than most of a scene: far more than where it stays whole.
_MAX_STRETCH = 100.0


_POINTS_AT_ONCE = 4096


class Mapping(Protocol):
    """Ground coordinates of one CRS to the pixels of a source, and back."""

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return rows and columns; not finite where there is no such pixel."""
        ...

    def ground(self, rows: Array, cols: Array) -> tuple[Array, Array]:
        """Return x and y, continuous over the whole source, also across the antimeridian."""
        ...

    def token(self) -> str:
        """Return a short text that differs where the maps differ."""
        ...


@dataclass(frozen=True)
class AffineMapping:
    """The map of a source with a CRS and an affine transform."""

    source: Grid  # of the source
    crs: str  # CRS of the ground coordinates

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return rows and columns; see `Mapping`."""
        sx, sy = _transformer(self.crs, str(self.source.crs)).transform(x, y)
        sx = _unwrap(sx, self._centre[0], str(self.source.crs))
        a, b, c, d, e, f = (~self.source.affine)[:6]
        return d * sx + e * sy + f, a * sx + b * sy + c

    def ground(self, rows: Array, cols: Array) -> tuple[Array, Array]:
        """Return x and y; see `Mapping`."""
        a, b, c, d, e, f = self.source.transform
        to_ground = _transformer(str(self.source.crs), self.crs)
        x, y = to_ground.transform(a * cols + b * rows + c, d * cols + e * rows + f)
        return _unwrap(x, float(to_ground.transform(*self._centre)[0]), self.crs), y

    @property
    def _centre(self) -> tuple[float, float]:
        rows, cols = self.source.shape
        x, y = self.source.affine @ (cols / 2, rows / 2)
        return float(x), float(y)

    def token(self) -> str:
        """Return a short text that names the map."""
        return digest([self.source.crs, self.source.transform, self.source.shape, self.crs])


@dataclass(frozen=True, eq=False)
class ControlMapping:
    """The map of a source with ground control points: thin-plate splines through them, there and back.

    Raises
    ------
    GeoreferenceError
        If there are fewer than four points, or all lie on one line.
    """

    control: GroundControl
    crs: str  # CRS of the ground coordinates
    to_pixels: ThinPlateSpline = field(init=False, repr=False)
    to_ground: ThinPlateSpline = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pixels, ground = _control_arrays(self.control, self.crs)
        step = -(-len(pixels) // _MAX_POINTS)
        object.__setattr__(self, "to_pixels", ThinPlateSpline.fit(ground[::step], pixels[::step]))
        object.__setattr__(self, "to_ground", ThinPlateSpline.fit(pixels[::step], ground[::step]))

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return rows and columns; see `Mapping`."""
        x = _unwrap(x, float(self.to_pixels.centre[0]), self.crs)
        found = self.to_pixels(np.column_stack([x.ravel(), y.ravel()]))
        return found[:, 0].reshape(x.shape), found[:, 1].reshape(x.shape)

    def ground(self, rows: Array, cols: Array) -> tuple[Array, Array]:
        """Return x and y; see `Mapping`."""
        found = self.to_ground(np.column_stack([rows.ravel(), cols.ravel()]))
        return found[:, 0].reshape(rows.shape), found[:, 1].reshape(rows.shape)

    def token(self) -> str:
        """Return a short text that names the map."""
        return digest([self.control.crs, self.control.points, self.crs])


def measure_held_out_rmse_m(control: GroundControl) -> float | None:
    """Measure how well a spline places control points it has not seen: root mean square distance in metres.

    A spline passes through its own points, so each tenth of them is left out of a fit in turn and placed by
    the rest. The final map uses all, so this errs on the safe side. None where no fit without some of the
    points is possible, such as of four points of which three lie on one line.
    """
    crs = choose_local_crs(*find_centre(control))
    pixels, ground = _control_arrays(control, crs)
    step = -(-len(pixels) // _MAX_POINTS)
    pixels, ground = pixels[::step], ground[::step]
    order = np.random.Generator(np.random.Philox(2025)).permutation(len(pixels))
    folds = min(_FOLDS, len(pixels))
    squared, placed = 0.0, 0
    for fold in range(folds):
        held = order[fold::folds]
        kept = np.setdiff1d(order, held)
        try:
            spline = ThinPlateSpline.fit(pixels[kept], ground[kept])
        except GeoreferenceError:
            continue
        squared += float(((spline(pixels[held]) - ground[held]) ** 2).sum())
        placed += len(held)
    return float(np.sqrt(squared / placed)) if placed else None


def find_centre(control: GroundControl) -> tuple[float, float]:
    """Return longitude and latitude of the middle of control points, also across the antimeridian."""
    points = np.array(control.points)
    lon, lat = _transformer(control.crs, "EPSG:4326").transform(points[:, 2], points[:, 3])
    lon = _unwrap(lon, float(lon[0]), "EPSG:4326")
    return float(_unwrap(lon.mean(), 0.0, "EPSG:4326")), float(np.mean(lat))


def check_continuous(x: Array, y: Array, crs: str) -> None:
    """Refuse places near each other that a CRS tears apart, as most do along the antimeridian.

    `x` and `y`, shape (place,), are in the CRS; most places are near the one before.
    """
    if _in_degrees(crs):
        return  # longitudes go on across it
    lon, lat = _transformer(crs, "EPSG:4326").transform(x, y)
    _, _, metres = Geod(ellps="WGS84").inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    apart = metres > 0
    stretched = np.hypot(np.diff(x), np.diff(y))[apart] / metres[apart]
    if stretched.size and not stretched.max() <= _MAX_STRETCH * np.median(stretched):
        raise GeoreferenceError(
            f"{crs} tears the scene apart, at the antimeridian perhaps: give another with --crs"
        )


def choose_local_crs(lon: float, lat: float) -> str:
    """Return the UTM zone of a place on WGS 84, or polar stereographic (UPS) beyond 84 N and 80 S."""
    if not (np.isfinite(lon) and np.isfinite(lat) and abs(lat) <= 90):
        raise GeoreferenceError(f"the scene's centre ({lon:g}, {lat:g}) is no longitude and latitude")
    if lat > 84:
        return "EPSG:32661"
    if lat < -80:
        return "EPSG:32761"
    zone = int((lon + 180) // 6) % 60 + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def _control_arrays(control: GroundControl, crs: str) -> tuple[Array, Array]:
    """Return pixels (row, col) and ground (x, y) of the points, each of shape (point, 2)."""
    if len(control.points) < MIN_POINTS:
        raise GeoreferenceError(
            f"{len(control.points)} ground control points: at least {MIN_POINTS} are needed to place an image"
        )
    points = np.array(control.points, dtype=np.float64)
    x, y = _transformer(control.crs, crs).transform(points[:, 2], points[:, 3])
    ground = np.column_stack([_unwrap(x, float(x[0]), crs), y])
    if not np.isfinite(ground).all():
        raise GeoreferenceError(f"some ground control points cannot be expressed in {crs}")
    check_continuous(ground[:, 0], ground[:, 1], crs)
    return points[:, :2], ground


def _unwrap(x: Array, around: float, crs: str) -> Array:
    """Bring longitudes within half a turn of a value; leave projected coordinates as they are."""
    if not _in_degrees(crs):
        return x
    with np.errstate(invalid="ignore"):
        return x - 360.0 * np.floor((x - around + 180.0) / 360.0)


@lru_cache(maxsize=64)
def _in_degrees(crs: str) -> bool:
    read = CRS.from_user_input(crs)
    return bool(read.is_geographic) and read.axis_info[0].unit_name == "degree"


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


@dataclass(frozen=True, eq=False)
class ThinPlateSpline:
    """The least bent smooth function of the plane that takes given values at given points.

    ``f(p) = sum_k w_k phi(|p - p_k|) + a + b . p`` with ``phi(r) = r^2 log r`` (Duchon 1977; Wahba, Spline
    Models for Observational Data, 1990, section 2.4).
    """

    centre: Array  # shape (2,); subtracted from points before use
    scale: float  # points are then divided by it
    knots: Array  # shape (point, 2); normalised points
    weights: Array  # shape (point + 3, value); of the radial functions, then of 1 and the two coordinates

    @classmethod
    def fit(cls, points: Array, values: Array) -> ThinPlateSpline:
        """Fit a spline through points, shape (point, 2), at least three, with values of shape (point, value).

        Of equal points the first counts. A `GeoreferenceError` is raised if all lie on one line.
        """
        _, first = np.unique(points, axis=0, return_index=True)
        points, values = points[np.sort(first)], values[np.sort(first)]
        centre = points.mean(axis=0)
        scale = float(np.abs(points - centre).max()) or 1.0
        knots = (points - centre) / scale
        spread = np.linalg.svd(knots, compute_uv=False)
        if len(knots) < 3 or spread[-1] < 1e-6 * spread[0]:
            raise GeoreferenceError(f"{len(knots)} different ground control points on one line place nothing")
        n = len(knots)
        plane = np.column_stack([np.ones(n), knots])
        system = np.zeros((n + 3, n + 3))
        system[:n, :n] = _radial(knots, knots)
        system[:n, n:], system[n:, :n] = plane, plane.T
        weights = np.linalg.solve(system, np.vstack([values, np.zeros((3, values.shape[1]))])).astype(
            np.float64
        )
        return cls(centre, scale, knots, weights)

    def __call__(self, points: Array) -> Array:
        """Evaluate at points of shape (point, 2); returns shape (point, value)."""
        out = np.empty((len(points), self.weights.shape[1]))
        for start in range(0, len(points), _POINTS_AT_ONCE):
            part = (points[start : start + _POINTS_AT_ONCE] - self.centre) / self.scale
            radial = _radial(self.knots, part)  # (knot, point)
            for value, weight in enumerate(self.weights.T):
                # Summed knot by knot: the same additions in the same order for every point.
                total = weight[-3] + weight[-2] * part[:, 0] + weight[-1] * part[:, 1]
                for w, phi in zip(weight[:-3], radial, strict=True):
                    total = total + w * phi
                out[start : start + len(part), value] = total
        return out


def _radial(a: Array, b: Array) -> Array:
    """Compute ``r^2 log r`` between all points of `a` and all of `b`; 0 where they coincide."""
    squared = (a[:, None, 0] - b[None, :, 0]) ** 2 + (a[:, None, 1] - b[None, :, 1]) ** 2
    safe = np.where(squared > 0, squared, 1.0)
    return np.asarray(0.5 * squared * np.log(safe), dtype=np.float64)
