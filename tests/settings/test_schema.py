"""Settings are declared once, checked by one function, and named in the words they were given in."""

import copy
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from sar2eo.cli import cli
from sar2eo.cli.commands import COMMANDS, TABLES, SettingsCommand
from sar2eo.errors import SettingsError
from sar2eo.settings import (
    DataSettings,
    PairsSettings,
    RegionSettings,
    Settings,
    TrainSettings,
    TranslateRecipe,
    TranslateSettings,
    VaeSettings,
    apply_overrides,
    from_table,
    read_recipe,
    replace_settings,
)
from sar2eo.settings.schema import describe_bounds, settings_of

LEAST = {"scenes": ["a.tif"], "out": "b.tif"}
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


def test_values_become_what_the_fields_say() -> None:
    table = {
        **LEAST,
        "settings": {"scaling": [1, 2.5], "samples": 3, "sampler": "dpm++"},
        "region": {"bbox": [1, 2, 3, 4]},
        "scene": {"polarisations": ["VV", "VH"], "nodata": -99},
    }
    recipe = from_table(TranslateRecipe, table, "translate")
    assert recipe.scenes == ("a.tif",)
    assert recipe.settings.scaling == (1.0, 2.5)
    assert recipe.region.bbox == (1.0, 2.0, 3.0, 4.0)
    assert recipe.scene.nodata == -99.0
    assert recipe.settings.tile == 512
    by_name = from_table(TranslateRecipe, LEAST | {"settings": {"scaling": {"VV": 1}}}, "translate")
    assert by_name.settings.scaling == {"VV": 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": "x"}, ["modle", "model"]),
        ({"settings": {"tile": "512"}}, ["[translate.settings] tile='512'", "must be a whole number"]),
        ({"settings": {"tile": 512.0}}, ["tile=512.0"]),
        ({"settings": {"scaling": {"VV": "high"}}}, ["scaling.VV='high'", "must be a number"]),
        ({"settings": {"samples": True}}, ["samples=true"]),
        ({"settings": {"sampler": "euler"}}, ["'ddim'", "'dpm++'"]),
        ({"settings": 5}, ["[translate.settings]", "table"]),
        ({"compress": "lzw"}, ["deflate", "zstd"]),
        ({"region": {"bbox": [1, 2, 3]}}, ["bbox", "four"]),
        ({"region": {"bbox": [1, 2, 3, 4], "window": [1, 2, 3, 4]}}, ["bbox and window"]),
    ],
)
def test_slips_are_named(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        from_table(TranslateRecipe, LEAST | change, "translate")
    assert all(word in str(caught.value) for word in words)


def test_missing_keys_are_named() -> None:
    with pytest.raises(SettingsError, match="missing scenes, out"):
        from_table(TranslateRecipe, {}, "translate")


def test_overrides_are_toml_or_text_and_leave_the_table_alone() -> None:
    table = {"translate": {"settings": {"steps": 5}}}
    changed = apply_overrides(table, ("translate.settings.steps=9", "translate.model=runs/a", "x.y=[1, 2]"))
    assert changed == {"translate": {"settings": {"steps": 9}, "model": "runs/a"}, "x": {"y": [1, 2]}}
    assert table == {"translate": {"settings": {"steps": 5}}}
    for slip in ("steps", "=5", "translate.settings.steps.deep=1"):
        with pytest.raises(SettingsError, match="--set"):
            apply_overrides(table, (slip,))


def test_unreadable_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("a = = 1")
    for name in ("broken.toml", "missing.toml"):
        with pytest.raises(SettingsError, match=name):
            read_recipe(tmp_path / name)


def test_a_region_is_one_of_three() -> None:
    with pytest.raises(SettingsError, match="bbox and aoi"):
        RegionSettings(bbox=(1, 2, 3, 4), aoi="a.geojson")
