"""What a settings class is made of: fields that say type, bounds, help and flag once; how recipes fill them.

A field is ``name: Annotated[type, "help", more ...] = default``. Python, TOML and the command line share the
check, and each names a setting in its own words.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from sar2eo.errors import SettingsError

_RULES: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "multiple": ("a multiple of", lambda value, bound: value % bound == 0),
    "least": ("at least", operator.ge),
    "most": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


@dataclass(frozen=True)
class Bounds:
    """What a number may be, NaN never."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    multiple: int | None = None

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        bounds = ((rule, getattr(self, name)) for name, (_, rule) in _RULES.items())
        return all(bound is None or rule(value, bound) for rule, bound in bounds)

    def __str__(self) -> str:
        words = ((text, getattr(self, name)) for name, (text, _) in _RULES.items())
        return " and ".join(f"{text} {bound}" for text, bound in words if bound is not None)


class Names(str):
    """What the items of a list are, "ROW,COL"; the list has as many."""

    __slots__ = ()


@dataclass(frozen=True)
class Flag:
    """How the command line spells a setting, where its name does not say it.

    The name "" is that of a positional argument. A list whose placeholder, `metavar`, ends in "..." takes all
    words up to the next flag. `item` changes each word of a list.
    """

    name: str | None = None
    metavar: str | None = None
    item: Callable[[str], str] | None = None


class Group(str):
    """Heading of a setting in ``--help``."""

    __slots__ = ()


class Without(str):
    """Settings of a table that have no flag in a command, with spaces between them."""

    __slots__ = ()


class InvalidSettingsError(SettingsError):
    """Settings that are not allowed, named in Python's words.

    In the template ``{name}`` stands for a setting and its value, ``{name:}`` or ``{table.name:}`` for its
    name.
    """

    def __init__(self, template: str, values: dict[str, Any]) -> None:
        self.template, self.values = template, values
        super().__init__(self.spell(_last_part, lambda name, value: f"{name}={value!r}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.template, self.values)

    def spell(self, name: Callable[[str], str], pair: Callable[[str, Any], str]) -> str:
        """Return the text with settings spelled by functions of a name, and of a name and a value."""

        def word(match: re.Match[str]) -> str:
            if match[2]:
                return name(match[1])
            return pair(match[1], self.values[match[1]]) if match[1] in self.values else match[0]

        return re.sub(r"\{([\w.]+)(:?)\}", word, self.template)


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: every value is checked, and gets the type of its field (30 days become 30.0)."""

    group: ClassVar[str] = "Options"
    """Heading in ``--help`` of fields that name none."""
    alternatives: ClassVar[tuple[str, ...]] = ()
    """Fields of which one replaces the others, as where a flag is given and another stands in the file."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]  # takes it for an instance
            try:
                object.__setattr__(self, name, convert(hint, getattr(self, name)))
            except (TypeError, ValueError) as error:
                self.refuse(f"{{{name}}}: must be {error}")
        self._check()

    def _check(self) -> None:
        """Refuse settings that contradict each other."""

    def refuse(self, template: str) -> NoReturn:
        """Raise InvalidSettingsError with a text in which ``{name}`` stands for a setting and its value."""
        raise InvalidSettingsError(template, vars(self))


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Base of the settings of a command that a TOML recipe may have a table of."""

    group = "Output"


Record = TypeVar("Record", bound=Settings)


class Setting(NamedTuple):
    """A field of a settings class, as it is declared.

    `type` still has its bounds; `dataclasses.MISSING` is the default of a field that has to be given. `names`
    are those of the items of a list. Settings of a table in `without` have no flag.
    """

    name: str
    type: Any
    default: Any
    help: str
    group: str
    flag: Flag
    names: Names | None
    without: list[str]

    @property
    def table(self) -> type[Settings] | None:
        """The class of a setting that is a table of settings."""
        hint = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        return hint if isinstance(hint, type) and issubclass(hint, Settings) else None


def settings_of(kind: type[Settings]) -> Iterator[Setting]:
    """List the fields of a settings class as they are declared."""
    hints = _hints(kind)  # type: ignore[arg-type]  # takes it for an instance
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        last = {type(note): note for note in _notes(hint)}
        factory = field.default_factory
        yield Setting(
            name=field.name,
            type=hint,
            default=field.default if factory is dataclasses.MISSING else factory(),
            help=last.get(str, ""),
            group=last.get(Group, kind.group),
            flag=last.get(Flag, Flag()),
            names=last.get(Names),
            without=last.get(Without, "").split(),
        )


def replace_settings(settings: Record, changes: dict[str, Any]) -> Record:
    """Return settings with changes."""
    known = [field.name for field in dataclasses.fields(settings)]
    if unknown := sorted(set(changes) - set(known)):
        raise SettingsError(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return dataclasses.replace(settings, **changes)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _notes(hint: Any) -> Iterator[Any]:
    """List what stands beside a type, outer notes after inner ones."""
    if get_origin(hint) is Annotated:
        yield from _notes(get_args(hint)[0])
        yield from get_args(hint)[1:]
    elif get_origin(hint) in (UnionType, Union):
        for arm in get_args(hint):
            yield from _notes(arm)


def arms(hint: Any) -> tuple[Any, ...]:
    """Return the member types of a union, or the type itself; notes of `Annotated` are left out."""
    if get_origin(hint) is Annotated:
        return arms(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def convert(hint: Any, value: Any) -> Any:
    """Check a value by a field's type, and return it as that type.

    Raises `TypeError` for another type, `ValueError` for a value out of bounds; their text goes behind "must
    be".
    """
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        value = convert(inner, value)
        for note in notes if value is not None else ():
            if isinstance(note, Bounds) and not note.allows(value):
                raise ValueError(note)
            if isinstance(note, Names) and len(value) != (count := note.count(",") + 1):
                raise ValueError(f"{_COUNTS[count]} numbers, {note}")
        return value
    for arm in arms(hint):
        try:
            return _convert_arm(arm, value)
        except TypeError:
            continue
    raise TypeError(describe_type(hint))


def _convert_arm(arm: Any, value: Any) -> Any:
    origin = get_origin(arm)
    if origin is Annotated:
        return convert(arm, value)
    if origin is Literal:
        if type(value) is str and value in get_args(arm):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(convert(get_args(arm)[0], item) for item in value)
    elif origin is dict:
        if isinstance(value, dict):
            return {name: convert(get_args(arm)[1], item) for name, item in value.items()}
    elif arm is float:
        # TOML's whole numbers have any number of digits.
        if type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max):
            return float(value)
    elif arm is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif type(value) is arm:
        return value
    raise TypeError


_COUNTS = {2: "two", 3: "three", 4: "four"}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def describe_type(hint: Any) -> str:
    """Say in words what a field may be, without its bounds: "a whole number or 'auto'"."""
    return " or ".join(_describe(arm) for arm in arms(hint) if arm is not NoneType)


def _describe(arm: Any) -> str:
    origin, inner = get_origin(arm), get_args(arm)
    if origin is Annotated:
        return describe_type(arm)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(repr, inner))
    if origin is tuple:
        (item,) = arms(inner[0])
        return f"a list of {_PLURALS.get(item) or _describe(item).removeprefix('one of ')}"
    if origin is dict:
        return f"a table of {describe_type(inner[1])}"
    return _TYPE_NAMES.get(arm) or str(arm.__name__)


def describe_bounds(hint: Any) -> str:
    """Say in words which numbers a field may have: "at least 1 and at most 1000"."""
    items = (item for arm in arms(hint) for item in get_args(arm)[:1])
    notes = [*_notes(hint), *(note for item in items for note in _notes(item))]
    return " and ".join(str(note) for note in notes if isinstance(note, Bounds | Names))


def quote_name(name: str) -> str:
    """Return a name as it is, or quoted where it would break the line of a message."""
    return name if name.isprintable() else repr(name)


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

    Messages name the table as `where`, and dotted keys in `flags` by their flag, as in
    ``{"train.settings.steps": "--steps"}``.
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
    for name in tables:  # before what one of them holds is checked
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
