"""Building pairs: chips per second, against reading the same windows and nothing else."""

import shutil

import rasterio
from measuring import Baseline
from rasterio.windows import Window

import sar2eo
from sar2eo.compute import cluster
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

SIZE, CHIP = 2048, 256


def copy_window(scene, window, path):
    layout = {"driver": "GTiff", "dtype": "uint8", "count": scene.count, "width": CHIP, "height": CHIP}
    place = {"crs": scene.crs, "transform": scene.window_transform(window)}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", compress="deflate", predictor=2, **layout, **place) as target,
    ):
        target.write(scene.read(window=window))
        target.write_mask(scene.dataset_mask(window=window))


def test_build_pairs(compare, tmp_path):
    paths = write_pair(simulate_pair(SimulationSettings(size=SIZE, nodata_edges=False)), tmp_path)
    count = 0

    def build():
        nonlocal count
        shutil.rmtree(tmp_path / "pairs", ignore_errors=True)
        with cluster.connect_cluster():
            index = sar2eo.build_pairs(
                paths["sar"], paths["eo"], tmp_path / "pairs", size=CHIP, stride=CHIP, val=0.0, test=0.0
            )
        count = len(index)

    def copy():
        (tmp_path / "copies").mkdir(exist_ok=True)
        with rasterio.open(paths["sar"]) as sar, rasterio.open(paths["eo"]) as eo:
            for row in range(0, SIZE, CHIP):
                for col in range(0, SIZE, CHIP):
                    for scene, name in ((sar, "sar"), (eo, "eo")):
                        copy_window(
                            scene, Window(col, row, CHIP, CHIP), tmp_path / f"copies/{row}_{col}_{name}.tif"
                        )

    compare(
        f"build-pairs, chips of {CHIP}",
        build,
        [
            Baseline(
                "rasterio: copy as many windows, one by one",
                copy,
                note=lambda s, _: f"{count / s:.0f} chips per second",
            )
        ],
        rounds=3,
        warmups=1,
    )
    assert count >= 49
