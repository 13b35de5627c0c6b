"""Pictures of an evaluation: contact sheet, confidence, denoising, and curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["Case", "Pictures", "draw_pictures", "enlarge", "limits"]

_TILE_INCHES, _DPI = 2.2, 120
_SHEET_DPI = 120


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pair to be shown.

    Parameters
    ----------
    kind : str
        "best", "median" or "worst".
    name : str
        Of the pair.
    psnr : float
    sar, prediction, truth : Tensor, shape (3, H, W)
        In [-1, 1].
    valid : Tensor of bool, shape (H, W)
    variance, forced_variance : Tensor, shape (h, w), or None
        Of the draw that is shown, and of the noised truth.
    """

    kind: str
    name: str
    psnr: float
    sar: Tensor
    prediction: Tensor
    truth: Tensor
    valid: Tensor
    variance: Tensor | None
    forced_variance: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What there is to draw.

    Parameters
    ----------
    cases : list of Case
        Best first.
    denoising : list of (Case, timesteps, images)
        Images of shape (timesteps, 3, H, W).
    factor : int
        Pixels per latent pixel.
    """

    cases: list[Case] = field(default_factory=list)
    denoising: list[tuple[Case, list[int], Tensor]] = field(default_factory=list)
    factor: int = 1


def draw_pictures(folder: Path, results: dict[str, Any], pictures: Pictures) -> dict[str, str]:
    """Draw all that there is to draw, as PNG.

    Returns
    -------
    dict of str to str
        File names, and what they show.
    """
    drawn = {}
    if pictures.cases:
        drawn["contact_sheet.png"] = _contact_sheet(folder, pictures)
    if any(case.forced_variance is not None for case in pictures.cases):
        drawn["confidence.png"] = _confidence(folder, pictures, results["calibration"]["timestep"])
    if pictures.denoising:
        drawn["denoising.png"] = _denoising(folder, pictures)
    drawn["octaves.png"] = _octaves(folder, results["methods"])
    if results["calibration"] is not None and results["calibration"]["quantiles"]:
        drawn["calibration.png"] = _calibration(folder, results["calibration"])
    if len(results["sweep"]) > 1:
        drawn["steps.png"] = _steps(folder, results["sweep"])
    return drawn


def _contact_sheet(folder: Path, pictures: Pictures) -> str:
    columns = ["SAR", "prediction", "truth"]
    confident = pictures.cases[0].variance is not None
    rows = [[case.sar, case.prediction, case.truth] for case in pictures.cases]
    maps = [_confidence_map(case.variance, case, pictures.factor) for case in pictures.cases]
    figure = _sheet(
        [f"{case.kind}\n{case.psnr:.1f} dB" for case in pictures.cases],
        columns,
        [[_rgb(image, case.valid) for image in row] for row, case in zip(rows, pictures.cases, strict=True)],
        maps if confident else None,
    )
    figure.savefig(folder / "contact_sheet.png", dpi=_SHEET_DPI)
    return (
        "SAR, prediction, truth"
        + (" and confidence" if confident else "")
        + " of the best, median and worst pairs"
    )


def _confidence(folder: Path, pictures: Pictures, timestep: int) -> str:
    figure = _sheet(
        [case.kind for case in pictures.cases],
        ["SAR", "truth"],
        [[_rgb(image, case.valid) for image in (case.sar, case.truth)] for case in pictures.cases],
        [_confidence_map(case.forced_variance, case, pictures.factor) for case in pictures.cases],
    )
    figure.savefig(folder / "confidence.png", dpi=_SHEET_DPI)
    return f"Confidence of the noised truth at timestep {timestep} (C-DiffSET, Fig. 7)"


def _denoising(folder: Path, pictures: Pictures) -> str:
    timesteps = pictures.denoising[0][1]
    figure = _sheet(
        [case.kind for case, _, _ in pictures.denoising],
        ["SAR", *(f"t = {timestep}" for timestep in timesteps), "truth"],
        [
            [_rgb(image, case.valid) for image in (case.sar, *images, case.truth)]
            for case, _, images in pictures.denoising
        ],
        None,
    )
    figure.savefig(folder / "denoising.png", dpi=_SHEET_DPI)
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
    low, high = (0.0, 1.0) if maps is None else limits(maps)
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


def limits(maps: list[npt.NDArray[np.float32]]) -> tuple[float, float]:
    """Return the range of values to draw maps in, of any shapes: all but one per cent at either end."""
    values = np.concatenate([each[np.isfinite(each)] for each in maps])
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 1e-3))


def enlarge(coarse: npt.NDArray[Any], factor: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Give every pixel of an image of a shape the value of its latent pixel."""
    return coarse.repeat(factor, axis=0).repeat(factor, axis=1)[: shape[0], : shape[1]]


def _confidence_map(variance: Tensor | None, case: Case, factor: int) -> npt.NDArray[np.float32]:
    """Return log10(1 / variance) on the image's pixels; NaN where they are invalid."""
    valid = case.valid.numpy()
    if variance is None:
        return np.full(valid.shape, np.nan, dtype=np.float32)
    logarithm = enlarge(-np.log10(variance.numpy()), factor, valid.shape)
    return np.where(valid, logarithm, np.float32(np.nan))


def _rgb(image: Tensor, valid: Tensor) -> npt.NDArray[np.float32]:
    """Return an image for display, white where it is invalid."""
    levels = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.where(valid.numpy()[..., None], levels, np.float32(1))


def _octaves(folder: Path, methods: dict[str, Any]) -> str:
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


def _calibration(folder: Path, calibration: dict[str, Any]) -> str:
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


def _steps(folder: Path, sweep: list[dict[str, Any]]) -> str:
    titles = {"psnr": "PSNR (dB)", "ssim": "SSIM", "scc": "SCC", "lpips": "LPIPS", "fid": "FID"}
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
