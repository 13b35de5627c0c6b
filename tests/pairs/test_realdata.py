"""Pairs of the real scenes beside the project."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

import sar2eo
from sar2eo.geo.chip_lattice import Cell
from sar2eo.geo.windows import Window
from sar2eo.matching.shifts import Displacement
from sar2eo.matching.structure import StructuralAligner
from sar2eo.pairs.alignment import measure
from sar2eo.scenes.optical import open_eo_scene
from sar2eo.scenes.sar_scene import open_sar_scene
from sar2eo.scenes.warp import read_shifted
from sar2eo.settings import PairsSettings, SceneSettings

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

NAMES = ("la_east", "la_west", "san_antonio_west")


def scenes(real_data: Path, role: str, names: tuple[str, ...] = NAMES) -> list[Path]:
    return [real_data / f"scenes/{name}_{role}.tif" for name in names]


def test_all_scenes_become_pairs_split_by_place(real_data: Path, tmp_path: Path) -> None:
    index = sar2eo.build_pairs(scenes(real_data, "sar"), scenes(real_data, "eo"), tmp_path, max_days=40)
    assert index.attrs["report"]["chips"] == {"train": 715, "val": 82, "test": 187}
    audit = index.attrs["report"]["audit"]
    # Chips of 2.1 km on a lattice: between the nearest of two splits one cell is left out.
    assert 500 <= audit["smallest_distance_m"]["any"] < 2500
    assert audit["dropped_for_distance"]["train"] > 0
    gaps = index.groupby("sar_href").day_gap.unique()
    assert sorted(round(float(gap[0]), 1) for gap in gaps) == [2.8, 2.8, 33.3]
    assert set(index.platform) == {"Sentinel-1A"}
    for row in index.iloc[::40].itertuples():
        with rasterio.open(tmp_path / row.sar_chip) as chip, rasterio.open(row.sar_href) as scene:
            window = rasterio.windows.Window(row.col, row.row, row.width, row.height)
            assert chip.dtypes == scene.dtypes
            np.testing.assert_array_equal(chip.read(), scene.read(window=window))
            np.testing.assert_array_equal(chip.read_masks(1), scene.read_masks(1, window=window))
            corner = scene.transform @ (row.col, row.row)
            assert (chip.transform.c, chip.transform.f) == pytest.approx(corner, abs=1e-6)
        with rasterio.open(tmp_path / row.eo_chip) as chip, rasterio.open(row.eo_href) as scene:
            # Both scenes are on one grid, so nothing was interpolated.
            np.testing.assert_array_equal(chip.read(), scene.read(window=window))


def test_alignment_takes_the_drift_away(real_data: Path, tmp_path: Path) -> None:
    """What is left after the shift is measured on windows read as the chips are."""
    (sar,), (eo,) = (scenes(real_data, role, ("san_antonio_west",)) for role in ("sar", "eo"))
    settings = PairsSettings(max_days=40.0, align="shift", val=0.0, test=0.0)
    index = sar2eo.build_pairs(sar, eo, tmp_path / "pairs", settings=settings)
    (pair,) = json.loads((tmp_path / "pairs/pairs.json").read_text())["scene_pairs"]
    assert pair["alignment"]["drift"]["residual_px"] < 0.6
    assert len(index) > 180
    found = [Displacement(**each) for each in pair["alignment"]["displacements"]]
    sure = [each for each in found if each.sure]
    assert len(sure) > len(found) / 2
    before = np.array([np.hypot(each.rows, each.cols) for each in sure])
    assert np.median(before) > 1.5

    aligner = StructuralAligner()
    drift = aligner.drift(found)
    assert drift is not None
    scene, _ = open_sar_scene(str(sar), settings, SceneSettings())
    optical = open_eo_scene(str(eo), eo_range=(0, 3000))
    half = aligner.neighbourhood_px // 2
    after = []
    for each in sure[::6]:
        cell = Cell(0, 0, int(each.row) - half, int(each.col) - half)
        left = measure(scene, optical, cell, aligner, (255.0,), drift.at(each.row, each.col))
        if left is not None and left.sure:
            after.append(np.hypot(left.rows, left.cols))
    assert len(after) > 25
    assert np.median(after) < 0.4
    assert np.percentile(after, 90) < 1.0

    row = index.iloc[len(index) // 2]
    assert drift.at(row.row + 128, row.col + 128) == pytest.approx((row.shift_rows, row.shift_cols))
    with rasterio.open(tmp_path / "pairs" / row.sar_chip) as chip:
        stored, valid = chip.read(1), chip.dataset_mask() > 0
    window = Window(row.row, row.col, 256, 256)
    expected = read_shifted(scene.reader, window, row.shift_rows, row.shift_cols, "dn")[0]
    np.testing.assert_array_equal(stored[valid], np.rint(expected[valid]))
    np.testing.assert_array_equal(valid, np.isfinite(expected))
