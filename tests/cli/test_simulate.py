"""``sar2eo simulate``."""

from pathlib import Path

import numpy as np
import rasterio
from click.testing import CliRunner

from sar2eo.cli import cli


def run(*arguments: str):
    return CliRunner().invoke(cli, ["simulate", *arguments])


def test_the_same_settings_are_simulated_once_and_others_refused(tmp_path: Path) -> None:
    out = tmp_path / "pair"
    told = run("--out", str(out), "--size", "128", "--polarisations", "vv,vh", "--shift", "2.5,-3")
    assert told.exit_code == 0
    assert told.stdout.split() == [str(out / name) for name in ("sar.tif", "eo.tif", "truth.tif")]
    assert {path.name for path in out.iterdir()} == {"sar.tif", "eo.tif", "truth.tif"}
    with rasterio.open(out / "sar.tif") as sar:
        assert sar.descriptions == ("VV", "VH")
        before = sar.read()
    again = run("--out", str(out), "--size", "128", "--polarisations", "VV,VH", "--shift", "2.5,-3")
    assert again.exit_code == 0
    assert "kept" in again.stdout
    with rasterio.open(out / "sar.tif") as sar:
        np.testing.assert_array_equal(sar.read(), before)
    other = run("--out", str(out), "--size", "128")
    assert other.exit_code == 1
    assert '"seed": 1' in other.stderr


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "pair"
    out.mkdir()
    for name, words in (("sar.tif", "no raster"), ("truth.tif", "no raster")):
        (out / name).write_text("mine")
        told = run("--out", str(out), "--size", "128")
        assert told.exit_code == 1
        assert words in told.stderr
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    assert run("--out", str(out), "--size", "128").exit_code == 0
    before = (out / "truth.tif").read_bytes()
    (out / "sar.tif").unlink()  # as an interrupted run would lack others
    assert "kept" not in run("--out", str(out), "--size", "128").stdout
    assert (out / "sar.tif").is_file()
    assert (out / "truth.tif").read_bytes() == before
    told = run("--out", str(out / "sar.tif"), "--size", "128")
    assert told.exit_code == 1
    assert "folder" in told.stderr


def test_slips_are_usage_errors(tmp_path: Path) -> None:
    assert run("--out", str(tmp_path / "a"), "--size", "5").exit_code == 2
    assert run("--out", str(tmp_path / "a"), "--shift", "1").exit_code == 2
    assert run("--out", str(tmp_path / "a"), "--shift", "100,0").exit_code == 2
    assert not (tmp_path / "a").exists()
