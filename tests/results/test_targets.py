import json
from pathlib import Path

import pytest
import rasterio
from rasterio.shutil import copy
from support.command_line import run
from support.scenes import amplitude, write_scene

SMALL = ("--model", "identity", "--tile", "64", "--overlap", "16", "--scaling-from", "1000")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    scene = write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    copy(scene, tmp_path / "scene.vrt", driver="VRT")
    (tmp_path / "thesis.docx").write_bytes(b"years of work")
    (tmp_path / "mine.json").write_text('{"software": "another"}')
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--report", "thesis.docx"), 1),
        (("--report", "mine.json"), 1),
        (("--report", "scene.tif"), 2),
        (("--report", "scene.tif", "--overwrite"), 2),
        (("--report", "recipe.toml"), 1),
        (("--quicklook", "picture.png"), 1),
        (("--report", "link.json"), 1),
        (("--report", "link.json", "--overwrite"), 1),
    ],
)
def test_no_file_of_the_user_is_replaced(folder: Path, flags: tuple[str, ...], code: int) -> None:
    (folder / "recipe.toml").write_text("[translate]\n")
    (folder / "picture.png").write_bytes(b"mine")
    (folder / "link.json").symlink_to("mine.json")
    before = snapshot(folder)
    done = run("translate", "scene.vrt", "--out", "eo.tif", *SMALL, *flags)
    assert done.exit_code == code, done.output
    assert done.stderr.count("\n") == 1
    assert "unexpected" not in done.stderr
    assert snapshot(folder) == before
    assert (folder / "link.json").is_symlink()


@pytest.mark.parametrize("name", ["eo.tif.ovr", "eo.tif.msk", "eo.tif.aux.xml", "link"])
def test_what_gdal_takes_for_part_of_a_result_is_kept(folder: Path, name: str) -> None:
    if name == "link":
        (folder / "eo.tif").symlink_to("thesis.docx")
    else:
        (folder / name).write_bytes(b"mine")
    before = snapshot(folder)
    replaced = ("--overwrite",) if name == "link" else ()
    done = run("translate", "scene.tif", "--out", "eo.tif", *SMALL, *replaced)
    assert done.exit_code == 1, done.output
    assert ("is a link" if name == "link" else f"{name} exists: pass --overwrite") in done.stderr
    assert snapshot(folder) == before


def test_a_report_of_ours_is_renewed_and_another_file_by_request(folder: Path) -> None:
    asked = ("translate", "scene.tif", *SMALL)
    for out in ("a.tif", "b.tif"):
        assert run(*asked, "--out", out, "--report", "report.json").exit_code == 0
    assert json.loads((folder / "report.json").read_text())["output"] == "b.tif"
    assert run(*asked, "--out", "c.tif", "--report", "mine.json", "--overwrite").exit_code == 0
    assert json.loads((folder / "mine.json").read_text())["software"].startswith("sar2eo ")


@pytest.mark.parametrize("report", ["thesis.docx", "scene.tif", "pairs.json"])
def test_reports_of_other_commands_replace_nothing_either(folder: Path, report: str) -> None:
    with rasterio.open("scene.tif") as raster:
        profile = raster.profile | {"count": 3, "dtype": "uint8", "nodata": None}
    with rasterio.open("eo.tif", "w", **profile) as raster:
        raster.write(amplitude((60, 60), 7, bands=3).astype("uint8"))
    before = snapshot(folder)
    scenes = ("--reference", "eo.tif", "--moving", "scene.tif", "--grid", "32", "--transform", "shift")
    pairs = ("--sar", "scene.tif", "--eo", "eo.tif", "--out", "pairs", "--size", "100")
    (folder / "pairs").mkdir()
    place = f"pairs/{report}" if report == "pairs.json" else report
    for command in (("coregister", *scenes, "--out", "moved.tif"), ("build-pairs", *pairs)):
        if report == "pairs.json" and command[0] == "coregister":
            continue
        done = run(*command, "--report", place)
        assert done.exit_code in (1, 2), done.output
        assert f"--report {place}" in done.stderr
    assert snapshot(folder) == before
