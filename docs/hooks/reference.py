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
import importlib
import inspect
import json
import logging
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
log = logging.getLogger("mkdocs.hooks.reference")
MARK = re.compile(r"<!-- generate: (\w+)(?: (\S+))? -->")
TYPE_NAMES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    type(None): "none",
}


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
    records = [param.get_help_record(context) for param in command.get_params(context)]
    rows = [f"| `{_cell(flags)}` | {_cell(_prose(text))} |" for flags, text in filter(None, records)]
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
    tables = _recipe_tables()
    shared: dict[type, str] = {}
    parts = []
    for name, kind in tables.items():
        parts.append(_table(name, kind, shared))
        for field, inner in _inner_tables(kind):
            if inner not in shared:
                shared[inner] = f"{name}.{field}"
                parts.append(_table(f"{name}.{field}", inner, shared, level=3))
    return "\n\n".join(parts)


def _recipe_tables() -> dict[str, type]:
    """Return the settings dataclasses by the name of their table."""
    for module in ("sar2eo.settings", "sar2eo.recipe"):
        try:
            package = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            continue
        for value in vars(package).values():
            if isinstance(value, dict) and value and all(map(dataclasses.is_dataclass, value.values())):
                return value
    raise LookupError("no mapping of recipe tables to dataclasses")


def _inner_tables(kind: type) -> Iterator[tuple[str, type]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield field.name, hints[field.name]


def _table(name: str, kind: type, shared: dict[type, str], *, level: int = 2) -> str:
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = _documented(kind)
    rows = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            table = shared.get(hint, f"{name}.{field.name}")
            rows.append(f"| `{field.name}` | [table](#{_anchor(table)}) | | As in `[{table}]`. |")
            continue
        text = _help_of(field, hint) or texts.get(field.name, "")
        rows.append(f"| `{field.name}` | {_cell(_type(hint))} | {_default(field)} | {_cell(_prose(text))} |")
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return "\n\n".join(
        [
            f"{'#' * level} `[{name}]` {{ #{_anchor(name)} }}",
            _prose(" ".join(first.split())),
            "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]),
        ]
    )


def _help_of(field: Any, hint: Any) -> str:
    """Return the help that stands with a field: in its metadata, or in a pydantic ``Field``."""
    if "help" in field.metadata:
        return str(field.metadata["help"])
    for source in (field.default, *getattr(hint, "__metadata__", ())):
        if text := getattr(source, "help", None) or getattr(source, "description", None):
            return str(text)
    return ""


def _documented(kind: type) -> dict[str, str]:
    """Return the texts of a dataclass's documented parameters, those of its bases included."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Parameters\n----------\n")
        section = re.split(r"\n\n\w+\n-+\n", section)[0].replace("\\\n", "")
        for entry in re.split(r"\n(?=\S)", section):
            head, _, body = entry.partition("\n")
            for name in head.partition(" :")[0].split(","):
                texts[name.strip()] = " ".join(body.split())
    return texts


def _type(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(each) for each in inner if each is not type(None))
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"table of {_type(inner[1])}"
    return TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: Any) -> str:
    value = field.default
    if hasattr(value, "default") and hasattr(value, "default_factory"):  # a pydantic field
        value = value.default if value.default_factory is None else value.default_factory()
    if value is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "required"
        value = field.default_factory()
    if value is None:
        return ""
    return f"`{json.dumps(value)}`"


# Recipes, names, cards


def recipes() -> str:
    """Show the recipes, each with its header as text."""
    parts = []
    for path in sorted((ROOT / "pipelines").glob("*.toml")):
        parts.append(f"## {path.name} {{ #{path.stem} }}\n\n```toml\n{path.read_text('utf-8').strip()}\n```")
    return "\n\n".join(parts)


def names() -> str:
    """List the public names of the package for mkdocstrings."""
    import sar2eo

    return "\n\n".join(f"::: sar2eo.{name}" for name in sar2eo.__all__ if not name.startswith("__"))


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
