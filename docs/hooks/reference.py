"""Make the reference pages from the package, so that they cannot drift from it.

A page holds a mark such as ``<!-- generate: commands -->``, which is replaced when the site is built:

* ``commands``: every command of the command line, from click.
* ``settings``: every table of a recipe, from the settings dataclasses.
* ``recipes``: the files of ``pipelines/``.
* ``names``: a mkdocstrings block for each public name.
* ``card FOLDER``: the card of a model of the package.

The pictures of ``examples/`` and ``experiments/`` are added to the site below ``images/``.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
log = logging.getLogger("mkdocs.hooks.reference")
MARK = re.compile(r"<!-- generate: (\w+)(?: (\S+))? -->")


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures of ``examples/`` and ``experiments/``."""
    for path in sorted([*ROOT.glob("examples/*.jpg"), *ROOT.glob("experiments/*/*.jpg")]):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marks of a page, and warn of modules that it names and that are not there."""
    for name in missing_modules(markdown):
        log.warning("%s names %s, which is not there", page.file.src_uri, name)
    makers = {
        "commands": commands,
        "settings": settings,
        "recipes": recipes,
        "names": names,
        "card": card,
    }
    return MARK.sub(lambda mark: makers[mark[1]](*filter(None, [mark[2]])), markdown)


# Commands


def commands() -> str:
    """Describe every command, in the order of ``sar2eo --help``."""
    from sar2eo.cli import cli

    return "\n\n".join(_command(command, context) for command, context in _walk(cli, None, "sar2eo"))


def _walk(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[tuple[click.Command, click.Context]]:
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None, inner  # noqa: S101
            yield from _walk(found, context, inner)
    else:
        yield command, context


def _command(command: click.Command, context: click.Context) -> str:
    groups: dict[str, list[str]] = {}
    for param in command.get_params(context):
        if record := param.get_help_record(context):
            row = f"| {_code(record[0])} | {_cell(_prose(record[1]))} |"
            groups.setdefault(getattr(param, "group", "Run"), []).append(row)
    rows = []
    for group in sorted(groups, key=lambda name: name == "Run"):  # the order of --help
        rows += [f"| **{group}** | |", *groups[group]]
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f"## {context.command_path}",
        f"```console\n$ {context.command_path} {usage}\n```",
        _help(command.help or ""),
        "\n".join(["| option | meaning |", "| --- | --- |", *rows]),
    ]
    return "\n\n".join(parts)


def _help(text: str) -> str:
    """Turn a command's help into Markdown; click marks blocks of examples."""
    parts = []
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.startswith("\b"):
            lines = [line.strip() for line in block.splitlines()[1:]]
            parts.append("```console\n" + "\n".join(f"$ {line}" for line in lines) + "\n```")
        else:
            parts.append(_prose(" ".join(block.split())))
    return "\n\n".join(parts)


# Settings


def settings() -> str:
    """Describe every table that a recipe may have, and the tables inside of it."""
    from sar2eo.cli.commands import TABLES
    from sar2eo.settings.schema import settings_of

    shared: dict[type, str] = {}
    parts = []
    for name, entry in TABLES.items():
        parts.append(_table(name, entry.settings, shared))
        for setting in settings_of(entry.settings):
            if setting.table is not None and setting.table not in shared:
                shared[setting.table] = f"{name}.{setting.name}"
                parts.append(_table(shared[setting.table], setting.table, shared, level=3))
    return "\n\n".join(parts)


def _table(name: str, kind: type, shared: dict[type, str], *, level: int = 2) -> str:
    from sar2eo.settings.schema import describe_bounds, describe_type, settings_of

    rows = []
    for setting in settings_of(kind):
        if setting.table is not None:
            table = shared.get(setting.table, f"{name}.{setting.name}")
            rows.append(f"| `{setting.name}` | [table](#{_anchor(table)}) | | As in `[{table}]`. |")
            continue
        text = ", ".join(filter(None, [describe_type(setting.type), describe_bounds(setting.type)]))
        cells = [f"`{setting.name}`", _cell(text), _default(setting.default), _cell(_prose(setting.help))]
        rows.append(f"| {' | '.join(cells)} |")
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return "\n\n".join(
        [
            f"{'#' * level} `[{name}]` {{ #{_anchor(name)} }}",
            _prose(" ".join(first.split())),
            "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]),
        ]
    )


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "" if value is None else f"`{json.dumps(value)}`"


# Recipes, names, cards


def recipes() -> str:
    """Show the recipes, each with its header as text."""
    parts = []
    for path in sorted((ROOT / "pipelines").glob("*.toml")):
        parts.append(f"## {path.name} {{ #{path.stem} }}\n\n```toml\n{path.read_text('utf-8').strip()}\n```")
    return "\n\n".join(parts)


def names() -> str:
    """List the public names of the package for mkdocstrings; fields of settings are on their own page."""
    import sar2eo

    parts = []
    for name in sar2eo.__all__:
        if not name.startswith("__"):
            parts.append(f"::: sar2eo.{name}")
        if name == "TranslateSettings":
            parts.append("Fields: the keys of [`[translate.settings]`](settings.md#translate-settings).")
    return "\n\n".join(parts)


def card(folder: str) -> str:
    """Show the card of one of the package's models."""
    files = [
        path for path in (ROOT / "sar2eo").rglob(f"{folder}/*.json") if "training_data" in path.read_text()
    ]
    (path,) = files
    rows = []
    for name, value in json.loads(path.read_text("utf-8")).items():
        if name == "metrics":
            continue
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, list):
            value = ", ".join("+".join(each) if isinstance(each, list) else str(each) for each in value)
        rows.append(f"| `{name}` | {_cell(str(value))} |")
    return "\n".join(["| field | value |", "| --- | --- |", *rows])


# Markdown


def _prose(text: str) -> str:
    """Make reStructuredText's literals Markdown's, and leave no braces or angles that mean something."""
    return text.replace("``", "`").replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Mark text as code: in a table, a code span would show the backslash before each bar."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _anchor(name: str) -> str:
    return name.replace(".", "-")


# Checks

MODULE = re.compile(r"(?<![\w/.])((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)\b")


def missing_modules(markdown: str) -> list[str]:
    """Return the programs that a page names and that are neither in ``sar2eo/`` nor in the repository."""
    named = set(MODULE.findall(markdown))
    return sorted(
        name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "sar2eo"))
    )
