"""`coregister` refuses early what could not end well, and goes on where a call was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import dask
import pytest
import rasterio
from click.testing import CliRunner
from support.dcdm_fixtures import untrained_matcher
from support.scene_fixtures import write_raster

from sar2eo.cli import cli
from sar2eo.coregistration import registration, tie_points
from sar2eo.coregistration.registration import coregister
from sar2eo.errors import (
    CoregistrationError,
    FitWarning,
    JournalError,
    OutputError,
    PolarisationError,
    RadiometryError,
    SceneError,
    SettingsError,
)
from sar2eo.settings import CoregisterSettings
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

SIZE, GRID, TEMPLATES = 768, 150, 25


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A simulated pair, the SAR off by a known shift."""
    pair = simulate_pair(SimulationSettings(size=SIZE, seed=5, shift=(4.4, -6.7)))
    return write_pair(pair, tmp_path_factory.mktemp("scenes"))


def run(*arguments: object):
    return CliRunner().invoke(cli, ["coregister", *map(str, arguments)])


@pytest.mark.parametrize(
    ("card", "moving", "error", "words"),
    [
        ({"polarisations": ("VV",)}, "sar", PolarisationError, "has VH, and the matcher was trained on VV"),
        ({"gsd_m": 16.0}, "sar", SceneError, "the reference's pixels are 10 x 10 m .* trained at 16 m"),
        ({"gsd_m": 10.0}, "coarse", SceneError, "its pixels are 40 x 40 m .* shows less than that"),
        ({"scaling": 0.3, "calibration": "sigma0"}, "sar", RadiometryError, "scaling is for sigma0"),
        ({"gsd_m": 7.0}, "sar", None, ""),
    ],
)
def test_a_matcher_is_not_used_on_what_its_card_does_not_fit(scenes, tmp_path, card, moving, error, words):
    model = untrained_matcher(tmp_path / "model", threshold=0.0, **card)
    with rasterio.open(scenes["sar"]) as file:
        wide = {"transform": file.transform @ file.transform.scale(4), "crs": file.crs, "names": ("VH",)}
        coarse = write_raster(tmp_path / "coarse.tif", file.read()[:, ::4, ::4], nodata=0, **wide)
    sar = coarse if moving == "coarse" else scenes["sar"]
    settings = CoregisterSettings(method="dcdm", model=str(model), grid=GRID, transform="shift")
    wanted = scenes["eo"], sar, tmp_path / "moved.tif"
    if error is None:
        assert coregister(*wanted, settings=settings, dry_run=True)["ties"]["templates"] > 10
        return
    with pytest.raises(error, match=f"{words}.*force=True matches all the same"):
        coregister(*wanted, settings=settings, dry_run=True)
    with pytest.warns(FitWarning, match=words):
        coregister(*wanted, settings=settings, dry_run=True, force=True)


def test_forced_a_matcher_is_given_the_nearest_polarisation(scenes, tmp_path):
    model = untrained_matcher(tmp_path / "model", threshold=0.0, polarisations=("HV", "VH"))
    with (
        pytest.warns(FitWarning, match="trained on HV, VH"),
        pytest.raises(CoregistrationError, match="is not laid on"),
    ):
        coregister(
            scenes["eo"], scenes["sar"], tmp_path / "moved.tif", method="dcdm", model=str(model), grid=GRID,
            transform="shift", points=6, force=True,
        )  # fmt: skip


def test_what_its_pairs_were_stored_as_is_no_matter_to_a_matcher(scenes, tmp_path):
    model = untrained_matcher(tmp_path / "model", threshold=0.0, quantity="intensity")
    found = coregister(
        scenes["eo"], scenes["sar"], tmp_path / "moved.tif", method="dcdm", model=str(model), grid=GRID,
        dry_run=True,
    )  # fmt: skip
    assert found["ties"]["templates"] > 0


class _Usage(NamedTuple):
    free: int


def test_a_disk_that_is_too_small_is_found_before_any_tie_point(scenes, tmp_path, monkeypatch):
    wanted = scenes["eo"], scenes["sar"], tmp_path / "moved.tif"
    needed = coregister(*wanted, grid=GRID, dry_run=True)["disk_bytes"]
    with rasterio.open(scenes["sar"]) as file:
        assert needed == pytest.approx(2.3 * file.width * file.height, rel=0.15)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(needed - 1))
    with monkeypatch.context() as patched:
        patched.setattr(registration, "measure_ties", None)
        words = r"[0-9] MB are free, .* choose another --out, or pass force=True"
        with pytest.raises(OutputError, match=words):
            coregister(*wanted, grid=GRID, transform="shift")
        assert not list(tmp_path.iterdir())
    assert coregister(*wanted, grid=GRID, transform="shift", force=True)["accepted"]


def test_no_result_replaces_a_scene(scenes, tmp_path):
    eo = Path(shutil.copy(scenes["eo"], tmp_path / "eo.tif"))
    before = eo.read_bytes()
    for moving, names in (
        (scenes["sar"], {"out": eo}),
        (f"VH={scenes['sar']}", {"out": eo}),
        (scenes["sar"], {"out": tmp_path / "moved.tif", "report": tmp_path / "x" / ".." / "eo.tif"}),
    ):
        with pytest.raises(SettingsError, match="is one of the scenes"):
            coregister(eo, moving, grid=GRID, overwrite=True, **names)
    assert eo.read_bytes() == before


class _PowerCutError(Exception):
    """Stands for whatever ends a run."""


def _result(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".png"}


def _without_times(report: Path) -> dict:
    told = json.loads(report.read_text())
    return {name: value for name, value in told.items() if name not in ("seconds", "peak_rss_bytes", "out")}


def test_the_same_call_goes_on_where_one_was_stopped(scenes, tmp_path, monkeypatch):
    """Stopped while tie points are measured, while the scene is moved, and while results are put in place."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for folder in (stopped, whole):
        folder.mkdir()

    def go(folder: Path, **changes: object) -> dict:
        how = {"grid": GRID, "transform": "shift", "report": folder / "report.json", **changes}
        with dask.config.set(scheduler="synchronous"):
            return coregister(scenes["eo"], scenes["sar"], folder / "moved.tif", **how)

    assert go(whole)["ties_resumed"] == 0
    find = tie_points.ClassicalFinder.find
    measured = []

    def counted(self, sar, eo):
        measured.append(1)
        if len(measured) == 10:
            raise _PowerCutError
        return find(self, sar, eo)

    monkeypatch.setattr(tie_points.ClassicalFinder, "find", counted)
    with pytest.raises(_PowerCutError):
        go(stopped)
    assert {path.name for path in stopped.iterdir()} == {"moved.tif.partial"}
    with pytest.raises(JournalError, match=r"settings.grid 150 -> 128.*overwrite=True"):
        go(stopped, grid=128)

    def cut(*_: object, **__: object) -> None:
        raise _PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(registration, "draw_ties", cut)
        with pytest.raises(_PowerCutError):
            go(stopped)
    # Tasks are of four; of 25 one is of one. The tenth template ended its own.
    assert len(measured) - 10 in (TEMPLATES - 8, TEMPLATES - 9)
    measured.clear()
    publish = registration.publish

    def half(pairs: list) -> None:
        publish(pairs[:1])
        cut()

    with monkeypatch.context() as patched:
        patched.setattr(registration, "publish", half)
        with pytest.raises(_PowerCutError):
            go(stopped)
    assert {path.name for path in stopped.iterdir()} == {"moved.tif.partial", "moved_ties.geojson"}
    with pytest.raises(JournalError, match=r"transform .*shift.* -> .*affine"):
        go(stopped, transform="affine")
    found = go(stopped)
    assert not measured
    assert found["ties_resumed"] == found["ties"]["templates"]
    assert _result(stopped).keys() == {"moved.tif", "moved_ties.geojson", "report.json"}
    told = [_without_times(folder / "report.json") for folder in (whole, stopped)]
    assert told[1].pop("ties_resumed") > told[0].pop("ties_resumed") == 0
    assert told[0] == told[1]
    for name in ("moved.tif", "moved_ties.geojson"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    again = json.loads(json.dumps(go(stopped)))
    assert again.pop("done_before")
    assert again == json.loads(json.dumps({name: found[name] for name in again}))
    with pytest.raises(OutputError, match="exists: pass overwrite=True"):
        go(stopped, transform="affine")


def test_unfinished_work_of_other_settings_goes_when_it_is_overwritten(scenes, tmp_path, monkeypatch):
    out = tmp_path / "moved.tif"

    def cut(*_: object) -> None:
        raise _PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(registration, "weigh", cut)
        with pytest.raises(_PowerCutError):
            coregister(scenes["eo"], scenes["sar"], out, grid=GRID)
    assert len(list(tmp_path.glob("moved.tif.partial/blocks-*/parts/*.json"))) == -(-TEMPLATES // 4)
    found = coregister(scenes["eo"], scenes["sar"], out, grid=160, transform="shift", overwrite=True)
    assert found["ties_resumed"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"moved.tif", "moved_ties.geojson", "moved_ties.png"}


def test_a_killed_command_goes_on(scenes, tmp_path):
    arguments = ["--reference", scenes["eo"], "--moving", scenes["sar"], "--out", tmp_path / "moved.tif",
                 "--grid", 150, "--transform", "shift", "--report", tmp_path / "report.json"]  # fmt: skip
    program = [
        sys.executable,
        "-c",
        "from sar2eo.cli import main; main()",
        "coregister",
        *map(str, arguments),
    ]
    with subprocess.Popen(
        program, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as one:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("moved.tif.partial/blocks-*/parts/*.json")):
            assert one.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        one.send_signal(signal.SIGKILL)
        assert one.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "moved.tif").exists()
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert 1 <= report["ties_resumed"] < report["ties"]["templates"]
    assert not (tmp_path / "moved.tif.partial").exists()
