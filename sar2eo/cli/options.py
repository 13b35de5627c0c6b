"""Options that several commands share, defined once and spelled as rasterio's ``rio`` spells them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from sar2eo.errors import SettingsError
from sar2eo.geo.radiometry import CALIBRATIONS, QUANTITIES
from sar2eo.settings import DataSettings, apply_overrides, from_table, read_recipe

__all__ = [
    "data_options",
    "debug_option",
    "numbers",
    "polarisations_option",
    "recipe_from_flags",
    "recipe_options",
    "scene_options",
    "scene_options_except",
    "settings_options",
    "taken",
    "taking_several",
]

Decorator = Callable[[Any], Any]


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # older releases of click have no argument
    """A fixed count of numbers with commas between them."""

    name = "numbers"

    def __init__(self, names: str, kind: type) -> None:
        self.names = names
        self.kind = kind

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            found = ()
        if len(found) != len(self.names.split(",")):
            self.fail(f"{value!r} must be {self.names}", param, ctx)
        return found


def numbers(names: str, kind: type = float) -> click.ParamType:  # type: ignore[type-arg]
    """Return a parameter type for as many numbers as there are names in ``A,B,C``."""
    return _Numbers(names, kind)


def taking_several(*flags: str) -> type[click.Command]:
    """Return a kind of command whose named flags take all that follows up to the next option.

    So a shell's * can stand there. The options themselves are ``multiple``.
    """

    class Several(click.Command):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            spread: list[str] = []
            current = None
            for position, text in enumerate(args):
                if text.startswith("-"):
                    current = text if text in flags else None
                elif current is not None and args[position - 1] != current:
                    spread.append(current)
                spread.append(text)
            return super().parse_args(ctx, spread)

    return Several


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip().upper() for part in value.split(","))


def polarisations_option(flag: str, help: str) -> Decorator:  # noqa: A002  (click's own name)
    """Return an option that takes polarisations with commas between them."""
    return click.option(flag, "polarisations", metavar="VV,VH", callback=_names, help=help)


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["sar2eo.debug"] = value


debug_option: Decorator = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show tracebacks."
)


def scene_options(command: Any) -> Any:
    """Add the options that say how scenes are opened; they arrive as `SceneSettings` fields."""
    return scene_options_except()(command)


def scene_options_except(*fields: str) -> Decorator:
    """Return a decorator that adds the options of scenes but those of some fields."""

    def add(command: Any) -> Any:
        for field, option in reversed(_SCENE_OPTIONS.items()):
            if field not in fields:
                command = option(command)
        return command

    return add


_SCENE_OPTIONS: dict[str, Decorator] = {
    "polarisations": polarisations_option(
        "--pol", help="Of the bands in order, or which of a product's to take."
    ),
    "quantity": click.option("--quantity", type=click.Choice(QUANTITIES), help="What the values are."),
    "calibration": click.option(
        "--calibration", type=click.Choice(CALIBRATIONS), help="What they are calibrated to."
    ),
    "calibrate": click.option(
        "--calibrate",
        type=click.Choice(["beta0", "sigma0", "gamma0"]),
        help="Calibrate a Sentinel-1 SAFE product by its annotation.",
    ),
    "nodata": click.option(
        "--nodata", type=float, help="The value that means no data, instead of the file's own."
    ),
    "crs": click.option("--crs", help="Warp to this CRS; 'source' keeps a geographic grid."),
    "resolution": click.option(
        "--resolution", type=float, help="Warp to this pixel size, in units of the CRS."
    ),
    "datetime": click.option(
        "--datetime", metavar="ISO8601", help="Acquisition time, if the file is silent."
    ),
    "allow_ungeoreferenced": click.option(
        "--allow-ungeoreferenced", is_flag=True, help="Take an image without a georeference."
    ),
}


def taken(kind: type, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return those flags that are fields of a settings dataclass."""
    return {f.name: flags[f.name] for f in dataclasses.fields(kind) if f.name in flags}


Record = TypeVar("Record")


class _List(click.ParamType):  # type: ignore[type-arg]  # older releases of click have no argument
    """Values with commas between them."""

    name = "list"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "A,B,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            what = "whole numbers" if self.kind is int else "values"
            self.fail(f"{value!r} must be {what} with commas between them", param, ctx)


def settings_options(kind: type, helps: Mapping[str, str]) -> Decorator:
    """Return a decorator that adds a flag for each named field of a settings dataclass.

    Parameters
    ----------
    kind : type
        A dataclass whose fields have defaults.
    helps : mapping
        Text by field; the flags are named after the fields.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)

    def add(command: Any) -> Any:
        for name, text in reversed(list(helps.items())):
            default = fields[name].default
            options: dict[str, Any] = {"help": text, "default": default, "show_default": default is not None}
            options |= {"is_flag": True} if hints[name] is bool else {"type": _type(hints[name])}
            command = click.option(f"--{name.replace('_', '-')}", name, **options)(command)
        return command

    return add


def _type(hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    option = next(option for option in options if option is not type(None))
    if get_origin(option) is Literal:
        return click.Choice(get_args(option))
    if get_origin(option) is tuple:
        item = get_args(option)[0]
        return _List(str if get_origin(item) is Literal else item)
    return option


def data_options(command: Any) -> Any:
    """Add the flags that say which pairs."""
    hints = get_type_hints(DataSettings)
    for option in (
        click.option("--split-by", type=_type(hints["split_by"]), default="release", show_default=True),
        click.option("--root", metavar="DIR", help="Folder of --dataset."),
        click.option("--dataset", type=_type(hints["dataset"]), help="A published data set."),
        click.option("--pairs", metavar="DIR", help="Pairs made by build-pairs."),
    ):
        command = option(command)
    return command


def recipe_options(section: str) -> Decorator:
    """Return a decorator that adds --recipe, --set and --dry-run to the command of a recipe's table."""

    def add(command: Any) -> Any:
        for option in (
            click.option("--dry-run", is_flag=True, help="Show what would be done, and what it takes."),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help=f"As {section}.settings.seed=1.",
            ),
            click.option(
                "--recipe",
                "recipe_file",
                metavar="FILE.toml",
                type=click.Path(path_type=Path),
                help=f"Take the table [{section}] of this file; flags come before it.",
            ),
        ):
            command = option(command)
        return command

    return add


def recipe_from_flags(
    kind: type[Record], section: str, *, recipe_file: Path | None, overrides: tuple[str, ...]
) -> Record:
    """Build a recipe from its table in a file, overrides, and the flags of the command that runs.

    Parameters
    ----------
    kind : type
        A recipe with the table ``settings``, and perhaps ``data``.
    section : str
        Name of its table.
    recipe_file : Path or None
    overrides : tuple of str
        As of ``sar2eo run``: keys begin with the table's name.

    Raises
    ------
    SettingsError
        For unknown, missing or wrong values, or a file with several such tables.
    """
    whole = apply_overrides({} if recipe_file is None else read_recipe(recipe_file), overrides)
    table = whole.get(section, {})
    if isinstance(table, list):
        if len(table) > 1:
            raise SettingsError(f"{recipe_file} has {len(table)} tables [[{section}]]: use 'sar2eo run'")
        table = table[0] if table else {}
    if not isinstance(table, dict):
        raise SettingsError(f"[{section}]: must be a table, not {table!r}")
    table = dict(table)
    given = _given()
    hints = get_type_hints(kind)
    for name in (name for name in ("data", "settings") if name in hints):
        own = hints[name]
        values = {f.name: given.pop(f.name) for f in dataclasses.fields(own) if f.name in given}
        if name == "data" and values.keys() & {"pairs", "dataset"}:
            table["data"] = {}  # others than the file's
        known = table.get(name, {})
        if isinstance(known, dict) and (values or name == "data"):
            table[name] = {**known, **values}  # what is no table is refused below
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    table |= {name: value for name, value in given.items() if name in names}
    return from_table(kind, table, section)


def _given() -> dict[str, Any]:
    """Return the flags that the user gave, as plain values; not those with their default."""
    context = click.get_current_context()
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
