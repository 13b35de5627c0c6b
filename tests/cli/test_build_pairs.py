"""``sar2eo build-pairs``."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rasterio
from click.testing import CliRunner
from support.pairs_scenes import write_scenes

from sar2eo.cli import cli
from sar2eo.cli.pairs import PairsProgress
from sar2eo.pairs.index import read_index

FLAGS = [
    "--size",
    "32",
    "--stride",
    "32",
    "--block",
    "1000",
    "--buffer",
    "100",
    "--val",
    "0.2",
    "--test",
    "0.3",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("given") / "scenes")


def run(*arguments: object):
    return CliRunner().invoke(cli, ["build-pairs", *map(str, arguments)])


def test_several_paths_follow_one_flag(scenes, tmp_path):
    sar, eo = sorted((scenes / "sar").iterdir()), sorted((scenes / "eo").iterdir())
    done = run(
        "--sar", *sar, "--out", tmp_path / "pairs", "--eo", *eo, *FLAGS, "--report", tmp_path / "r.json"
    )
    assert done.exit_code == 0, done.output
    index = read_index(tmp_path / "pairs")
    assert done.stdout.startswith(f"{tmp_path / 'pairs'}: {len(index)} pairs (")
    assert "splits at least" in done.stdout
    assert set(index.sar_href) == {str(path) for path in sar}
    report = json.loads((tmp_path / "r.json").read_text())
    assert sum(report["chips"].values()) == len(index)
    assert report["settings"]["test"] == 0.3
    again = run("--sar", *sar, "--eo", *eo, "--out", tmp_path / "pairs", *FLAGS)
    assert again.exit_code == 0
    assert "done before" in again.stdout
    other = run(
        "--sar", sar[0], "--sar", sar[1], "--eo", *eo, "--out", tmp_path / "pairs", *FLAGS, "--seed", 3
    )
    assert other.exit_code == 1
    assert "settings.seed 2025 -> 3" in other.stderr


def test_a_dry_run_counts_and_writes_nothing(scenes, tmp_path):
    done = run(
        "--sar", scenes / "sar", "--eo", scenes / "eo", "--out", tmp_path / "pairs", *FLAGS, "--dry-run"
    )
    assert done.exit_code == 0, done.output
    told = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[:4])
    assert {name.strip(): int(count) for name, count in told.items()}["scene pairs"] == 4
    assert "1.5 days apart" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_scenes_without_times_says_so(tmp_path):
    scenes = write_scenes(tmp_path / "scenes")
    for path in scenes.rglob("*.tif"):
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(ACQUISITION_DATETIME="")
    given = ("--sar", scenes / "sar", "--eo", scenes / "eo", "--out", tmp_path / "pairs", *FLAGS)
    done = run(*given, "--max-days", "inf", "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("time unknown") == 4


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--size", "8"], 2, "--size 8: must be at least 16"),
        (["--resolution", "fine"], 2, "must be 'native' or a number"),
        (["--eo-range", "5"], 2, "LOW,HIGH"),
        (["--val", "0.6", "--test", "0.5"], 2, "nothing is left to train on"),
        (["--max-days", "0.5"], 1, "none taken within max_days=0.5"),
        (["--workers", "1", "--scheduler", "tcp://127.0.0.1:1"], 2, "give one of them"),
    ],
)
def test_what_is_wrong_is_one_line(scenes, tmp_path, flags, code, words):
    done = run("--sar", scenes / "sar", "--eo", scenes / "eo", "--out", tmp_path / "pairs", *flags)
    assert done.exit_code == code
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_progress_tells_what_is_left_from_when_the_cutting_began():
    progress = PairsProgress()
    assert (
        progress({"neighbourhoods_total": 40, "neighbourhoods_done": 3}, 90.0)
        == "3 of 40 neighbourhoods aligned"
    )
    counts = {"cells_total": 120, "cells_resumed": 20}
    assert progress(counts, 100.0) == "0 of 100 cells"
    told = progress({**counts, "cells_done": 25, "chips_written": 20}, 110.0)
    assert told == "25 of 100 cells, 20 pairs, 0:00:30 left"


@pytest.mark.parametrize("wrong", ["train=3", "train.data=3", "train.settings=3", "train.settings=[1]"])
def test_a_recipe_with_a_value_for_a_table_is_refused_in_one_line(wrong):
    done = CliRunner().invoke(cli, ["train", "--set", wrong, "--out", "x", "--base", "y", "--steps", "3"])
    assert done.exit_code == 2, done.stderr
    assert "must be a table" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_scenes_must_be_given():
    done = run("--out", "pairs")
    assert done.exit_code == 2
    assert "--sar" in done.stderr


def test_a_killed_command_goes_on(scenes, tmp_path):
    """The same end, whether the command ran through or was killed at some moment."""
    given = ("--sar", scenes / "sar", "--eo", scenes / "eo", "--out", tmp_path / "pairs")
    command = (*given, *FLAGS, "--size", 16, "--stride", 16)
    program = [sys.executable, "-c", "from sar2eo.cli import main; main()", "build-pairs", *map(str, command)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "pairs/chips.partial"
    for _ in range(6000):
        if len(list(partial.glob("blocks-*/parts/cut-*.json"))) >= 3 or process.poll() is not None:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    parts = {path.name: path.stat().st_mtime_ns for path in partial.glob("blocks-*/parts/cut-*.json")}
    assert parts
    assert not (tmp_path / "pairs/pairs.json").exists()
    done = run(*command, "--report", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    index = read_index(tmp_path / "pairs")
    assert len(list((tmp_path / "pairs/chips").iterdir())) == 2 * len(index)
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir())[-1] == "pairs.parquet"
    assert not partial.exists()
    assert index.id.is_unique
