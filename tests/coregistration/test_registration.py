"""`coregister` from files to files: planted shifts are taken back, and what cannot be known is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import dask
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.warp import transform as transform_points
from support.dcdm_fixtures import untrained_matcher
from support.scene_fixtures import NORTH_UP, speckle, write_raster

import sar2eo
from sar2eo.cli import cli
from sar2eo.coregistration import tie_points
from sar2eo.coregistration.registration import coregister
from sar2eo.errors import (
    CoregistrationError,
    GeoreferenceError,
    PairsWarning,
    Sar2eoWarning,
    SceneError,
    SettingsError,
)
from sar2eo.matching.structure import match
from sar2eo.settings import CoregisterSettings, SceneSettings
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

SHIFT = (4.4, -6.7)
SIZE, GRID = 1024, 170


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A simulated pair, the SAR off by a known shift."""
    pair = simulate_pair(SimulationSettings(size=SIZE, seed=5, shift=SHIFT))
    return write_pair(pair, tmp_path_factory.mktemp("scenes"))


def remaining(sar: Path, eo: Path) -> np.ndarray:
    """Measure what is left between two rasters of one grid, by structure in four quarters: their median."""
    with rasterio.open(sar) as file:
        amplitude = file.read(1, masked=True).astype(np.float32).filled(np.nan)
    with rasterio.open(eo) as file:
        grey = file.read().mean(axis=0, dtype=np.float32)
        grey[file.dataset_mask() == 0] = np.nan
    found = []
    for rows in (slice(0, SIZE // 2), slice(SIZE // 2, None)):
        for cols in (slice(0, SIZE // 2), slice(SIZE // 2, None)):
            one = match(amplitude[rows, cols], grey[rows, cols], radius_px=16)
            found.append((one.rows, one.cols))
    return np.median(found, axis=0)


def run(*arguments: object):
    return CliRunner().invoke(cli, ["coregister", *map(str, arguments)])


@pytest.mark.parametrize("transform", ["shift", "affine", "local"])
def test_a_planted_shift_is_taken_back(scenes, tmp_path, transform):
    out = tmp_path / "moved.tif"
    before = remaining(scenes["sar"], scenes["eo"])
    np.testing.assert_allclose(before, SHIFT, atol=0.6)
    found = coregister(scenes["eo"], scenes["sar"], out, grid=GRID, transform=transform)
    after = remaining(out, scenes["eo"])
    assert np.abs(after).max() < 0.5
    quality = found["quality"]
    assert quality["before"]["rmse_px"] > 7
    assert quality["after"]["rmse_px"] < 1.6
    assert quality["after"]["rmse_m"] == pytest.approx(10 * quality["after"]["rmse_px"], rel=0.01)
    assert found["ties"]["agree"] >= 15
    if transform == "shift":
        assert found["transform"]["rows"][0] == pytest.approx(SHIFT[0], abs=0.4)
        assert found["transform"]["cols"][0] == pytest.approx(SHIFT[1], abs=0.4)


def test_either_scene_may_move_and_pixels_come_from_where_it_says(scenes, tmp_path):
    out = tmp_path / "eo_on_sar.tif"
    found = coregister(scenes["sar"], scenes["eo"], out, grid=GRID, transform="shift")
    assert (found["reference"]["kind"], found["moving"]["kind"]) == ("sar", "eo")
    assert found["transform"]["rows"][0] == pytest.approx(-SHIFT[0], abs=0.4)
    assert np.abs(remaining(scenes["sar"], out)).max() < 0.5
    with rasterio.open(scenes["eo"]) as before, rasterio.open(out) as after:
        assert (after.count, after.dtypes, after.crs) == (3, before.dtypes, before.crs)
        assert after.transform == before.transform
        assert after.colorinterp == before.colorinterp
        assert after.tags()["PRODUCT"] == before.tags()["PRODUCT"]
        assert json.loads(after.tags()["COREGISTRATION"])["transform"] == found["transform"]
        picture, mask = after.read(), after.dataset_mask()
        assert (mask[:2] == 0).all() or (mask[-2:] == 0).all()
        # Averages of what is valid stay: nothing was stretched, nor filled.
        whole = before.read()[:, before.dataset_mask() > 0].mean(axis=1)
        np.testing.assert_allclose(picture[:, mask > 0].mean(axis=1), whole, rtol=0.02)
        assert after.overviews(1) == [2]


def test_scenes_of_other_crs_and_pixel_size_come_onto_the_references_grid(scenes, tmp_path):
    with rasterio.open(scenes["eo"]) as file:
        transform, width, height = calculate_default_transform(
            file.crs, "EPSG:3395", file.width, file.height, *file.bounds, resolution=13.0
        )
        picture = np.zeros((3, height, width), np.uint8)
        reproject(
            file.read(), picture, src_transform=file.transform, src_crs=file.crs, dst_transform=transform,
            dst_crs="EPSG:3395", resampling=Resampling.bilinear,
        )  # fmt: skip
    eo = write_raster(
        tmp_path / "mercator.tif", picture, crs="EPSG:3395", transform=transform, nodata=0,
        names=("red", "green", "blue"), photometric="RGB",
    )  # fmt: skip
    out = tmp_path / "moved.tif"
    found = coregister(eo, scenes["sar"], out, grid=GRID, transform="affine")
    # Of 13 m in Mercator at 34 degrees north: 10.8 m on the ground.
    assert found["pixel_m"] == pytest.approx([10.8, 10.8], abs=0.1)
    assert found["quality"]["after"]["rmse_px"] < 1.6
    with rasterio.open(eo) as reference, rasterio.open(out) as moved:
        assert (moved.crs, moved.transform, moved.shape) == (
            reference.crs,
            reference.transform,
            reference.shape,
        )
    middle = np.array([[height / 2, width / 2]])
    rows, cols = (
        np.dot(part, [1, *middle[0]]) for part in (found["transform"]["rows"], found["transform"]["cols"])
    )
    # UTM's north is a little off Mercator's here; a metre is a metre.
    assert np.hypot(rows, cols) * 10.8 == pytest.approx(10 * np.hypot(*SHIFT), abs=6)


def test_a_scene_that_has_only_control_points_is_placed_and_moved_at_once(scenes, tmp_path):
    with rasterio.open(scenes["sar"]) as file:
        values, transform, crs = file.read(), file.transform, file.crs
    points = [(row, col) for row in range(0, SIZE + 1, 128) for col in range(0, SIZE + 1, 128)]
    xs, ys = zip(*(transform @ (col, row) for row, col in points), strict=True)
    lon, lat = transform_points(crs, "EPSG:4326", xs, ys)
    gcps = [(row, col, x, y) for (row, col), x, y in zip(points, lon, lat, strict=True)]
    sar = write_raster(
        tmp_path / "swath.tif", values, crs=None, transform=None, nodata=0, names=("VH",), gcps=gcps
    )
    out = tmp_path / "moved.tif"
    with pytest.warns(PairsWarning, match="not terrain-corrected"):
        coregister(scenes["eo"], sar, out, grid=GRID, transform="shift", scene=SceneSettings(quantity="dn"))
    assert np.abs(remaining(out, scenes["eo"])).max() < 0.5
    with rasterio.open(out) as moved:
        assert moved.dtypes == ("uint8",)
        assert not moved.gcps[0]


def test_the_schedulers_agree(scenes, tmp_path):
    found = []
    for scheduler in ("threads", "synchronous"):
        with dask.config.set(scheduler=scheduler):
            out = tmp_path / f"{scheduler}.tif"
            found.append(coregister(scenes["eo"], scenes["sar"], out, grid=GRID, transform="affine", seed=3))
    assert found[0]["points"] == found[1]["points"]
    assert found[0]["transform"] == found[1]["transform"]
    with rasterio.open(tmp_path / "threads.tif") as a, rasterio.open(tmp_path / "synchronous.tif") as b:
        np.testing.assert_array_equal(a.read(), b.read())


def test_tie_points_and_picture_lie_beside(scenes, tmp_path):
    out = tmp_path / "moved.tif"
    done = run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", out, "--grid", GRID,
               "--report", tmp_path / "report.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"{out}: local fitted to " in done.stdout
    assert " after, at points left out of the fit" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "moved.tif", "moved_ties.geojson", "moved_ties.png", "report.json",
    }  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accepted"]
    assert report["out"] == str(out)
    assert report["versions"]["scikit-image"]
    collection = json.loads((tmp_path / "moved_ties.geojson").read_text())
    assert set(collection) == {"type", "features"}  # RFC 7946 knows no crs
    assert [feature["properties"] for feature in collection["features"]] == report["points"]
    found = np.array([feature["geometry"]["coordinates"] for feature in collection["features"]])
    with rasterio.open(scenes["eo"]) as file:
        places = [file.transform @ (point["col"], point["row"]) for point in report["points"]]
        lonlat = np.transpose(transform_points(file.crs, "EPSG:4326", *zip(*places, strict=True)))
    np.testing.assert_allclose(found, lonlat, atol=1e-6)
    assert np.asarray(Image.open(tmp_path / "moved_ties.png").convert("L")).std() > 10
    inliers = [point for point in report["points"] if point["inlier"]]
    assert len(inliers) == report["ties"]["agree"]
    assert all(point["accepted"] and point["score"] >= 0.12 for point in inliers)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", out, "--grid", GRID)
    assert again.exit_code == 0, again.output
    assert again.stdout == f"{out}: done before by the same settings (--overwrite makes it anew)\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    other = run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", out, "--grid", 128)
    assert (other.exit_code, "exists: pass --overwrite" in other.stderr) == (1, True)
    (tmp_path / "moved.tif").unlink()
    for path in ("moved.tif", "moved_ties.png"):
        (tmp_path / "moved.tif").touch()
        again = run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", out, "--grid", GRID)
        assert again.exit_code == 1
        assert "exists: pass --overwrite" in again.stderr
        (tmp_path / path).unlink()
    assert run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", out, "--grid", GRID,
               "--overwrite").exit_code == 0  # fmt: skip


def unrelated(scenes: dict[str, Path], folder: Path, kind: str) -> Path:
    """A SAR scene at the place of the EO scene that shows something else."""
    with rasterio.open(scenes["sar"]) as file:
        profile = {"transform": file.transform, "crs": file.crs, "nodata": 0, "names": ("VH",)}
    if kind == "another place":
        pair = simulate_pair(SimulationSettings(size=SIZE, seed=77))
        other = write_pair(pair, folder / "other")["sar"]
        with rasterio.open(other) as file:
            values = file.read()
    else:
        values = speckle((1, SIZE, SIZE), seed=3, dtype="uint16", scale=500.0 if kind == "noise" else 3.0)
    return write_raster(folder / "unrelated.tif", values, **profile)


@pytest.mark.parametrize("transform", ["shift", "local"])
@pytest.mark.parametrize("kind", ["noise", "water", "another place"])
def test_what_shows_something_else_is_refused_and_nothing_is_written(scenes, tmp_path, kind, transform):
    sar = unrelated(scenes, tmp_path, kind)
    there = set(tmp_path.iterdir())
    done = run("--reference", scenes["eo"], "--moving", sar, "--out", tmp_path / "moved.tif",
               "--grid", GRID, "--quantity", "dn", "--transform", transform,
               "--report", tmp_path / "report.json")  # fmt: skip
    assert done.exit_code == 1
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith("Error: ")
    assert "is not laid on" in told
    assert "tie points" in told
    assert set(tmp_path.iterdir()) - there == {tmp_path / "report.json"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["accepted"]
    assert report["refusal"] in told
    assert len(report["points"]) == report["ties"]["measured"]


def test_a_search_that_is_too_short_is_refused(scenes, tmp_path):
    with pytest.raises(CoregistrationError, match="more than the 4 pixels of --radius"):
        coregister(scenes["eo"], scenes["sar"], tmp_path / "moved.tif", grid=GRID, radius=4)
    assert not list(tmp_path.iterdir())


def test_little_or_no_overlap_is_refused(scenes, tmp_path):
    with rasterio.open(scenes["sar"]) as file:
        values, profile = file.read(), {"crs": file.crs, "nodata": 0, "names": ("VH",)}
        away = file.transform @ file.transform.translation(SIZE - 180, 0)
        gone = file.transform @ file.transform.translation(3 * SIZE, 0)
    for name, transform, words in (("away", away, "share room for"), ("gone", gone, "share no place")):
        moved = write_raster(tmp_path / f"{name}.tif", values, transform=transform, **profile)
        with pytest.raises(CoregistrationError, match=words):
            coregister(scenes["eo"], moved, tmp_path / "out.tif", grid=GRID, report=tmp_path / f"{name}.json")
    assert not (tmp_path / "out.tif").exists()
    told = json.loads((tmp_path / "away.json").read_text())
    assert not told["accepted"]
    assert "share room for" in told["refusal"]


def test_too_few_tie_points_are_measured_anew_at_half_the_distance(scenes, tmp_path, monkeypatch):
    planned = coregister(scenes["eo"], scenes["sar"], tmp_path / "moved.tif", transform="shift", dry_run=True)
    assert (planned["settings"]["grid"], planned["ties"]["templates"]) == (256, 9)
    find = tie_points.ClassicalFinder.find

    def unsure(self, sar, eo):
        return find(self, sar, eo)._replace(sure=self.side < 300)

    monkeypatch.setattr(tie_points.ClassicalFinder, "find", unsure)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.warns(Sar2eoWarning, match=r"0 of 9 tie points are sure .* measured anew with 170"),
    ):
        found = coregister(scenes["eo"], scenes["sar"], tmp_path / "moved.tif", grid=340, transform="shift")
    assert (found["settings"]["grid"], found["matching"]["template_px"]) == (170, 170)
    assert found["transform"]["rows"][0] == pytest.approx(SHIFT[0], abs=0.4)


def test_a_single_band_without_a_word_about_itself_is_taken_for_sar(scenes, tmp_path):
    with rasterio.open(scenes["sar"]) as file:
        place = {"transform": file.transform, "crs": file.crs, "nodata": 0}
        plain = write_raster(tmp_path / "s.tif", file.read().astype("float32"), **place)
    found = coregister(scenes["eo"], plain, tmp_path / "moved.tif", grid=GRID, dry_run=True)
    assert found["moving"]["kind"] == "sar"
    with pytest.raises(SceneError, match="neither optical"):
        coregister(scenes["eo"], plain, tmp_path / "moved.tif", method="dcdm", dry_run=True)


def test_scenes_of_one_kind_and_other_slips_are_refused(scenes, tmp_path):
    out = tmp_path / "out.tif"
    for name, kind in (("sar", "both SAR"), ("eo", "both optical")):
        with pytest.raises(SettingsError, match=kind):
            coregister(scenes[name], scenes[name], out, grid=GRID)
    with pytest.raises(SceneError, match="no such file"):
        coregister(scenes["eo"], tmp_path / "nowhere.tif", out)
    odd = write_raster(tmp_path / "odd.tif", speckle((2, 64, 64), dtype="float32"))
    with pytest.raises(SceneError, match="neither optical"):
        coregister(scenes["eo"], odd, out)
    turned = write_raster(
        tmp_path / "turned.tif", speckle((3, 64, 64), dtype="uint8", scale=40.0),
        transform=NORTH_UP @ NORTH_UP.rotation(20), names=("red", "green", "blue"),
    )  # fmt: skip
    with pytest.raises(GeoreferenceError, match="not north-up"):
        coregister(turned, scenes["sar"], out)
    for flags, words in (
        (["--model", "x"], "goes with method dcdm"),
        (["--grid", "8"], "--grid 8: must be at least 32"),
        (["--tolerance", "0"], "--tolerance 0"),
        (["--eo-range", "3,1"], "--eo-range"),
        (["--radius", "1"], "--radius 1"),
    ):
        done = run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", out, *flags)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
    done = run("--reference", scenes["eo"], "--moving", scenes["sar"], "--out", tmp_path / "out.png")
    assert done.exit_code == 1
    assert "must end in .tif" in done.stderr
    assert not out.exists()


def test_the_command_offers_what_the_settings_allow_and_a_recipe_runs_it(scenes, tmp_path):
    defaults = {
        option.name: option.default for option in cli.get_command(click.Context(cli), "coregister").params
    }
    settings = CoregisterSettings()
    assert defaults["transform"] == settings.transform == "local"
    assert defaults["grid"] == settings.grid == 512
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[coregister]\nreference = "{scenes["eo"]}"\nmoving = "{scenes["sar"]}"\n'
        f'out = "{tmp_path / "moved.tif"}"\nsettings = {{grid = {GRID}, transform = "shift"}}\n'
    )
    told = CliRunner().invoke(cli, ["run", str(recipe), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "templates" in told.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.toml"}
    done = CliRunner().invoke(cli, ["run", str(recipe)])
    assert done.exit_code == 0, done.output
    assert "moved.tif: shift fitted to" in done.stdout


def test_a_matcher_answers_in_the_same_way(scenes, tmp_path):
    """An untrained one that accepts everything finds nothing that agrees."""
    model = untrained_matcher(tmp_path / "model", threshold=0.0, false_accepts=0.5)
    with pytest.raises(CoregistrationError, match="is not laid on"):
        coregister(
            scenes["eo"], scenes["sar"], tmp_path / "moved.tif", method="dcdm", model=str(model), grid=GRID,
            transform="shift", report=tmp_path / "report.json",
        )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["matching"]["template_px"] == 32
    assert report["matching"]["radius_px"] == 16
    assert len(report["matching"]["model_sha256"]) == 64
    assert report["versions"]["torch"]
    assert report["ties"]["measured"] > 15


def test_torch_is_left_alone_by_other_methods(scenes, tmp_path):
    code = (
        "import sys, sar2eo\n"
        f"sar2eo.coregister({str(scenes['eo'])!r}, {str(scenes['sar'])!r}, {str(tmp_path / 'm.tif')!r}, "
        f"grid={GRID}, dry_run=True)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert sar2eo.coregister is coregister
