"""``sar2eo coregister``."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.info import lines
from sar2eo.cli.options import debug_option, numbers, scene_options_except, settings_options, taken
from sar2eo.cli.progress import ProgressLine
from sar2eo.settings import CoregisterRecipe, CoregisterSettings, SceneSettings

__all__ = ["coregister_all", "coregister_command"]


@click.command("coregister")
@click.option("--reference", required=True, metavar="SCENE", help="Stays where it is, and gives the grid.")
@click.option("--moving", required=True, metavar="SCENE", help="Is moved. One is SAR, the other optical.")
@click.option("--out", required=True, metavar="FILE.tif", help="The moving scene on the reference's grid.")
@settings_options(
    CoregisterSettings,
    {
        "method": "How tie points are matched.",
        "model": "A matcher, for --method dcdm.  [default: the package's own]",
        "transform": "One shift, affine, or a smooth field as stiff as the evidence says.",
        "grid": "Distance of tie points, and side of their templates, in pixels.",
        "points": "Tie points at the most.",
        "radius": "Largest shift in pixels.  [default: 24; dcdm: as trained]",
        "tolerance": "Distance in pixels up to which a tie point bears the fit out.",
    },
)
@click.option(
    "--eo-range",
    type=numbers("LOW,HIGH"),
    default="0,3000",
    show_default=True,
    help="Reflectance that is black and white; bytes stay as they are.",
)
@settings_options(
    CoregisterSettings,
    {
        "steps": "Denoising steps of dcdm.  [default: as the card says]",
        "seed": "Of samples, folds and noise.",
        "device": "Of dcdm: cpu, cuda or cuda:N.",
        "threads": "Torch threads.  [default: all cores]",
    },
)
@scene_options_except("resolution", "allow_ungeoreferenced", "datetime")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Worker processes; 0: this process.")
@click.option("--scheduler", metavar="ADDRESS", help="Join this Dask cluster.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
@settings_options(
    CoregisterSettings, {"force": "Go on where scenes and matcher, or result and disk, do not fit."}
)
@click.option("--dry-run", is_flag=True, help="Open the scenes, and count tie points.")
@click.option("--report", metavar="FILE.json", help="Write what was found as JSON, also if it is refused.")
@debug_option
def coregister_command(*, workers: int, scheduler: str | None, dry_run: bool, **flags: Any) -> None:
    """Move one of two scenes, a SAR and an optical one, to where it lies on the other.

    \b
    sar2eo coregister --reference eo.tif --moving sar.tif --out sar_on_eo.tif
    sar2eo coregister --reference sar.tif --moving eo.tif --out eo_on_sar.tif --transform affine --grid 256

    Beside the result come the tie points as GeoJSON and a picture of them. Where the evidence is too thin,
    nothing is moved, and the exit code is 1. The same command goes on where an interrupted one stopped.

    Shifts say how many rows down and columns to the right the moving scene shows what the reference shows
    at a place. Options from --pol to --crs are about the SAR scene.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    recipe = CoregisterRecipe(
        **taken(CoregisterRecipe, flags),
        scene=SceneSettings(**taken(SceneSettings, flags)),
        settings=CoregisterSettings(**taken(CoregisterSettings, flags)),
    )
    coregister_all(recipe, workers=workers, scheduler=scheduler, dry_run=dry_run)


def coregister_all(recipe: CoregisterRecipe, *, workers: int, scheduler: str | None, dry_run: bool) -> None:
    """Coregister the scenes of a recipe, or say what would be done."""
    from sar2eo.compute import cluster
    from sar2eo.coregistration.registration import coregister

    with cluster.connect_cluster(workers=workers, scheduler=scheduler):
        if scheduler is not None:
            named = [recipe.reference, recipe.moving]
            named += [] if recipe.settings.model is None else [recipe.settings.model]
            seen = [Path(name).absolute() for name in named if os.path.exists(name)]  # noqa: PTH110
            # Tie points are kept beside the result.
            seen.append(Path(recipe.out).absolute().parent)
            cluster.check_workers(paths=seen, device=recipe.settings.device)
        click.get_current_context().meta["sar2eo.resume"] = (
            ": run the same command again to go on where it stopped"
        )
        with ProgressLine(_text) as progress:
            found = coregister(
                recipe.reference,
                recipe.moving,
                recipe.out,
                settings=recipe.settings,
                scene=recipe.scene,
                overwrite=recipe.overwrite,
                dry_run=dry_run,
                report=recipe.report,
                progress=progress,
            )
    click.echo("\n".join(lines(found)) if dry_run else _told(found))


def _told(found: Mapping[str, Any]) -> str:
    ties, quality = found["ties"], found["quality"]
    before, after = (
        f"{each['rmse_px']:.2f} px ({each['rmse_m']:.1f} m)" for each in (quality["before"], quality["after"])
    )
    return (
        f"{found['out']}: {found['settings']['transform']} fitted to {ties['agree']} of {ties['sure']} sure "
        f"tie points; RMSE {before} before, {after} after, at points left out of the fit"
    )


def _text(counts: Mapping[str, float], seconds: float) -> str:
    if "blocks_total" in counts:
        return f"{counts.get('blocks_done', 0):.0f} of {counts['blocks_total']:.0f} blocks moved"
    done = counts.get("ties_resumed", 0) + counts.get("ties_done", 0)
    return f"{done:.0f} of {counts['ties_total']:.0f} tie points"
