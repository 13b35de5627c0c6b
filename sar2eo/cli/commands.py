"""The registry of commands, each made from a settings class and a function; ``sar2eo run`` runs recipes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import click
from click.core import ParameterSource

from sar2eo.cli.output import format_table, say
from sar2eo.errors import SettingsError
from sar2eo.settings import (
    CoregisterRecipe,
    EvaluateRecipe,
    ImportSettings,
    InfoSettings,
    InitRecipe,
    MatcherRecipe,
    MatchEvaluationRecipe,
    MatchSettings,
    ModelInfoSettings,
    PackSettings,
    PairsRecipe,
    Recipe,
    Settings,
    SimulateRecipe,
    TrainRecipe,
    TranslateRecipe,
    VaeRecipe,
    apply_overrides,
    from_table,
    read_recipe,
)
from sar2eo.settings.schema import Setting, arms, describe_type, quote_name, settings_of
from sar2eo.settings.translation import read_scaling
from sar2eo.settings.vocabulary import RUN


class _Option(click.Option):
    """An option that stands under a heading of ``--help``."""

    group: str = RUN


class _Argument(click.Argument):
    """A positional argument that stands among the options of ``--help``."""

    group: str
    text: str

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.text


class SettingType(click.ParamType):  # type: ignore[type-arg]  # older releases of click have no argument
    """A setting on the command line: its flag, and how its text is read; `table` is the one that it is in.

    Bounds are checked later, with the other settings. `several` settings take all words up to the next flag.
    """

    name = "setting"

    def __init__(self, setting: Setting, table: str = "") -> None:
        self.setting, self.table = setting, table
        metavar = setting.flag.metavar or ""
        self.positional, self.several = setting.flag.name == "", metavar.endswith("...")
        named = setting.flag.name or f"--{setting.name.replace('_', '-')}"
        self.flag = metavar if self.positional else named
        kinds = [arms(arm)[0] for arm in arms(setting.type)]
        self.kinds = [kind for kind in kinds if kind is not NoneType]
        self.is_list = any(get_origin(kind) is tuple for kind in kinds)
        self.takes_auto = NoneType in kinds and not {int, float}.isdisjoint(kinds)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the placeholder of the value."""
        words = {int: "INTEGER", float: "NUMBER"}
        return self.setting.names or ("A,B,..." if self.is_list else words.get(self.kinds[0], "TEXT"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a value; "auto" is None where a number may be left out."""
        if not isinstance(value, str):
            return value
        if any(get_origin(kind) is dict for kind in self.kinds):
            return read_scaling(value)
        names = self.setting.names
        if self.is_list:
            (item,) = arms(get_args(self.kinds[0])[0])
            read, change = item if item in (int, float) else str, self.setting.flag.item or str
            with suppress(ValueError):
                items = tuple(read(change(part.strip())) for part in value.split(","))
                if not names or len(items) == names.count(",") + 1:
                    return items
        for kind in self.kinds:
            if kind is str or value in get_args(kind):
                return value
            with suppress(ValueError):
                if kind in (int, float):
                    return kind(value)
        if self.takes_auto and value == "auto":
            return None
        expected = describe_type(self.setting.type) + (" or auto" if self.takes_auto else "")
        if self.is_list:
            expected = names or f"{expected.removeprefix('a list of ')} with commas between them"
        raise click.BadParameter(f"{value!r} must be {expected}", ctx=ctx, param=param)

    def parameter(self) -> click.Parameter:
        """Make the option or argument that sets it."""
        setting, kinds = self.setting, self.kinds
        options: dict[str, Any] = {
            "metavar": setting.flag.metavar,
            "type": click.types.STRING if self.several else self,
        }
        if self.positional:
            argument = _Argument([setting.name], required=False, nargs=-1 if self.several else 1, **options)
            argument.group, argument.text = setting.group, setting.help
            return argument
        default, flag, text = setting.default, self.flag, ""
        if default is dataclasses.MISSING:
            default, text = None, "  [required]"
        elif kinds == [bool]:
            flag += f"/--no-{flag.removeprefix('--')}" if default else ""
            options = {"is_flag": True}
        elif default not in (None, (), False):
            items = default if isinstance(default, tuple) else (default,)
            words = (f"{item:g}" if isinstance(item, float) else str(item) for item in items)
            text = f"  [default: {(' ' if self.several else ',').join(words)}]"
        if get_origin(kinds[0]) is Literal and len(kinds) == 1:
            options["type"] = click.Choice(get_args(kinds[0]))
        option = _Option(
            [flag, setting.name],
            help=setting.help + text,
            default=default,
            multiple=self.several,
            **options,
        )
        option.group = setting.group
        return option


_RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "workers": {"type": click.IntRange(min=0), "default": 0, "help": "Worker processes; 0: this process."},
    "scheduler": {"metavar": "ADDRESS", "help": "Join this Dask cluster."},
    "dry_run": {"is_flag": True, "help": "Show what would be done, and what it takes."},
}


def run_options(function: Callable[..., Any]) -> list[click.Parameter]:
    """Return the options for the parameters of a function that say how work is run, and --debug."""
    names = [name for name in _RUN_OPTIONS if name in inspect.signature(function).parameters]
    debug = _Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=lambda ctx, _, value: ctx.meta.update({"sar2eo.debug": value}),
        help="Show tracebacks.",
    )
    return [
        *(_Option([f"--{name.replace('_', '-')}", name], **_RUN_OPTIONS[name]) for name in names),
        debug,
    ]


class GroupedCommand(click.Command):
    """A command whose options stand under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group, in the order of the groups' first options; "Run" is last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", RUN), []).append(record)
        for name in sorted(groups, key=lambda name: name == RUN):
            with formatter.section(name):
                formatter.write_dl(groups[name])


class SettingsCommand(GroupedCommand):
    """The command of a settings class: each setting becomes an option, the function's docstring the help.

    The function takes the settings, and by keyword what `run_options` knows. `table` is the name of its table
    in a recipe; of a `Recipe`, ``--recipe`` and ``--set`` fill it, too.
    """

    def __init__(self, name: str, kind: type[Settings], function: Callable[..., Any], table: str) -> None:
        self.kind, self.function, self.table = kind, function, table
        self.fields: dict[str, SettingType] = {}
        for setting in settings_of(kind):
            table_name, inner = (
                (setting.name, settings_of(setting.table)) if setting.table else ("", [setting])
            )
            for each in inner:
                if each.name not in setting.without:
                    self.fields[each.name] = SettingType(each, table_name)
        params = [field.parameter() for field in self.fields.values()]
        if issubclass(kind, Recipe):
            params += [
                _Option(
                    ["--recipe", "recipe_file"],
                    metavar="FILE.toml",
                    type=click.Path(path_type=Path),
                    help=f"Take the table [{table}] of this file; flags come before it.",
                ),
                _Option(
                    ["--set", "overrides"],
                    multiple=True,
                    metavar="KEY=VALUE",
                    help=f"Set a key of the table, as in {table}.out=NAME; flags come before it.",
                ),
            ]
        help = inspect.getdoc(function) or ""  # noqa: A001  (click's own name)
        super().__init__(name, params=[*params, *run_options(function)], help=help, callback=self.run)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat a flag before each of several words that follow it, so that a shell's * can stand there."""
        several = {field.flag for field in self.fields.values() if field.several}
        spread: list[str] = []
        flag = None
        for position, text in enumerate(args):
            if text.startswith("-"):
                flag = text if text in several else None
            elif flag is not None and args[position - 1] != flag:
                spread.append(flag)
            spread.append(text)
        return super().parse_args(ctx, spread)

    def run(self, recipe_file: Path | None = None, overrides: tuple[str, ...] = (), **params: Any) -> None:
        """Call the function with settings: flags come before overrides, and those before the file's table."""
        where = self.table
        whole = apply_overrides({} if recipe_file is None else read_recipe(recipe_file), overrides)
        table = whole.get(where, {})
        if isinstance(table, list):
            if len(table) > 1:
                raise SettingsError(f"{recipe_file} has {len(table)} tables [[{where}]]: use 'sar2eo run'")
            table = table[0] if table else {}
        if not isinstance(table, dict):
            raise SettingsError(f"[{where}]: must be a table, not {table!r}")
        context = click.get_current_context()
        given = {
            name: value
            for name, value in context.params.items()
            if name in self.fields and context.get_parameter_source(name) is not ParameterSource.DEFAULT
        }
        for setting in settings_of(self.kind):
            if setting.table is not None and given.keys() & set(setting.table.alternatives):
                table[setting.name] = {}
        flags = {}
        for name, field in self.fields.items():
            inner = table.setdefault(field.table, {}) if field.table else table
            if not isinstance(inner, dict):
                continue  # from_table refuses it
            if name in given:
                inner[name] = given[name]
            if name in given or name not in inner:
                flags[".".join(filter(None, (where, field.table, name)))] = field.flag
        options = {name: params[name] for name in _RUN_OPTIONS if name in params}
        self.function(from_table(self.kind, table, where, flags), **options)


class Entry(NamedTuple):
    """A command: what its options are made from, "module:function" in `sar2eo.cli`, and a line of help.

    A recipe may have a table of a `Recipe`. A group of commands has no function.
    """

    settings: type[Settings] | None
    function: str
    help: str

    def load(self) -> Any:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"sar2eo.cli.{module}"), name)


COMMANDS = {
    "build-pairs": Entry(PairsRecipe, "pairs:build_pairs", "Cut SAR and EO scenes into paired chips."),
    "coregister": Entry(CoregisterRecipe, "pairs:coregister", "Move a scene onto another one."),
    "evaluate": Entry(EvaluateRecipe, "evaluate:evaluate", "Judge a model."),
    "evaluate-matcher": Entry(MatchEvaluationRecipe, "evaluate:evaluate_matcher", "Judge a matcher."),
    "info": Entry(InfoSettings, "translate:show_scene", "Show what a SAR scene is and how it will be read."),
    "match": Entry(MatchSettings, "pairs:match", "Find an optical image in a SAR image."),
    "model": Entry(None, "", "Make, import and describe checkpoints."),
    "model import": Entry(ImportSettings, "models:import_release", "Import the C-DiffSET authors' release."),
    "model info": Entry(ModelInfoSettings, "models:show_model", "Show a checkpoint or a matcher."),
    "model init": Entry(InitRecipe, "models:init_model", "Make a checkpoint to be trained."),
    "model pack": Entry(PackSettings, "models:pack_model", "Copy a trained checkpoint for others."),
    "run": Entry(None, "commands:run", "Run a recipe, a TOML file."),
    "simulate": Entry(SimulateRecipe, "models:simulate", "Simulate a pair of scenes with known truth."),
    "train": Entry(TrainRecipe, "train:train", "Fine-tune a model on pairs."),
    "train-matcher": Entry(MatcherRecipe, "train:train_matcher", "Train a matcher on pairs."),
    "train-vae": Entry(VaeRecipe, "train:train_vae", "Train a VAE on the images of pairs."),
    "translate": Entry(TranslateRecipe, "translate:translate", "Translate SAR scenes into EO images (COGs)."),
}
"""Every command, in the order of ``sar2eo --help``; "model init" is `init` of the group `model`."""

TABLES = {
    name.replace(" ", "-"): entry
    for name, entry in COMMANDS.items()
    if entry.settings is not None and issubclass(entry.settings, Recipe)
}
"""Commands by the name of their table in a recipe."""


class CommandGroup(click.Group):
    """Commands of the registry whose names begin with a prefix, imported when they are called."""

    def __init__(self, *args: Any, prefix: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the group's commands."""
        names = [name.removeprefix(self.prefix) for name in COMMANDS if name.startswith(self.prefix)]
        return [name for name in names if " " not in name]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make a command of the group."""
        name = self.prefix + cmd_name
        if cmd_name not in self.list_commands(ctx):
            return None
        entry = COMMANDS[name]
        if not entry.function:
            return CommandGroup(cmd_name, prefix=f"{name} ", help=entry.help)
        found = entry.load()
        if entry.settings is None:
            return found  # type: ignore[no-any-return]
        return SettingsCommand(cmd_name, entry.settings, found, name.replace(" ", "-"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the line of each command, without importing it."""
        with formatter.section("Commands"):
            names = self.list_commands(ctx)
            formatter.write_dl([(name, COMMANDS[self.prefix + name].help) for name in names])


class Stage(NamedTuple):
    """One step of a recipe: the name of its table, and its settings."""

    name: str
    recipe: Any


def read_stages(tables: dict[str, Any]) -> list[Stage]:
    """Read every stage of a recipe before any of them runs.

    A command that runs several times is an array of tables, ``[[train]]``, whose runs follow each other where
    the first one stands.
    """
    if not tables:
        raise SettingsError(f"the recipe is empty: it must have tables of {', '.join(TABLES)}")
    stages = []
    for name, value in tables.items():
        if name not in TABLES:
            raise SettingsError(f"[{quote_name(name)}]: not a stage; known are {', '.join(TABLES)}")
        runs = value if isinstance(value, list) else [value]
        for number, run in enumerate(runs):
            where = name if len(runs) == 1 else f"{name}.{number}"
            stages.append(Stage(name, from_table(TABLES[name].settings or Settings, run, where)))
    return stages


@click.command(cls=GroupedCommand)
@click.argument("path", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in translate.out=eo.tif.")
def run(
    path: Path, overrides: tuple[str, ...], *, workers: int, scheduler: str | None, dry_run: bool
) -> None:
    """Run a recipe, a TOML file.

    Each table holds what the command of its name takes, and they run in the order of the file. The same
    command goes on where an interrupted one stopped.
    """
    stages = read_stages(apply_overrides(read_recipe(path), overrides))
    options = {"workers": workers, "scheduler": scheduler, "dry_run": dry_run}
    for number, (name, recipe) in enumerate(stages, start=1):
        if len(stages) > 1:
            say(f"[{number}/{len(stages)}] {name}")
        if dry_run and len(stages) > 1:
            # What later stages take is made by those before them.
            say(format_table(dataclasses.asdict(recipe), "  "))
            continue
        function = TABLES[name].load()
        known = inspect.signature(function).parameters
        function(recipe, **{key: value for key, value in options.items() if key in known})


run.params += run_options(run.callback or run)
