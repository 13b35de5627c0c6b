"""Tiny data sets in each layout, made by code."""

import json
import warnings
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from scipy.ndimage import gaussian_filter
from shapely.geometry import box

from sar2eo.geo.grid import Grid

UTM, ROTTERDAM = "EPSG:32611", "EPSG:32631"
ORIGIN = (400_000.0, 3_800_000.0)


def landscape(seed, size):
    """A smooth EO picture, uint8 (3, size, size), and a speckled SAR of it, uint16 (size, size)."""
    draw = np.random.default_rng(seed)
    coarse = gaussian_filter(draw.normal(size=(3, size, size)), (0, size / 10, size / 10), mode="wrap")
    coarse = (coarse - coarse.min()) / np.ptp(coarse)
    eo = (30 + 200 * coarse).astype(np.uint8)
    sar = 50 + 400 * coarse[0] * draw.rayleigh(0.8, (size, size))
    return sar.astype(np.uint16), eo


def write_tif(path, values, *, transform=None, crs=UTM, mask=None, nodata=None):
    values = np.atleast_3d(values.T).T if values.ndim == 2 else values
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", **profile, dtype=values.dtype, crs=crs, transform=transform, nodata=nodata
        ) as file:
            file.write(values)
            if mask is not None:
                file.write_mask(mask)
    return path


def built_pairs(
    folder,
    *,
    counts=None,
    size=64,
    quantity="dn",
    polarisations=("VV",),
    holes=True,
    sizes=None,
    scaling=None,
):
    """Write a folder as `sar2eo.build_pairs` does: `counts` chips of each split.

    Every third chip has a hole in its SAR if `holes`. `sizes` overrules the size of single chips.
    """
    folder = Path(folder)
    counts = counts or {"train": 6, "val": 2, "test": 3}
    rows = []
    for number, split in enumerate(name for name, count in counts.items() for _ in range(count)):
        rows.append(
            _chip(folder, number, split, (sizes or {}).get(number, size), quantity, polarisations, holes)
        )
        if scaling is not None:
            rows[-1]["scaling"] = list(scaling)
    frame = geopandas.GeoDataFrame(rows, crs=UTM).to_crs("EPSG:4326")
    frame.to_parquet(folder / "pairs.parquet")
    (folder / "audit.json").write_text(json.dumps({"smallest_distance_m": 1000.0}))
    (folder / "pairs.json").write_text(json.dumps({"settings": {"size": size}}))
    return folder


def changed_index(folder, **columns):
    """Overwrite columns of the index of built pairs: by values, or by what a function makes of the table."""
    table = geopandas.read_parquet(folder / "pairs.parquet")
    for name, values in columns.items():
        table[name] = values(table) if callable(values) else values
    table.to_parquet(folder / "pairs.parquet")


def _chip(folder, number, split, size, quantity, polarisations, holes):
    amplitude, eo = landscape(number, size)
    sar = np.stack([amplitude // (band + 1) for band in range(len(polarisations))])
    if quantity == "intensity":
        sar = sar.astype(np.float32) ** 2
    elif quantity == "db":
        sar = 20 * np.log10(sar.astype(np.float32))
    mask = np.full((size, size), 255, np.uint8)
    if holes and number % 3 == 0:
        mask[: size // 8, : size // 4] = 0
        sar = np.where(mask > 0, sar, sar.dtype.type(0))
    transform = Affine(10.0, 0.0, ORIGIN[0] + number * size * 20.0, 0.0, -10.0, ORIGIN[1])
    name = f"pair-{number:04d}"
    chips = [f"chips/{name}_{kind}.tif" for kind in ("sar", "eo")]
    write_tif(folder / chips[0], sar, transform=transform, mask=mask)
    write_tif(folder / chips[1], eo, transform=transform, mask=np.full((size, size), 255, np.uint8))
    return {
        "id": name,
        "split": split,
        "sar_chip": chips[0],
        "eo_chip": chips[1],
        "sar_href": "sar.tif",
        "eo_href": "eo.tif",
        "sar_datetime": np.datetime64("2020-11-07T00:00:00"),
        "eo_datetime": np.datetime64("2020-11-04T00:00:00"),
        "day_gap": 3.0,
        "crs": UTM,
        "transform": list(transform[:6]),
        "row": 0,
        "col": number * size * 2,
        "height": size,
        "width": size,
        "valid_share": float((mask > 0).mean()),
        "cloud_share": None,
        "quantity": quantity,
        "calibration": "none",
        "polarisations": list(polarisations),
        "scaling": [600.0 / (band + 1) for band in range(len(polarisations))],
        "platform": "sentinel-1a",
        "orbit_direction": None,
        "eo_mean": eo.mean(axis=(1, 2)).tolist(),
        "eo_std": eo.std(axis=(1, 2)).tolist(),
        "shift_rows": None,
        "shift_cols": None,
        "align_score": None,
        "block": f"block-{number}",
        "geometry": box(*Grid.create(UTM, transform, (size, size)).bounds),
    }


def _picture(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, quality=95)


def qxs(root, count=12, size=32):
    """QXS-SAROPT: two folders of PNG of the same names; SAR as grey RGB."""
    for number in range(1, count + 1):
        sar, eo = _bytes(number, size)
        _picture(Path(root) / "sar_256_oc_0.2" / f"{number}.png", np.dstack([sar] * 3))
        _picture(Path(root) / "opt_256_oc_0.2" / f"{number}.png", np.moveaxis(eo, 0, -1))
    return Path(root)


def sar2opt(root, scenes=(1, 2, 3), size=40):
    """SAR2Opt: four folders of JPEG, named scene_row_column; the last rows are for testing."""
    for scene in scenes:
        for tile, (row, col) in enumerate((r, c) for r in (0, 240, 480) for c in (0, 240)):
            part = "test" if row == 480 else "train"
            sar, eo = _bytes(100 * scene + tile, size)
            name = f"{scene}_{row}_{col}.jpg"
            _picture(Path(root) / f"{part}A" / name, sar)
            _picture(Path(root) / f"{part}B" / name, np.moveaxis(eo, 0, -1))
    return Path(root)


def spacenet6(root, count=10, size=48, spacing=10_000.0, nodata_columns=6):
    """SpaceNet 6: float SAR with four polarisations and nodata 0, and uint8 RGB; tiles of two strips."""
    area = Path(root) / "train" / "AOI_11_Rotterdam"
    for number in range(count):
        amplitude, eo = landscape(number, size)
        sar = np.stack([20 * np.log10(amplitude.astype(np.float32)) - 3 * band for band in range(4)])
        sar[:, :, :nodata_columns] = 0
        transform = Affine(0.5, 0.0, 590_000.0 + spacing * number, 0.0, -0.5, 5_750_000.0)
        strip = f"2019080411122{number % 2}_20190804111453_tile_{number}.tif"
        for kind, values in {"SAR-Intensity": sar, "PS-RGB": eo}.items():
            path = area / kind / f"SN6_Train_AOI_11_Rotterdam_{kind}_{strip}"
            write_tif(path, values, transform=transform, crs=ROTTERDAM)
    return Path(root)


def _bytes(seed, size):
    sar, eo = landscape(seed, size)
    return np.minimum(sar // 3, 255).astype(np.uint8), eo
