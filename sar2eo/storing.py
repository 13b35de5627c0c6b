"""Blocks of a lazy Dataset into a journal, on Dask's scheduler in force.

Which scheduler that is, is the caller's choice: threads of this process, or the cluster of an active
client. Counters of the workers are collected from wherever they worked.
"""

from __future__ import annotations

import resource
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute_as_if_collection, get_scheduler, tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from sar2eo import telemetry
from sar2eo.errors import ClusterError, Sar2eoWarning
from sar2eo.journal import BlockWriter, Journal
from sar2eo.pacing import paced
from sar2eo.windows import Window

__all__ = ["BlockStore", "Progress", "collect_telemetry", "reporting", "reset_telemetry"]

Progress = Callable[[Mapping[str, float]], None]

_PROGRESS_SECONDS = 1.0
_WATCH_SECONDS = 2.0
_LONELY_SECONDS = 60.0


class BlockStore:
    """The last layer of the graph: each block of every variable, into the journal.

    Parameters
    ----------
    dataset : Dataset
        With ``eo`` (band, y, x) uint8 and, where it has them, ``valid`` and the further `variables`.
    variables : tuple of str
        What is written, "eo" first.
    """

    def __init__(self, dataset: xr.Dataset, variables: tuple[str, ...]) -> None:
        eo = dataset["eo"].transpose("band", "y", "x").chunk(band=-1)
        rows, cols = eo.data.chunks[1:]
        self.variables = variables
        self.arrays: dict[str, da.Array] = {"eo": eo.data}
        for name in ("valid", *variables[1:]):
            if name in dataset:
                self.arrays[name] = dataset[name].chunk(y=rows, x=cols).data
        self.scaling = dataset["amplitude_divisor"].data if "amplitude_divisor" in dataset else None
        tops, lefts = np.cumsum((0, *rows)).tolist(), np.cumsum((0, *cols)).tolist()
        self._places = {
            Window(tops[i], lefts[j], height, width): (i, j)
            for i, height in enumerate(rows)
            for j, width in enumerate(cols)
        }

    @property
    def windows(self) -> list[Window]:
        """All blocks, in the Dataset's own frame."""
        return list(self._places)

    def keys(self, windows: Sequence[Window]) -> list[Any]:
        """Return the keys of the EO image's chunks under some blocks."""
        return [(self.arrays["eo"].name, 0, *self._places[window]) for window in windows]

    def finished(self, journal: Journal) -> set[Window]:
        """Return the blocks of which the journal holds every variable, whole."""
        done = set(self.windows)
        for variable in self.variables:
            done &= journal.finished(variable, self.windows)
        return done

    def run(
        self, writer: BlockWriter, pending: list[Window], divisors: npt.NDArray[np.float32] | None
    ) -> None:
        """Compute the pending blocks and write them.

        `divisors` are the values of ``amplitude_divisor``, which need not be sampled a second time.
        """
        if not pending:
            return
        name = f"store-{tokenize(writer.folder, *self.arrays.values())}"
        layer: dict[Any, Any] = {}
        for window in pending:
            i, j = self._places[window]
            blocks = [
                [variable, (array.name, *(0,) * (array.ndim - 2), i, j)]
                for variable, array in self.arrays.items()
            ]
            layer[name, i, j] = (_store_block, writer, list(window), blocks)
        below: Any = list(self.arrays.values())
        graph = HighLevelGraph.from_collections(name, layer, dependencies=below)
        if isinstance(self.scaling, da.Array) and self.scaling.name in graph.layers:
            known = {(self.scaling.name, 0): divisors}
            graph = HighLevelGraph(
                {**graph.layers, self.scaling.name: MaterializedLayer(known)},
                {**graph.dependencies, self.scaling.name: set()},
            )
        keys = list(layer)
        _compute(paced(graph, keys, _is_batch, _lead()), keys)


def _store_block(writer: BlockWriter, window: list[int], blocks: list[Any]) -> None:
    arrays = dict(blocks)
    place = Window(*window)
    valid, eo = arrays.pop("valid", None), arrays.pop("eo")
    mask = np.full(eo.shape[1:], 255, np.uint8) if valid is None else valid.astype(np.uint8) * np.uint8(255)
    with telemetry.timed("journal_seconds"):
        for name, values in arrays.items():
            writer.write(name, place, values[None].astype(np.float32, copy=False))
        writer.write("eo", place, np.concatenate([eo, mask[None]]))
    telemetry.add("blocks_done", 1)


def reset_telemetry() -> None:
    """Set the counters to zero, here and on the workers of an active client."""
    telemetry.reset()
    client = _active_client()
    if client is not None:
        client.run(telemetry.reset, on_error="ignore")


def collect_telemetry() -> dict[str, float]:
    """Sum the counters of this process and of all workers; of peak memory, the largest process."""
    snapshots = [_process_snapshot()]
    client = _active_client()
    if client is not None:
        # A worker may be lost while it is asked; its counts then are, too.
        found = client.run(_process_snapshot, on_error="ignore")
        snapshots += [snapshot for snapshot in found.values() if snapshot]
    total: Counter[str] = Counter()
    for snapshot in snapshots:
        total.update(snapshot)
    peak = max(snapshot["peak_rss_bytes"] for snapshot in snapshots)
    return {**total, "peak_rss_bytes": peak}


@contextmanager
def reporting(progress: Progress | None, counts: Mapping[str, float]) -> Iterator[None]:
    """Call `progress` with the counters about once a second while the block runs, and once after."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def tell() -> None:
        try:
            progress({**counts, **collect_telemetry()})
        except Exception as error:
            # Hours of work are not to fail for the sake of a progress line.
            warnings.warn(f"progress is not reported any more: {error}", Sar2eoWarning, stacklevel=2)
            stop.set()

    def keep_telling() -> None:
        while not stop.wait(_PROGRESS_SECONDS):
            tell()

    thread = threading.Thread(target=keep_telling, name="sar2eo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended = stop.is_set()
        stop.set()
        thread.join()
        if not ended:
            tell()


def _process_snapshot() -> dict[str, float]:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**telemetry.snapshot(), "peak_rss_bytes": kilobytes * (1 if sys.platform == "darwin" else 1024)}


def _is_batch(key: Any) -> bool:
    return isinstance(key, tuple) and str(key[0]).startswith("batch-")


def _lead() -> int:
    """Batches that may run ahead: enough to keep every thread busy."""
    client = _active_client()
    return 16 if client is None else max(16, 3 * sum(client.nthreads().values()))


def _compute(graph: dict[Any, Any], keys: list[Any]) -> None:
    """Run a graph on the scheduler in force; a cluster that lost all its workers is an error."""
    client = _active_client()
    if client is None:
        compute_as_if_collection(da.Array, graph, keys)
        return
    from distributed import CancelledError

    futures = client.get(graph, keys, sync=False)
    stop, alone = threading.Event(), threading.Event()

    def watch() -> None:
        lonely = 0.0
        while not stop.wait(_WATCH_SECONDS):
            lonely = 0.0 if client.nthreads() else lonely + _WATCH_SECONDS
            if lonely >= _LONELY_SECONDS:
                alone.set()
                client.cancel(futures, force=True)
                return

    thread = threading.Thread(target=watch, name="sar2eo-watch", daemon=True)
    thread.start()
    try:
        client.gather(futures)
    except CancelledError as error:
        if alone.is_set():
            raise ClusterError(
                f"the cluster has had no workers for {_LONELY_SECONDS:.0f} s: start some, then run the same "
                "command again to go on"
            ) from error
        raise
    finally:
        stop.set()
        thread.join()


def _active_client() -> Any:
    """Return the client that Dask would use now, without importing distributed where nobody did."""
    if "distributed" not in sys.modules:
        return None
    client = getattr(get_scheduler(cls=da.Array), "__self__", None)
    return client if isinstance(client, sys.modules["distributed"].Client) else None
