"""``sar2eo evaluate``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.info import lines
from sar2eo.cli.options import (
    data_options,
    debug_option,
    recipe_from_flags,
    recipe_options,
    settings_options,
    taking_several,
)
from sar2eo.cli.progress import ProgressLine, say, staged
from sar2eo.settings import EvaluateRecipe, EvaluateSettings, MatchEvaluationRecipe, MatchEvaluationSettings

__all__ = [
    "evaluate_all",
    "evaluate_command",
    "evaluate_matcher_all",
    "evaluate_matcher_command",
]

_HELP = {
    "split": "Which pairs.",
    "metrics": "Of psnr, ssim, scc, lpips, fid.",
    "protocol": "How images are mapped to 0..1; release: as in the authors' code.",
    "steps": "Denoising steps.  [default: as the model's card says]",
    "sampler": "[default: as the model's card says]",
    "samples": "Draws, judged singly and as their mean.",
    "sweep_steps": "Numbers of steps to compare.",
    "upper_bound": "Judge the VAE's own reconstruction of the truth too.",
    "lpips_weights": "AlexNet's weights, a .safetensors file; without it LPIPS is left out.",
    "fid_weights": "Inception's weights, a .safetensors file; without it FID is left out.",
    "limit": "Pairs at most, spread evenly.",
    "seed": "Of the noise.",
    "device": "cpu, cuda or cuda:N.",
    "dtype": "float32, bfloat16 or float16.",
    "threads": "Torch threads.  [default: all cores]",
    "batch": "Images at a time.  [default: by the device's memory]",
}
_BASELINES = EvaluateSettings().against


@click.command("evaluate", cls=taking_several("--against"))
@click.option("--model", metavar="DIR|HUB_ID", help="A checkpoint.")
@data_options
@click.option("--out", metavar="DIR", help="Folder of the report.")
@settings_options(EvaluateSettings, _HELP)
@click.option(
    "--against",
    multiple=True,
    metavar="MODEL_OR_BASELINE...",
    help=f"Further models, or baselines.  [default: {' '.join(_BASELINES)}]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing report, or unfinished work of another.")
@recipe_options("evaluate")
@debug_option
def evaluate_command(recipe_file: Path | None, overrides: tuple[str, ...], dry_run: bool, **_: Any) -> None:
    """Measure what a model is worth on pairs, against baselines and bounds.

    \b
    sar2eo evaluate --model runs/first/final --pairs pairs/ --out report/

    The report has all figures as JSON, a table in Markdown, and pictures.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    recipe = recipe_from_flags(EvaluateRecipe, "evaluate", recipe_file=recipe_file, overrides=overrides)
    evaluate_all(recipe, dry_run=dry_run)


def evaluate_all(recipe: EvaluateRecipe, *, dry_run: bool) -> None:
    """Do what a recipe says, or show what it would take."""
    from sar2eo.evaluation.translators import evaluate, plan_evaluation

    given: dict[str, Any] = {
        name: getattr(recipe, name) for name in ("model", "data", "out", "settings", "overwrite")
    }
    if dry_run:
        click.echo("\n".join(lines(plan_evaluation(**given))))
        return
    resume = ": run the same command again to go on where it stopped"
    click.get_current_context().meta["sar2eo.resume"] = resume
    with staged() as progress:
        results = evaluate(**given, progress=progress)
    say(_summary(recipe.out, results))


def _summary(out: str, results: Mapping[str, Any]) -> str:
    """Say what came of it: each method's pooled PSNR."""
    pooled = {name: figures["psnr_pooled"] for name, figures in results["methods"].items()}
    found = ", ".join(
        f"{name} {'without error, or pixels' if value is None else f'{value:.2f} dB'}"
        for name, value in pooled.items()
    )
    return f"{out}: {results['data']['pairs']} pairs: {found}"


_MATCHER_HELP = {
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
@settings_options(MatchEvaluationSettings, _MATCHER_HELP)
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
    from sar2eo.evaluation.matchers import evaluate_matcher

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
