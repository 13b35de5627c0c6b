"""What runs inside the tasks of the translation graph: plain functions of plain arrays.

There are three kinds: sample the amplitude of the scene for its scaling, translate one batch of
windows, gather one block. They know the translator only as a Protocol, so there is no torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo.compute import counters
from sar2eo.errors import RadiometryError
from sar2eo.geo.blending import gather_block, upsample
from sar2eo.geo.radiometry import (
    Channels,
    FloatArray,
    compute_percentiles,
    fill_invalid,
    sample_percentiles,
    to_amplitude,
    to_model_range,
)
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.spec import ModelSpec
from sar2eo.scenes import SceneReader

__all__ = [
    "Plan",
    "WindowResult",
    "gather",
    "sample_chunk",
    "scaling_from_reader",
    "scaling_from_samples",
    "translate_batches",
]

SCALING_PERCENTILE = 99.0
_BRIGHTEST = 1e3  # amplitude; 60 dB
_SAMPLES_PER_CHUNK = 2**18  # of 64 chunks: as many as `sample_percentiles` takes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a task needs to know, the same for every task of a graph.

    Parameters
    ----------
    lattice : Lattice
        Windows of the whole scene.
    region : Window
        The part of the scene at hand, in the whole scene.
    reader : SceneReader or None
        Reads any window of the whole scene; None: pixels come from the chunks of a Dask array over
        `region`, and there is nothing outside of it.
    row_edges, col_edges : tuple of int
        Chunk borders of that Dask array, in the whole scene.
    bands : tuple of int
        Which bands of the scene the model takes.
    polarisations : tuple of str
        Their names.
    channels : tuple of tuple of str
        What the model's three channels average.
    quantity : str
        Of the scene's values.
    spec : ModelSpec
        The model, by path and options.
    run : int, optional (default: 1)
        Batches of a task, which has no more to do with pixels than that.
    """

    lattice: Lattice
    region: Window
    reader: SceneReader | None
    row_edges: tuple[int, ...]
    col_edges: tuple[int, ...]
    bands: tuple[int, ...]
    polarisations: tuple[str, ...]
    channels: Channels
    quantity: str
    spec: ModelSpec
    run: int = 1

    def task_of(self, index: int) -> int:
        """Return the number of the task that translates a window."""
        return index // (self.spec.batch * self.run)

    def batches_of(self, task: int) -> list[range]:
        """Return the windows of each batch of a task, without batches that lie beside the region."""
        numbers = range(task * self.run, (task + 1) * self.run)
        batches = (self.lattice.batch(number, self.spec.batch) for number in numbers)
        return [
            batch
            for batch in batches
            if any(self.lattice[index].intersection(self.region) is not None for index in batch)
        ]

    def chunks_of(self, window: Window) -> list[tuple[int, int]]:
        """Return row and column numbers of the chunks that share a pixel with a window."""
        rows = _touched(self.row_edges, window.row, window.stop_row)
        cols = _touched(self.col_edges, window.col, window.stop_col)
        return [(i, j) for i in rows for j in cols]


class WindowResult(NamedTuple):
    """One translated window.

    `eo` has shape (3, T, T) and dtype uint8, `variance` (T/f, T/f) at latent resolution, `spread`
    (T, T) in levels, `valid` (T, T) bool or None where every pixel is valid.
    """

    eo: npt.NDArray[np.uint8]
    variance: FloatArray | None
    spread: FloatArray | None
    valid: npt.NDArray[np.bool_] | None


Results = dict[int, WindowResult]
Chunks = dict[tuple[int, int], npt.NDArray[Any]]


def scaling_from_reader(plan: Plan, seed: int) -> FloatArray:
    """Percentile of amplitude of the whole scene, shape (polarisation,).

    Raises
    ------
    RadiometryError
        If a polarisation has no valid pixel, or there is no such dB.
    """
    reader = plan.reader
    assert reader is not None  # noqa: S101  (the graph builder chooses by this)

    def read(window: Window) -> FloatArray:
        return to_amplitude(reader.read(window)[list(plan.bands)], plan.quantity)

    with counters.timed("scaling_seconds"):
        found = sample_percentiles(read, plan.lattice.shape, percentile=SCALING_PERCENTILE, seed=seed)
    if plan.quantity == "db" and max(found) > _BRIGHTEST:
        raise RadiometryError(
            f"dB values of which the 99th percentile is {20 * np.log10(max(found)):.0f}, and no ground is so "
            "bright: is --quantity right?"
        )
    return np.asarray(found, np.float32)


def sample_chunk(plan: Plan, chunk: npt.NDArray[Any], seed: int) -> FloatArray:
    """Draw pixels of one chunk, shape (polarisation, 1, sample), NaN where there is no data."""
    values = to_amplitude(chunk[list(plan.bands)], plan.quantity).reshape(len(plan.bands), 1, -1)
    if values.shape[-1] > _SAMPLES_PER_CHUNK:
        draw = np.random.Generator(np.random.Philox(seed))
        values = values[:, :, draw.integers(0, values.shape[-1], _SAMPLES_PER_CHUNK)]
    return values


def scaling_from_samples(samples: Sequence[FloatArray], chunks: int) -> FloatArray:
    """Percentile of amplitude over the samples of some of the chunks, shape (polarisation,).

    Raises
    ------
    RadiometryError
        If a polarisation has no valid pixel in them, or its percentile is not positive.
    """
    bands = ([sample[band] for sample in samples] for band in range(len(samples[0])))
    valid = [np.concatenate([part[np.isfinite(part)] for part in parts]) for parts in bands]
    if any(values.size == 0 for values in valid) and len(samples) == chunks:
        raise RadiometryError("the scene has no valid pixel: is its nodata right?")
    if any(values.size == 0 for values in valid):
        raise RadiometryError(
            f"no valid pixel in the {len(samples)} of {chunks} chunks that were looked at: say what becomes "
            "1 with scaling, or make the chunks larger"
        )
    return np.asarray(compute_percentiles(valid, percentile=SCALING_PERCENTILE), np.float32)


def translate_batches(plan: Plan, divisors: FloatArray, task: int, chunks: Chunks) -> Results:
    """Translate the windows of a task's batches that hold a valid pixel.

    Parameters
    ----------
    plan : Plan
        The run.
    divisors : ndarray of float32, shape (polarisation,)
        Amplitude that becomes 1.
    task : int
        Number of the task.
    chunks : dict
        Pixels by chunk number where the plan has no reader, else empty.

    Returns
    -------
    dict
        Window index to result.
    """
    found: Results = {}
    for batch in plan.batches_of(task):
        found |= _translated(plan, divisors, batch, chunks)
    return found


def _translated(plan: Plan, divisors: FloatArray, batch: range, chunks: Chunks) -> Results:
    inputs: dict[int, tuple[FloatArray, npt.NDArray[np.bool_] | None]] = {}
    for index in batch:
        with counters.timed("read_seconds"):
            prepared = _model_input(plan, divisors, plan.lattice[index], chunks)
        if prepared is not None:
            inputs[index] = prepared
    counters.add("windows_skipped", len(batch) - len(inputs))
    if not inputs:
        return {}
    translator = plan.spec.load()
    windows = [plan.lattice[index] for index in inputs]
    stack = np.stack([sar for sar, _ in inputs.values()])
    result = translator.translate(stack, [(window.row, window.col) for window in windows])
    counters.add("windows_translated", len(inputs))
    return {
        index: WindowResult(
            result.eo[at],
            None if result.variance is None else result.variance[at],
            None if result.spread is None else result.spread[at],
            valid,
        )
        for at, (index, (_, valid)) in enumerate(inputs.items())
    }


def gather(plan: Plan, variable: str, block: Window, batches: Sequence[Results]) -> npt.NDArray[Any]:
    """Blend one block of one variable from the batches under it.

    Parameters
    ----------
    plan : Plan
        The run.
    variable : {"eo", "valid", "confidence", "spread"}
        What to gather.
    block : Window
        In the whole scene.
    batches : sequence of dict
        All that hold windows that touch the block.

    Returns
    -------
    ndarray
        eo: uint8, shape (3, rows, cols), 0 where invalid. valid: bool. confidence: float32, 1 /
        variance. spread: float32, in levels. The last two are NaN where invalid.
    """
    windows = {index: result for batch in batches for index, result in batch.items()}
    with counters.timed("blend_seconds"):
        valid = _gather_valid(plan.lattice, block, windows)
        if variable == "valid":
            return valid
        if variable == "eo":
            eo = gather_block(block, plan.lattice, 3, np.uint8, _fetch_eo(windows))
            eo *= valid
            return eo
        fetch = _fetch_variance(plan, windows) if variable == "confidence" else _fetch_spread(windows)
        field: FloatArray = gather_block(block, plan.lattice, 1, np.float32, fetch)[0]
        field[~valid] = np.nan
        return np.reciprocal(field, out=field) if variable == "confidence" else field


def _model_input(
    plan: Plan, divisors: FloatArray, window: Window, chunks: Chunks
) -> tuple[FloatArray, npt.NDArray[np.bool_] | None] | None:
    """Return a window in the model's range, shape (3, T, T), and its validity; None: no valid pixel."""
    inside = window.intersection(plan.lattice.scene)
    assert inside is not None  # noqa: S101  (a lattice has no window outside of its scene)
    values = _from_chunks(plan, inside, chunks) if plan.reader is None else plan.reader.read(inside)
    values = values[list(plan.bands)]
    valid = np.asarray(np.isfinite(values).all(axis=0))
    if not valid.any():
        return None
    whole = bool(valid.all())
    amplitude = to_amplitude(values if whole else fill_invalid(values, valid), plan.quantity)
    pad = ((0, window.height - inside.height), (0, window.width - inside.width))
    if pad != ((0, 0), (0, 0)):
        amplitude = np.pad(amplitude, ((0, 0), *pad), mode="reflect")
        valid, whole = np.pad(valid, pad), False
    sar = to_model_range(amplitude, [float(d) for d in divisors], plan.polarisations, plan.channels)
    return sar, None if whole else valid


def _from_chunks(plan: Plan, window: Window, chunks: Chunks) -> FloatArray:
    count = next(iter(chunks.values())).shape[0]
    values = np.full((count, window.height, window.width), np.nan, np.float32)
    for i, j in plan.chunks_of(window):
        top, left = plan.row_edges[i], plan.col_edges[j]
        chunk = Window(top, left, plan.row_edges[i + 1] - top, plan.col_edges[j + 1] - left)
        common = window.intersection(chunk)
        if common is not None:
            into = common.shifted(-window.row, -window.col).slices
            values[:, *into] = chunks[i, j][:, *common.shifted(-top, -left).slices]
    return values


def _gather_valid(lattice: Lattice, block: Window, windows: Results) -> npt.NDArray[np.bool_]:
    out = np.zeros((block.height, block.width), bool)
    for index in lattice.touching(block):
        common = lattice[index].intersection(block)
        if common is None or index not in windows:
            continue
        valid = windows[index].valid
        into = common.shifted(-block.row, -block.col).slices
        if valid is None:
            out[into] = True
        else:
            window = lattice[index]
            out[into] |= valid[common.shifted(-window.row, -window.col).slices]
    return out


def _fetch_eo(windows: Results) -> Any:
    return lambda index, rows, cols: windows[index].eo[:, rows, cols] if index in windows else None


def _fetch_spread(windows: Results) -> Any:
    def fetch(index: int, rows: slice, cols: slice) -> FloatArray | None:
        spread = windows[index].spread if index in windows else None
        return None if spread is None else spread[None, rows, cols]

    return fetch


def _fetch_variance(plan: Plan, windows: Results) -> Any:
    def fetch(index: int, rows: slice, cols: slice) -> FloatArray | None:
        variance = windows[index].variance if index in windows else None
        return None if variance is None else upsample(variance, plan.spec.factor, rows, cols)[None]

    return fetch


def _touched(edges: Sequence[int], start: int, stop: int) -> list[int]:
    return [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if a < stop and start < b]
