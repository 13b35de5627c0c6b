"""The tasks of a translation graph: plain functions of plain arrays.

There are three kinds: sample the amplitude of the scene for its scaling, translate batches of tiles, blend
one block. They know the translator only as a Protocol, so there is no torch here. Arguments are flat: Dask
makes an object of every nested list, of which a large scene has a hundred thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo.compute.dask_run import add_count, timed
from sar2eo.errors import RadiometryError, Sar2eoError
from sar2eo.geo.blending import gather_block, upsample
from sar2eo.geo.radiometry import (
    Channels,
    FloatArray,
    compute_percentiles,
    fill_invalid,
    reference_amplitudes,
    sample_percentiles,
    to_amplitude,
    to_model_range,
)
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import ModelSpec
from sar2eo.scenes import SceneReader

SCALING_PERCENTILE = 99.0
_BRIGHTEST = 1e3  # amplitude; 60 dB
_SAMPLES_PER_CHUNK = 2**18  # of 64 chunks: as many as `sample_percentiles` takes


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What every task of one graph needs to know.

    Parameters
    ----------
    lattice, region : Lattice, Window
        Tiles of the whole scene; the translated part of it, in pixels.
    reader : SceneReader or None
        Reads any window of the whole scene. None: pixels come from the chunks of a Dask array over
        `region`, and nothing outside of it is known.
    row_edges, col_edges : tuple of int
        Chunk borders of that Dask array, in pixels of the whole scene.
    bands, polarisations : tuple
        Indices of the scene's bands that the model takes, and their names.
    channels : tuple of tuple of str
        Polarisations that are averaged into each of the model's three channels.
    calibration, stored_as : str or None
        What decides the level besides the quantity (see `sar2eo.geo.radiometry.reference_amplitudes`).
    anchor : tuple of int, optional (default: (0, 0))
        Row and column on the map's grid of the corner that noise is counted from.
    run : int, optional (default: 1)
        Batches per task. Pixels do not depend on it.
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
    calibration: str | None
    stored_as: str | None
    spec: ModelSpec
    anchor: tuple[int, int] = (0, 0)
    run: int = 1

    def to_divisors(self, percentiles: Sequence[float]) -> FloatArray:
        """Return what amplitude is divided by, given the scene's 99th percentiles, shape (polarisation,)."""
        if self.spec.decibels:
            percentiles = reference_amplitudes(
                percentiles,
                self.polarisations,
                quantity=self.quantity,
                calibration=self.calibration,
                stored_as=self.stored_as,
            )
        return np.asarray(percentiles, np.float32)

    def task_of(self, tile: int) -> int:
        """Return the number of the task that translates a tile."""
        return tile // (self.spec.batch * self.run)

    def batches_of(self, task: int) -> list[range]:
        """Return the tiles of each batch of a task; batches without a tile in the region are left out."""
        numbers = range(task * self.run, (task + 1) * self.run)
        batches = (self.lattice.batch(number, self.spec.batch) for number in numbers)
        return [
            batch
            for batch in batches
            if any(self.lattice[tile].intersection(self.region) is not None for tile in batch)
        ]

    def chunks_of(self, window: Window) -> list[tuple[int, int]]:
        """Return row and column numbers of the chunks that share a pixel with a window."""
        rows, cols = (
            [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if a < stop and start < b]
            for edges, start, stop in (
                (self.row_edges, window.row, window.stop_row),
                (self.col_edges, window.col, window.stop_col),
            )
        )
        return [(i, j) for i in rows for j in cols]


class TileResult(NamedTuple):
    """One translated tile.

    `eo` has shape (3, T, T) and dtype uint8, `variance` (T/f, T/f) at latent resolution, `spread`
    (T, T) in levels, `valid` (T, T) bool or None where every pixel is valid.
    """

    eo: npt.NDArray[np.uint8]
    variance: FloatArray | None
    spread: FloatArray | None
    valid: npt.NDArray[np.bool_] | None


Results = dict[int, TileResult]
Chunks = dict[tuple[int, int], npt.NDArray[Any]]


@contextmanager
def _drop_causes() -> Iterator[None]:
    """Drop the causes of errors: their classes may not exist in the driver's process."""
    try:
        yield
    except Sar2eoError as error:
        error.__cause__ = error.__context__ = None
        raise


@_drop_causes()
def scale_from_reader(context: TaskContext, seed: int) -> FloatArray:
    """Return what amplitude is divided by, from a sample of the whole scene, shape (polarisation,)."""
    reader = context.reader
    assert reader is not None  # noqa: S101  (the graph builder chooses by this)

    def read(window: Window) -> FloatArray:
        return to_amplitude(reader.read(window)[list(context.bands)], context.quantity)

    with timed("scaling_seconds"):
        found = sample_percentiles(read, context.lattice.shape, percentile=SCALING_PERCENTILE, seed=seed)
    if context.quantity == "db" and max(found) > _BRIGHTEST:
        raise RadiometryError(
            f"dB values whose 99th percentile is {20 * np.log10(max(found)):.0f}, brighter than any ground: "
            "is --quantity right?"
        )
    return context.to_divisors(found)


def sample_chunk(context: TaskContext, chunk: npt.NDArray[Any], seed: int) -> FloatArray:
    """Draw pixels of one chunk, shape (polarisation, 1, sample), NaN where there is no data."""
    values = to_amplitude(chunk[list(context.bands)], context.quantity).reshape(len(context.bands), 1, -1)
    if values.shape[-1] > _SAMPLES_PER_CHUNK:
        draw = np.random.Generator(np.random.Philox(seed))
        values = values[:, :, draw.integers(0, values.shape[-1], _SAMPLES_PER_CHUNK)]
    return values


def scale_from_samples(context: TaskContext, samples: Sequence[FloatArray], chunks: int) -> FloatArray:
    """Return what amplitude is divided by, from samples of some of the chunks, shape (polarisation,)."""
    bands = ([sample[band] for sample in samples] for band in range(len(samples[0])))
    valid = [np.concatenate([part[np.isfinite(part)] for part in parts]) for parts in bands]
    if any(values.size == 0 for values in valid) and len(samples) == chunks:
        raise RadiometryError("the scene has no valid pixel: is its nodata right?")
    if any(values.size == 0 for values in valid):
        raise RadiometryError(
            f"no valid pixel in {len(samples)} sampled chunks of {chunks}: give the amplitude that becomes 1 "
            "as scaling, or make the chunks larger"
        )
    return context.to_divisors(compute_percentiles(valid, percentile=SCALING_PERCENTILE))


@_drop_causes()
def translate_batches(context: TaskContext, divisors: FloatArray, task: int, *read: Any) -> Results:
    """Translate the tiles of a task's batches that have a valid pixel.

    `divisors` are the amplitudes that become 1, float32, shape (polarisation,). `read` holds row number,
    column number and pixels of each chunk in turn, if the context has no reader.
    """
    chunks = {(i, j): values for i, j, values in zip(read[::3], read[1::3], read[2::3], strict=True)}
    results: Results = {}
    for batch in context.batches_of(task):
        inputs: dict[int, tuple[FloatArray, npt.NDArray[np.bool_] | None]] = {}
        for index in batch:
            with timed("read_seconds"):
                prepared = _read_tile(context, divisors, context.lattice[index], chunks)
            if prepared is not None:
                inputs[index] = prepared
        add_count("tiles_skipped", len(batch) - len(inputs))
        if not inputs:
            continue
        tiles = [context.lattice[index] for index in inputs]
        top, left = context.anchor
        found = load_translator(context.spec).translate(
            np.stack([sar for sar, _ in inputs.values()]),
            [(top + tile.row, left + tile.col) for tile in tiles],
        )
        add_count("tiles_translated", len(inputs))
        for at, (index, (_, valid)) in enumerate(inputs.items()):
            variance, spread = (None if part is None else part[at] for part in (found.variance, found.spread))
            results[index] = TileResult(found.eo[at], variance, spread, valid)
    return results


def _read_tile(
    context: TaskContext, divisors: FloatArray, tile: Window, chunks: Chunks
) -> tuple[FloatArray, npt.NDArray[np.bool_] | None] | None:
    """Return a tile in the model's range, shape (3, T, T), and its validity; None: no valid pixel."""
    inside = tile.intersection(context.lattice.scene)
    assert inside is not None  # noqa: S101  (a lattice has no tile outside of its scene)
    reader = context.reader
    values = _read_chunks(context, inside, chunks) if reader is None else reader.read(inside)
    values = values[list(context.bands)]
    valid = np.asarray(np.isfinite(values).all(axis=0))
    if not valid.any():
        return None
    whole = bool(valid.all())
    amplitude = to_amplitude(values if whole else fill_invalid(values, valid), context.quantity)
    pad = ((0, tile.height - inside.height), (0, tile.width - inside.width))
    if pad != ((0, 0), (0, 0)):
        amplitude = np.pad(amplitude, ((0, 0), *pad), mode="reflect")
        valid, whole = np.pad(valid, pad), False
    sar = to_model_range(
        amplitude,
        [float(d) for d in divisors],
        context.polarisations,
        context.channels,
        decibels=context.spec.decibels,
    )
    return sar, None if whole else valid


def _read_chunks(context: TaskContext, window: Window, chunks: Chunks) -> FloatArray:
    count = next(iter(chunks.values())).shape[0]
    values = np.full((count, window.height, window.width), np.nan, np.float32)
    for i, j in context.chunks_of(window):
        top, left = context.row_edges[i], context.col_edges[j]
        chunk = Window(top, left, context.row_edges[i + 1] - top, context.col_edges[j + 1] - left)
        common = window.intersection(chunk)
        if common is not None:
            into = common.shifted(-window.row, -window.col).slices
            values[:, *into] = chunks[i, j][:, *common.shifted(-top, -left).slices]
    return values


def blend_block(
    context: TaskContext, variable: str, row: int, col: int, height: int, width: int, *batches: Results
) -> npt.NDArray[Any]:
    """Blend one block of one variable from the tiles under it, given by the results of their batches.

    The block is in pixels of the whole scene. "eo" is uint8, shape (3, height, width), 0 where invalid;
    "valid" is bool; "confidence" (1 / variance) and "spread" (in levels) are float32, NaN where invalid.
    """
    block = Window(row, col, height, width)
    lattice = context.lattice
    results = {index: result for batch in batches for index, result in batch.items()}

    def fetch(index: int, rows: slice, cols: slice) -> npt.NDArray[Any] | None:
        result = results.get(index)
        if result is None:
            return None
        if variable == "eo":
            return result.eo[:, rows, cols]
        if variable == "spread":
            return None if result.spread is None else result.spread[None, rows, cols]
        latent = result.variance
        return None if latent is None else upsample(latent, context.spec.factor, rows, cols)[None]

    with timed("blend_seconds"):
        valid = np.zeros((height, width), bool)
        for index in lattice.touching(block):
            if index in results:
                tile, found = lattice[index], results[index].valid
                common = tile.intersection(block)
                assert common is not None  # noqa: S101  (they touch)
                into = common.shifted(-row, -col).slices
                valid[into] |= True if found is None else found[common.shifted(-tile.row, -tile.col).slices]
        if variable == "valid":
            return valid
        if variable == "eo":
            eo = gather_block(block, lattice, 3, np.uint8, fetch)
            eo *= valid
            return eo
        field: FloatArray = gather_block(block, lattice, 1, np.float32, fetch)[0]
        field[~valid] = np.nan
        return np.reciprocal(field, out=field) if variable == "confidence" else field
