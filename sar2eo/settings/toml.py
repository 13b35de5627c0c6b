"""TOML tables to settings dataclasses, strictly."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from sar2eo.errors import SettingsError
from sar2eo.settings.coregistration import CoregisterRecipe
from sar2eo.settings.evaluation import EvaluateRecipe, MatchEvaluationRecipe
from sar2eo.settings.models import InitRecipe, SimulateRecipe
from sar2eo.settings.pairs import PairsRecipe
from sar2eo.settings.training import MatcherRecipe, TrainRecipe, VaeRecipe
from sar2eo.settings.translation import TranslateRecipe

__all__ = [
    "STAGES",
    "Stage",
    "apply_overrides",
    "changed",
    "checked",
    "from_table",
    "read_recipe",
    "stages_of",
]

Record = TypeVar("Record")

_LARGEST_BYTES = 1 << 20  # a thousand times what a recipe takes: the name of something else was given


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a TOML recipe as plain tables.

    Raises
    ------
    SettingsError
        If it cannot be read or is not TOML.
    """
    try:
        # A pipe or a device would be waited for, or read, for ever.
        if path.exists() and not (path.is_file() and path.stat().st_size <= _LARGEST_BYTES):
            raise SettingsError(
                f"{path}: not a recipe, which is a TOML file of at most {_LARGEST_BYTES} bytes"
            )
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except SettingsError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not a readable TOML recipe: {error}") from error


def apply_overrides(table: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Set ``key=value`` pairs in a recipe; keys are dotted, values TOML (bare words are text).

    In an array of tables a number picks one of them, as in ``train.0.settings.steps=10``; without it
    all are set.

    Raises
    ------
    SettingsError
        If a pair has no ``=``, or its key runs through something that is not a table.
    """
    result: dict[str, Any] = _copied(table)
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {_shown(pair)}: must be key=value, as in translate.settings.steps=10")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        _set(result, key.split("."), value, pair)
    return result


def from_table(kind: type[Record], table: Any, where: str) -> Record:
    """Build a settings dataclass from a TOML table, strictly.

    Parameters
    ----------
    kind : type
        A dataclass.
    table : dict
        Plain TOML values.
    where : str
        Name of the table, for messages.

    Raises
    ------
    SettingsError
        For unknown or missing keys, or values of another type.
    """
    if not isinstance(table, dict):
        raise SettingsError(f"[{where}]: must be a table, not {table!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise SettingsError(
            f"[{where}]: unknown {', '.join(map(_shown, unknown))}; known are {', '.join(fields)}"
        )
    missing = [
        name
        for name, f in fields.items()
        if name not in table and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"[{where}]: missing {', '.join(missing)}")
    hints = get_type_hints(kind)
    return kind(**{name: _converted(hints[name], value, f"{where}.{name}") for name, value in table.items()})


def checked(record: Record) -> Record:
    """Return a settings dataclass as it is, if its values have the types of its fields.

    Raises
    ------
    SettingsError
        If one has not.
    """
    hints = get_type_hints(type(record))
    for name, hint in hints.items():
        value = getattr(record, name)
        _converted(hint, list(value) if isinstance(value, tuple) else value, name)
    return record


def _converted(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    options = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, list):
            return tuple(_converted(get_args(option)[0], item, where) for item in value)
        if get_origin(option) is dict and isinstance(value, dict):
            return {
                name: _converted(get_args(option)[1], item, f"{where}.{name}") for name, item in value.items()
            }
        if option is float and (type(value) is float or _fits_float(value)):
            return float(value)
        if isinstance(option, type) and type(value) is option:
            return value
    allowed = " or ".join(
        ", ".join(map(repr, get_args(option)))
        if get_origin(option) is Literal
        else getattr(option, "__name__", str(option))
        for option in options
        if option is not type(None)
    )
    raise SettingsError(f"{where}={value!r}: must be {allowed}")


def _shown(name: str) -> str:
    """Return a name as it is, or quoted where it would break the line of a message."""
    return name if name.isprintable() else repr(name)


def _fits_float(value: Any) -> bool:
    """Whether a value is a whole number that a float can hold: TOML's have any number of digits."""
    return type(value) is int and abs(value) <= sys.float_info.max


def _set(table: dict[str, Any], keys: list[str], value: Any, pair: str) -> None:
    first, *rest = keys
    if not rest:
        table[first] = value
        return
    inner = table.setdefault(first, {})
    if isinstance(inner, list) and rest[0].isdecimal() and int(rest[0]) < len(inner):
        inner, rest = inner[int(rest[0])], rest[1:]
    for each in inner if isinstance(inner, list) else [inner]:
        if not isinstance(each, dict) or not rest:
            raise SettingsError(f"--set {_shown(pair)}: {_shown(first)} is not a table of the recipe")
        _set(each, rest, value, pair)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def changed(given: Record, changes: dict[str, Any]) -> Record:
    """Return settings with changes, with the types that a recipe would give them: 30 days are 30.0.

    Raises
    ------
    SettingsError
        For a field that there is not, or a value that it may not have.
    """
    values = {**dataclasses.asdict(given), **changes}  # type: ignore[call-overload]
    table = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return from_table(type(given), table, "settings")


STAGES: dict[str, type] = {
    "simulate": SimulateRecipe,
    "coregister": CoregisterRecipe,
    "build-pairs": PairsRecipe,
    "train-vae": VaeRecipe,
    "model-init": InitRecipe,
    "train": TrainRecipe,
    "train-matcher": MatcherRecipe,
    "translate": TranslateRecipe,
    "evaluate": EvaluateRecipe,
    "evaluate-matcher": MatchEvaluationRecipe,
}
"""Tables that a recipe may have, each named after its command."""


class Stage(NamedTuple):
    """One step of a recipe.

    Parameters
    ----------
    name : str
        Of the command.
    recipe : object
        A dataclass of `STAGES`.
    """

    name: str
    recipe: Any


def stages_of(table: dict[str, Any]) -> list[Stage]:
    """Read every stage of a recipe before any of them runs.

    Parameters
    ----------
    table : dict
        Of the whole file. A command that runs several times is an array of tables, ``[[train]]``,
        whose runs follow each other where the first one stands.

    Raises
    ------
    SettingsError
        For a table that is no command's, for keys or values that a command does not know, or if there
        is no table.
    """
    if not table:
        raise SettingsError(f"the recipe is empty: it must have tables of {', '.join(STAGES)}")
    found = []
    for name, value in table.items():
        if name not in STAGES:
            raise SettingsError(f"[{name}]: not a stage; known are {', '.join(STAGES)}")
        runs = value if isinstance(value, list) else [value]
        for number, run in enumerate(runs):
            where = name if len(runs) == 1 else f"{name}.{number}"
            found.append(Stage(name, from_table(STAGES[name], run, where)))
    return found
