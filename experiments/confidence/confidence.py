"""Does a model's variance find what only one sensor saw?

    python confidence.py report --model DIR --scenes DIR... --out DIR
    python confidence.py picture --model DIR --pair SAR EO --window 0 0 512 512 --out FILE.png

`report` takes folders of `sar2eo simulate`. It compares ships, vehicles and fields that changed between the
two dates with unchanged objects of the same kind: never with bare ground, which any map of brightness finds.
`picture` draws SAR, EO, confidence and surprise of a part of two real scenes, whose truth is unknown.

Forced variance is the variance given the SAR image and the noised EO image at a timestep (C-DiffSET, Fig. 7).
Surprise is the squared error of that prediction over its variance: about 1 where the EO image is as the SAR
image lets expect. Sampled variance is that of `sar2eo translate`, which does not see the EO image.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from matplotlib.figure import Figure
from scipy import ndimage

import sar2eo
from sar2eo.evaluation.model_probe import Probe
from sar2eo.evaluation.report import colour_limits, enlarge, format_table
from sar2eo.evaluation.scores import compute_calibration
from sar2eo.evaluation.translators import collect_model_facts
from sar2eo.geo.blending import gather_block
from sar2eo.geo.radiometry import fill_invalid, sample_percentiles, to_amplitude, to_model_range
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import ModelSpec, resolve_model
from sar2eo.simulation import ObjectKind, ObjectState
from sar2eo.store.atomic import json_values

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TILE, OVERLAP = 256, 64
GUARD_PX, RING_PX = 2, 8
"""An object's contrast is taken against a ring: farther from it than the one, as far as the other."""

BOOTSTRAPS = 2000
GROUPS = (
    ("ship", "sar-only"),
    ("ship", "eo-only"),
    ("vehicle", "sar-only"),
    ("vehicle", "eo-only"),
    ("field", "changed"),
)
READING = f"""\
* An area is the probability that a changed object scores above an unchanged one of the same kind: 0.5 is
  chance, below 0.5 the detector ranks the other way round. In brackets the 95 % interval of a bootstrap over
  objects ({BOOTSTRAPS} draws), which does not cover other scenes or other trainings.
* Scores of variance and surprise: log10, mean or largest value over the object's pixels. The largest value
  grows with the size of an object by chance alone.
* SAR contrast: mean amplitude against a ring from {GUARD_PX} to {RING_PX} pixels around the object, in dB. EO
  contrast: distance of the mean colours, in levels. Both use the true place of the object, so neither is a
  detector that anyone has. Size: pixels, a control, which must be near 0.5.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="areas under the ROC curve on simulated scenes")
    report.add_argument("--scenes", type=Path, nargs="+", required=True, help="folders of sar2eo simulate")
    report.add_argument("--timesteps", type=int, nargs="+", default=[250, 500, 750, 900, 999])
    picture = commands.add_parser("picture", help="maps of a part of two real scenes")
    picture.add_argument("--pair", type=Path, nargs=2, required=True, help="SAR and EO on one grid")
    picture.add_argument("--window", type=int, nargs=4, required=True, help="row, column, height, width")
    for command in (report, picture):
        command.add_argument("--model", required=True, help="a checkpoint folder, or bundled")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--steps", type=int, help="of the sampled variance (default: the model card's)")
        command.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    given = parser.parse_args()
    spec = resolve_model(given.model, steps=given.steps, threads=given.threads)
    if not spec.confidence:
        parser.error(f"--model {given.model}: has no variance")
    torch.set_num_threads(spec.threads)
    if given.command == "report":
        print(write_report(spec, given.scenes, given.timesteps, given.out))
    else:
        scenes = open_pair(*given.pair, spec, Window(*given.window))
        # At 999 the SAR image is all that is known.
        draw_pair(scenes, compute_maps(scenes, spec, [999]), spec).savefig(given.out, dpi=120)


# Scenes and maps


@dataclass(frozen=True, eq=False)
class ScenePair:
    """A SAR and an EO scene on one grid.

    `sar` and `eo`, of shape (3, H, W), are in [-1, 1]; invalid pixels have the value of their nearest valid
    one. `valid` (H, W): where both have data. `confidence` (H, W): that of the translation, 1 / variance.
    """

    sar: Image
    eo: Image
    valid: Mask
    confidence: Image


@dataclass(frozen=True, eq=False)
class Maps:
    """Forced variance and squared error by timestep, and valid latent pixels; all of shape (h, w)."""

    variance: dict[int, Image]
    error: dict[int, Image]
    valid: Mask

    def surprise(self, timestep: int) -> Image:
        variance, error = self.variance[timestep], self.error[timestep]
        return np.divide(error, variance, out=np.zeros_like(variance), where=variance > 0)


def open_pair(sar: Path, eo: Path, spec: ModelSpec, window: Window | None = None) -> ScenePair:
    scene, card = sar2eo.open_scene(sar), spec.card
    with rasterio.open(eo) as file:
        colour, eo_valid = file.read(), file.dataset_mask() > 0
    if colour.shape != (3, *scene.shape[1:]) or colour.dtype != np.uint8:
        raise SystemExit(f"{eo}: must be red, green, blue in bytes on the grid of {sar}")
    part = (window or Window(0, 0, *scene.shape[1:])).slices
    translated = sar2eo.translate(scene, spec, tile=TILE, overlap=OVERLAP)["confidence"]
    scene = scene.sel(band=list(card.polarisations))

    def read(where: Window) -> Image:
        return to_amplitude(scene[(slice(None), *where.slices)].values, scene.attrs["quantity"])

    divisors = (
        sample_percentiles(read, scene.shape[1:])
        if card.scaling == "p99"
        else [float(card.scaling)] * len(scene)
    )
    amplitude = to_amplitude(scene[(slice(None), *part)].values, scene.attrs["quantity"])
    valid = np.isfinite(amplitude).all(axis=0) & eo_valid[part]
    return ScenePair(
        sar=to_model_range(fill_invalid(amplitude, valid), divisors, card.polarisations, card.channels),
        eo=fill_invalid(colour[:, *part].astype(np.float32) / np.float32(127.5) - np.float32(1), valid),
        valid=valid,
        confidence=translated[part].values,
    )


def compute_maps(pair: ScenePair, spec: ModelSpec, timesteps: list[int]) -> Maps:
    """Run a model over tiles of the noised EO image, and blend what it says as a translation is blended."""
    probe, factor = Probe(load_translator(spec).checkpoint, spec), spec.factor  # type: ignore[attr-defined]
    (height, width), tiles = pair.valid.shape, Lattice(pair.valid.shape, TILE, OVERLAP, factor)
    margins = [
        (0, max(0, last + TILE - side)) for last, side in ((tiles.rows[-1], height), (tiles.cols[-1], width))
    ]
    sar, eo = (np.pad(image, ((0, 0), *margins), mode="reflect") for image in (pair.sar, pair.eo))
    valid = np.pad(pair.valid, margins)
    found: dict[str, dict[int, Image]] = {
        f"{name} {t}": {} for t in timesteps for name in ("variance", "error")
    }
    for index, tile in enumerate(tiles):
        if not valid[tile.slices].any():
            continue
        batch: Any = {
            "sar": torch.from_numpy(sar[None, :, *tile.slices]),
            "eo": torch.from_numpy(eo[None, :, *tile.slices]),
            "valid": torch.from_numpy(valid[None, None, *tile.slices]).float(),
            "index": [index],
        }
        for timestep in timesteps:
            forced = probe.predict_from_truth(batch, timestep)
            found[f"variance {timestep}"][index] = forced.variance.numpy()
            found[f"error {timestep}"][index] = forced.error.numpy()
        print(f"\r  tile {index + 1} of {len(tiles)}", end="", flush=True)
    print()
    rows, cols = -(-height // factor), -(-width // factor)
    coarse = Lattice((rows, cols), TILE // factor, OVERLAP // factor)

    def blend(layer: dict[int, Image]) -> Image:
        def fetch(index: int, inner_rows: slice, inner_cols: slice) -> Image | None:
            return layer[index][:, inner_rows, inner_cols] if index in layer else None

        blended: Image = gather_block(coarse.scene, coarse, 1, np.float32, fetch)[0]
        return blended

    blocks = valid[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor)
    return Maps(
        variance={t: blend(found[f"variance {t}"]) for t in timesteps},
        error={t: blend(found[f"error {t}"]) for t in timesteps},
        valid=blocks.all(axis=(1, 3)),
    )


# Objects and their scores


@dataclass(frozen=True, eq=False)
class Truth:
    """Objects of a simulated scene: `label` (H, W) holds the number of the object at each pixel, or 0."""

    label: npt.NDArray[np.uint16]
    numbers: npt.NDArray[np.intp]
    kinds: list[str]
    states: list[str]


def read_truth(folder: Path) -> Truth:
    with rasterio.open(folder / "truth.tif") as file:
        _, kind, state, label = file.read()
        settings = json.loads(file.tags()["SIMULATION"])
    if any(settings["shift"]):
        raise SystemExit(f"{folder}: its SAR is shifted against its truth: simulate without --shift")
    numbers, at = np.unique(label, return_index=True)
    numbers, at = numbers[numbers > 0].astype(np.intp), at[numbers > 0]
    return Truth(
        label,
        numbers,
        [ObjectKind(k).name.lower() for k in kind.ravel()[at]],
        [ObjectState(s).name.lower().replace("_", "-") for s in state.ravel()[at]],
    )


def score_objects(truth: Truth, pair: ScenePair, maps: Maps, factor: int) -> list[dict[str, Any]]:
    """Give each object a score by every detector; those that touch invalid latent pixels are left out."""
    shape, label, numbers = truth.label.shape, truth.label, truth.numbers
    layers = {"sampled": 1 / np.where(pair.confidence > 0, pair.confidence, np.float32(1))}
    for timestep, variance in maps.variance.items():
        layers[f"forced {timestep}"] = enlarge(variance, factor, shape)
        layers[f"surprise {timestep}"] = enlarge(maps.surprise(timestep), factor, shape)
    columns: dict[str, Any] = {}
    for name, layer in layers.items():
        logarithm = np.log10(np.maximum(layer, 1e-9))
        columns[f"{name} mean"] = ndimage.mean(logarithm, label, numbers)
        columns[f"{name} max"] = ndimage.maximum(logarithm, label, numbers)
    columns["sar contrast"], columns["eo contrast"] = compute_contrasts(truth, pair)
    columns["size"] = ndimage.sum(np.ones(shape), label, numbers)
    whole = ndimage.minimum(enlarge(maps.valid, factor, shape), label, numbers) > 0
    return [
        {
            "number": int(numbers[i]),
            "kind": truth.kinds[i],
            "state": truth.states[i],
            "scores": {name: float(values[i]) for name, values in columns.items()},
        }
        for i in np.flatnonzero(whole & np.isfinite(columns["sar contrast"]))
    ]


def compute_contrasts(truth: Truth, pair: ScenePair) -> Any:
    """Compare each object with the valid ground around it that belongs to no other object; shape (2, N).

    First the amplitude as the model sees it, in dB; second the distance of the mean colours, in levels.
    """
    amplitude, colour = (pair.sar.mean(axis=0) + 1) / 2, (pair.eo + 1) * 127.5
    found = np.full((2, len(truth.numbers)), np.nan)
    boxes = ndimage.find_objects(truth.label)
    for i, number in enumerate(truth.numbers):
        at = tuple(slice(max(0, s.start - RING_PX), s.stop + RING_PX) for s in boxes[number - 1])
        label, valid = truth.label[at], pair.valid[at]
        inside = (label == number) & valid
        distance = ndimage.distance_transform_edt(label != number)
        ring = (distance > GUARD_PX) & (distance <= RING_PX) & (label == 0) & valid
        if inside.any() and ring.any():
            levels = [max(float(amplitude[at][mask].mean()), 1e-3) for mask in (inside, ring)]
            shades = [colour[:, *at][:, mask].mean(axis=1) for mask in (inside, ring)]
            found[:, i] = 20 * np.log10(levels[0] / levels[1]), np.linalg.norm(shades[0] - shades[1])
    return found


def compare_groups(objects: list[dict[str, Any]], seed: int = 2025) -> list[dict[str, Any]]:
    """Compare changed with unchanged objects of each kind by every detector: areas with 95 % intervals."""
    groups = []
    for number, (kind, state) in enumerate(GROUPS):
        changed, unchanged = (
            [row["scores"] for row in objects if (row["kind"], row["state"]) == (kind, wanted)]
            for wanted in (state, "unchanged")
        )
        areas = {}
        if changed and unchanged:
            draw = np.random.default_rng([seed, number])
            weights = [
                draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), BOOTSTRAPS) / len(rows)
                for rows in (changed, unchanged)
            ]
            for name in changed[0]:
                # The area under the ROC curve is the share of pairs in the right order
                # (Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747).
                high, low = (np.array([row[name] for row in rows]) for rows in (changed, unchanged))
                wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
                ends = np.percentile(((weights[0] @ wins) * weights[1]).sum(axis=1), (2.5, 97.5))
                areas[name] = {"value": float(wins.mean()), "low": float(ends[0]), "high": float(ends[1])}
        counts = {"changed": len(changed), "unchanged": len(unchanged)}
        groups.append({"kind": kind, "discrepancy": state, **counts, "areas": areas})
    return groups


# What comes out


def write_report(spec: ModelSpec, folders: list[Path], timesteps: list[int], out: Path) -> str:
    """Measure on simulated scenes; write report.json and report.md, and return the latter's text."""
    timesteps = sorted({*timesteps, spec.card.confidence_timestep})
    objects: list[dict[str, Any]] = []
    layers: list[Maps] = []
    for folder in folders:
        print(folder)
        truth, pair = read_truth(folder), open_pair(folder / "sar.tif", folder / "eo.tif", spec)
        maps = compute_maps(pair, spec, timesteps)
        objects += [{"scene": str(folder), **row} for row in score_objects(truth, pair, maps, spec.factor)]
        layers.append(maps)
    if {row["state"] for row in objects} <= {"unchanged"}:
        raise SystemExit("no object changed: simulate without --no-discrepancies, and large enough for ships")

    def calibration(timestep: int) -> dict[str, Any]:
        variance, error = (
            np.concatenate([getattr(maps, name)[timestep][maps.valid] for maps in layers])
            for name in ("variance", "error")
        )
        return compute_calibration(variance, error)

    results: dict[str, Any] = json_values(
        {
            "version": sar2eo.__version__,
            "model": collect_model_facts(spec),
            "scenes": list(map(str, folders)),
            "groups": compare_groups(objects),
            "calibration": {timestep: calibration(timestep) for timestep in timesteps},
            "objects": objects,
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    text = describe(results)
    (out / "report.md").write_text(text)
    return text


def describe(results: dict[str, Any]) -> str:
    """Return the report for people."""
    groups = [group for group in results["groups"] if group["areas"]]
    head = [f"{group['kind']}s, {group['discrepancy']}" for group in groups]
    rows = [["objects: changed, unchanged", *(f"{g['changed']}, {g['unchanged']}" for g in groups)]]
    for name in groups[0]["areas"]:
        cells = ["{value:.2f} ({low:.2f} to {high:.2f})".format(**g["areas"][name]) for g in groups]
        rows.append([name, *cells])
    calibration = [
        [
            timestep,
            *("" if table[key] is None else f"{table[key]:.2f}" for key in ("ratio", "rank_correlation")),
        ]
        for timestep, table in results["calibration"].items()
    ]
    parts = [
        f"# Confidence of {results['model']['name']}",
        f"{len(results['objects'])} objects of {len(results['scenes'])} simulated scenes; model sha256 "
        f"{results['model']['sha256'][:12]}, {results['model']['steps']} steps.",
        "## Area under the ROC curve",
        format_table(["", *head], rows),
        "## Calibration, over all valid latent pixels",
        format_table(["timestep", "squared error over variance", "rank correlation"], calibration),
        "## How to read this",
        READING,
    ]
    return "\n\n".join(parts)


def draw_pair(pair: ScenePair, maps: Maps, spec: ModelSpec) -> Figure:
    """Draw SAR, EO, confidence and surprise."""
    (timestep,) = maps.variance
    known = np.where(maps.valid, maps.surprise(timestep), np.float32(np.nan))
    surprise = enlarge(np.log10(known), spec.factor, pair.valid.shape)
    confidence = np.log10(pair.confidence)
    most = max(map(abs, colour_limits([surprise])))
    height, width = pair.valid.shape
    figure = Figure(figsize=(10, 10 * height / width + 1.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, title, image in ((axes[0, 0], "SAR", pair.sar), (axes[0, 1], "EO", pair.eo)):
        rgb = np.moveaxis(np.clip((image + 1) / 2, 0, 1), 0, -1)
        axis.imshow(np.where(pair.valid[..., None], rgb, 1), interpolation="nearest")
        axis.set_title(title)
    error = f"log10 of squared error over variance, t = {timestep}"
    for axis, title, image, label, colours, (low, high) in (
        (
            axes[1, 0],
            "confidence of the translation",
            confidence,
            "log10 of 1 / variance",
            "viridis",
            colour_limits([confidence]),
        ),
        (
            axes[1, 1],
            "surprise: red where EO shows what SAR does not",
            surprise,
            error,
            "RdBu_r",
            (-most, most),
        ),
    ):
        shown = axis.imshow(image, vmin=low, vmax=high, cmap=colours, interpolation="nearest")
        figure.colorbar(shown, ax=axis, label=label, location="bottom", shrink=0.8)
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    main()
