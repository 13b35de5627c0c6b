"""The registry of commands, and ``sar2eo run``, which runs recipes of them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import click

from sar2eo.cli.options import GroupedCommand, SettingsCommand, run_options
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
from sar2eo.settings.schema import quote_name


class Entry(NamedTuple):
    """A command.

    Parameters
    ----------
    settings : type or None
        What its options are made from; a recipe may have a table of a `Recipe`.
    function : str
        Module of `sar2eo.cli` and function that runs it, "" for a group of commands.
    help : str
        A line for the overview.
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
    """Commands of the registry, imported when they are called.

    Parameters
    ----------
    prefix : str
        What the names of its commands begin with in the registry.
    """

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

    Parameters
    ----------
    tables : dict
        The whole file. A command that runs several times is an array of tables, ``[[train]]``, whose runs
        follow each other where the first one stands.
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
