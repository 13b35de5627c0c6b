"""The report of an evaluation: a folder of JSON, Markdown and pictures, whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo.errors import OutputError
from sar2eo.evaluation.metrics import BLOCK_PX
from sar2eo.evaluation.pictures import Case, Pictures, draw_pictures
from sar2eo.store.atomic import atomic_folder, json_values

__all__ = [
    "REPORT",
    "Case",
    "Pictures",
    "ReportKind",
    "markdown",
    "markdown_table",
    "write_report",
]


@dataclass(frozen=True)
class ReportKind:
    """A kind of report: a folder with ``report.md``, results as JSON, and perhaps pictures.

    Parameters
    ----------
    results : str
        The file of the results, by which a report of this kind is known.
    command : str
        That makes them.
    """

    results: str
    command: str

    def check_target(self, out: Path, *, overwrite: bool) -> None:
        """Refuse a folder that may not be written.

        Parameters
        ----------
        out : Path
        overwrite : bool
            Whether an existing report may be replaced.

        Raises
        ------
        OutputError
            If it exists and is not to be replaced, or is no report of this kind, or cannot be made there.
        """
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
        if there != out and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise OutputError(f"{out}: {there} is no folder that can be written to")
        if not out.exists():
            return
        if not (out / self.results).is_file():
            raise OutputError(
                f"{out} exists and is not a report of sar2eo {self.command}: choose another folder"
            )
        if not overwrite:
            raise OutputError(f"{out} exists already: choose another folder, or --overwrite it")

    def write(
        self,
        out: Path,
        results: dict[str, Any],
        describe: Callable[[Path, dict[str, Any]], str],
        *,
        overwrite: bool,
    ) -> dict[str, Any]:
        """Write a report beside its place, then rename it.

        Parameters
        ----------
        out : Path
        results : dict
        describe : callable
            Returns the report for people; draws its pictures into the folder that it is given, beside the
            results as plain JSON values.
        overwrite : bool
            As of `check_target`, which is asked once more before the rename.

        Returns
        -------
        dict
            The results as plain JSON values; what is not a finite number is None.

        Raises
        ------
        OutputError
            If it cannot be written; what was there before then stays.
        """
        plain: dict[str, Any] = json_values(results)
        with atomic_folder(out) as partial:
            (partial / "report.md").write_text(describe(partial, plain), encoding="utf-8")
            text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
            (partial / self.results).write_text(text, encoding="utf-8")
            self.check_target(out, overwrite=overwrite)
        return plain


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


REPORT = ReportKind("metrics.json", "evaluate")

_FIGURES = {
    "psnr": ("PSNR", "dB, mean of images", 2),
    "psnr_pooled": ("PSNR pooled", "dB, of the error of all pixels", 2),
    "ssim": ("SSIM", "", 3),
    "scc": ("SCC", "", 4),
    "lpips": ("LPIPS", "AlexNet", 3),
    "fid": ("FID", "", 2),
    "ciede2000": ("CIEDE2000", "", 2),
    f"psnr_{BLOCK_PX}px": (f"PSNR {BLOCK_PX} px", "dB", 2),
    f"psnr_pooled_{BLOCK_PX}px": (f"PSNR pooled {BLOCK_PX} px", "dB", 2),
    f"ssim_{BLOCK_PX}px": (f"SSIM {BLOCK_PX} px", "", 3),
    f"scc_{BLOCK_PX}px": (f"SCC {BLOCK_PX} px", "", 4),
    f"ciede2000_{BLOCK_PX}px": (f"CIEDE2000 {BLOCK_PX} px", "", 2),
    "seconds_per_image": ("Seconds", "per image", 3),
}

_READING = f"""\
* Invalid pixels count in nothing. PSNR and SSIM are scikit-image's (peak 1; Gaussian window of sigma 1.5,
  population covariance, windows inside the image), SCC is torchmetrics'.
* {BLOCK_PX} px: the same of means over blocks of {BLOCK_PX} x {BLOCK_PX} pixels, about what a radar knows.
* Power ratio near 1 with a low correlation is texture that is not the truth's; below 1 is blur.
* LPIPS and CIEDE2000: lower is better, FID too; FID of fewer than some thousand images is biased upwards.
"""


def write_report(
    out: Path, results: dict[str, Any], pictures: Pictures, *, overwrite: bool
) -> dict[str, Any]:
    """Write the report with its pictures; returns and raises as `ReportKind.write`."""

    def describe(folder: Path, _: dict[str, Any]) -> str:
        return markdown(results, draw_pictures(folder, results, pictures))

    return REPORT.write(out, results, describe, overwrite=overwrite)


def markdown(results: dict[str, Any], drawn: dict[str, str]) -> str:
    """Return the report for people.

    Parameters
    ----------
    results : dict
        What ``metrics.json`` holds.
    drawn : dict of str to str
        File names of pictures and what they show.
    """
    data, settings, model = results["data"], results["settings"], results["models"]["model"]
    parts = [
        f"# Evaluation of {model['name'] or 'identity'}",
        f"{data['description']}: {data['pairs']} of {data['of']} pairs, split {data['split']}. "
        f"Protocol {settings['protocol']}; model sha256 {model['sha256'][:12]}, "
        f"{model.get('steps', 'no')} steps, sampler {model.get('sampler', 'none')}, seed {settings['seed']}.",
        _methods(results["methods"]),
        "## Octaves",
        _octaves(results["methods"]),
        *_controls(results),
        *_sweep(results["sweep"]),
        *(
            ["## Left out", "\n".join(f"* {text}" for text in results["left_out"].values())]
            if results["left_out"]
            else []
        ),
        "## How to read this",
        _READING.rstrip(),
        *(f"![{text}]({name})\n\n{text}" for name, text in drawn.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _methods(methods: dict[str, Any], first: str = "") -> str:
    rows = []
    for key, (title, note, digits) in _FIGURES.items():
        if any(key in figures for figures in methods.values()):
            cells = [_number(figures.get(key), digits) for figures in methods.values()]
            rows.append([f"{title} ({note})" if note else title, *cells])
    return markdown_table([first, *methods], rows)


def _octaves(methods: dict[str, Any]) -> str:
    names = list(methods)
    head = ["Wavelength (px)", *(f"{name}: power ratio, correlation" for name in names)]
    rows = []
    for octave, first in enumerate(methods[names[0]]["octaves"]):
        cells = [methods[name]["octaves"][octave] for name in names]
        rows.append(
            [
                first["wavelength_px"],
                *(f"{_number(cell['power_ratio'], 2)}, {_number(cell['correlation'], 2)}" for cell in cells),
            ]
        )
    return markdown_table(head, rows)


def _controls(results: dict[str, Any]) -> list[str]:
    parts = []
    for name, found in results["shuffle"].items():
        if found is not None:
            cost, coarse = (_number(found[key], 2) for key in ("cost_db", f"cost_{BLOCK_PX}px_db"))
            parts.append(
                f"With the SAR of another of {found['pairs']} pairs, {name} loses {cost} dB "
                f"({coarse} dB at {BLOCK_PX} px)."
            )
    found = results["calibration"]
    if found is not None:
        parts.append(
            f"Variance at timestep {found['timestep']}: squared error over variance "
            f"{_number(found['ratio'], 2)}, rank correlation {_number(found['rank_correlation'], 2)}; by "
            "quantile of the variance:"
        )
        rows = [
            [str(number + 1), *(f"{group[key]:.3g}" for key in ("variance", "error")), str(group["values"])]
            for number, group in enumerate(found["quantiles"])
        ]
        parts.append(markdown_table(["Quantile", "Variance", "Squared error", "Values"], rows))
    return ["## Controls", *parts] if parts else []


def _sweep(sweep: list[dict[str, Any]]) -> list[str]:
    if not sweep:
        return []
    table = _methods({str(found["steps"]): found for found in sweep}, "Steps")
    return [f"## Steps, on {sweep[0]['images']} pairs", table]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"
