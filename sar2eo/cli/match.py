"""``sar2eo match``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from sar2eo.cli.options import debug_option, scene_options_except

__all__ = ["match_command"]

_METHODS = (
    "dcdm",
    "structure",
    "phase",
    "ncc",
)  # as `sar2eo.matching.match_files` has them, which needs scipy


@click.command("match")
@click.option("--search", required=True, metavar="SAR", help="A SAR image, georeferenced or not.")
@click.option("--template", required=True, metavar="EO", help="A smaller optical image: RGB or grey bytes.")
@click.option("--method", type=click.Choice(_METHODS), default="structure", show_default=True)
@click.option("--model", metavar="DIR|HUB_ID", help="A matcher, for dcdm.  [default: the package's own]")
@click.option("--out", metavar="DIR", help="New folder for match.json and pictures.")
@click.option("--steps", type=int, help="Denoising steps of dcdm.  [default: as the card says, 5]")
@click.option("--seed", type=int, default=2025, show_default=True, help="Of the noise.")
@click.option("--scaling", type=float, help="Amplitude that becomes 1.  [default: the image's percentile]")
@scene_options_except("allow_ungeoreferenced", "crs", "resolution")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=int, help="Torch threads.  [default: all cores]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier match in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def match_command(*, as_json: bool, **options: Any) -> None:
    """Find an optical template in a SAR image, or say that it cannot be matched.

    \b
    sar2eo match --search sar.tif --template eo.tif
    sar2eo match --search sar.tif --template eo.tif --method dcdm --model runs/matcher/final --out match/
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.matching.match_files import match_files

    report = match_files(**options)
    click.echo(json.dumps(report, indent=2) if as_json else _told(report))


def _told(report: Mapping[str, Any]) -> str:
    """Say what came of it in a line."""
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
