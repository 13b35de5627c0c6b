"""``sar2eo confidence``."""

from __future__ import annotations

from typing import Any

import click

from sar2eo.cli.output import format_table, say, show_stages
from sar2eo.settings.confidence import ConfidenceRecipe

__all__ = ["test_confidence"]


def test_confidence(recipe: ConfidenceRecipe, *, dry_run: bool) -> None:
    """Test whether a model's variance tells planted discrepancies from unchanged objects of their kind."""
    from sar2eo.evaluation.confidence.study import judge_confidence, picture_confidence, plan_confidence

    options: dict[str, Any] = dict(vars(recipe))
    scenes, pair, window = (options.pop(name) for name in ("scenes", "pair", "window"))
    if dry_run:
        click.echo(
            format_table({"picture": recipe.out} if pair else plan_confidence(scenes=scenes, **options))
        )
        return
    with show_stages() as progress:
        if pair:
            say(picture_confidence(pair=pair, window=window or (), progress=progress, **options))
            return
        results = judge_confidence(scenes=scenes, progress=progress, **options)
    if results["left_out"]:
        say(f"{recipe.out}: {'; '.join(results['left_out'].values())}")
        return
    name = f"forced {results['timestep']} mean"
    areas = ", ".join(
        f"{group['kind']}s {group['discrepancy']} {group['areas'][name]['value']:.2f}"
        for group in results["groups"]
        if group["areas"]
    )
    count = len(results["objects"])
    say(f"{recipe.out}: {count} objects, areas of the variance at {results['timestep']}: {areas}")
