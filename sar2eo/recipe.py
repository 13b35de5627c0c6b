"""Every setting of a run as a frozen dataclass; TOML in, the resolved recipe out.

Choices are written once, here and in the modules they belong to, and the command line takes them from
here.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sar2eo.card import Sampler
from sar2eo.errors import SettingsError

__all__ = [
    "Compression",
    "TranslateRecipe",
    "TranslateSettings",
    "apply_overrides",
    "from_table",
    "read_recipe",
]

Compression = Literal["deflate", "zstd", "jpeg", "webp"]
"""Compression of COGs; jpeg and webp lose detail of the EO image."""

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class TranslateSettings:
    """What `sar2eo.translate` needs besides the scene and the model.

    Parameters
    ----------
    tile, overlap : int
        Window size and overlap in pixels, multiples of the model's factor.
    steps, sampler
        None: as the model's card says.
    seed : int
        Of the noise.
    samples : int
        Draws whose mean is the result.
    scaling : tuple of float or None
        Amplitude that becomes 1, for each polarisation; None: as the card says, by default the 99th
        percentile of the whole scene.
    device, dtype : str
        "auto", or as torch spells them.
    batch : int or None
        Windows per model call; None: chosen by device.
    compile : bool
        Compile the U-Net.
    threads : int or None
        Torch threads of each process; None: all cores.
    revision : str or None
        Of a model on a hub.
    force : bool
        Use a model on a scene its card does not fit.
    """

    tile: int = 512
    overlap: int = 64
    steps: int | None = None
    sampler: Sampler | None = None
    seed: int = 2025
    samples: int = 1
    scaling: tuple[float, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch: int | None = None
    compile: bool = False
    threads: int | None = None
    revision: str | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class TranslateRecipe:
    """One translation from file to file: a table ``[translate]`` in a TOML recipe.

    Parameters
    ----------
    scenes : tuple of str
        Inputs, as `sar2eo.open_scene` takes them.
    out : str
        A ``.tif``, or a folder for several scenes.
    model : str
        "identity", a checkpoint folder, or a hub id.
    settings : TranslateSettings
        The table ``[translate.settings]``.
    compress : str
        Compression of the COGs.
    confidence, spread, quicklook, report : str or None
        Further outputs.
    workers : int
        Worker processes; 0: in this process.
    overwrite, restart : bool
        Replace existing outputs; discard unfinished work.
    """

    scenes: tuple[str, ...]
    out: str
    model: str
    settings: TranslateSettings = dataclasses.field(default_factory=TranslateSettings)
    compress: Compression = "deflate"
    confidence: str | None = None
    spread: str | None = None
    quicklook: str | None = None
    report: str | None = None
    workers: int = 0
    overwrite: bool = False
    restart: bool = False


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a TOML recipe as plain tables.

    Raises
    ------
    SettingsError
        If it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: not a readable TOML recipe: {error}") from error


def apply_overrides(table: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Set ``key=value`` pairs in a recipe; keys are dotted, values TOML (bare words are text).

    Raises
    ------
    SettingsError
        If a pair has no ``=``, or its key runs through something that is not a table.
    """
    result = _copied(table)
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {pair}: must be key=value, as in translate.settings.steps=10")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"--set {pair}: {parent} is not a table of the recipe")
        inner[last] = value
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
        raise SettingsError(f"[{where}]: unknown {', '.join(unknown)}; known are {', '.join(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in table and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"[{where}]: missing {', '.join(missing)}")
    hints = get_type_hints(kind)
    return kind(**{name: _converted(hints[name], value, f"{where}.{name}") for name, value in table.items()})


def _converted(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    options = get_args(hint) if get_origin(hint) is UnionType or type(None) in get_args(hint) else (hint,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, list):
            return tuple(_converted(get_args(option)[0], item, where) for item in value)
        if option is float and type(value) in (int, float):
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


def _copied(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in table.items()}
