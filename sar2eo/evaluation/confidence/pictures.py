"""Pictures of objects that changed and did not, of ROC curves, and of variance on real scenes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from sar2eo.evaluation.confidence.objects import Truth, enlarged
from sar2eo.evaluation.confidence.roc import GROUPS, UNCHANGED, roc_curve
from sar2eo.evaluation.confidence.variance_maps import ScenePair, VarianceMaps
from sar2eo.evaluation.pictures import limits
from sar2eo.geo.radiometry import FloatArray
from sar2eo.geo.windows import Window
from sar2eo.model.spec import ModelSpec

__all__ = ["Case", "choose_cases", "draw_pictures", "pair_picture", "title_of"]

_CASES = 2
_CASE_PX = 48
_TILE_INCHES, _DPI = 1.9, 120


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One object to be shown, cut out with its surroundings.

    Parameters
    ----------
    kind, state : str
    sar, eo : ndarray of float32, shape (3, H, W)
        In [-1, 1].
    forced, sampled : ndarray of float32, shape (H, W)
        log10 of the variance, by pixel; NaN where it is not known.
    outline : ndarray of bool, shape (H, W)
    """

    kind: str
    state: str
    sar: FloatArray
    eo: FloatArray
    forced: FloatArray
    sampled: FloatArray
    outline: npt.NDArray[np.bool_]


def choose_cases(
    rows: list[dict[str, Any]],
    truth: Truth,
    pair: ScenePair,
    maps: VarianceMaps,
    spec: ModelSpec,
    *,
    known: list[Case],
) -> list[Case]:
    """Cut objects of a scene out for the pictures: of each kind and state the large, until there are a few.

    Parameters
    ----------
    rows : list of dict
        The scene's objects, as scored.
    truth, pair, maps
        Of the scene.
    spec : ModelSpec
    known : list of Case
        Chosen from other scenes.
    """
    shape, factor, assumed = truth.label.shape, spec.factor, spec.card
    assert assumed is not None  # noqa: S101  (models without a card have no variance)
    layers = {
        name: _logarithm(found, maps, factor, shape)
        for name, found in (("forced", maps.forced[assumed.confidence_timestep]), ("sampled", maps.sampled))
    }
    counts = Counter((case.kind, case.state) for case in known)
    found = []
    for row in sorted(rows, key=lambda row: -row["pixels"]):
        if counts[row["kind"], row["state"]] < _CASES:
            counts[row["kind"], row["state"]] += 1
            outline = truth.label == row["number"]
            at = _around(outline).slices
            found.append(
                Case(
                    kind=row["kind"],
                    state=row["state"],
                    sar=pair.sar[:, *at].copy(),
                    eo=pair.eo[:, *at].copy(),
                    outline=outline[at].copy(),
                    **{name: layer[at].copy() for name, layer in layers.items()},
                )
            )
    return found


def _logarithm(variance: FloatArray, maps: VarianceMaps, factor: int, shape: tuple[int, ...]) -> FloatArray:
    """Return log10 of a variance by pixel, NaN where the latent pixel is not valid."""
    known = np.where(maps.valid, variance, np.float32(np.nan))
    return enlarged(np.log10(known), factor, shape)


def _around(mask: npt.NDArray[np.bool_]) -> Window:
    """Return a square about a mask, twice its size at least, moved into the image."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    longest = int(max(rows[-1] - rows[0], cols[-1] - cols[0])) + 1
    side = min(max(_CASE_PX, 2 * longest), *mask.shape)
    row, col = (
        int(np.clip((places[0] + places[-1] - side) // 2, 0, size - side))
        for places, size in zip((rows, cols), mask.shape, strict=True)
    )
    return Window(row, col, side, side)


def draw_pictures(folder: Path, results: dict[str, Any], cases: list[Case]) -> dict[str, str]:
    """Draw all that there is to draw, as PNG.

    Returns
    -------
    dict of str to str
        File names, and what they show.
    """
    drawn = {}
    for kind in dict.fromkeys(kind for kind, _ in GROUPS):
        shown = [case for case in cases if case.kind == kind]
        if shown:
            _case_sheet(sorted(shown, key=lambda case: case.state != UNCHANGED), results["timestep"]).savefig(
                folder / f"{kind}s.png", dpi=_DPI
            )
            drawn[f"{kind}s.png"] = f"The largest {kind}s of each sort: SAR, EO, variance, and their outlines"
    _roc(results).savefig(folder / "roc.png", dpi=_DPI)
    drawn["roc.png"] = "ROC curves: shares of changed and of unchanged objects above each threshold"
    if results["calibration"]:
        _calibration_curves(results["calibration"]).savefig(folder / "calibration.png", dpi=_DPI)
        drawn["calibration.png"] = "Squared error against variance of the noised truth, by decile"
    return drawn


def _case_sheet(cases: list[Case], timestep: int) -> Figure:
    titles = ["SAR", "EO", f"variance, forced, t = {timestep}", "variance, sampled", "outline"]
    figure = Figure(
        figsize=(_TILE_INCHES * len(titles) + 0.4, _TILE_INCHES * len(cases) + 0.3), layout="constrained"
    )
    axes = figure.subplots(len(cases), len(titles), squeeze=False)
    ranges = [limits([getattr(case, name) for case in cases]) for name in ("forced", "sampled")]
    for row, case in zip(axes, cases, strict=True):
        row[0].set_ylabel(case.state)
        for axis, image in ((row[0], case.sar), (row[1], case.eo), (row[4], case.eo)):
            axis.imshow(_rgb(image), interpolation="nearest")
        shown = [
            axis.imshow(image, vmin=low, vmax=high, cmap="magma", interpolation="nearest")
            for axis, image, (low, high) in zip(row[2:4], (case.forced, case.sampled), ranges, strict=True)
        ]
        for axis in row[2:]:
            axis.contour(case.outline, levels=[0.5], colors="cyan", linewidths=0.8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize="small")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for column, image in zip((2, 3), shown, strict=True):
        figure.colorbar(image, ax=axes[:, column].tolist(), location="bottom", label="log10 variance")
    return figure


def pair_picture(pair: ScenePair, maps: VarianceMaps, spec: ModelSpec) -> bytes:
    """Draw SAR, EO, confidence and surprise of a part of two real scenes; returns a PNG."""
    (timestep,) = maps.forced
    surprise, sampled = (
        _logarithm(found, maps, spec.factor, pair.valid.shape)
        for found in (maps.surprise(timestep), maps.sampled)
    )
    most = max(map(abs, limits([surprise])))
    rows, cols = pair.valid.shape
    figure = Figure(figsize=(10, 10 * rows / cols + 1.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, title, image in ((axes[0, 0], "SAR", pair.sar), (axes[0, 1], "EO", pair.eo)):
        axis.imshow(np.where(pair.valid[..., None], _rgb(image), 1), interpolation="nearest")
        axis.set_title(title)
    for axis, title, image, label, colours, (low, high) in (
        (
            axes[1, 0],
            "confidence of the translation",
            -sampled,
            "log10 of 1 / variance",
            "viridis",
            limits([-sampled]),
        ),
        (
            axes[1, 1],
            "surprise: red where EO shows what SAR does not",
            surprise,
            f"log10 of squared error over variance, t = {timestep}",
            "RdBu_r",
            (-most, most),
        ),
    ):
        shown = axis.imshow(image, vmin=low, vmax=high, cmap=colours, interpolation="nearest")
        figure.colorbar(shown, ax=axis, label=label, location="bottom", shrink=0.8)
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    buffer = BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    return buffer.getvalue()


def title_of(group: dict[str, Any]) -> str:
    """Name a group of objects."""
    return f"{group['kind']}s, {group['discrepancy']}"


def _roc(results: dict[str, Any]) -> Figure:
    names = [f"forced {timestep} mean" for timestep in results["timesteps"]]
    names += [f"surprise {results['timesteps'][-1]} mean", "sampled mean", "sar contrast", "eo contrast"]
    figure = Figure(figsize=(3.1 * len(GROUPS), 5.2), layout="constrained")
    axes = figure.subplots(1, len(GROUPS))
    for axis, group in zip(axes, results["groups"], strict=True):
        scores = [
            [row["scores"] for row in results["objects"] if (row["kind"], row["state"]) == sort]
            for sort in ((group["kind"], group["discrepancy"]), (group["kind"], UNCHANGED))
        ]
        for name in (name for name in names if name in group["areas"]):
            wrong, found = roc_curve(*([row[name] for row in rows] for rows in scores))
            style = ":" if name.endswith("contrast") else "-"
            axis.plot(
                wrong,
                found,
                style,
                label=f"{name.removesuffix(' mean')}: {group['areas'][name]['value']:.2f}",
            )
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.6)
        axis.set(xlabel="unchanged", ylabel="changed", aspect="equal")
        axis.set_title(
            f"{title_of(group)}\n{group['changed']} against {group['unchanged']}", fontsize="medium"
        )
        if group["areas"]:
            axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return figure


def _calibration_curves(tables: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.subplots()
    ends = []
    for timestep, table in tables.items():
        variance, error = ([group[key] for group in table["quantiles"]] for key in ("variance", "error"))
        axis.loglog(variance, error, marker="o", label=f"t = {timestep}")
        ends += variance + error
    axis.loglog([min(ends), max(ends)], [min(ends), max(ends)], color="black", linewidth=0.8)
    axis.set(xlabel="predicted variance, by decile", ylabel="squared error")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")
    return figure


def _rgb(image: FloatArray) -> FloatArray:
    return np.moveaxis(np.clip((image + 1) / 2, 0, 1), 0, -1)
