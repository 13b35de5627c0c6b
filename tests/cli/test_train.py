"""``sar2eo train``: flags over a recipe, the plan, and what comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support.dataset_fixtures import built_pairs

from sar2eo.cli import cli
from sar2eo.model.creation import init_checkpoint
from sar2eo.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    *("--steps", "2", "--warmup", "1", "--batch", "1", "--crop", "32"),
    *("--threads", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    built_pairs(root / "pairs", counts={"train": 2, "val": 1}, size=32)
    init_checkpoint(root / "base", size="tiny")
    return root


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    return done.exit_code, done.output


def test_every_setting_has_a_flag_with_its_default() -> None:
    options = {option.name: option for option in cli.get_command(click.Context(cli), "train").params}
    for field in dataclasses.fields(TrainSettings):
        assert options[field.name].default == field.default, field.name


def test_a_run_a_finished_run_and_a_refused_one(folder: Path, tmp_path: Path) -> None:
    command = ["--pairs", folder / "pairs", "--base", folder / "base", "--out", tmp_path / "run", *SMALL]
    code, told = run(*command, "--dry-run")
    assert code == 0, told
    assert "hours, estimated" in told
    assert "trained     1203685" in told
    assert not (tmp_path / "run").exists()
    code, told = run(*command)
    assert code == 0, told
    assert f"{tmp_path / 'run' / 'final'}: 2 steps in" in told
    assert run(*command) == (0, f"{tmp_path / 'run' / 'final'}: all 2 steps were done before\n")
    code, told = run(*command, "--lr", "1")
    assert code == 1
    assert "begun with settings.lr=3e-05, not 1.0" in told
    assert told.count("\n") == 1


def test_flags_come_before_overrides_and_those_before_the_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        [train]
        base = "{folder / "base"}"
        out = "{tmp_path / "run"}"
        data = {{ dataset = "qxs", root = "nowhere" }}
        settings = {{ batch = 7, loss = "l2", steps = 9, crop = 32, device = "cpu", dtype = "float32" }}
        """
    )
    code, told = run(
        *("--recipe", recipe, "--set", "train.settings.steps=3", "--set", "train.settings.batch=1"),
        *("--warmup", 1, "--batch", 2, "--pairs", folder / "pairs", "--threads", 1, "--dry-run"),
    )
    assert code == 0, told
    assert "images  6" in told  # three steps of two
    assert "loss        l2" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "x", "--out", "y"], "give either --pairs (a folder), or --dataset and --root"),
        (["--pairs", "p", "--out", "y"], "missing --base"),
        (["--pairs", "p", "--base", "x", "--out", "y", "--steps", "0"], "--steps 0: must be at least 1"),
        (
            ["--pairs", "p", "--base", "x", "--out", "y", "--steps", "99"],
            "--warmup 100: must be at most --steps 99,",
        ),
        (["--pairs", "p", "--base", "x", "--out", "y", "--set", "train.stepz=1"], "unknown stepz"),
    ],
)
def test_wrong_settings_are_told_in_a_line(arguments: list[str], message: str) -> None:
    code, told = run(*arguments)
    assert (code, told.count("\n")) == (2, 1)
    assert message in told
