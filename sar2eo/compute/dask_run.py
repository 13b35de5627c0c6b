"""Run graphs on Dask's active scheduler, count what is done, report progress, and notice lost workers.

The caller chooses the scheduler: threads of this process, or the cluster of an active client.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dask.array as da
import dask.config
from dask.base import compute_as_if_collection, get_scheduler
from dask.core import get_dependencies

from sar2eo.errors import ClusterError, Sar2eoWarning

Progress = Callable[[Mapping[str, float]], None]

_PROGRESS_SECONDS = 1.0
_WATCH_SECONDS = 0.5
_LONELY_SECONDS = 60.0
# A graph of 100,000 windows weighs 14 MB, all of it tasks: Dask's advice against data in graphs is no help.
_GRAPH_LIMIT = {"distributed.admin.large-graph-warning-threshold": "1GB"}


class WorkerLostError(Exception):
    """A worker of the cluster died, or left, while a graph ran."""


def compute_keys(graph: Mapping[Any, Any], keys: list[Any], *, stop_on_loss: bool = False) -> list[Any]:
    """Run a graph on Dask's active scheduler; return the values of some keys, in order.

    Parameters
    ----------
    stop_on_loss : bool, optional (default: False)
        Raise `WorkerLostError` when a worker is lost, for a caller that knows better than Dask what must run
        again: Dask runs again all tasks whose results the worker held, also those that were run for their
        effect.

    Raises
    ------
    ClusterError
        If a cluster has had no workers for a minute, or workers died at one task.
    """
    client = active_client()
    if client is None:
        return list(compute_as_if_collection(da.Array, graph, keys))
    from distributed import CancelledError, KilledWorker

    there = set(client.nthreads())
    with dask.config.set(_GRAPH_LIMIT):
        futures = client.get(graph, keys, sync=False)
    stop = threading.Event()
    reasons: list[Exception] = []

    def watch() -> None:
        lonely = 0.0
        while not stop.wait(_WATCH_SECONDS):
            now = set(client.nthreads())
            lonely = 0.0 if now else lonely + _WATCH_SECONDS
            if lonely >= _LONELY_SECONDS:
                reasons.append(
                    ClusterError(
                        f"the cluster has had no workers for {_LONELY_SECONDS:.0f} s: start some, then run "
                        "the same command again to go on"
                    )
                )
            elif stop_on_loss and now and there - now:
                reasons.append(WorkerLostError(", ".join(sorted(there - now))))
            there.update(now)
            if reasons:
                # Not cancelled: the scheduler fails to cancel gates, whose values are not held.
                for future in futures:
                    future.release()
                return

    thread = threading.Thread(target=watch, name="sar2eo-watch", daemon=True)
    thread.start()
    try:
        return list(client.gather(futures))
    except CancelledError as error:
        if reasons:
            raise reasons[0] from error
        raise
    except KilledWorker as error:
        raise ClusterError(
            f"workers died {error.allowed_failures + 1} times at one task (out of memory?): see their logs, "
            "then run the same command again to go on"
        ) from error
    finally:
        stop.set()
        thread.join()


_counts: Counter[str] = Counter()
_lock = threading.Lock()


def add_count(name: str, amount: float) -> None:
    """Add to a counter of what this process has done: tiles, blocks, or seconds by kind of work."""
    with _lock:
        _counts[name] += amount  # type: ignore[assignment]


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the wall seconds of a block, summed over threads, to a counter."""
    start = time.perf_counter()
    try:
        yield
    finally:
        add_count(name, time.perf_counter() - start)


def _clear_counts() -> None:
    with _lock:
        _counts.clear()


def reset_telemetry() -> None:
    """Set the counters to zero, in this process and on the workers of an active client."""
    _clear_counts()
    client = active_client()
    if client is not None:
        client.run(_clear_counts, on_error="ignore")


def collect_telemetry() -> dict[str, float]:
    """Sum the counters of this process and of all workers; of peak memory, the largest process."""
    snapshots = dict([_process_snapshot()])  # a worker may be this process itself
    client = active_client()
    if client is not None:
        # A worker may be lost while it is asked; its counts then are, too.
        found = client.run(_process_snapshot, on_error="ignore")
        snapshots |= dict(filter(None, found.values()))
    total: Counter[str] = Counter()
    for snapshot in snapshots.values():
        total.update(snapshot)
    peak = max(snapshot["peak_rss_bytes"] for snapshot in snapshots.values())
    return {**total, "peak_rss_bytes": peak}


@contextmanager
def report_progress(progress: Progress | None, counts: Mapping[str, float]) -> Iterator[None]:
    """Call `progress` with the counters about once a second while the block runs, and once after."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def report() -> None:
        try:
            progress({**counts, **collect_telemetry()})
        except Exception as error:
            # Hours of work must not fail because of a progress line.
            warnings.warn(f"progress is not reported any more: {error}", Sar2eoWarning, stacklevel=2)
            stop.set()

    def report_often() -> None:
        while not stop.wait(_PROGRESS_SECONDS):
            report()

    thread = threading.Thread(target=report_often, name="sar2eo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended = stop.is_set()
        stop.set()
        thread.join()
        if not ended:
            report()


def active_client() -> Any:
    """Return the client that Dask would use now; distributed is not imported for it."""
    if "distributed" not in sys.modules:
        return None
    client = getattr(get_scheduler(cls=da.Array), "__self__", None)
    return client if isinstance(client, sys.modules["distributed"].Client) else None


def peak_rss_bytes() -> float:
    """Return the most memory that this process has held, in bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(found * (1 if sys.platform == "darwin" else 1024))  # kilobytes on Linux, bytes on macOS


def _process_snapshot() -> tuple[tuple[str, int], dict[str, float]]:
    """Return which process of which machine this is, and its counters."""
    with _lock:
        counts = dict(_counts)
    return (socket.gethostname(), os.getpid()), {**counts, "peak_rss_bytes": peak_rss_bytes()}


Graph = dict[Any, Any]


def pace(
    graph: Mapping[Any, Any], stores: Sequence[Any], is_batch: Callable[[Any], bool], lead: int
) -> Graph:
    """Let batches wait for blocks that were due `lead` batches earlier, so that memory stays bounded.

    Parameters
    ----------
    graph : mapping
        Keys to tasks; batches are plain tuples.
    stores : sequence of key
        Tasks that store a block.
    is_batch : callable
        Whether a key is a batch's: a pair of a name and a number.
    lead : int
        Batches that may run ahead of the last block they complete, at least 1.

    Returns
    -------
    dict
        The same graph with more dependencies, all of which point backward: there is no cycle.
    """
    result = dict(graph)
    batches = sorted(key for key in result if is_batch(key))
    position = {key: number for number, key in enumerate(batches)}
    due: dict[int, list[Any]] = {}
    for store in stores:
        under = _batches_under(result, store, position)
        due.setdefault(max((position[key] for key in under), default=0), []).append(store)
    gate: Any = None
    for turn, key in enumerate(batches):
        if turn - lead in due:
            earlier = due[turn - lead] if gate is None else [gate, *due[turn - lead]]
            gate = (f"gate-{key[0]}", turn)
            result[gate] = (_gate, earlier)
        if gate is not None:
            result[key] = (_after, gate, *result[key])
    return result


def _batches_under(graph: Graph, key: Any, position: Mapping[Any, int]) -> set[Any]:
    """Return the batches that a task needs, directly or through other tasks."""
    found: set[Any] = set()
    seen, todo = {key}, [key]
    while todo:
        for below in get_dependencies(graph, todo.pop()) - seen:
            seen.add(below)
            if below in position:
                found.add(below)
            else:
                todo.append(below)
    return found


def _gate(_: Any) -> None:
    return None


def _after(_: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
