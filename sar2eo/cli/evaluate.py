"""``sar2eo evaluate`` and ``evaluate-matcher``."""

from __future__ import annotations

import dataclasses
from typing import Any

from sar2eo.cli.output import allow_resuming, format_table, say, show, show_stages
from sar2eo.settings import EvaluateRecipe, MatchEvaluationRecipe


def evaluate(recipe: EvaluateRecipe, *, dry_run: bool) -> None:
    """Judge a model on pairs, against baselines and bounds.

    \b
    sar2eo evaluate --model runs/first/final --pairs pairs/ --out report/

    The report has all figures as JSON, a table in Markdown, and pictures.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.evaluation import translators

    options: dict[str, Any] = dict(vars(recipe))
    if dry_run:
        show(format_table(translators.plan_evaluation(**options).describe()))
        return
    allow_resuming()
    with show_stages() as progress:
        results = translators.evaluate(**options, progress=progress)
    pooled = {name: figures["psnr_pooled"] for name, figures in results["methods"].items()}
    figures = ", ".join(
        f"{name} {'without error, or pixels' if value is None else f'{value:.2f} dB'}"
        for name, value in pooled.items()
    )
    say(f"{recipe.out}: PSNR over {results['data']['pairs']} pairs: {figures}")


def evaluate_matcher(recipe: MatchEvaluationRecipe, *, dry_run: bool) -> None:
    """Judge a matcher on pairs, against methods that are not learned.

    \b
    sar2eo evaluate-matcher --model runs/matcher/final --pairs pairs/ --out report/ --noise 0,1,5,10
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.evaluation import matchers

    if dry_run:
        show(format_table(dataclasses.asdict(recipe)))
        return
    with show_stages() as progress:
        results = matchers.evaluate_matcher(**vars(recipe), progress=progress)
    rates = ", ".join(f"{name} {values['cmr_5']:.3f}" for name, values in results["methods"].items())
    say(f"{recipe.out}: correct matching rate within 5 pixels: {rates}")
