"""``sar2eo model init``, ``import``, ``pack`` and ``info``, and ``sar2eo simulate``."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sar2eo.cli.output import format_table, say, show
from sar2eo.errors import CheckpointError, OutputError
from sar2eo.settings import ImportSettings, InitRecipe, ModelInfoSettings, PackSettings, SimulateRecipe


def init_model(recipe: InitRecipe, *, dry_run: bool) -> None:
    """Make a checkpoint to be trained, from a base model or from nothing.

    The same command again keeps the checkpoint; a folder that holds another one is an error.
    """
    from sar2eo.model.card import TranslatorCard
    from sar2eo.model.creation import init_checkpoint
    from sar2eo.model.folder import ModelFolder

    options = dict(vars(recipe))
    out, card = Path(options.pop("out")), options.pop("card").changes()
    options |= {"name": out.name, **card}
    if dry_run:
        say(f"{out}: {'exists already' if out.exists() else 'would be made'}")
    elif not out.exists():
        say(init_checkpoint(out, **options))
    else:
        with TemporaryDirectory() as scratch:  # it is made the same every time
            again = init_checkpoint(Path(scratch) / "again", **options)
            if ModelFolder(again, TranslatorCard).sha256() != ModelFolder(out, TranslatorCard).sha256():
                raise OutputError(
                    f"{out} exists, and holds another checkpoint: choose another folder or remove it"
                )
        say(f"{out}: made before, kept")


def import_release(settings: ImportSettings) -> None:
    """Make a checkpoint of the C-DiffSET authors' release."""
    from sar2eo.model.creation import import_checkpoint

    options = dict(vars(settings))
    say(import_checkpoint(options.pop("out"), **options.pop("card").changes(), **options))


def pack_model(settings: PackSettings) -> None:
    """Copy a trained checkpoint, or a matcher, for others: half the size, with its figures on the card."""
    folder = Path(settings.folder)
    is_matcher = _is_matcher(folder)
    fields: dict[str, Any] = settings.card.changes()
    if settings.report is not None:
        fields["metrics"] = _read_metrics(Path(settings.report), is_matcher)
    if is_matcher:
        from sar2eo.matching.dcdm.checkpoint import pack_matcher

        if settings.vae is not None:
            raise click.UsageError("--vae: a matcher knows the VAE it was trained with, and no other")
        say(pack_matcher(folder, settings.out, dtype=settings.dtype, **fields))
        return
    from sar2eo.model.creation import pack_checkpoint

    say(pack_checkpoint(folder, settings.out, dtype=settings.dtype, vae=settings.vae, **fields))


def _read_metrics(report: Path, of_matcher: bool) -> dict[str, float]:
    """Read a model's figures from a report of `sar2eo evaluate`, a matcher's from evaluate-matcher."""
    from sar2eo.model.folder import read_json

    file, method = ("matches.json", "dcdm") if of_matcher else ("metrics.json", "model")
    content = read_json(report / file)
    settings, figures = content.get("settings", {}), content.get("methods", {}).get(method, {})
    if settings.get("protocol", "usual") != "usual":
        raise CheckpointError(
            f"{report}: its figures follow the protocol {settings['protocol']}; a card's are by the usual one"
        )
    split = settings.get("split", "test")
    prefix = "validation" if split == "val" else split  # as training calls it
    metrics = {f"{prefix}_{name}": value for name, value in figures.items() if isinstance(value, int | float)}
    if not metrics:
        raise CheckpointError(f"{report}: {file} has no figures of {method}: is it the report of another?")
    return metrics


def show_model(settings: ModelInfoSettings) -> None:
    """Show architecture, parameters and card of a checkpoint or a matcher.

    'bundled' and 'bundled_matcher' are the package's own.
    """
    from sar2eo.model.folder import BUNDLED, BUNDLED_MATCHER, find_folder

    name = settings.folder
    own = name in (BUNDLED, BUNDLED_MATCHER)
    facts = _describe(find_folder(BUNDLED, own=name) if own else Path(name))
    show(json.dumps(facts, indent=2) if settings.json else format_table(facts))


def _is_matcher(folder: Path) -> bool:
    from sar2eo.model.card import MatcherCard

    return (folder / MatcherCard.file_name).is_file()


def _describe(folder: Path) -> dict[str, Any]:
    if _is_matcher(folder):
        from sar2eo.matching.dcdm.checkpoint import describe_matcher

        return describe_matcher(folder)
    from sar2eo.model.checkpoint import describe_checkpoint

    return describe_checkpoint(folder)


def simulate(recipe: SimulateRecipe, *, dry_run: bool) -> None:
    """Simulate a pair of SAR and EO scenes with known truth.

    The truth file holds land cover, and the objects that changed between the two dates. The same settings
    give the same pixels; the same command again keeps the files, and a folder of other settings is an error.
    """
    from sar2eo.simulation import SimulationSettings, make_folder, simulate_pair, simulated_before, write_pair

    options = dict(vars(recipe))
    folder = Path(options.pop("out"))
    settings = SimulationSettings(**options)
    if simulated_before(settings, folder):
        say(f"{folder}: simulated before, kept")
    elif dry_run:
        say(f"{folder}: a pair of {recipe.size} x {recipe.size} pixels, seed {recipe.seed}")
    else:
        make_folder(folder)
        for path in write_pair(simulate_pair(settings), folder).values():
            say(path)
