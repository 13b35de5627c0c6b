"""Opening a scene: nothing is read but headers, and control points are fitted."""

import rasterio
from material import swath
from measuring import Baseline

from sar2eo.scenes import open_scene

ROWS, COLS = 17_000, 26_000


def test_open_swath(compare, tmp_path):
    path = swath(tmp_path / "swath.tif", ROWS, COLS)

    def read_points():
        with rasterio.open(path) as dataset:
            assert len(dataset.gcps[0]) == 210

    compare(
        f"open_scene, {COLS} x {ROWS} with control points",
        lambda: open_scene(path),
        [Baseline("rasterio.open and its control points", read_points, note=lambda *_: "ours fits a spline")],
        rounds=5,
        warmups=1,
    )
