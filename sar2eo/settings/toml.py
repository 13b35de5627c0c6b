"""Recipes: TOML files and overrides of their keys to settings, strictly."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sar2eo.errors import SettingsError
from sar2eo.settings.schema import InvalidSettingsError, Settings, quote_name, settings_of

Record = TypeVar("Record", bound=Settings)

_LARGEST_BYTES = 1 << 20  # a thousand times what a recipe takes: the name of something else was given


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a TOML recipe as plain tables."""
    try:
        # Reading a pipe or a device would never end.
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
    """
    result = copy.deepcopy(table)
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingsError(
                f"--set {quote_name(pair)}: must be key=value, as in translate.settings.steps=10"
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        _set(result, key.split("."), value, pair)
    return result


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
            raise SettingsError(f"--set {quote_name(pair)}: {quote_name(first)} is not a table of the recipe")
        _set(each, rest, value, pair)


def from_table(kind: type[Record], table: Any, where: str, flags: Mapping[str, str] | None = None) -> Record:
    """Build settings from a TOML table, strictly.

    Parameters
    ----------
    kind : type
        A settings class.
    table : dict
        Plain TOML values.
    where : str
        Name of the table, for messages.
    flags : mapping of str to str, optional
        Dotted keys that messages name by their flag, as in ``{"train.settings.steps": "--steps"}``.
    """
    flags = flags or {}
    if not isinstance(table, dict):
        raise SettingsError(f"[{where}]: must be a table, not {table!r}")
    fields = {each.name: each for each in settings_of(kind)}
    if unknown := sorted(set(table) - set(fields)):
        raise SettingsError(
            f"[{where}]: unknown {', '.join(map(quote_name, unknown))}; known are {', '.join(fields)}"
        )
    required = {name: each for name, each in fields.items() if each.default is dataclasses.MISSING}
    if missing := [name for name, each in required.items() if name not in table and each.table is None]:
        named = ", ".join(flags.get(f"{where}.{name}", name) for name in missing)
        by_flag = all(f"{where}.{name}" in flags for name in missing)
        raise SettingsError(f"missing {named}" if by_flag else f"[{where}]: missing {named}")
    tables = {name: each.table for name, each in fields.items() if each.table and name in {*table, *required}}
    for name in tables:
        if not isinstance(table.get(name, {}), dict):
            raise SettingsError(f"[{where}.{name}]: must be a table, not {table[name]!r}")
    inner = {n: from_table(of, table.get(n, {}), f"{where}.{n}", flags) for n, of in tables.items()}
    try:
        return kind(**{**table, **inner})
    except InvalidSettingsError as error:
        raise SettingsError(_spell(error, where, flags)) from error


def _spell(error: InvalidSettingsError, where: str, flags: Mapping[str, str]) -> str:
    """Name the settings of an error by their flags, or by their keys and the table."""
    named = []

    def name(key: str) -> str:
        named.append(flags.get(f"{where}.{key}"))
        return named[-1] or key.rpartition(".")[2]

    def pair(key: str, value: Any) -> str:
        if (text := name(key)) == key:
            return f"{key}={_as_toml(value)}"
        return f"{text} {quote_name(','.join(map(str, value)) if isinstance(value, tuple) else str(value))}"

    text = error.spell(name, pair)
    return text if any(named) else f"[{where}] {text}"


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_as_toml, value))}]" if isinstance(value, list | tuple) else repr(value)
