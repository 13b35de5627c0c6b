"""``sar2eo confidence``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.describing import lines
from sar2eo.cli.flags import recipe_from_flags, recipe_options, settings_options
from sar2eo.cli.options import debug_option, numbers, taking_several
from sar2eo.cli.progress import say, staged
from sar2eo.recipe import ConfidenceRecipe, ConfidenceSettings

__all__ = ["confidence_all", "confidence_command"]

_HELP = {
    "timesteps": "Noise levels of the noised truth; the card's is always added.",
    "steps": "Denoising steps of the sampled variance.  [default: as the model's card says]",
    "sampler": "[default: as the model's card says]",
    "tile": "Window size in pixels.",
    "overlap": "Overlap of windows in pixels.",
    "seed": "Of the noise and of the bootstrap.",
    "device": "cpu, cuda or cuda:N.",
    "dtype": "float32, bfloat16 or float16.",
    "threads": "Torch threads.  [default: all cores]",
}


@click.command("confidence", cls=taking_several("--scenes", "--pair"))
@click.option("--model", metavar="DIR|HUB_ID", help="A checkpoint.")
@click.option("--scenes", multiple=True, metavar="DIR...", help="Folders made by simulate.")
@click.option("--pair", multiple=True, metavar="SAR EO", help="Real scenes instead, for a picture.")
@click.option("--window", type=numbers("ROW,COL,HEIGHT,WIDTH", int), help="The part of --pair to show.")
@click.option("--out", metavar="DIR|FILE.png", help="Folder of the report; of --pair the picture.")
@settings_options(ConfidenceSettings, _HELP)
@click.option("--overwrite", is_flag=True, help="Replace an existing report or picture.")
@recipe_options("confidence")
@debug_option
def confidence_command(recipe_file: Path | None, overrides: tuple[str, ...], dry_run: bool, **_: Any) -> None:
    """Test whether a model's variance tells planted discrepancies from unchanged objects of their kind.

    \b
    sar2eo simulate --out scene/ --seed 7
    sar2eo confidence --model runs/first/final --scenes scene/ --out report/

    The report has areas under the ROC curve and all scores as JSON, tables in Markdown, and pictures.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    recipe = recipe_from_flags(ConfidenceRecipe, "confidence", recipe_file=recipe_file, overrides=overrides)
    confidence_all(recipe, dry_run=dry_run)


def confidence_all(recipe: ConfidenceRecipe, *, dry_run: bool) -> None:
    """Do what a recipe says, or show what it would take."""
    from sar2eo.evaluation.discrepancies import judge_confidence, picture_confidence, plan_confidence

    given: dict[str, Any] = {
        name: getattr(recipe, name) for name in ("model", "out", "settings", "overwrite")
    }
    if dry_run:
        plan = {"picture": recipe.out} if recipe.pair else plan_confidence(scenes=recipe.scenes, **given)
        click.echo("\n".join(lines(plan)))
        return
    with staged(" windows") as progress:
        if recipe.pair:
            window = recipe.window or ()
            say(picture_confidence(pair=recipe.pair, window=window, progress=progress, **given))
            return
        results = judge_confidence(scenes=recipe.scenes, progress=progress, **given)
    say(_summary(recipe.out, results))


def _summary(out: str, results: Mapping[str, Any]) -> str:
    """Say what came of it: the areas of the forced variance."""
    if results["left_out"]:
        return f"{out}: {'; '.join(results['left_out'].values())}"
    name = f"forced {results['timestep']} mean"
    found = ", ".join(
        f"{group['kind']}s {group['discrepancy']} {group['areas'][name]['value']:.2f}"
        for group in results["groups"]
        if group["areas"]
    )
    return (
        f"{out}: {len(results['objects'])} objects, areas of the variance at {results['timestep']}: {found}"
    )
