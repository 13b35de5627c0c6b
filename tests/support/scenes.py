"""Small SAR scenes for tests, as arrays and as files."""

from pathlib import Path

import numpy as np
import rasterio
import xarray as xr
from affine import Affine

TRANSFORM = Affine(10, 0, 500_000, 0, -10, 4_000_000)
CRS = "EPSG:32611"


def amplitude(shape: tuple[int, int], seed: int, bands: int = 1) -> np.ndarray:
    """Speckled amplitude of 1 to 255 with some structure, float32 (band, row, col)."""
    draw = np.random.default_rng(seed)
    rows, cols = np.indices(shape)
    level = 60 + 40 * np.sin(rows / 17) * np.cos(cols / 23)
    speckle = draw.gamma(4.0, 0.25, (bands, *shape))
    return np.clip(np.rint(level * speckle), 1, 255).astype(np.float32)


def holes(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Validity with rectangular holes, bool (row, col)."""
    draw = np.random.default_rng(seed)
    valid = np.ones(shape, bool)
    for _ in range(int(draw.integers(0, 4))):
        row, col = (int(draw.integers(0, n)) for n in shape)
        valid[
            row : row + int(draw.integers(1, shape[0] + 1)), col : col + int(draw.integers(1, shape[1] + 1))
        ] = False
    return valid


def scene_array(
    values: np.ndarray, polarisations: tuple[str, ...] = ("VV",), quantity: str = "dn"
) -> xr.DataArray:
    """A scene in memory, as a user may have made it."""
    import rioxarray  # noqa: F401

    rows, cols = values.shape[1:]
    coords = {
        "band": list(polarisations),
        "y": TRANSFORM.f + TRANSFORM.e * (np.arange(rows) + 0.5),
        "x": TRANSFORM.c + TRANSFORM.a * (np.arange(cols) + 0.5),
    }
    attrs = {"quantity": quantity, "calibration": "none", "polarisations": polarisations}
    return xr.DataArray(values, coords, ("band", "y", "x"), attrs=attrs).rio.write_crs(CRS)


def write_scene(
    path: Path,
    values: np.ndarray,
    valid: np.ndarray | None = None,
    names: tuple[str, ...] = ("VV",),
    **profile: object,
) -> Path:
    """A scene as a uint8 GeoTIFF, nodata 0, band names as descriptions."""
    bands = values if valid is None else np.where(valid, values, 0)
    settings = {"dtype": "uint8", "nodata": 0, "crs": CRS, "transform": TRANSFORM, "tiled": True, **profile}
    settings |= {"blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, **settings
    ) as target:
        target.write(bands.astype(settings["dtype"]))
        for number, name in enumerate(names, start=1):
            target.set_band_description(number, name)
        target.update_tags(ACQUISITION_DATETIME="2024:05:06 07:08:09")
    return path
