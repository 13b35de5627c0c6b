"""The command line: what it writes, says and exits with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.command_line import SMALL, run
from support.scenes import amplitude, write_scene

from sar2eo.errors import FitWarning


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def test_translate_writes_the_image_the_report_and_the_picture(scene_file: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "eo.tif", tmp_path / "report.json"
    done = run(
        "translate", scene_file, "--out", out, *SMALL, "--report", report, "--quicklook", tmp_path / "q.png"
    )
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(read(out), np.repeat(read(scene_file), 3, 0))
    told = json.loads(report.read_text())
    assert told["grid"]["shape"] == [400, 500]
    assert set(told["tiles"]) == {"total", "translated", "skipped", "resumed"}
    assert told["scaling"] == {
        "quantity": "dn",
        "calibration": "none",
        "polarisations": ["VV"],
        "p99": [255.0],
    }
    assert {"total", "open", "load", "read", "model", "blend", "assemble"} <= set(told["seconds"])
    assert told["megapixels"] == pytest.approx(0.2)
    assert told["peak_rss_bytes"] > 1e7
    assert {"tile", "overlap", "batch", "threads", "device", "dtype", "seed"} <= set(told["settings"])
    assert (tmp_path / "q.png").stat().st_size > 1000
    assert f"{out}: 0.2 megapixels" in done.stdout


def test_a_report_gives_another_scene_its_scale(scene_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    first = run(
        "translate", scene_file, "--out", tmp_path / "a.tif", "--model", "identity", "--report", report
    )
    assert first.exit_code == 0, first.output
    done = run("translate", scene_file, "--out", tmp_path / "b.tif", *SMALL[:-1], report)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_regions_are_parts_of_the_whole(scene_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tif"
    assert run("translate", scene_file, "--out", whole, *SMALL).exit_code == 0
    done = run("translate", scene_file, "--out", tmp_path / "w.tif", *SMALL, "--window", "100,200,50,60")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(read(tmp_path / "w.tif"), read(whole)[:, 100:150, 200:260])
    box = (502000, 3998000, 503000, 3999000)
    done = run(
        *("translate", scene_file, "--out", tmp_path / "b.tif", *SMALL),
        *("--bbox", ",".join(map(str, box)), "--bbox-crs", "EPSG:32611"),
    )
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(read(tmp_path / "b.tif"), read(whole)[:, 100:200, 200:300])


@pytest.mark.parametrize(
    "window",
    [
        (0, 0, 1024, 90),
        (1024, 0, 176, 90),
        (0, 0, 1100, 90),
        (0, 0, 1000, 80),
        (8, 8, 1100, 80),
        (0, 0, 1200, 90),
    ],
)
def test_regions_may_take_chunks_whole(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    """The README's own window began and ended on chunks, of 1024 pixels, and was an error."""
    values = amplitude((1200, 90), 5)
    values[:, 1100:] = np.minimum(3 * values[:, 1100:], 255)
    scene, row, col, height, width = write_scene(tmp_path / "scene.tif", values), *window
    west, north = 500_000 + 10 * col, 4_000_000 - 10 * row
    box = (west, north - 10 * height, west + 10 * width, north)
    regions = {
        "whole": (),
        "window": ("--window", ",".join(map(str, window))),
        "box": ("--bbox", ",".join(map(str, box)), "--bbox-crs", "EPSG:32611"),
    }
    for name, region in regions.items():
        done = run("translate", scene, "--out", tmp_path / f"{name}.tif", *SMALL[:-2], *region)
        assert done.exit_code == 0, done.output
    whole = read(tmp_path / "whole.tif")[:, row : row + height, col : col + width]
    for name in ("window", "box"):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif"), whole)


def test_an_area_of_interest_masks_what_is_outside(scene_file: Path, tmp_path: Path) -> None:
    from pyproj import Transformer

    to_degrees = Transformer.from_crs("EPSG:32611", "EPSG:4326", always_xy=True)
    ring = [to_degrees.transform(x, y) for x, y in [(501000, 3999000), (503000, 3999000), (501000, 3997000)]]
    area = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    (tmp_path / "area.geojson").write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": area})
    )
    done = run(
        "translate", scene_file, "--out", tmp_path / "a.tif", *SMALL, "--aoi", tmp_path / "area.geojson"
    )
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "a.tif") as raster, rasterio.open(scene_file) as source:
        inside = raster.read_masks(1) > 0
        rows, cols = np.indices(raster.shape)
        x, y = raster.transform @ (cols + 0.5, rows + 0.5)
        triangle = (x > 501000) & (y < 3999000) & ((x - 501000) - (y - 3997000) < 0)
        assert (inside == triangle).mean() > 0.99
        expected = source.read(1, window=rasterio.windows.from_bounds(*raster.bounds, source.transform))
        np.testing.assert_array_equal(raster.read(1)[inside], expected[inside])


def test_an_area_without_the_centre_of_a_pixel_is_refused(scene_file: Path, tmp_path: Path) -> None:
    ring = [[500011, 3999981], [500013, 3999981], [500013, 3999983], [500011, 3999981]]
    area = area_of(tmp_path / "area.geojson", ring)
    done = run("translate", scene_file, "--out", tmp_path / "a.tif", *SMALL, "--aoi", area)
    assert done.exit_code == 2
    assert "no pixel has its centre in the polygons" in done.stderr
    assert not (tmp_path / "a.tif").exists()


def test_several_scenes_go_to_a_folder_and_a_failing_one_stops_nobody(
    scene_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0nothing")
    other = write_scene(tmp_path / "other.tif", amplitude((100, 90), 6))
    done = run("translate", scene_file, broken, other, "--out", tmp_path, *SMALL)
    assert done.exit_code == 1
    assert "broken.tif" in done.stderr
    assert "1 of 3 scenes failed" in done.stderr
    assert (tmp_path / "scene_eo.tif").exists()
    assert (tmp_path / "other_eo.tif").exists()


def test_a_report_never_replaces_the_scene(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    before = scene.read_bytes()
    done = run("translate", scene, "--out", tmp_path / "eo.tif", *SMALL, "--report", scene)
    assert done.exit_code == 2, done.output
    assert "is one of the scenes, or another file that the run reads" in done.stderr
    assert scene.read_bytes() == before


TRIANGLE = [[500100, 3999900], [500400, 3999900], [500400, 3999600], [500100, 3999900]]


def area_of(path: Path, ring: list[list[float]] = TRIANGLE) -> Path:
    """Write an area of interest within the scenes of `write_scene`."""
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32611"}}
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--aoi", "eo.json"), "eo.json is the file of --aoi"),
        (
            ("--aoi", "area.json", "--report", "area.json"),
            "area.json is one of the scenes, or another file that the run reads",
        ),
        ((), "eo.json is not the STAC item of a result"),
        (("--report", "."), "is a folder"),
    ],
)
def test_files_of_the_user_are_never_replaced(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    files = [scene, area_of(tmp_path / "area.json")]
    if "." not in options:
        files.append(area_of(tmp_path / "eo.json"))
    before = [path.read_bytes() for path in files]
    done = run("translate", scene, "--out", "eo.tif", *SMALL, "--overwrite", *options)
    assert done.exit_code in (1, 2), done.output
    assert words in done.stderr
    assert [path.read_bytes() for path in files] == before
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_report_never_replaces_the_collection(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    done = run("translate", scene, "--out", tmp_path, *SMALL, "--report", tmp_path / "collection.json")
    assert done.exit_code == 2, done.output
    assert "another output goes there" in done.stderr


def test_a_scene_in_a_folder_with_an_equals_sign_is_known_as_an_input(tmp_path: Path) -> None:
    folder = tmp_path / "year=2020"
    folder.mkdir()
    scene = write_scene(folder / "scene.tif", amplitude((60, 60), 6))
    before = scene.read_bytes()
    done = run("translate", scene, "--out", scene, *SMALL, "--overwrite")
    assert done.exit_code == 2
    assert "the scene itself" in done.stderr
    assert scene.read_bytes() == before


def test_scenes_with_a_number_sign_have_names_of_their_own(tmp_path: Path) -> None:
    names = ("tile#1", "other#1")
    scenes = [write_scene(tmp_path / f"{name}.tif", amplitude((60, 60), 6)) for name in names]
    (tmp_path / "out").mkdir()
    done = run("translate", *scenes, "--out", tmp_path / "out", *SMALL)
    assert done.exit_code == 0, done.output
    assert {f"{name}_eo.tif" for name in names} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_scaling_of_a_report_goes_by_polarisation(tmp_path: Path) -> None:
    both = amplitude((64, 64), seed=1, bands=2) * [[[1.0]], [[0.3]]]
    first = write_scene(tmp_path / "first.tif", both, names=("VV", "VH"))
    other = write_scene(tmp_path / "other.tif", both[::-1], names=("VH", "VV"))
    report, out = tmp_path / "report.json", tmp_path / "eo.tif"
    small = ("--model", "identity", "--tile", "64", "--overlap", "0")
    assert run("translate", first, "--out", out, *small, "--report", report).exit_code == 0
    scaling = json.loads(report.read_text())["scaling"]
    told = dict(zip(scaling["polarisations"], scaling["p99"], strict=True))
    assert told["VV"] > 2 * told["VH"]
    again = ("--report", report, "--overwrite", "--restart", "--scaling-from")
    assert run("translate", other, "--out", out, *small, *again, report).exit_code == 0
    assert json.loads(report.read_text())["scaling"] == {
        "quantity": "dn",
        "calibration": "none",
        "polarisations": ["VH", "VV"],
        "p99": [told["VH"], told["VV"]],
    }
    again = (*again, tmp_path / "kept.json")
    shutil.copy(report, again[-1])
    single = write_scene(tmp_path / "single.tif", both[:1], names=("HH",))
    refused = run("translate", single, "--out", out, *small, *again)
    assert refused.exit_code == 2
    assert "HH is not among them" in refused.stderr
    calibrated = ("--quantity", "amplitude", "--calibration", "sigma0")
    refused = run("translate", first, "--out", out, *small, *calibrated, *again)
    assert refused.exit_code == 1, refused.stderr
    assert "the scaling is that of a scene of dn" in refused.stderr
    assert "of amplitude (sigma0)" in refused.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("default", FitWarning)
        forced = run("translate", first, "--out", out, *small, *calibrated, "--force", *again)
    assert forced.exit_code == 0, forced.output
    assert "Warning: the scaling is that of a scene of dn" in forced.stderr


def test_dry_run_says_what_it_takes_and_writes_nothing(scene_file: Path, tmp_path: Path) -> None:
    done = run("translate", scene_file, "--out", tmp_path / "eo.tif", *SMALL, "--dry-run")
    assert done.exit_code == 0, done.output
    for word in ("EPSG:32611", "VV", "255", "total", "without data", "identity", "memory", "disk", "seconds"):
        assert word in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "identity", "--tile", "100", "--overlap", "60"], 2, ["overlap=60", "50"]),
        (["--model", "identity", "--scaling-from", "high"], 2, ["--scaling-from high"]),
        (["--model", "identity", "--window", "1,2,3"], 2, ["ROW,COL,HEIGHT,WIDTH"]),
        (["--model", "identity", "--window", "1,2,3,9999"], 2, ["400 rows and 500 columns"]),
        (["--model", "identity", "--bbox", "1,2,3,4"], 2, ["outside of the scene"]),
        (
            ["--model", "identity", "--bbox", "1,2,3,4", "--window", "0,0,9,9"],
            2,
            ["--bbox and --window are given"],
        ),
        (["--model", "identity", "--batch", "many"], 2, ["--batch"]),
        (["--model", "identity", "--quantity", "db"], 1, ["do not look like db", "--quantity dn"]),
        (["--model", "identity", "--pol", "VV,VH"], 1, ["VV"]),
        (["--model", "identity", "--confidence", "c.tif"], 2, ["confidence"]),
        (["--model", "no/such/folder"], 1, ["no/such/folder"]),
        (["--model", "identity", "--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], 2, ["workers=2"]),
    ],
)
def test_slips_are_one_line_and_leave_nothing(
    scene_file: Path, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    done = run("translate", scene_file, "--out", tmp_path / "eo.tif", *arguments)
    assert done.exit_code == code, done.output
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.output
    assert len(done.stderr.strip().splitlines()) <= 4  # click adds its usage to what it finds itself
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run(
        "translate", tmp_path / "no.tif", "--out", tmp_path / "eo.tif", "--model", "identity", "--debug"
    )
    assert done.exit_code == 1
    assert done.exception is not None
    assert "no.tif" in str(done.exception)


def test_info_prints_what_a_scene_is(scene_file: Path) -> None:
    done = run("info", scene_file, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["polarisations"] == ["VV"]
    assert told["quantity"] == "dn"
    assert told["datetime"].startswith("2024-05-06T07:08:09")
    plain = run("info", scene_file)
    assert "EPSG:32611" in plain.stdout


def test_model_init_and_info(tmp_path: Path) -> None:
    done = run("model", "init", "--size", "tiny", "--out", tmp_path / "tiny", "--pol", "VH", "--gsd", "10")
    assert done.exit_code == 0, done.output
    told = json.loads(run("model", "info", tmp_path / "tiny", "--json").stdout)
    assert told["card"]["polarisations"] == ["VH"]
    assert told["card"]["gsd_m"] == 10
    assert told["parameters"]["total"] < 2_000_000
    again = run("model", "init", "--size", "tiny", "--out", tmp_path / "tiny")
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_run_takes_a_recipe_and_overrides(scene_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[translate]\nscenes = ["{scene_file}"]\nout = "nowhere.tif"\nmodel = "identity"\n'
        "[translate.settings]\ntile = 128\noverlap = 16\nscaling = [255.0]\n"
    )
    done = run("run", recipe, "--set", f"translate.out={tmp_path / 'eo.tif'}")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(read(tmp_path / "eo.tif"), np.repeat(read(scene_file), 3, 0))
    slip = run("run", recipe, "--set", "translate.settings.tiel=5", "--dry-run")
    assert slip.exit_code == 2
    assert "tiel" in slip.stderr


def test_interrupting_says_how_to_go_on_and_the_same_command_does(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", amplitude((3000, 3000), 7))
    slow = (
        "import time\nfrom sar2eo.model import loading as models; from sar2eo import cli\n"
        "quick = models.IdentityTranslator.translate\n"
        "def slow(self, *args):\n    time.sleep(0.1)\n    return quick(self, *args)\n"
        "models.IdentityTranslator.translate = slow\ncli.main()"
    )
    command = ["translate", str(scene), "--out", str(tmp_path / "eo.tif"), *SMALL, "--batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's job in the background is born deaf to Ctrl-C, and so would be all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    blocks = tmp_path / "eo.tif.partial"
    deadline = time.monotonic() + 60
    while not list(blocks.glob("blocks*/eo*.tif")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert not (tmp_path / "eo.tif").exists()
    done = run(*command, "--report", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "report.json").read_text())["tiles"]["resumed"] > 0
    np.testing.assert_array_equal(read(tmp_path / "eo.tif"), np.repeat(read(scene), 3, 0))
