"""``sar2eo evaluate-matcher``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.describing import lines
from sar2eo.cli.flags import data_options, recipe_from_flags, recipe_options, settings_options
from sar2eo.cli.options import debug_option
from sar2eo.cli.progress import ProgressLine, say
from sar2eo.recipe import MatchEvaluationRecipe, MatchEvaluationSettings

__all__ = ["evaluate_matcher_all", "evaluate_matcher_command"]

_HELP = {
    "split": "Which pairs.",
    "against": "Of structure, phase, ncc.",
    "search": "Side of the search images, the templates' is half.  [default: as it was trained]",
    "offsets": "Templates from each pair.",
    "noise": "Variances of noise on the templates, in percent.",
    "steps": "Denoising steps.  [default: as the card says]",
    "sweep_steps": "Numbers of steps to compare.",
    "limit": "Pairs at most, spread evenly.",
    "resamples": "Draws of the bootstrap over places.",
    "seed": "Of places and noise.",
    "device": "cpu, cuda or cuda:N.",
    "threads": "Torch threads.  [default: all cores]",
}


@click.command("evaluate-matcher")
@click.option("--model", metavar="DIR", help="A matcher.")
@data_options
@click.option("--out", metavar="DIR", help="Folder of the report.")
@settings_options(MatchEvaluationSettings, _HELP)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
@recipe_options("evaluate-matcher")
@debug_option
def evaluate_matcher_command(
    recipe_file: Path | None, overrides: tuple[str, ...], dry_run: bool, **_: Any
) -> None:
    """Measure what a matcher is worth on pairs, against methods that are not learned.

    \b
    sar2eo evaluate-matcher --model runs/matcher/final --pairs pairs/ --out report/ --noise 0,1,5,10
    """  # noqa: D301  (click's mark for lines that stay as they are)
    recipe = recipe_from_flags(
        MatchEvaluationRecipe, "evaluate-matcher", recipe_file=recipe_file, overrides=overrides
    )
    evaluate_matcher_all(recipe, dry_run=dry_run)


def evaluate_matcher_all(recipe: MatchEvaluationRecipe, *, dry_run: bool) -> None:
    """Do what a recipe says, or show it."""
    from sar2eo.evaluation.matches import evaluate_matcher

    if dry_run:
        click.echo("\n".join(lines(dataclasses.asdict(recipe))))
        return

    def text(counts: Mapping[str, float], _: float) -> str:
        return f"template {counts['done']:.0f} of {counts['total']:.0f}"

    with ProgressLine(text) as line:
        results = evaluate_matcher(
            recipe.model,
            recipe.data,
            recipe.out,
            recipe.settings,
            overwrite=recipe.overwrite,
            progress=lambda _, done, total: line({"done": done, "total": total}),
        )
    found = ", ".join(f"{name} {values['cmr_5']:.3f}" for name, values in results["methods"].items())
    say(f"{recipe.out}: CMR(T=5) of {found}")
