"""``sar2eo build-pairs``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.info import lines
from sar2eo.cli.options import (
    debug_option,
    numbers,
    scene_options_except,
    settings_options,
    taken,
    taking_several,
)
from sar2eo.cli.progress import ProgressLine, clock, say
from sar2eo.settings import PairsRecipe, PairsSettings, SceneSettings

__all__ = ["build_all", "build_pairs_command"]


class _Resolution(click.ParamType):  # type: ignore[type-arg]  # older releases of click have no argument
    """Metres, or "native"."""

    name = "resolution"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if value == "native" else float(value)
        except ValueError:
            self.fail(f"{value!r} must be native or metres", param, ctx)


@click.command("build-pairs", cls=taking_several("--sar", "--eo"))
@click.option("--sar", multiple=True, required=True, metavar="PATH...", help="SAR scenes.")
@click.option("--eo", multiple=True, required=True, metavar="PATH...", help="EO scenes.")
@click.option("--out", required=True, metavar="DIR", help="Folder of the pairs.")
@settings_options(
    PairsSettings,
    {
        "size": "Side of a chip in pixels.",
        "stride": "Distance of chips in pixels.",
        "max_days": "Largest gap between the acquisitions; inf: any.",
        "min_valid": "Smallest share of pixels valid in both.",
        "max_cloud": "Largest share of cloud, where the EO tells.",
    },
)
@click.option(
    "--resolution",
    type=_Resolution(),
    default="native",
    show_default=True,
    metavar="native|METRES",
    help="Pixel size of chips; native: the SAR's own.",
)
@click.option(
    "--eo-range",
    type=numbers("LOW,HIGH"),
    default="0,3000",
    show_default=True,
    help="Reflectance that becomes 0 and 255; bytes stay as they are.",
)
@settings_options(
    PairsSettings,
    {
        "align": "Leave the registration, record how well it holds, or correct it.",
        "split": "How chips are split.",
        "block": "Side in metres of what goes to one split as a whole.",
        "val": "Share of blocks for validation.",
        "test": "Share of blocks for testing.",
        "buffer": "Smallest distance in metres of training chips from others.",
        "seed": "Of the split.",
    },
)
@click.option("--matcher", metavar="DIR", help="A trained matcher to align with.  [default: structure]")
@scene_options_except("resolution", "allow_ungeoreferenced")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Worker processes; 0: this process.")
@click.option("--scheduler", metavar="ADDRESS", help="Join this Dask cluster.")
@click.option("--overwrite", is_flag=True, help="Replace pairs, or unfinished work, of other settings.")
@click.option("--dry-run", is_flag=True, help="Show which scenes meet, and how many cells there are to try.")
@click.option("--report", metavar="FILE.json", help="Write what was done as JSON.")
@debug_option
def build_pairs_command(*, workers: int, scheduler: str | None, dry_run: bool, **flags: Any) -> None:
    """Cut SAR and EO scenes into paired chips, split by place for training.

    Scenes are rasters, Sentinel-1 products, folders, globs, STAC items and item collections, or tables of
    footprints with a column href. The same command goes on where an interrupted one stopped.
    """
    recipe = PairsRecipe(
        **taken(PairsRecipe, flags),
        # --resolution is that of the chips.
        scene=SceneSettings(**taken(SceneSettings, {**flags, "resolution": None})),
        settings=PairsSettings(**taken(PairsSettings, flags)),
    )
    build_all(recipe, workers=workers, scheduler=scheduler, dry_run=dry_run)


def build_all(recipe: PairsRecipe, *, workers: int, scheduler: str | None, dry_run: bool) -> None:
    """Build the pairs of a recipe, or say what would be done."""
    from sar2eo.compute import cluster
    from sar2eo.pairs.builder import build_pairs

    context = click.get_current_context()
    given = {"settings": recipe.settings, "scene": recipe.scene, "matcher": recipe.matcher}
    with cluster.connect_cluster(workers=workers, scheduler=scheduler):
        if scheduler is not None:
            paths = [Path(text).absolute() for text in (*recipe.sar, *recipe.eo)]
            seen = [path for path in paths if path.exists()]
            cluster.check_workers(paths=[*seen, Path(recipe.out).absolute().parent], device="cpu")
        if dry_run:
            _tell_plan(build_pairs(recipe.sar, recipe.eo, recipe.out, dry_run=True, **given))  # type: ignore[arg-type]
            return
        context.meta["sar2eo.resume"] = ": run the same command again to go on where it stopped"
        with ProgressLine(_Progress()) as progress:
            index = build_pairs(
                recipe.sar,
                recipe.eo,
                recipe.out,
                overwrite=recipe.overwrite,
                report=recipe.report,
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
    say(_summary(recipe.out, index.attrs["report"]))


def _tell_plan(plan: Any) -> None:
    scenes = plan.attrs["scenes"]
    counts = {
        "SAR scenes": scenes["sar"],
        "EO scenes": scenes["eo"],
        "scene pairs": len(plan),
        "cells": int(plan["cells"].sum()),
    }
    click.echo("\n".join(lines(counts)))
    for row in plan.itertuples():
        gap = "time unknown" if math.isnan(row.day_gap) else f"{row.day_gap:.1f} days apart"
        click.echo(f"{row.cells:6d} cells, {gap}: {row.sar_href} {row.eo_href}")


def _summary(out: str, report: Mapping[str, Any]) -> str:
    if report["done_before"]:
        return f"{out}: {_chips(report)}; it was done before"
    refused = ", ".join(f"{count} {reason}" for reason, count in report["refused"].items() if count)
    before = f" ({report['cells_resumed']} cells were done before)" if report["cells_resumed"] else ""
    seconds = report["seconds"]["total"]
    return f"{out}: {_chips(report)} in {seconds:.1f} s{before}; refused: {refused or 'none'}"


def _chips(report: Mapping[str, Any]) -> str:
    chips, nearest = report["chips"], report["audit"]["smallest_distance_m"]["any"]
    counts = ", ".join(f"{count} {split}" for split, count in chips.items())
    apart = "" if nearest is None else f", splits at least {nearest:.0f} m apart"
    return f"{sum(chips.values())} pairs ({counts}){apart}"


class _Progress:
    """What the progress line says; what is left is told from when the cutting began."""

    def __init__(self) -> None:
        self.start: float | None = None

    def __call__(self, counts: Mapping[str, float], seconds: float) -> str:
        if "cells_total" not in counts:
            done, total = counts.get("neighbourhoods_done", 0), counts["neighbourhoods_total"]
            return f"{done:.0f} of {total:.0f} neighbourhoods aligned"
        done, total = counts.get("cells_done", 0), counts["cells_total"] - counts["cells_resumed"]
        chips = counts.get("chips_written", 0)
        if self.start is None or not done:
            self.start = seconds
            return f"{done:.0f} of {total:.0f} cells"
        left = clock((total - done) * (seconds - self.start) / done)
        return f"{done:.0f} of {total:.0f} cells, {chips:.0f} pairs, {left} left"
