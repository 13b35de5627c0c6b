"""The layers of the translation graph: keys, tasks and what depends on what.

Four layers: the plan (one key, so that it travels to a worker once), the scaling, the batches, and one
layer for each variable of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.optimization import cull

from sar2eo.errors import Sar2eoError
from sar2eo.geo.windows import Window
from sar2eo.translation.tasks import (
    Plan,
    gather,
    sample_chunk,
    scaling_from_reader,
    scaling_from_samples,
    translate_batches,
)

__all__ = ["TranslationGraph", "count_windows"]

_SAMPLED_CHUNKS = 64
_SAMPLE_SEED = 2025

Layer = dict[Any, Any]


@dataclass(frozen=True)
class TranslationGraph:
    """Builds the Dask arrays of one translation.

    Parameters
    ----------
    plan : Plan
        What every task needs to know.
    scene : DataArray
        Its chunks are read where the plan has no reader.
    scaling : tuple of float or None
        Amplitude that becomes 1, by polarisation; None: sampled from the scene, as a task.
    block : tuple of int
        Rows and columns of the result's chunks.
    token : str
        Identifies the result's pixels; part of every name.
    """

    plan: Plan
    scene: xr.DataArray
    scaling: tuple[float, ...] | None
    block: tuple[int, int]
    token: str

    def arrays(self) -> dict[str, da.Array]:
        """Return the lazy arrays: eo, valid, amplitude_divisor, and confidence and spread if asked for."""
        layers, below = self._shared_layers()
        # The scaling alone is wanted first, and must not take every window's task along.
        batch, count = self._name("batch"), len(self.plan.polarisations)
        graph = HighLevelGraph(_without(batch, layers), _without(batch, below))
        scaling = da.Array(graph, self._name("scaling"), ((count,),), dtype=np.float32)
        found = {name: self._gathered(name, dtype, layers, below) for name, dtype in self._variables()}
        return found | {"amplitude_divisor": scaling}

    def _name(self, part: str) -> str:
        return f"{part}-{self.token}"

    def _variables(self) -> list[tuple[str, npt.DTypeLike]]:
        found: list[tuple[str, npt.DTypeLike]] = [("eo", np.uint8), ("valid", np.bool_)]
        if self.plan.spec.confidence:
            found.append(("confidence", np.float32))
        if self.plan.spec.samples > 1:
            found.append(("spread", np.float32))
        return found

    def _shared_layers(self) -> tuple[dict[str, Any], dict[str, set[str]]]:
        plan, scaling, batch = self._name("plan"), self._name("scaling"), self._name("batch")
        layers: dict[str, Any] = {plan: {plan: self.plan}}
        below: dict[str, set[str]] = {plan: set()}
        source: str | None = None
        if self.plan.reader is None:
            data = self.scene.chunk().data if self.scene.chunks is None else self.scene.data
            layers |= data.dask.layers
            below |= {name: set(names) for name, names in data.dask.dependencies.items()}
            source = data.name
        read = set() if source is None else {source}
        layers[scaling], below[scaling] = self._scaling_layer(source), {plan} | read
        layers[batch], below[batch] = self._batch_layer(source), {plan, scaling} | read
        return layers, below

    def _scaling_layer(self, source: str | None) -> Layer:
        name, plan = self._name("scaling"), self._name("plan")
        if self.scaling is not None:
            return {(name, 0): np.asarray(self.scaling, np.float32)}
        if source is None:
            return {(name, 0): (_scaling_from_reader, plan, _SAMPLE_SEED)}
        shape = (len(self.plan.row_edges) - 1, len(self.plan.col_edges) - 1)
        order = np.random.Generator(np.random.Philox(_SAMPLE_SEED)).permutation(shape[0] * shape[1])
        layer: Layer = {}
        for number in map(int, order[:_SAMPLED_CHUNKS]):
            i, j = divmod(number, shape[1])
            layer[f"{name}-sample", number] = (sample_chunk, plan, (source, 0, i, j), number)
        return layer | {(name, 0): (scaling_from_samples, list(layer), len(order))}

    def _batch_layer(self, source: str | None) -> Layer:
        plan, scaling, batch = self._name("plan"), (self._name("scaling"), 0), self._name("batch")
        layer: Layer = {}
        for task in sorted(
            {self.plan.task_of(index) for index in self.plan.lattice.touching(self.plan.region)}
        ):
            chunks: set[tuple[int, int]] = set()
            if source is not None:
                windows = (self.plan.lattice[i] for part in self.plan.batches_of(task) for i in part)
                chunks = {at for window in windows for at in self.plan.chunks_of(window)}
            read = (part for i, j in sorted(chunks) for part in (i, j, (source, 0, i, j)))
            layer[batch, task] = (_translate_batches, plan, scaling, task, *read)
        return layer

    def _gathered(
        self, variable: str, dtype: npt.DTypeLike, layers: dict[str, Any], below: dict[str, set[str]]
    ) -> da.Array:
        name, region = self._name(variable), self.plan.region
        plan, batch = self._name("plan"), self._name("batch")
        rows, cols = _chunk_sizes(region.height, self.block[0]), _chunk_sizes(region.width, self.block[1])
        bands: tuple[tuple[int, ...], ...] = ((3,),) if variable == "eo" else ()
        layer: Layer = {}
        for i, height in enumerate(rows):
            for j, width in enumerate(cols):
                window = Window(region.row + i * self.block[0], region.col + j * self.block[1], height, width)
                tasks = dict.fromkeys(map(self.plan.task_of, self.plan.lattice.touching(window)))
                at = (0,) * len(bands) + (i, j)
                layer[name, *at] = (_gather, plan, variable, *window, *((batch, task) for task in tasks))
        depends = {batch, plan}
        graph = HighLevelGraph(layers | {name: layer}, below | {name: depends})
        return da.Array(graph, name, (*bands, rows, cols), dtype=dtype)


def _without(name: str, table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


def count_windows(array: da.Array, keys: list[Any] | None = None) -> int:
    """Count the windows of the batches that computing an array of a translation, or some keys, runs.

    These are all windows of every batch that is needed, so of a slice or a clipped area fewer than of
    the whole, and a few more than touch it. What was computed before needs none.
    """
    wanted = list(flatten(array.__dask_keys__())) if keys is None else keys
    # HighLevelGraph's own way of culling keeps layers of which nothing is wanted.
    graph, _ = cull(dict(array.dask), wanted)
    counted = 0
    for key in graph:
        if isinstance(key, tuple) and str(key[0]).startswith("batch-"):
            plan: Any = graph.get(key[0].replace("batch-", "plan-", 1))
            counted += sum(map(len, plan.batches_of(key[1]))) if isinstance(plan, Plan) else 0
    return counted


def _chunk_sizes(size: int, chunk: int) -> tuple[int, ...]:
    whole, rest = divmod(size, chunk)
    return (chunk,) * whole + ((rest,) if rest else ())


# Tasks are flat: Dask makes an object of every nested list, of which a large scene has a hundred thousand.


@contextmanager
def _travelling() -> Iterator[None]:
    """Free errors of their causes, whose classes may not travel between processes; the text says it all."""
    try:
        yield
    except Sar2eoError as error:
        error.__cause__ = error.__context__ = None
        raise


def _scaling_from_reader(plan: Plan, seed: int) -> Any:
    with _travelling():
        return scaling_from_reader(plan, seed)


def _translate_batches(plan: Plan, divisors: Any, task: int, *read: Any) -> Any:
    """Translate a task's windows from chunks: row, column and values of each, in turn."""
    chunks = {(i, j): values for i, j, values in zip(read[::3], read[1::3], read[2::3], strict=True)}
    with _travelling():
        return translate_batches(plan, divisors, task, chunks)


def _gather(plan: Plan, variable: str, row: int, col: int, height: int, width: int, *batches: Any) -> Any:
    return gather(plan, variable, Window(row, col, height, width), list(batches))
