"""Parsers and anything: what is given to them becomes a value, or one line of an error of ours."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from affine import Affine
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sar2eo.cli.commands import TABLES, SettingType, read_stages
from sar2eo.errors import GeoreferenceError, Sar2eoError, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Lattice, Window, axis_origins
from sar2eo.model.card import TranslatorCard
from sar2eo.scenes.gdal import parse_source
from sar2eo.scenes.metadata import iso_datetime, iso_datetime_or_none
from sar2eo.settings import RegionSettings, apply_overrides, from_table, read_recipe
from sar2eo.settings.schema import settings_of

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
WIDE = st.integers(-(2**70), 2**70) | st.integers(-20, 2000)


def value_or_line(function: Callable[[], Any]) -> Any:
    """Return what a function returns, or None where it refuses in one line."""
    text = "one line"
    try:
        return function()
    except Sar2eoError as error:
        text = str(error)
    assert len(text.splitlines()) == 1, text
    return None


# Windows -------------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 60), st.integers(0, 30), st.integers(1, 16))
def test_origins_of_any_size(size: int, tiles: int, overlaps: int, factor: int) -> None:
    tile, overlap = tiles * factor, min(overlaps, tiles // 2) * factor
    origins = axis_origins(size, tile, overlap, factor)
    covered = np.zeros(size + tile, bool)
    for origin in origins:
        covered[origin : origin + tile] = True
    assert origins[0] == 0
    assert covered[:size].all()
    assert all(origin % factor == 0 for origin in origins)
    assert list(origins) == sorted(set(origins))


@given(st.tuples(WIDE, WIDE), WIDE, WIDE, st.integers(-3, 64))
def test_a_lattice_of_anything_is_sound_or_refused(
    shape: tuple[int, int], tile: int, overlap: int, factor: int
) -> None:
    lattice = value_or_line(lambda: Lattice(shape, tile, overlap, factor))
    sound = min(shape) >= 1 and factor >= 1 and tile >= factor and tile % factor == 0
    sound = sound and 0 <= overlap <= tile // 2 and overlap % factor == 0
    assert (lattice is not None) == sound
    if lattice is not None and max(shape) // (tile - overlap) < 2000:
        last = lattice[len(lattice) - 1]
        assert lattice.scene.intersection(last) is not None
        assert last.stop_row >= shape[0]
        assert last.stop_col >= shape[1]


@given(*[st.tuples(*[st.integers(-50, 50)] * 4).map(lambda t: Window(*t))] * 2)
def test_intersections_are_those_of_sets_of_pixels(a: Window, b: Window) -> None:
    def cells(window: Window) -> set[tuple[int, int]]:
        rows, cols = range(window.row, window.stop_row), range(window.col, window.stop_col)
        return {(r, c) for r in rows for c in cols}

    found = a.intersection(b)
    assert (set() if found is None else cells(found)) == cells(a) & cells(b)


# Grids ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats() | st.floats(-1e3, 1e3), min_size=6, max_size=6), st.integers(1, 2**22))
@example([10, 0, 500_000, 0, -10, 5_000_000], 100)
@example([1e308, 0, 0, 0, 1e308, 0], 100)
def test_a_geotransform_of_anything_places_pixels_or_is_refused(transform: list[float], size: int) -> None:
    grid = value_or_line(lambda: Grid.create("EPSG:32633", Affine(*transform), (size, size)))
    if grid is None:
        return
    assert all(map(math.isfinite, grid.bounds))
    west, south, east, north = grid.bounds
    assert west < east or abs(west) > 1e12 * abs(transform[0] * size)
    assert south < north or abs(south) > 1e12 * abs(transform[4] * size)
    assert all(map(math.isfinite, (~grid.affine)[:6]))
    value_or_line(lambda: grid.window_of((0.0, 0.0, 1.0, 1.0)))


@given(st.text(max_size=30) | st.integers() | st.none())
@example("EPSG:4326")
@example("+proj=longlat +datum=WGS84")
@example("EPSG:4326\n")
def test_a_crs_of_anything_is_read_or_refused(crs: Any) -> None:
    grid = value_or_line(lambda: Grid.create(crs, Affine(10, 0, 0, 0, -10, 0), (9, 9)))
    assert grid is None or grid.crs is None or grid.pyproj_crs is not None


@given(st.tuples(*[st.floats()] * 4), st.sampled_from([None, "EPSG:4326", "EPSG:3857", "EPSG:3031"]))
def test_bounds_of_anything_are_a_window_inside_or_refused(
    bounds: tuple[float, float, float, float], crs: str | None
) -> None:
    grid = Grid.create("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_000_000), (50, 60))
    found = value_or_line(lambda: grid.window_of(bounds, crs))
    assert found is None or grid.window.intersection(found) == found


# Recipes -------------------------------------------------------------------------------------------


def near(kind: type) -> st.SearchStrategy[Any]:
    """Tables with the keys of a recipe, and of the recipes in it, and anything for values."""
    fields = dataclasses.fields(kind)
    names = st.sampled_from([field.name for field in fields])
    plain = st.dictionaries(names, ANYTHING, max_size=4)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    text = st.text(max_size=4)
    whole = st.fixed_dictionaries({name: text | st.lists(text) for name in needed})
    return st.tuples(whole, plain).map(lambda two: {**two[0], **two[1]})


@pytest.mark.parametrize("name", TABLES)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_table_of_anything_is_a_recipe_or_refused(name: str, data: st.DataObject) -> None:
    kind = TABLES[name].settings
    recipe = value_or_line(lambda: from_table(kind, data.draw(near(kind) | ANYTHING), name))
    assert recipe is None or isinstance(recipe, kind)


@given(st.dictionaries(st.sampled_from([*TABLES, "other"]), ANYTHING, max_size=3))
def test_a_file_of_any_tables_is_stages_or_refused(tables: dict[str, Any]) -> None:
    stages = value_or_line(lambda: read_stages(tables))
    assert stages is None or all(stage.name in tables for stage in stages)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.toml"


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@example(b"a = " + b"[" * 5000)
@example(b"\x00")
def test_a_file_of_any_bytes_is_read_or_refused(recipe: Path, data: bytes) -> None:
    recipe.write_bytes(data)
    found = value_or_line(lambda: read_recipe(recipe))
    assert found is None or isinstance(found, dict)


@given(st.dictionaries(st.text(max_size=4), ANYTHING, max_size=3), st.lists(st.text(max_size=12), max_size=3))
@example({"a": [{"b": 1}]}, ["a.0.b=2", "a.5=1", "a.b=[", "a.=1", ".=1"])
@example({}, ["a=" + "[" * 5000])
def test_overrides_of_anything_are_set_or_refused(table: dict[str, Any], overrides: list[str]) -> None:
    before = json.dumps(table)
    value_or_line(lambda: apply_overrides(table, tuple(overrides)))
    assert json.dumps(table) == before


# Cards and flags -----------------------------------------------------------------------------------

CARD = TranslatorCard(name="a").to_dict()
NUMBERS = st.lists(st.floats() | st.integers(), max_size=5).map(lambda values: ",".join(map(str, values)))


@given(st.dictionaries(st.sampled_from(sorted(CARD)), ANYTHING, max_size=4))
def test_a_card_of_anything_is_a_card_that_can_be_written_or_refused(changes: dict[str, Any]) -> None:
    card = value_or_line(lambda: TranslatorCard.from_dict(CARD | changes))
    if card is not None:
        assert TranslatorCard.from_dict(
            json.loads(json.dumps(card.to_dict()))
        ).to_dict() == card.to_dict() or any(value != value for value in card.metrics.values())


@given(ANYTHING)
def test_any_json_is_a_card_or_refused(raw: Any) -> None:
    assert value_or_line(lambda: TranslatorCard.from_dict(raw)) is None


FOUR = {
    kind: next(setting for setting in settings_of(RegionSettings) if setting.name == name)
    for kind, name in ((int, "window"), (float, "bbox"))
}


@given(st.text(max_size=30) | NUMBERS)
@example("1,2,3," + "9" * 5000)
@example("1_0,2,3,4")
@pytest.mark.parametrize("kind", [int, float])
def test_numbers_with_commas_are_as_many_as_named_or_refused(kind: type, text: str) -> None:
    try:
        found = SettingType(FOUR[kind]).convert(text, None, None)
    except click.BadParameter:
        return
    assert len(found) == 4
    assert all(type(value) is kind for value in found)
    assert found == tuple(kind(part) for part in text.split(",")) or any(value != value for value in found)


@given(st.text(max_size=40) | st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(str))
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
def test_times_of_anything_are_read_or_refused(text: str) -> None:
    found = value_or_line(lambda: iso_datetime(text))
    assert iso_datetime_or_none(text) == (found or None)
    assert found is None or found.endswith("Z")


@given(st.text(max_size=30) | st.lists(st.sampled_from(["VV", "vh", "=", ",", "a.tif", " "])).map("".join))
def test_sources_of_anything_are_read_or_refused(text: str) -> None:
    found = value_or_line(lambda: parse_source(text))
    assert found is None or found == text or all(found.values())


def test_the_errors_are_of_the_right_kind() -> None:
    with pytest.raises(GeoreferenceError, match="geotransform"):
        Grid.create("EPSG:32633", Affine(math.nan, 0, 0, 0, -1, 0), (1, 1))
    with pytest.raises(SettingsError, match="shape="):
        Lattice((0, 1), 8, 0)
