"""Settings are declared once, checked by one function, and named in the words they were given in."""

import copy
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from sar2eo.cli import cli
from sar2eo.cli.commands import COMMANDS, TABLES
from sar2eo.cli.options import SettingsCommand
from sar2eo.errors import SettingsError
from sar2eo.settings import (
    DataSettings,
    PairsSettings,
    Settings,
    TrainSettings,
    TranslateSettings,
    VaeSettings,
    from_table,
    replace_settings,
)
from sar2eo.settings.schema import describe_bounds, settings_of

KINDS = {name: entry.settings for name, entry in COMMANDS.items() if entry.settings is not None}


@pytest.mark.parametrize("name", KINDS)
def test_every_setting_has_a_flag_of_its_own_and_help(name: str) -> None:
    command = SettingsCommand(name, KINDS[name], COMMANDS[name].load(), name)
    expected: list[str] = []
    for setting in settings_of(KINDS[name]):
        inner = [] if setting.table is None else list(settings_of(setting.table))
        expected += [each.name for each in inner if each.name not in setting.without]
        expected += [setting.name] if setting.table is None else []
    assert sorted(command.fields) == sorted(expected)
    assert all(field.setting.help.endswith(".") for field in command.fields.values())
    assert CliRunner().invoke(cli, [*name.split(), "--help"]).exit_code == 0


def test_tables_of_recipes_are_commands_with_a_dash() -> None:
    assert {"translate", "train", "model-init"} <= set(TABLES) <= {name.replace(" ", "-") for name in KINDS}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (TranslateSettings, {"steps": 1001}, "steps=1001: must be at least 1 and at most 1000"),
        (TranslateSettings, {"samples": True}, "samples=True: must be a whole number"),
        (TranslateSettings, {"seed": 2**64}, "seed=18446744073709551616: must be at least 0"),
        (PairsSettings, {"val": 1.5}, "val=1.5: must be at least 0 and at most 1"),
        (PairsSettings, {"buffer": math.nan}, "buffer=nan: must be at least 0"),
        (PairsSettings, {"resolution": 0}, "resolution=0: must be above 0"),
        (
            PairsSettings,
            {"eo_range": (3000.0, 0.0)},
            "eo_range=(3000.0, 0.0): must be LOW,HIGH with LOW below",
        ),
        (PairsSettings, {"eo_range": (1.0,)}, "eo_range=(1.0,): must be two numbers, LOW,HIGH"),
        (VaeSettings, {"widths": (8, 0)}, "widths=(8, 0): must be at least 1"),
        (VaeSettings, {"warmup": 30_000}, "warmup=30000: must be at most steps=20000, or the learning rate"),
        (DataSettings, {"root": "a"}, "give either pairs (a folder), or dataset and root (its folder)"),
    ],
)
def test_what_is_not_allowed_is_named_in_the_words_of_python(
    kind: type[Settings], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        kind(**changes)
    assert str(caught.value).startswith(words)
    assert str(copy.copy(caught.value)) == str(caught.value)


def test_a_recipe_and_flags_have_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^\[train.settings\] warmup=100: must be at most steps=50, or"):
        from_table(TrainSettings, {"steps": 50}, "train.settings")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[train]\nbase = "b"\nout = "o"\n[train.data]\npairs = "a"\n[train.settings]\nsteps = 50\n'
    )
    done = CliRunner().invoke(cli, ["train", "--recipe", str(recipe), "--warmup", "60"])
    assert done.exit_code == 2
    assert "Error: --warmup 60: must be at most steps=50, or the learning rate" in done.stderr


def test_values_get_the_type_of_their_field() -> None:
    settings = replace_settings(PairsSettings(), {"max_days": 30, "eo_range": [0, 1]})
    assert (repr(settings.max_days), settings.eo_range) == ("30.0", (0.0, 1.0))
    assert DataSettings(pairs=Path("a")).pairs == "a"  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="unknown maxdays; known are size"):
        replace_settings(PairsSettings(), {"maxdays": 3})


def test_bounds_are_said_in_words() -> None:
    bounds = {setting.name: describe_bounds(setting.type) for setting in settings_of(VaeSettings)}
    assert bounds["steps"] == "at least 1"
    assert bounds["widths"] == "at least 1"
    assert bounds["ema"] == "at least 0 and below 1"
    assert bounds["architecture"] == ""
