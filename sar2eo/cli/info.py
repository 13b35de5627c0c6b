"""``sar2eo info``."""

from __future__ import annotations

import json
from typing import Any

import click

from sar2eo.cli.options import debug_option, scene_options

__all__ = ["info", "lines"]


@click.command()
@click.argument("source", metavar="SCENE")
@scene_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def info(source: str, as_json: bool, **scene: Any) -> None:
    """Show what a SAR scene is and how it will be read."""
    from sar2eo.scenes import describe_scene, open_scene

    described = describe_scene(open_scene(source, **scene))
    click.echo(json.dumps(described, indent=2) if as_json else "\n".join(lines(described)))


def lines(table: dict[str, Any], indent: str = "") -> list[str]:
    """Lay a nested table out as aligned lines of text."""
    width = max((len(key) for key in table), default=0)
    found = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += [f"{indent}{key}", *lines(value, indent + "  ")]
        else:
            found.append(f"{indent}{key:<{width}}  {_text(value)}")
    return found


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.10g}"
    return "-" if value is None else str(value)
