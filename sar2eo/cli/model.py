"""``sar2eo model``: init, import, pack, info."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sar2eo.cli.info import lines
from sar2eo.cli.options import debug_option, polarisations_option
from sar2eo.cli.progress import say
from sar2eo.errors import CheckpointError, OutputError
from sar2eo.geo.radiometry import CALIBRATIONS, QUANTITIES
from sar2eo.model.card import PREDICTION_TYPES, SAMPLERS, SPACINGS
from sar2eo.settings import CardSettings, InitRecipe

__all__ = ["init_folder", "model"]

_CARD_OPTIONS = [
    click.option("--name", help="Short name of the model."),
    click.option("--quantity", type=click.Choice(QUANTITIES), help="Of the SAR it is trained on."),
    click.option("--calibration", type=click.Choice(CALIBRATIONS), help="Of the SAR it is trained on."),
    polarisations_option("--pol", help="Polarisations it takes."),
    click.option("--gsd", "gsd_m", type=float, help="Ground sample distance in true ground metres."),
    click.option("--prediction-type", type=click.Choice(PREDICTION_TYPES), help="What the U-Net predicts."),
    click.option("--sampler", type=click.Choice(SAMPLERS), help="Default sampler."),
    click.option("--spacing", type=click.Choice(SPACINGS), help="Default spacing of timesteps."),
    click.option("--steps", type=int, help="Default number of steps."),
    click.option("--temperature", type=float, help="Of the noise it starts from; 1 if not given."),
    click.option("--licence", help="Of the weights."),
    click.option("--training-data", help="What it was trained on."),
]


def _card_options(command: Any) -> Any:
    for option in reversed(_CARD_OPTIONS):
        command = option(command)
    return command


@click.group()
def model() -> None:
    """Make, import and describe C-DiffSET checkpoints."""


@model.command()
@click.option("--out", required=True, metavar="DIR", help="New folder.")
@click.option(
    "--base", metavar="FOLDER|HUB_ID", help="A Stable Diffusion 1.x or 2.x model in diffusers' layout."
)
@click.option("--revision", help="Of a base on a hub.")
@click.option("--size", type=click.Choice(["tiny", "small", "region"]), help="Untrained, without a base.")
@click.option(
    "--vae", metavar="FOLDER", help="With a size: on the latents of this VAE (RUN/final of train-vae)."
)
@click.option("--untrained", is_flag=True, help="With a base: its architecture, but a fresh U-Net.")
@click.option("--zero-terminal-snr", is_flag=True, help="Let the noise schedule end in pure noise.")
@_card_options
@debug_option
def init(**flags: Any) -> None:
    """Make a checkpoint to be trained, from a base model or from nothing."""
    given = _given(flags)
    card = {f.name: given.pop(f.name) for f in dataclasses.fields(CardSettings) if f.name in given}
    recipe = InitRecipe(**given, card=CardSettings(**card))
    if Path(recipe.out).exists():
        raise OutputError(f"{recipe.out} exists already: choose another folder or remove it")
    init_folder(recipe, dry_run=False)


def init_folder(recipe: InitRecipe, *, dry_run: bool) -> None:
    """Make a checkpoint, or find that it was made before.

    Raises
    ------
    OutputError
        If the folder holds something else than what the recipe makes.
    """
    from sar2eo.model.card import TranslatorCard
    from sar2eo.model.creation import init_checkpoint
    from sar2eo.model.folder import ModelFolder

    options = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    out, card = Path(options.pop("out")), _given(vars(options.pop("card")))
    if dry_run:
        click.echo(f"{out}: {'is there already' if out.exists() else 'would be made'}")
        return
    if not out.exists():
        say(init_checkpoint(out, **options, name=card.pop("name", out.name), **card))
        return
    with TemporaryDirectory() as scratch:  # it is made the same every time
        name = card.pop("name", out.name)
        again = init_checkpoint(Path(scratch) / "again", **options, name=name, **card)
        if ModelFolder(again, TranslatorCard).sha256() != ModelFolder(out, TranslatorCard).sha256():
            raise OutputError(f"{out} holds another checkpoint: choose another folder or remove it")
    say(f"{out}: made before, kept")


@model.command("import")
@click.option(
    "--unet", required=True, type=click.Path(path_type=Path), help="The release's model.safetensors."
)
@click.option("--base", required=True, metavar="FOLDER|HUB_ID", help="The model it was trained from.")
@click.option("--revision", help="Of a base on a hub.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@_card_options
@debug_option
def import_release(unet: Path, base: str, revision: str | None, out: Path, **card: Any) -> None:
    """Make a checkpoint of the C-DiffSET authors' release."""
    from sar2eo.model.creation import import_checkpoint

    click.echo(import_checkpoint(out, unet=unet, base=base, revision=revision, **_given(card)))


@model.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--dtype", default="float16", show_default=True, help="Of the weights on disk.")
@click.option(
    "--vae", metavar="FOLDER", help="With this decoder, trained further by train-vae --decoder-only."
)
@click.option(
    "--report",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Of evaluate, or evaluate-matcher: for the card.",
)
@_card_options
@debug_option
def pack(folder: Path, out: Path, dtype: str, vae: str | None, report: Path | None, **card: Any) -> None:
    """Copy a trained checkpoint, or a matcher, for others: in half the bytes, the last words on its card."""
    is_matcher = _is_matcher(folder)
    measured = {} if report is None else {"metrics": _measured(report, is_matcher)}
    given = {**_given(card), **measured}
    if is_matcher:
        from sar2eo.matching.dcdm.checkpoint import pack_matcher

        if vae is not None:
            raise click.UsageError("--vae: a matcher knows the VAE it was trained with, and no other")
        click.echo(pack_matcher(folder, out, dtype=dtype, **given))
        return
    from sar2eo.model.creation import pack_checkpoint

    click.echo(pack_checkpoint(folder, out, dtype=dtype, vae=vae, **given))


def _measured(report: Path, of_matcher: bool) -> dict[str, float]:
    """Return a model's figures from a report of `sar2eo evaluate`, a matcher's from evaluate-matcher."""
    from sar2eo.model.folder import read_json

    file, method = ("matches.json", "dcdm") if of_matcher else ("metrics.json", "model")
    told = read_json(report / file)
    settings, figures = told.get("settings", {}), told.get("methods", {}).get(method, {})
    if settings.get("protocol", "usual") != "usual":
        raise CheckpointError(
            f"{report}: its figures follow the protocol {settings['protocol']}; a card's are by the usual one"
        )
    split = settings.get("split", "test")
    prefix = "validation" if split == "val" else split  # as training calls it
    found = {f"{prefix}_{name}": value for name, value in figures.items() if isinstance(value, int | float)}
    if not found:
        raise CheckpointError(f"{report}: {file} tells no figures of {method}: is it the report of another?")
    return found


@model.command("info")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def show(folder: str, as_json: bool) -> None:
    """Show architecture, parameters and card of a checkpoint or a matcher.

    'bundled' and 'bundled_matcher' are the package's own.
    """
    from sar2eo.model.folder import BUNDLED, BUNDLED_MATCHER, find_folder

    own = folder in (BUNDLED, BUNDLED_MATCHER)
    place = find_folder(BUNDLED, own=folder) if own else Path(folder)
    described = _described(place)
    click.echo(json.dumps(described, indent=2) if as_json else "\n".join(lines(described)))


def _is_matcher(folder: Path) -> bool:
    from sar2eo.model.card import MatcherCard

    return (folder / MatcherCard.file_name).is_file()


def _described(folder: Path) -> dict[str, Any]:
    if _is_matcher(folder):
        from sar2eo.matching.dcdm.checkpoint import describe_matcher

        return describe_matcher(folder)
    from sar2eo.model.checkpoint import describe_checkpoint

    return describe_checkpoint(folder)


def _given(card: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in card.items() if value is not None}
