"""``sar2eo build-pairs``, ``coregister`` and ``match``."""

from __future__ import annotations

import json
import math
import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sar2eo.cli.output import ProgressLine, allow_resuming, format_duration, format_table, say, show
from sar2eo.settings import CoregisterRecipe, MatchSettings, PairsRecipe


def build_pairs(recipe: PairsRecipe, *, workers: int, scheduler: str | None, dry_run: bool) -> None:
    """Cut SAR and EO scenes into paired chips, split by place for training.

    Scenes are rasters, Sentinel-1 products, folders, globs, STAC items and item collections, or tables of
    footprints with a column href. The same command goes on where an interrupted one stopped.

    Options under "Scene" are about the SAR scenes.
    """
    from sar2eo.compute import cluster
    from sar2eo.pairs import builder

    options: Any = {"settings": recipe.settings, "scene": recipe.scene, "matcher": recipe.matcher}
    with cluster.connect_cluster(workers=workers, scheduler=scheduler):
        if scheduler is not None:
            paths = [Path(text).absolute() for text in (*recipe.sar, *recipe.eo)]
            existing = [path for path in paths if path.exists()]
            cluster.check_workers(paths=[*existing, Path(recipe.out).absolute().parent], device="cpu")
        if dry_run:
            _show_plan(builder.build_pairs(recipe.sar, recipe.eo, recipe.out, dry_run=True, **options))
            return
        allow_resuming()
        with ProgressLine(PairsProgress()) as progress:
            options |= {"overwrite": recipe.overwrite, "report": recipe.report, "progress": progress}
            index = builder.build_pairs(recipe.sar, recipe.eo, recipe.out, **options)
    say(_summarise_pairs(recipe.out, index.attrs["report"]))


def _show_plan(plan: Any) -> None:
    scenes = plan.attrs["scenes"]
    counts = {
        "SAR scenes": scenes["sar"],
        "EO scenes": scenes["eo"],
        "scene pairs": len(plan),
        "cells": int(plan["cells"].sum()),
    }
    show(format_table(counts))
    for row in plan.itertuples():
        gap = "time unknown" if math.isnan(row.day_gap) else f"{row.day_gap:.1f} days apart"
        show(f"{row.cells:6d} cells, {gap}: {row.sar_href} {row.eo_href}")


def _summarise_pairs(out: str, report: Mapping[str, Any]) -> str:
    if report["done_before"]:
        return f"{out}: {_count_chips(report)}; done before"
    refused = ", ".join(f"{count} {reason}" for reason, count in report["refused"].items() if count)
    before = f" ({report['cells_resumed']} cells were done before)" if report["cells_resumed"] else ""
    seconds = report["seconds"]["total"]
    return f"{out}: {_count_chips(report)} in {seconds:.1f} s{before}; refused: {refused or 'none'}"


def _count_chips(report: Mapping[str, Any]) -> str:
    chips, nearest = report["chips"], report["audit"]["smallest_distance_m"]["any"]
    counts = ", ".join(f"{count} {split}" for split, count in chips.items())
    apart = "" if nearest is None else f", splits at least {nearest:.0f} m apart"
    return f"{sum(chips.values())} pairs ({counts}){apart}"


class PairsProgress:
    """Text of the progress line; the time left is estimated from when the cutting began."""

    def __init__(self) -> None:
        self.start: float | None = None

    def __call__(self, counts: Mapping[str, float], seconds: float) -> str:
        """Return the text."""
        if "cells_total" not in counts:
            done, total = counts.get("neighbourhoods_done", 0), counts["neighbourhoods_total"]
            return f"{done:.0f} of {total:.0f} neighbourhoods aligned"
        done, total = counts.get("cells_done", 0), counts["cells_total"] - counts["cells_resumed"]
        chips = counts.get("chips_written", 0)
        if self.start is None or not done:
            self.start = seconds
            return f"{done:.0f} of {total:.0f} cells"
        left = format_duration((total - done) * (seconds - self.start) / done)
        return f"{done:.0f} of {total:.0f} cells, {chips:.0f} pairs, {left} left"


def coregister(recipe: CoregisterRecipe, *, workers: int, scheduler: str | None, dry_run: bool) -> None:
    """Move one of two scenes, a SAR and an optical one, to where it lies on the other.

    \b
    sar2eo coregister --reference eo.tif --moving sar.tif --out sar_on_eo.tif
    sar2eo coregister --reference sar.tif --moving eo.tif --out eo_on_sar.tif --transform affine --grid 256

    Beside the result come the tie points as GeoJSON and a picture of them. Where the evidence is too thin,
    nothing is moved, and the exit code is 1. The same command goes on where an interrupted one stopped.

    Shifts are rows down and columns to the right from a place in the reference to the same place in the
    moving scene. Options under "Scene" are about the SAR scene.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.compute import cluster
    from sar2eo.coregistration import registration

    with cluster.connect_cluster(workers=workers, scheduler=scheduler):
        if scheduler is not None:
            sources = [recipe.reference, recipe.moving, *filter(None, [recipe.settings.model])]
            existing = [Path(name).absolute() for name in sources if os.path.exists(name)]  # noqa: PTH110
            # Tie points are kept beside the result.
            existing.append(Path(recipe.out).absolute().parent)
            cluster.check_workers(paths=existing, device=recipe.settings.device)
        allow_resuming()
        with ProgressLine(_coregistration_progress) as progress:
            report = registration.coregister(
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
    show(format_table(report) if dry_run else _summarise_coregistration(report))


def _summarise_coregistration(report: Mapping[str, Any]) -> str:
    if "done_before" in report:
        return f"{report['out']}: done before by the same settings (--overwrite makes it anew)"
    ties, quality = report["ties"], report["quality"]
    before, after = (
        f"{each['rmse_px']:.2f} px ({each['rmse_m']:.1f} m)" for each in (quality["before"], quality["after"])
    )
    return (
        f"{report['out']}: {report['settings']['transform']} fitted to {ties['agree']} of {ties['sure']} "
        f"sure tie points; RMSE {before} before, {after} after, at points left out of the fit"
    )


def _coregistration_progress(counts: Mapping[str, float], seconds: float) -> str:
    if "blocks_total" in counts:
        return f"{counts.get('blocks_done', 0):.0f} of {counts['blocks_total']:.0f} blocks moved"
    done = counts.get("ties_resumed", 0) + counts.get("ties_done", 0)
    return f"{done:.0f} of {counts['ties_total']:.0f} tie points"


def match(settings: MatchSettings) -> None:
    """Find an optical template in a SAR image, or say that it cannot be matched.

    \b
    sar2eo match --search sar.tif --template eo.tif
    sar2eo match --search sar.tif --template eo.tif --method dcdm --model runs/matcher/final --out match/
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.matching.match_files import match_files

    options = dict(vars(settings))
    as_json, scene = options.pop("json"), options.pop("scene")
    report = match_files(**options, **vars(scene))
    show(json.dumps(report, indent=2) if as_json else _summarise_match(report))


def _summarise_match(report: Mapping[str, Any]) -> str:
    # A threshold may lie very close to 1.
    needed = [f"score {report['score']:.8g}"]
    if report["threshold"] is not None:
        needed[0] += f", needs {report['threshold']:.8g}"
    if "ratio" in report:
        needed.append(f"peak over rival {report['ratio']:.2f}, needs {report['ratio_threshold']:.2f}")
    how = "; ".join(needed)
    if not report["matched"]:
        return f"{report['template']}: cannot be matched ({how})"
    row, col = report["shift"]
    off = report["displacement"]
    against = "" if off is None else f", {off[0]:+.2f}, {off[1]:+.2f} from where its georeference puts it"
    return f"{report['template']}: found at row {row:.2f}, column {col:.2f}{against} ({how})"
