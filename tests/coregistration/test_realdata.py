"""Coregistration of real scenes, whose own residual is not known: planted offsets, and another matcher.

What is measured goes with the results: ``pytest tests/test_coregister_realdata.py --junitxml=FILE``.
"""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from support.real_matching import RADIUS, SIDE, by_information

from sar2eo.coregistration.registration import coregister
from sar2eo.errors import CoregistrationError

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

PLANTED = (7.0, -5.0)
# Row, column, height and width, without many holes.
CROPS = {
    "la_west": (3072, 7168, 5120, 4096),
    "san_antonio_west": (1024, 3072, 5120, 3072),
}


def cropped(folder: Path, name: str, out: Path, off: tuple[float, float] = (0.0, 0.0)) -> Path:
    """Cut a scene, and say that it lies some pixels (rows, columns) up and left of where it does."""
    row, col, height, width = CROPS[name.rsplit("_", 1)[0]]
    with rasterio.open(folder / "scenes" / f"{name}.tif") as file:
        window = Window(col, row, width, height)
        values, valid = file.read(window=window), file.dataset_mask(window=window)
        transform = file.window_transform(window) @ file.transform.translation(off[1], off[0])
        profile = {
            "driver": "GTiff", "dtype": "uint8", "count": file.count, "height": height, "width": width,
            "crs": file.crs, "transform": transform, "nodata": file.nodata, "tiled": True,
        }  # fmt: skip
        if file.count == 3:
            profile["photometric"] = "RGB"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(out, "w", **profile) as target:
            target.write(values)
            target.update_tags(**file.tags())
            if file.nodata is None:
                target.write_mask(valid)
    return out


def left(sar: Path, eo: Path) -> np.ndarray:
    """Distance of the local shifts that mutual information finds, which knows nothing of structure."""
    with rasterio.open(sar) as file:
        amplitude = file.read(1).astype(np.float32)
    with rasterio.open(eo) as file:
        grey, mask = file.read().mean(axis=0, dtype=np.float32), file.dataset_mask()
    amplitude[amplitude == 0] = np.nan
    grey[mask == 0] = np.nan
    found = []
    for row in range(64, amplitude.shape[0] - SIDE, 768):
        for col in range(64, amplitude.shape[1] - SIDE, 768):
            at = slice(row, row + SIDE), slice(col, col + SIDE)
            if min(np.isfinite(amplitude[at]).mean(), np.isfinite(grey[at]).mean()) > 0.5:
                shift = by_information(amplitude[at], grey[at])
                if np.abs(shift).max() < RADIUS - 1:
                    found.append(np.hypot(*shift))
    return np.array(found)


@pytest.mark.parametrize("name", list(CROPS))
def test_less_is_left_by_another_matcher_and_a_planted_offset_comes_off(
    real_data, tmp_path, name, record_property
):
    eo = cropped(real_data, f"{name}_eo", tmp_path / "eo.tif")
    sar = cropped(real_data, f"{name}_sar", tmp_path / "sar.tif")
    off = cropped(real_data, f"{name}_sar", tmp_path / "off.tif", off=(-PLANTED[0], -PLANTED[1]))
    found = coregister(eo, sar, tmp_path / "plain.tif")
    moved = coregister(eo, off, tmp_path / "moved.tif")
    for key in ("before", "after"):
        record_property(f"rmse_{key}_px", found["quality"][key]["rmse_px"])
        record_property(f"rmse_{key}_m", found["quality"][key]["rmse_m"])
    record_property(
        "ties", f"{found['ties']['agree']} of {found['ties']['sure']} of {found['ties']['measured']}"
    )
    assert found["quality"]["after"]["median_px"] < 0.6 * found["quality"]["before"]["median_px"]
    before, after = left(sar, eo), left(tmp_path / "plain.tif", eo)
    record_property("information_before_px", round(float(np.median(before)), 2))
    record_property("information_after_px", round(float(np.median(after)), 2))
    assert np.median(after) < 0.75 * np.median(before)
    # The same pixels, told to lie elsewhere: both results show the same, to a fraction of a pixel (speckle
    # is another one after a pixel).
    with rasterio.open(tmp_path / "plain.tif") as one, rasterio.open(tmp_path / "moved.tif") as two:
        a, b = one.read(1).astype(float), two.read(1).astype(float)
    both = (a > 0) & (b > 0)
    agreement = float(np.corrcoef(a[both], b[both])[0, 1])
    record_property("planted_correlation", round(agreement, 4))
    assert both.mean() > 0.5
    assert agreement > 0.85
    assert moved["quality"]["before"]["median_px"] > found["quality"]["before"]["median_px"] + 2


def test_another_city_is_refused(real_data, tmp_path):
    """San Antonio's radar, told to lie in Los Angeles."""
    eo = cropped(real_data, "la_west_eo", tmp_path / "eo.tif")
    sar = cropped(real_data, "san_antonio_west_sar", tmp_path / "sar.tif")
    with rasterio.open(eo) as file:
        transform = file.transform
    with rasterio.open(sar, "r+") as file:
        file.transform = transform
    for kind in ("shift", "affine", "local"):
        with pytest.raises(CoregistrationError, match="is not laid on"):
            coregister(eo, sar, tmp_path / "moved.tif", transform=kind)
    assert not (tmp_path / "moved.tif").exists()
