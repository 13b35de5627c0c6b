"""What a translation will do and take, before it is done: ``--dry-run``.

Nothing is written. The scaling is sampled as the run would sample it, validity is looked up in a seeded
share of the windows, and the model is timed on two short runs of one batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from sar2eo.attributes import attributes_of
from sar2eo.cog import needed_bytes
from sar2eo.graph import count_windows
from sar2eo.models import ModelSpec
from sar2eo.planning import Entry, needs
from sar2eo.recipe import TranslateRecipe
from sar2eo.scene import describe_scene
from sar2eo.translation import Job, opened, prepare
from sar2eo.windows import Lattice, Window

__all__ = ["estimate", "estimate_archive"]

_WINDOWS_SAMPLED = 256
# Of an activation-heavy model, beyond its weights, for each window of a batch; measured with SD 2.1 at 512.
_BYTES_PER_WINDOW = 1.5e9


def estimate(job: Job, recipe: TranslateRecipe, spec: ModelSpec) -> dict[str, Any]:
    """Describe one job of a plan without doing it.

    Returns
    -------
    dict
        Nested, for printing: scene, scaling, windows, model, memory and disk, seconds.

    Raises
    ------
    Sar2eoError
        All that the run itself would raise before work starts.
    """
    scene, _ = opened(job.source, recipe)
    dataset = prepare(job.source, recipe, spec)
    attrs = attributes_of(dataset)
    grid = attrs["grid"]
    lattice = Lattice(tuple(attrs["scene_shape"]), attrs["tile"], attrs["overlap"], spec.factor)
    windows = count_windows(dataset["eo"].data)
    translated = round(windows * (1 - _empty_share(scene, lattice, Window(*attrs["region"]))))
    divisors = [float(d) for d in dataset["amplitude_divisor"].values]
    disk = needed_bytes(grid, job.outputs.rasters, recipe.compress)
    return {
        "scene": describe_scene(scene),
        "output": {"file": job.outputs.name(job.outputs.eo), "crs": grid.crs, "shape": list(grid.shape)},
        "scaling": dict(zip(attrs["polarisations"], divisors, strict=True)),
        "windows": {"total": windows, "without data, estimated": windows - translated},
        "model": {"path": spec.path, "parameters": spec.parameters, **spec.fingerprint()},
        "takes": {
            **_memory(spec),
            "disk, GB": round(disk / 1e9, 2),
            "seconds, estimated": round(_seconds(spec, attrs["tile"], translated), 1),
        },
    }


def estimate_archive(entries: Sequence[Entry], recipe: TranslateRecipe, spec: ModelSpec) -> dict[str, Any]:
    """Describe a plan without doing it; of windows without data nothing is known, so all are counted.

    Parameters
    ----------
    entries : sequence of Entry
        As `sar2eo.planning.plan` returns them.
    recipe : TranslateRecipe
    spec : ModelSpec

    Returns
    -------
    dict
        Nested, for printing: scenes by status, outputs, windows, model, memory and disk, seconds.
    """
    settings = recipe.settings
    pending = [entry for entry in entries if entry.status == "pending"]
    sizes = [entry.grid.shape for entry in pending if entry.grid is not None]
    windows = sum(len(Lattice(size, settings.tile, settings.overlap, spec.factor)) for size in sizes)
    disk = sum(size for _, size in needs(entries, recipe))
    return {
        "scenes": {
            status: sum(entry.status == status for entry in entries)
            for status in ("pending", "skipped", "failed")
        },
        "outputs": {
            entry.name: entry.reason if entry.job is None else entry.job.outputs.name(entry.job.outputs.eo)
            for entry in entries
        },
        "failing": {entry.name: entry.reason for entry in entries if entry.status == "failed"},
        "megapixels": round(sum(entry.megapixels for entry in pending), 1),
        "windows": windows,
        "model": {"path": spec.path, "parameters": spec.parameters, **spec.fingerprint()},
        "takes": {
            **_memory(spec),
            "disk, GB": round(disk / 1e9, 2),
            "seconds at most, estimated": round(_seconds(spec, settings.tile, windows), 1),
        },
    }


def _memory(spec: ModelSpec) -> dict[str, float]:
    return {
        "memory, GB": round((_model_bytes(spec) + 0.5e9) / 1e9, 1),
        "memory available, GB": round(psutil.virtual_memory().available / 1e9, 1),
    }


def _empty_share(part: Any, lattice: Lattice, region: Window) -> float:
    """Share of the windows over a region that hold no valid pixel of it, from a seeded sample of them."""
    draw = np.random.Generator(np.random.Philox(2025))
    picked = draw.permutation(lattice.touching(region))[:_WINDOWS_SAMPLED]
    empty = 0
    for index in picked:
        common = lattice[int(index)].intersection(region)
        assert common is not None  # noqa: S101  (they touch)
        rows, cols = common.shifted(-region.row, -region.col).slices
        empty += not bool(np.isfinite(part.isel(y=rows, x=cols).values).all(axis=0).any())
    return empty / len(picked)


def _model_bytes(spec: ModelSpec) -> float:
    if spec.card is None:
        return 0.0
    per_parameter = 4 if spec.dtype == "float32" else 2
    return spec.parameters * per_parameter + _BYTES_PER_WINDOW * spec.batch


def _seconds(spec: ModelSpec, tile: int, windows: int) -> float:
    """Seconds inside the model: a batch of one step is timed, and of three."""
    sar = np.zeros((spec.batch, 3, tile, tile), np.float32)
    origins = [(0, tile * k) for k in range(spec.batch)]
    translator = spec.load()

    def timed(steps: int) -> float:
        start = time.perf_counter()
        translator.with_steps(steps).translate(sar, origins)
        return time.perf_counter() - start

    timed(1)
    short, long = (min(timed(steps), timed(steps)) for steps in (1, 3))
    batch = (short + max(long - short, 0) / 2 * max(spec.steps - 1, 0)) * spec.samples
    return batch * -(-windows // spec.batch)
