"""Examples run, and recipes name what exists."""

import subprocess
import sys
from pathlib import Path

import pytest

from sar2eo.recipe import TranslateRecipe, TranslateSettings, apply_overrides, from_table, read_recipe

ROOT = Path(__file__).parents[1]


def test_the_demo_says_where_its_files_are(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "examples/demo.py"), str(tmp_path / "demo")]
    for _ in range(2):  # the second time over the files of the first
        told = subprocess.run(program, check=True, capture_output=True, text=True, timeout=120).stdout
        for line in told.splitlines():
            assert Path(line.split()[1]).exists()
        assert len(told.splitlines()) == 3


def test_the_notebook_runs(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "examples/notebook.py")]
    told = subprocess.run(
        program, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path
    ).stdout
    assert "(3, 100, 100) uint8" in told


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_are_understood(path: Path) -> None:
    table = read_recipe(path)
    recipe = from_table(TranslateRecipe, table["translate"], "translate")
    assert recipe.scenes
    assert isinstance(recipe.settings, TranslateSettings)
    changed = apply_overrides(table, ("translate.settings.steps=7", "translate.out=other.tif"))
    again = from_table(TranslateRecipe, changed["translate"], "translate")
    assert (again.settings.steps, again.out) == (7, "other.tif")
    assert recipe.settings.steps is None
