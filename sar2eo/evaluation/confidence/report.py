"""The report on discrepancies: a folder of JSON, Markdown and pictures, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sar2eo.evaluation.confidence.objects import GUARD_PX, RING_PX
from sar2eo.evaluation.confidence.pictures import Case, draw_pictures, title_of
from sar2eo.evaluation.confidence.roc import BOOTSTRAPS
from sar2eo.evaluation.report import ReportKind, markdown_table

__all__ = ["REPORT", "markdown", "write_report"]

REPORT = ReportKind("report.json", "confidence")

_READING = f"""\
* An area is the probability that an object that changed scores above an unchanged one of the same kind: 0.5
  is chance, below 0.5 the detector ranks the other way round. In brackets the 95 % interval of a bootstrap
  over objects ({BOOTSTRAPS} draws); it knows nothing of other scenes or other trainings.
* Forced: the variance given the SAR image and the noised truth at a timestep; sampled: the variance that
  `sar2eo translate` gives, which has not seen the truth. An object's score is the mean of log10 variance over
  its pixels: the largest value, told beside it, grows with the size of an object by chance alone.
* Surprise: the squared error of that prediction over its variance, the mean of log10 of it: how much more
  wrong the prediction is than it says. At timestep 999 nothing of the truth is known to it but the SAR image.
  Where the variance is the same everywhere it ranks by the error alone.
* SAR contrast: mean amplitude against a ring from {GUARD_PX} to {RING_PX} pixels around the object, in dB. EO
  contrast: distance of the mean colours, in levels. Both are told where the object is. So the contrast in
  the image that lacks the object is near 0, or 1 the other way round: no detector that anyone has, but what
  the truth allows. Size: pixels, a control, which must be near 0.5.
* The margin is the area of the forced variance at the card's timestep less that of the SAR contrast, in
  whichever direction the contrast is better.
"""


def write_report(out: Path, results: dict[str, Any], cases: list[Case], *, overwrite: bool) -> dict[str, Any]:
    """Write the report with its pictures; returns and raises as `ReportKind.write`."""

    def describe(folder: Path, _: dict[str, Any]) -> str:
        return markdown(results, draw_pictures(folder, results, cases))

    return REPORT.write(out, results, describe, overwrite=overwrite)


def markdown(results: dict[str, Any], drawn: dict[str, str]) -> str:
    """Return the report for people.

    Parameters
    ----------
    results : dict
        What ``report.json`` holds.
    drawn : dict of str to str
        File names of pictures and what they show.
    """
    model = results["model"]
    parts = [
        f"# Confidence of {model['name']}",
        f"{len(results['objects'])} objects of {len(results['scenes'])} simulated scenes; model sha256 "
        f"{model['sha256'][:12]}, {model['steps']} steps, sampler {model['sampler']}, seed "
        f"{results['settings']['seed']}, confidence at timestep {results['timestep']}.",
        *(f"**Not measured**: {text}." for text in results["left_out"].values()),
        "## Area under the ROC curve",
        _areas(results["groups"]),
        *_calibration(results["calibration"]),
        "## How to read this",
        _READING.rstrip(),
        *(f"![{text}]({name})\n\n{text}" for name, text in drawn.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _areas(groups: list[dict[str, Any]]) -> str:
    head = ["", *map(title_of, groups)]
    rows = [["Objects: changed, unchanged", *(f"{g['changed']}, {g['unchanged']}" for g in groups)]]
    rows.append(
        [
            "Median pixels of both",
            *("" if g["pixels"] is None else ", ".join(f"{n:g}" for n in g["pixels"]) for g in groups),
        ]
    )
    for name in max((g["areas"] for g in groups), key=len):
        rows.append([name, *(_interval(g["areas"].get(name)) for g in groups)])
    if any(g["margin"] for g in groups):
        rows.append(["**margin**", *(_interval(g["margin"]) for g in groups)])
    return markdown_table(head, rows)


def _interval(found: dict[str, float] | None) -> str:
    return "" if found is None else "{value:.2f} ({low:.2f} to {high:.2f})".format(**found)


def _calibration(tables: dict[str, Any]) -> list[str]:
    if not tables:
        return []
    head = ["Timestep", "Squared error over variance", "Rank correlation", "By decile: variance, error"]
    rows = [
        [
            timestep,
            f"{table['ratio']:.2f}",
            f"{table['rank_correlation']:.2f}",
            "; ".join(f"{group['variance']:.2g}, {group['error']:.2g}" for group in table["quantiles"]),
        ]
        for timestep, table in tables.items()
    ]
    return ["## Calibration, over all valid latent pixels", markdown_table(head, rows)]
