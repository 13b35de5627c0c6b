"""Recipes are read strictly."""

from pathlib import Path

import pytest

from sar2eo.errors import SettingsError
from sar2eo.settings import RegionSettings, TranslateRecipe, apply_overrides, from_table, read_recipe

LEAST = {"scenes": ["a.tif"], "out": "b.tif"}


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
