"""Options that several commands share, defined once and spelled as rasterio's ``rio`` spells them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import click

from sar2eo.radiometry import CALIBRATIONS, QUANTITIES

__all__ = [
    "debug_option",
    "numbers",
    "polarisations_option",
    "scene_options",
    "scene_options_except",
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
