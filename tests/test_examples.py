"""Examples run, and recipes name what exists."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image

from sar2eo.cli import cli
from sar2eo.cli.commands import read_stages
from sar2eo.errors import SettingsError
from sar2eo.settings import apply_overrides, read_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "pipelines").glob("*.toml"), *(ROOT / "experiments").glob("*/*.toml")])


def test_the_demo_says_where_its_files_are(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "examples/demo.py"), str(tmp_path / "demo"), "--size", "256"]
    for _ in range(2):  # the second time over the files of the first
        told = subprocess.run(program, check=True, capture_output=True, text=True, timeout=120).stdout
        eo, confidence, picture = (Path(line.split()[1]) for line in told.splitlines())
        with rasterio.open(eo) as image, rasterio.open(confidence) as map_:
            assert (image.shape, image.count, image.dtypes[0]) == ((256, 256), 3, "uint8")
            assert (map_.shape, map_.count, map_.dtypes[0]) == ((256, 256), 1, "float32")
            # Not one colour, and not the SAR in grey.
            red, _, blue = image.read(masked=True).astype(float)
            assert red.std() > 10
            assert abs(red - blue).mean() > 3
        with Image.open(picture) as drawn:
            assert drawn.width > 3 * drawn.height


def test_the_notebook_runs(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "examples/notebook.py")]
    told = subprocess.run(
        program, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path
    ).stdout
    assert "(3, 100, 100) uint8" in told


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_understood(path: Path) -> None:
    table = read_recipe(path)
    stages = read_stages(table)
    assert [name for name, _ in stages] == [
        name for name, value in table.items() for _ in (value if isinstance(value, list) else [value])
    ]
    name, recipe = stages[-1]
    changed = read_stages(apply_overrides(table, (f"{name}.settings.seed=7", f"{name}.out=other")))[-1].recipe
    assert (changed.settings.seed, changed.out) == (7, "other")
    assert recipe.settings.seed in (2025, 2026)
    with pytest.raises(SettingsError, match="unknown sede"):
        read_stages(apply_overrides(table, (f"{name}.settings.sede=7",)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_dry(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = read_stages(read_recipe(path))
    told = CliRunner().invoke(cli, ["run", str(path), "--dry-run"])
    if len(stages) > 1:
        assert told.exit_code == 0, told.output
        for number, (name, recipe) in enumerate(stages, start=1):
            assert f"[{number}/{len(stages)}] {name}\n" in told.stdout
            assert recipe.out in told.stdout
    else:  # the command itself looks at its inputs, which are not here
        assert told.exit_code == 1
        assert "Error: " in told.stderr or "no such file or folder" in told.stdout
        assert len(told.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # test_pixels_unchanged runs every command in the normal run
def test_every_stage_runs_by_itself_in_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    smoke = str(ROOT / "pipelines/smoke.toml")
    told = CliRunner().invoke(cli, ["run", smoke])
    assert told.exit_code == 0, told.output
    with rasterio.open(tmp_path / "smoke/eo.tif") as eo, rasterio.open(tmp_path / "smoke/a/sar.tif") as sar:
        np.testing.assert_array_equal(eo.dataset_mask() > 0, sar.read(1) > 0)
    report = json.loads((tmp_path / "smoke/report/metrics.json").read_text())
    # A model of a minute is worth little, but its VAE's bound must be above it.
    methods = report["methods"]
    assert methods["vae-upper-bound"]["psnr"] > methods["model"]["psnr"]
    audit = json.loads((tmp_path / "smoke/pairs/audit.json").read_text())
    assert all(audit["chips"].values())
    assert audit["smallest_distance_m"]["any"] > audit["buffer_m"]
    # The same command finds what is done.
    again = CliRunner().invoke(cli, ["run", smoke])
    assert again.exit_code == 0, again.output
    assert again.stdout.count("before") == 7
