"""What must not change a pixel does not, and what must change them does: on a model that means something."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from support.model_fixtures import simulate_pair
from support.scenes import write_scene

import sar2eo
from sar2eo.compute import cluster
from sar2eo.errors import Sar2eoWarning

ROWS, COLS = 300, 420
OPTIONS = {"tile": 96, "overlap": 16, "scaling": (255.0,), "dtype": "float32", "threads": 1, "steps": 4}


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    amplitude, _ = simulate_pair(ROWS, COLS, seed=77)
    valid = np.ones((ROWS, COLS), bool)
    valid[:110, 300:] = False
    values = np.clip(np.rint(amplitude * 255), 1, 255)[None]
    return write_scene(tmp_path_factory.mktemp("scenes") / "scene.tif", values, valid)


def translated(scene_file: Path, checkpoint: Path, **options: object) -> xr.Dataset:
    return sar2eo.translate(sar2eo.open_scene(scene_file), checkpoint, **OPTIONS | options)


@pytest.fixture(scope="module")
def whole(scene_file: Path, checkpoint: Path) -> xr.Dataset:
    return translated(scene_file, checkpoint).compute()


def levels(a: xr.Dataset, b: xr.Dataset) -> np.ndarray:
    """Largest difference over the bands, at valid pixels, in levels."""
    apart = np.abs(a.eo.values.astype(int) - b.eo.values).max(axis=0)
    return apart[a.valid.values]


def test_the_model_means_something(whole: xr.Dataset) -> None:
    _, truth = simulate_pair(ROWS, COLS, seed=77)
    valid = whole.valid.values
    error = np.mean((whole.eo.values[:, valid] / 255 - truth[:, valid]) ** 2)
    mean_colour = truth[:, valid].mean(axis=1, keepdims=True)
    assert error < 0.6 * np.mean((mean_colour - truth[:, valid]) ** 2)
    confidence = whole.confidence.values
    assert np.isfinite(confidence[valid]).all()
    assert np.isnan(confidence[~valid]).all()
    assert np.std(np.log(confidence[valid])) > 0.1


def test_controls_another_seed_and_another_scene_change_most_pixels(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset, tmp_path: Path
) -> None:
    assert (levels(translated(scene_file, checkpoint, seed=1).compute(), whole) > 1).mean() > 0.5
    amplitude, _ = simulate_pair(ROWS, COLS, seed=78)
    other = write_scene(tmp_path / "other.tif", np.clip(np.rint(amplitude * 255), 1, 255)[None])
    assert (levels(whole, translated(other, checkpoint).compute()) > 1).mean() > 0.5


@pytest.mark.parametrize(
    "place", [(0, 100, 0, 110), (96, 97, 80, 200), (150, 300, 333, 420), (88, 250, 10, 290)]
)
def test_regions_equal_the_whole_up_to_their_border(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset, place: tuple[int, int, int, int]
) -> None:
    top, bottom, left, right = place
    where = {"y": slice(top, bottom), "x": slice(left, right)}
    scene = sar2eo.open_scene(scene_file).chunk(y=100, x=110).isel(where)  # the first place is a chunk
    part = sar2eo.translate(scene, checkpoint, **OPTIONS).compute()
    xr.testing.assert_equal(
        part[["eo", "valid", "confidence"]], whole[["eo", "valid", "confidence"]].isel(where)
    )


def test_order_and_blocks_change_nothing(scene_file: Path, checkpoint: Path, whole: xr.Dataset) -> None:
    lazy = translated(scene_file, checkpoint, block=(64, 96))
    for j in (3, 0, 2, 1, 4):
        part = lazy.isel(x=slice(96 * j, 96 * j + 96))
        xr.testing.assert_equal(part.eo.compute(), whole.eo.isel(x=slice(96 * j, 96 * j + 96)))


def test_batches_of_one_and_four_agree_within_one_level_in_float32(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset
) -> None:
    assert levels(translated(scene_file, checkpoint, batch=4).compute(), whole).max() <= 1


def test_thread_counts_agree_within_one_level_in_float32(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset
) -> None:
    assert levels(translated(scene_file, checkpoint, threads=2).compute(), whole).max() <= 1


def test_bfloat16_batches_agree_within_one_level_nearly_everywhere(
    scene_file: Path, checkpoint: Path
) -> None:
    one, four = (translated(scene_file, checkpoint, dtype="bfloat16", batch=n).compute() for n in (1, 4))
    assert (levels(one, four) <= 1).mean() >= 0.999


def test_overlapping_tiles_agree_since_they_start_from_the_same_noise(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset
) -> None:
    """Other windows see other surroundings, but the same noise: the pictures are nearer than by chance."""
    moved = translated(scene_file, checkpoint, tile=144, overlap=16).compute()
    reseeded = translated(scene_file, checkpoint, tile=144, overlap=16, seed=1).compute()
    assert levels(moved, whole).mean() < 0.7 * levels(reseeded, whole).mean()


def command(scene: Path, checkpoint: Path, out: Path, *more: str) -> list[str]:
    flags = [
        "--tile",
        "96",
        "--overlap",
        "16",
        "--scaling-from",
        "255",
        "--dtype",
        "float32",
        "--threads",
        "1",
    ]
    program = [sys.executable, "-c", "from sar2eo.cli import main; main()"]
    return [
        *program,
        "translate",
        str(scene),
        "--out",
        str(out),
        "--model",
        str(checkpoint),
        "--steps",
        "4",
        *flags,
        *more,
    ]


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_the_command_line_give_the_same_pixels(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset, tmp_path: Path, workers: int
) -> None:
    out, confidence = tmp_path / "eo.tif", tmp_path / "confidence.tif"
    more = ["--workers", str(workers), "--confidence", str(confidence)]
    subprocess.run(command(scene_file, checkpoint, out, *more), check=True, timeout=300)
    np.testing.assert_array_equal(pixels(out), whole.eo.values)
    np.testing.assert_array_equal(pixels(confidence)[0], whole.confidence.values)


def test_a_killed_run_goes_on_and_ends_the_same(checkpoint: Path, tmp_path: Path) -> None:
    amplitude, _ = simulate_pair(1536, 300, seed=5)  # three blocks of the journal
    scene = write_scene(tmp_path / "scene.tif", np.clip(np.rint(amplitude * 255), 1, 255)[None])
    out, report = tmp_path / "eo.tif", tmp_path / "report.json"
    quick = ["--steps", "2"]
    process = subprocess.Popen(command(scene, checkpoint, out, *quick))
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("eo.tif.partial/blocks*/eo.*.tif")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run(command(scene, checkpoint, out, *quick, "--report", str(report)), check=True, timeout=300)
    windows = json.loads(report.read_text())["tiles"]
    assert windows["resumed"] > 0
    assert windows["translated"] > 0
    whole = sar2eo.translate(sar2eo.open_scene(scene), checkpoint, **OPTIONS | {"steps": 2}).eo.values
    np.testing.assert_array_equal(pixels(out), whole)
    assert not (tmp_path / "eo.tif.partial").exists()


def test_a_killed_worker_is_replaced_and_its_work_redone(
    scene_file: Path, checkpoint: Path, whole: xr.Dataset, tmp_path: Path
) -> None:
    with cluster.connect_cluster(workers=2):
        from distributed import get_client

        victim = next(iter(get_client().run(os.getpid).values()))
        lazy = translated(scene_file, checkpoint)
        import threading

        timer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
        timer.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Sar2eoWarning)  # of the loss, if there was work on it to lose
            sar2eo.write_cog(lazy, tmp_path / "eo.tif")
        timer.cancel()
    np.testing.assert_array_equal(pixels(tmp_path / "eo.tif"), whole.eo.values)
