"""The report of an evaluation of matches: a folder of JSON and Markdown, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sar2eo.evaluation.folders import ReportKind, markdown_table

__all__ = ["REPORT", "match_markdown", "write_match_report"]

REPORT = ReportKind("matches.json", "evaluate-matcher")

_FIGURES = {
    "cmr_5": ("CMR(T=5)", 3),
    "cmr_2": ("CMR(T=2)", 3),
    "rmse_5": ("RMSE(T=5)", 3),
    "rmse_all": ("RMSE(all)", 2),
}
_DECISIONS = {
    "accepted": ("accepted", 3),
    "false_accepts": ("accepted and wrong", 4),
    "false_accepts_elsewhere": ("accepted elsewhere", 4),
    "seconds": ("seconds", 3),
}
_READING = """\
* CMR(T): share of templates found within T pixels of where they were cut; RMSE(T=5): of those within 5.
* Accepted elsewhere: templates that were accepted in the search image of another pair, where they do not lie.
* The truth is as good as the registration of the pairs.
"""


def write_match_report(out: Path, results: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Write the report; returns and raises as `ReportKind.write`."""
    return REPORT.write(out, results, lambda _, plain: match_markdown(plain), overwrite=overwrite)


def match_markdown(results: dict[str, Any]) -> str:
    """Return the report in Markdown, from its JSON values."""
    data, methods = results["data"], results["methods"]
    count = next(iter(methods.values()))["matches"]
    parts = [
        f"# Matches of {results['model']['card']['name']}",
        f"{count:.0f} templates of {data['template_px']} pixels in {data['search_px']}; {data['pairs']}.",
        _table("method", methods, _FIGURES | _DECISIONS),
    ]
    compared = results["comparison"]
    if compared and compared["ratio"] is not None:
        parts.append(
            f"The error 1 - CMR(T=5) is {compared['ratio']:.2f} times that of {compared['against']}, the "
            f"best of the others (95 %: {compared['low']:.2f} to {compared['high']:.2f}, by bootstrap over "
            f"{compared['places']:.0f} places)."
        )
    scenes = sorted(next(iter(methods.values()))["scenes"])
    if len(scenes) > 1:
        short = {scene: Path(scene).name for scene in scenes}
        if len(set(short.values())) < len(scenes):  # as of sar.tif in many folders
            short = dict(zip(scenes, scenes, strict=True))
        rows = {
            f"{short[scene]}: {name}": found["scenes"][scene]
            for scene in scenes
            for name, found in methods.items()
        }
        parts += ["## By scene", _table("scene: method", rows, _FIGURES)]
    levels = list(next(iter(methods.values()))["noise"])
    if len(levels) > 1:
        head = ["CMR(T=5) by noise variance in %", *levels]
        lines = [
            [name, *(_text(found["noise"][level]["cmr_5"], 3) for level in levels)]
            for name, found in methods.items()
        ]
        parts += ["## By noise on the template", markdown_table(head, lines)]
    if results["steps"]:
        parts += ["## By number of steps", _table("steps", results["steps"], _FIGURES)]
    return "\n\n".join([*parts, "## Reading", _READING])


def _table(first: str, rows: dict[str, Any], columns: dict[str, tuple[str, int]]) -> str:
    head = [first, *(title for title, _ in columns.values())]
    lines = [
        [name, *(_text(found[key], digits) for key, (_, digits) in columns.items())]
        for name, found in rows.items()
    ]
    return markdown_table(head, lines)


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
