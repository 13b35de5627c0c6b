"""Reports of evaluations: a folder of JSON, Markdown and pictures, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from sar2eo.errors import OutputError
from sar2eo.evaluation.crop_search import FOUND_PX, LEAST_PX
from sar2eo.evaluation.metrics import BLOCK_PX
from sar2eo.store.atomic import atomic_folder, json_values


@dataclass(frozen=True)
class ReportKind:
    """A kind of report: a folder with ``report.md``, results as JSON, and perhaps pictures.

    `results` is the file of the results, by which reports of this kind are known; `command` writes them.
    """

    results: str
    command: str

    def check_target(self, out: Path, *, overwrite: bool) -> None:
        """Refuse a folder that cannot be written, or that holds anything but a report to overwrite."""
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
        if there != out and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise OutputError(f"{out}: {there} is not a writable folder")
        if not out.exists():
            return
        if not (out / self.results).is_file():
            raise OutputError(
                f"{out} exists and is not a report of sar2eo {self.command}: choose another folder"
            )
        if not overwrite:
            raise OutputError(f"{out} exists already: choose another folder, or pass overwrite=True")

    def write(
        self,
        out: Path,
        results: dict[str, Any],
        describe: Callable[[Path, dict[str, Any]], str],
        *,
        overwrite: bool,
    ) -> dict[str, Any]:
        """Write a report, and return its results as JSON values; numbers that are not finite are None.

        `describe` makes the Markdown text of the folder and the JSON values; it draws pictures into the
        folder.
        """
        plain: dict[str, Any] = json_values(results)
        with atomic_folder(out) as partial:
            (partial / "report.md").write_text(describe(partial, plain), encoding="utf-8")
            text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
            (partial / self.results).write_text(text, encoding="utf-8")
            self.check_target(out, overwrite=overwrite)
        return plain


def format_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


REPORT = ReportKind("metrics.json", "evaluate")

_PICTURE = {
    "structure": ("Structure", "share of crops found", 2),
    "grey": ("Grey", "share of crops found", 2),
    f"correlation_{BLOCK_PX}px": (f"Correlation {BLOCK_PX} px", "grey", 2),
    f"gain_{BLOCK_PX}px": (f"Gain {BLOCK_PX} px", "dB over one colour", 2),
}
_FIGURES = _PICTURE | {
    "psnr": ("PSNR", "dB, mean of images", 2),
    "psnr_pooled": ("PSNR pooled", "dB, of the error of all pixels", 2),
    "ssim": ("SSIM", "", 3),
    "scc": ("SCC", "", 4),
    "lpips": ("LPIPS", "AlexNet", 3),
    "fid": ("FID", "", 2),
    "feature-distance": ("feature-distance", "efficientnet-lite0", 3),
    "ciede2000": ("CIEDE2000", "", 2),
    f"psnr_{BLOCK_PX}px": (f"PSNR {BLOCK_PX} px", "dB", 2),
    f"psnr_pooled_{BLOCK_PX}px": (f"PSNR pooled {BLOCK_PX} px", "dB", 2),
    f"ssim_{BLOCK_PX}px": (f"SSIM {BLOCK_PX} px", "", 3),
    f"scc_{BLOCK_PX}px": (f"SCC {BLOCK_PX} px", "", 4),
    f"ciede2000_{BLOCK_PX}px": (f"CIEDE2000 {BLOCK_PX} px", "", 2),
    "seconds_per_image": ("Seconds", "per image", 3),
}

_READING = f"""\
* Structure, grey: the middle of an image, of half its sides, is found in the whole truth within
  {FOUND_PX} pixels, by the orientation of edges or by grey. The offset of the place's radar is taken off.
  Only images that are valid throughout and have at least {LEAST_PX} pixels count. sar-grey is the radar.
* Correlation and gain {BLOCK_PX} px: of means over blocks; the gain is over the images' mean colour.
* In brackets: 5 to 95 % of a bootstrap over images.
* Invalid pixels never count. PSNR and SSIM are scikit-image's (peak 1; Gaussian window of sigma 1.5,
  population covariance, windows inside the image), SCC is torchmetrics'.
* {BLOCK_PX} px: the same of means over blocks of {BLOCK_PX} x {BLOCK_PX} pixels, about what radar resolves.
* A power ratio near 1 with a low correlation is invented texture; below 1 is blur.
* Agreement: the correlation of two draws; what they do not share is chance.
* LPIPS, CIEDE2000, FID, feature-distance: lower is better; the last two are biased upwards for few images.
"""


def format_report(folder: Path, results: dict[str, Any], pictures: EvaluationPictures) -> str:
    """Draw the pictures into a folder, and return the report in Markdown; `results` are ``metrics.json``."""
    drawn = draw_pictures(folder, results, pictures)
    data, settings, model = results["data"], results["settings"], results["models"]["model"]
    left_out = "\n".join(f"* {text}" for text in results["left_out"].values())
    parts = [
        f"# Evaluation of {model['name'] or 'identity'}",
        f"{data['description']}: {data['pairs']} of {data['of']} pairs, split {data['split']}. "
        f"Protocol {settings['protocol']}; model sha256 {model['sha256'][:12]}, "
        f"{model.get('steps', 'no')} steps, sampler {model.get('sampler', 'none')}, seed {settings['seed']}.",
        _methods(results["methods"]),
        *_places(results["methods"]),
        "## Octaves",
        _octaves(results["methods"]),
        *_controls(results),
        *_sweep(results["sweep"]),
        *(["## Left out", left_out] if left_out else []),
        "## How to read this",
        _READING.rstrip(),
        *(f"![{text}]({name})\n\n{text}" for name, text in drawn.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _methods(methods: dict[str, Any], first: str = "") -> str:
    rows = []
    for key, (title, note, digits) in _FIGURES.items():
        if any(key in figures for figures in methods.values()):
            cells = [_cell(figures, key, digits) for figures in methods.values()]
            rows.append([f"{title} ({note})" if note else title, *cells])
    return format_table([first, *methods], rows)


def _places(methods: dict[str, Any]) -> list[str]:
    """Return a table of the model's figures by place, beside the radar's."""
    places = methods["model"].get("scenes", {})
    if len(places) < 2:
        return []
    shown = {name: methods[name]["scenes"] for name in ("sar-grey", "model") if name in methods}
    columns = {f"{name}: {title}": (name, key) for key, (title, _, _) in _PICTURE.items() for name in shown}
    rows = [
        [
            f"{Path(place).name} ({figures['images']})",
            *(_cell(shown[name][place], key, 2) for name, key in columns.values()),
        ]
        for place, figures in places.items()
    ]
    return ["## Places", format_table(["Place (images judged)", *columns], rows)]


def _octaves(methods: dict[str, Any]) -> str:
    names = ("power_ratio", "correlation", "agreement")
    columns = {
        f"{method}: {name.replace('_', ' ')}": [octave[name] for octave in figures["octaves"]]
        for method, figures in methods.items()
        for name in names
        if name in figures["octaves"][0]
    }
    rows = [
        [octave["wavelength_px"], *(_number(column[number], 2) for column in columns.values())]
        for number, octave in enumerate(methods["model"]["octaves"])
    ]
    return format_table(["Wavelength (px)", *columns], rows)


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
        parts.append(format_table(["Quantile", "Variance", "Squared error", "Values"], rows))
    return ["## Controls", *parts] if parts else []


def _sweep(sweep: list[dict[str, Any]]) -> list[str]:
    if not sweep:
        return []
    table = _methods({str(found["steps"]): found for found in sweep}, "Steps")
    return [f"## Steps, on {sweep[0]['images']} pairs", table]


def _cell(figures: dict[str, Any], key: str, digits: int) -> str:
    """Return a figure with its interval, if it has one."""
    text, interval = _number(figures.get(key), digits), figures.get("intervals", {}).get(key)
    return f"{text} [{' '.join(_number(end, digits) for end in interval)}]" if text and interval else text


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


_TILE_INCHES, _DPI, _EDGE_PX = 2.2, 120, 2


class PictureCase(NamedTuple):
    """One pair to show: images of shape (3, H, W) in [-1, 1], and where they are valid, shape (H, W)."""

    name: str
    sar: Tensor
    prediction: Tensor
    truth: Tensor
    valid: Tensor


class InsideCase(NamedTuple):
    """What happens inside the model: variance of the noised truth, shape (h, w), and denoising.

    `images` has shape (timesteps, 3, H, W).
    """

    pair: PictureCase
    variance: Tensor
    timesteps: list[int]
    images: Tensor


class EvaluationPictures(NamedTuple):
    """What to draw; `factor` is the number of pixels per latent pixel."""

    cases: list[PictureCase]
    inside: list[InsideCase]
    factor: int


def draw_pictures(folder: Path, results: dict[str, Any], pictures: EvaluationPictures) -> dict[str, str]:
    """Draw all pictures as PNG; return file names, and what they show."""
    drawn = {"contact_sheet.png": _draw_contact_sheet(folder, pictures.cases)}
    if pictures.inside:
        drawn["confidence.png"] = _draw_confidence(folder, pictures, results["calibration"]["timestep"])
        drawn["denoising.png"] = _draw_denoising(folder, pictures.inside)
    drawn["octaves.png"] = _draw_octaves(folder, results["methods"])
    if results["calibration"] is not None and results["calibration"]["quantiles"]:
        drawn["calibration.png"] = _draw_calibration(folder, results["calibration"])
    if len(results["sweep"]) > 1:
        drawn["steps.png"] = _draw_steps(folder, results["sweep"])
    return drawn


def _draw_contact_sheet(folder: Path, cases: list[PictureCase]) -> str:
    """Draw radar, translation and truth of each pair, pixel by pixel, two pairs in a row."""
    edge = ((_EDGE_PX, _EDGE_PX), (_EDGE_PX, _EDGE_PX), (0, 0))
    images = [
        np.pad(_rgb(image, case.valid), edge, constant_values=1)
        for case in cases
        for image in (case.sar, case.prediction, case.truth)
    ]
    images += [np.ones_like(images[0])] * (-len(images) % 6)
    rows = [np.hstack(images[first : first + 6]) for first in range(0, len(images), 6)]
    imsave(folder / "contact_sheet.png", np.vstack(rows))
    names = ", ".join(case.name for case in cases)
    return f"SAR, translation and truth at full size, of the same pairs for every model: {names}"


def _draw_confidence(folder: Path, pictures: EvaluationPictures, timestep: int) -> str:
    pairs = [case.pair for case in pictures.inside]
    figure = _sheet(
        [pair.name for pair in pairs],
        ["SAR", "truth"],
        [[_rgb(image, pair.valid) for image in (pair.sar, pair.truth)] for pair in pairs],
        [_confidence_map(case.variance, case.pair.valid, pictures.factor) for case in pictures.inside],
    )
    figure.savefig(folder / "confidence.png", dpi=_DPI)
    return f"Confidence of the noised truth at timestep {timestep} (C-DiffSET, Fig. 7)"


def _draw_denoising(folder: Path, inside: list[InsideCase]) -> str:
    figure = _sheet(
        [case.pair.name for case in inside],
        ["SAR", *(f"t = {timestep}" for timestep in inside[0].timesteps), "truth"],
        [
            [_rgb(image, case.pair.valid) for image in (case.pair.sar, *case.images, case.pair.truth)]
            for case in inside
        ],
        None,
    )
    figure.savefig(folder / "denoising.png", dpi=_DPI)
    return "The estimate of the clean image on the way from noise (C-DiffSET, Fig. 8)"


def _sheet(
    labels: list[str],
    columns: list[str],
    rows: list[list[npt.NDArray[np.float32]]],
    maps: list[npt.NDArray[np.float32]] | None,
) -> Figure:
    """Lay images out as a table, the maps on one scale of colours as its last column."""
    width = len(columns) + (maps is not None)
    figure = Figure(
        figsize=(_TILE_INCHES * width + 0.9, _TILE_INCHES * len(rows) + 0.3), layout="constrained"
    )
    axes = figure.subplots(len(rows), width, squeeze=False)
    low, high = (0.0, 1.0) if maps is None else colour_limits(maps)
    shown = None
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            axes[r, c].imshow(image, interpolation="nearest")
        if maps is not None:
            shown = axes[r, -1].imshow(maps[r], vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        axes[r, 0].set_ylabel(labels[r])
    for c, title in enumerate([*columns, "confidence"][:width]):
        axes[0, c].set_title(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    if shown is not None:
        figure.colorbar(shown, ax=axes[:, -1].tolist(), label="log10 of 1 / variance")
    return figure


def colour_limits(maps: list[npt.NDArray[np.float32]]) -> tuple[float, float]:
    """Return the range of colours for maps of any shapes: all values but one per cent at either end."""
    values = np.concatenate([each[np.isfinite(each)] for each in maps])
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 1e-3))


def enlarge(coarse: npt.NDArray[Any], factor: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Give every pixel of an image of a shape the value of its latent pixel."""
    return coarse.repeat(factor, axis=0).repeat(factor, axis=1)[: shape[0], : shape[1]]


def _confidence_map(variance: Tensor, valid: Tensor, factor: int) -> npt.NDArray[np.float32]:
    """Return log10(1 / variance) on the image's pixels; NaN where they are invalid."""
    logarithm = enlarge(-np.log10(variance.numpy()), factor, tuple(valid.shape))
    return np.where(valid.numpy(), logarithm, np.float32(np.nan))


def _rgb(image: Tensor, valid: Tensor) -> npt.NDArray[np.float32]:
    """Return an image for display, white where it is invalid."""
    levels = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.where(valid.numpy()[..., None], levels, np.float32(1))


def _draw_octaves(folder: Path, methods: dict[str, Any]) -> str:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    power, correlation = figure.subplots(1, 2)
    for name, found in methods.items():
        octaves = found["octaves"]
        places = range(len(octaves))
        power.plot(places, [octave["power_ratio"] for octave in octaves], marker="o", label=name)
        correlation.plot(places, [octave["correlation"] for octave in octaves], marker="o", label=name)
    labels = [octave["wavelength_px"] for octave in next(iter(methods.values()))["octaves"]]
    for axis, title in ((power, "power ratio to the truth"), (correlation, "correlation with the truth")):
        axis.set_xticks(range(len(labels)), labels, rotation=30)
        axis.set(xlabel="wavelength (pixels)", title=title)
        axis.grid(alpha=0.3)
    power.set_yscale("symlog", linthresh=0.01)
    power.set_ylim(bottom=0)
    power.axhline(1, color="black", linewidth=0.8)
    correlation.set_ylim(min(-0.05, correlation.get_ylim()[0]), 1.02)
    power.legend(fontsize="small")
    figure.savefig(folder / "octaves.png", dpi=_DPI)
    return "Power ratio to the truth and correlation with it, per octave"


def _draw_calibration(folder: Path, calibration: dict[str, Any]) -> str:
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axis = figure.subplots()
    groups = calibration["quantiles"]
    variance, error = ([group[key] for group in groups] for key in ("variance", "error"))
    axis.loglog(variance, error, marker="o", label="quantiles of the variance")
    span = [min(variance + error), max(variance + error)]
    axis.loglog(span, span, color="black", linewidth=0.8, label="calibrated")
    axis.set(xlabel="predicted variance", ylabel="squared error", title=f"timestep {calibration['timestep']}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")
    figure.savefig(folder / "calibration.png", dpi=_DPI)
    return "Squared error against predicted variance, of the noised truth"


def _draw_steps(folder: Path, sweep: list[dict[str, Any]]) -> str:
    titles = {
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "scc": "SCC",
        "lpips": "LPIPS",
        "fid": "FID",
        "feature-distance": "feature-distance",
    }
    titles |= {"ciede2000": "CIEDE2000", "seconds_per_image": "seconds per image"}
    shown = [key for key in titles if all(key in found for found in sweep)]
    steps = [found["steps"] for found in sweep]
    figure = Figure(figsize=(2.6 * len(shown), 2.8), layout="constrained")
    for axis, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        axis.plot(steps, [found[key] for found in sweep], marker="o")
        axis.set_xscale("log")
        axis.set_xticks(steps, [str(number) for number in steps])
        axis.minorticks_off()
        axis.set(xlabel="steps", title=titles[key])
        axis.grid(alpha=0.3)
    figure.savefig(folder / "steps.png", dpi=_DPI)
    return f"Metrics and time over steps, on {sweep[0]['images']} pairs (C-DiffSET, Fig. 9)"
