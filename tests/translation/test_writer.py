"""From a lazy Dataset to files: whole or not at all, and resumable."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import rasterio
import xarray as xr
from rio_cogeo.cogeo import cog_validate
from support.scenes import amplitude, scene_array, write_scene

import sar2eo
from sar2eo.compute.dask_run import reset_telemetry
from sar2eo.errors import JournalError, OutputError, Sar2eoWarning, SettingsError
from sar2eo.results import cog, outputs
from sar2eo.translation import writer

OPTIONS = {"tile": 128, "overlap": 16, "scaling": (255.0,), "block": (512, 512)}


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    valid = np.ones((700, 1200), bool)
    valid[:300, 700:] = False
    return write_scene(tmp_path_factory.mktemp("scenes") / "scene.tif", amplitude((700, 1200), 5), valid)


@pytest.fixture
def dataset(scene_file: Path) -> xr.Dataset:
    return sar2eo.translate(sar2eo.open_scene(scene_file), "identity", **OPTIONS)


def pixels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(path) as raster:
        return raster.read(), raster.read_masks(1) > 0


def fail_after(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Let the journal's writer fail after some blocks, as a full disk would."""
    original, count = writer._store_block, []

    def failing(*args: object) -> None:
        count.append(1)
        if len(count) > blocks:
            raise OutputError("disk full")
        original(*args)

    monkeypatch.setattr(writer, "_store_block", failing)


def test_the_file_holds_the_pixels_of_the_dataset_on_its_grid(
    dataset: xr.Dataset, scene_file: Path, tmp_path: Path
) -> None:
    report = sar2eo.write_cog(dataset, tmp_path / "eo.tif", quicklook=tmp_path / "eo.png")
    eo, valid = pixels(tmp_path / "eo.tif")
    np.testing.assert_array_equal(eo, dataset.eo.values)
    np.testing.assert_array_equal(valid, dataset.valid.values)
    with rasterio.open(tmp_path / "eo.tif") as raster, rasterio.open(scene_file) as source:
        assert (raster.crs, raster.transform, raster.shape) == (source.crs, source.transform, source.shape)
        assert raster.tags()["synthetic"].startswith("true")
        assert raster.tags()["amplitude_divisor"] == "255"
        assert raster.tags()["TIFFTAG_DATETIME"] == "2024:05:06 07:08:09"
    assert cog_validate(tmp_path / "eo.tif", strict=True)[0]
    assert report["tiles"]["translated"] + report["tiles"]["skipped"] == report["tiles"]["total"]
    assert report["tiles"]["resumed"] == 0
    json.dumps(report)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".json") == ["eo.png", "eo.tif"]


def test_existing_files_are_kept_without_overwrite(dataset: xr.Dataset, tmp_path: Path) -> None:
    target = tmp_path / "eo.tif"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="overwrite"):
        sar2eo.write_cog(dataset, target)
    assert target.read_bytes() == b"precious"
    sar2eo.write_cog(dataset, target, overwrite=True)
    assert cog_validate(target, strict=True)[0]


def test_an_interrupted_run_goes_on_and_ends_the_same(
    dataset: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sar2eo.write_cog(dataset, tmp_path / "whole.tif")
    target = tmp_path / "eo.tif"
    with monkeypatch.context() as broken:
        fail_after(broken, 3)
        with pytest.raises(OutputError, match="disk full"):
            sar2eo.write_cog(dataset, target)
    assert not target.exists()
    assert (tmp_path / "eo.tif.partial").is_dir()
    report = sar2eo.write_cog(dataset, target)
    assert report["tiles"]["resumed"] > 0
    assert report["tiles"]["translated"] < 7 * 11
    for a, b in zip(pixels(target), pixels(tmp_path / "whole.tif"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "eo.tif.partial").exists()


def test_unfinished_work_of_other_settings_is_refused_by_name(
    dataset: xr.Dataset, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "eo.tif"
    with monkeypatch.context() as broken:
        fail_after(broken, 1)
        with pytest.raises(OutputError):
            sar2eo.write_cog(dataset, target)
    other = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", **OPTIONS | {"overlap": 32})
    with pytest.raises(JournalError, match="overlap"):
        sar2eo.write_cog(other, target)
    edited = dataset.assign(eo=dataset.eo // 2)
    with pytest.raises(JournalError, match=r"graph\.eo"):
        sar2eo.write_cog(edited, target)
    sar2eo.write_cog(other, target, restart=True)
    np.testing.assert_array_equal(pixels(target)[0], other.eo.values)


def test_an_edited_dataset_and_a_slice_are_written_as_they_are(dataset: xr.Dataset, tmp_path: Path) -> None:
    part = dataset.isel(y=slice(100, 333), x=slice(500, 901))
    part = part.assign(eo=255 - part.eo)
    sar2eo.write_cog(part, tmp_path / "part.tif")
    eo, valid = pixels(tmp_path / "part.tif")
    np.testing.assert_array_equal(eo, part.eo.values)
    np.testing.assert_array_equal(valid, part.valid.values)
    with rasterio.open(tmp_path / "part.tif") as raster:
        assert raster.transform.c == 500_000 + 5000
        assert raster.transform.f == 4_000_000 - 1000


def test_scaling_is_sampled_once(scene_file: Path, tmp_path: Path) -> None:
    scene = sar2eo.open_scene(scene_file)
    default = sar2eo.translate(scene, "identity", tile=128, overlap=16)
    reset_telemetry()
    sar2eo.write_cog(default, tmp_path / "eo.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "eo.tif")[0], default.eo.values)


def test_a_missing_variable_is_named(dataset: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="confidence"):
        sar2eo.write_cog(dataset, tmp_path / "eo.tif", confidence=tmp_path / "c.tif")
    with pytest.raises(SettingsError, match="own"):
        sar2eo.write_cog(dataset, tmp_path / "eo.tif", quicklook=tmp_path / "eo.tif")
    assert not list(tmp_path.iterdir())


def test_progress_ends_with_all_tiles(dataset: xr.Dataset, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    sar2eo.write_cog(dataset, tmp_path / "eo.tif", progress=told.append)
    last = told[-1]
    assert last["tiles_translated"] + last["tiles_skipped"] == last["tiles_total"]
    assert last["blocks_done"] == last["blocks_total"]


def test_a_scene_made_in_memory_is_written_too(tmp_path: Path) -> None:
    values = amplitude((300, 200), 8)
    eo = sar2eo.translate(scene_array(values), "identity", **OPTIONS)
    sar2eo.write_cog(eo, tmp_path / "eo.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "eo.tif")[0], np.repeat(values, 3, 0).astype(np.uint8))


@pytest.mark.parametrize("stopped_at", ["write_quicklook", "write_stac_item", "publish"])
def test_a_run_stopped_while_it_publishes_is_finished_by_the_same_command(
    dataset: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    options = {"quicklook": tmp_path / "eo.png"}
    with monkeypatch.context() as broken:
        publish = outputs.publish

        def stop(*args: object, **_: object) -> None:
            if stopped_at == "publish":
                publish(args[0][:2])
            raise OutputError("stopped")

        broken.setattr(outputs, stopped_at, stop)
        with pytest.raises(OutputError, match="stopped"):
            sar2eo.write_cog(dataset, tmp_path / "eo.tif", **options)
    assert not (tmp_path / "eo.tif").exists()
    assert (tmp_path / "eo.png").exists() == (stopped_at == "publish")
    report = sar2eo.write_cog(dataset, tmp_path / "eo.tif", **options)
    assert report["tiles"]["translated"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eo.json", "eo.png", "eo.tif"]


def test_a_replaced_result_leaves_no_item_that_speaks_of_the_old_one(
    dataset: xr.Dataset, tmp_path: Path
) -> None:
    sar2eo.write_cog(dataset, tmp_path / "eo.tif")
    assert (tmp_path / "eo.json").exists()
    timeless = dataset.assign_attrs(datetime=None)
    sar2eo.write_cog(timeless, tmp_path / "eo.tif", overwrite=True)
    assert not (tmp_path / "eo.json").exists()


def test_a_failing_progress_function_does_not_stop_the_run(dataset: xr.Dataset, tmp_path: Path) -> None:
    def broken(_: object) -> None:
        raise ValueError("no terminal")

    with pytest.warns(Sar2eoWarning, match="no terminal"):
        sar2eo.write_cog(dataset, tmp_path / "eo.tif", progress=broken)
    assert cog_validate(tmp_path / "eo.tif", strict=True)[0]


def test_what_is_no_dataset_or_no_compression_is_refused(dataset: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Dataset"):
        sar2eo.write_cog(dataset.eo, tmp_path / "eo.tif")
    with pytest.raises(SettingsError, match="lzw"):
        sar2eo.write_cog(dataset, tmp_path / "eo.tif", compress="lzw")


def test_a_dataset_that_lost_its_crs_is_placed_by_its_grid(dataset: xr.Dataset, tmp_path: Path) -> None:
    sar2eo.write_cog(dataset.drop_vars("spatial_ref"), tmp_path / "eo.tif")
    with rasterio.open(tmp_path / "eo.tif") as raster:
        assert raster.crs == dataset.eo.rio.crs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system, where the machine has one."""
    memory = Path("/dev/shm")  # noqa: S108
    base = memory if memory.is_dir() and memory.stat().st_dev != tmp_path.stat().st_dev else tmp_path
    with TemporaryDirectory(dir=base) as folder:
        yield Path(folder)


def test_unfinished_work_lies_in_temporary_space(
    dataset: xr.Dataset, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as broken:
        fail_after(broken, 3)
        with pytest.raises(OutputError, match="disk full"):
            sar2eo.write_cog(dataset, out / "eo.tif", tmp=elsewhere)
    assert [path.name for path in out.iterdir()] == ["eo.tif.partial"]
    assert len(list(elsewhere.glob("*.partial/blocks-*/*"))) == 3
    report = sar2eo.write_cog(dataset, out / "eo.tif", tmp=elsewhere)
    assert report["tiles"]["resumed"] > 0
    np.testing.assert_array_equal(pixels(out / "eo.tif")[0], dataset.eo.values)
    assert sorted(path.name for path in out.iterdir()) == ["eo.json", "eo.tif"]
    assert not list(elsewhere.iterdir())


def test_what_does_not_fit_is_refused_with_numbers_or_forced(
    dataset: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cog.shutil, "disk_usage", lambda _: SimpleNamespace(free=3e6))
    with monkeypatch.context() as patch:
        patch.setattr(
            writer, "ResultWriter", Mock(side_effect=AssertionError("the scene was sampled before"))
        )
        with pytest.raises(OutputError, match=r"3 MB are free, and this takes about 6 MB"):
            sar2eo.write_cog(dataset, tmp_path / "eo.tif")
    assert not list(tmp_path.iterdir())
    sar2eo.write_cog(dataset, tmp_path / "eo.tif", force=True)
    assert cog_validate(tmp_path / "eo.tif", strict=True)[0]


def test_temporary_space_must_be_there(dataset: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--tmp .*no such folder"):
        sar2eo.write_cog(dataset, tmp_path / "eo.tif", tmp=tmp_path / "absent")
    assert not list(tmp_path.iterdir())
