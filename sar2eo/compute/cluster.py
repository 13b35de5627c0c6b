"""Clusters: threads of this process, worker processes that are started, or a running cluster to join.

Only the command line starts clusters; the library uses whatever Dask scheduler is active. All servers bind
to the loopback interface and take only who has a certificate of this run: whoever can connect runs code here.
There are no pages to look at.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sar2eo.compute.device import resolve_device
from sar2eo.errors import ClusterError, Sar2eoWarning, SettingsError

# Beside the one thread that is inside the model, others read ahead and write behind.
_THREADS_PER_WORKER = 3
_JOIN_SECONDS = 15
# A row of a scene's blocks; more fills up with the size of the scene, and is no faster.
GDAL_CACHE_MB = 32


def available_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_worker(workers: int, scheduler: str | None = None) -> int:
    """Return the torch threads of each worker process: the cores of its machine, shared out.

    Parameters
    ----------
    workers : int
        Processes on this machine; 0: this one.
    scheduler : str, optional
        If given, the smallest share of the joined cluster's machines is returned.
    """
    if scheduler is None:
        return max(1, available_cores() // max(1, workers))
    from distributed import get_client

    cores: dict[str, int] = get_client().run(available_cores)
    hosts = [worker.rsplit(":", 1)[0] for worker in cores]
    shares = [count // hosts.count(worker.rsplit(":", 1)[0]) for worker, count in cores.items()]
    return max(1, min(shares))


@contextmanager
def connect_cluster(*, workers: int = 0, scheduler: str | None = None) -> Iterator[None]:
    """Start workers, or join a cluster, and make it Dask's active scheduler while the block runs.

    Parameters
    ----------
    workers : int
        Worker processes to start on this machine; 0 uses threads of this process.
    scheduler : str, optional
        Address of a running cluster to join instead, as in ``tcp://10.0.0.1:8786``.

    Raises
    ------
    SettingsError
        If both are asked for, or a negative number of workers.
    ClusterError
        If a cluster cannot be reached, has no workers, or does not run this version of the package.
    """
    if workers < 0 or (workers and scheduler):
        raise SettingsError(f"workers={workers}, scheduler={scheduler}: give one of them, workers from 0 on")
    # GDAL's own default is a share of all memory, which each process would take for itself.
    os.environ.setdefault("GDAL_CACHEMAX", str(GDAL_CACHE_MB))
    if scheduler is not None:
        with _join(scheduler):
            yield
    elif workers:
        with _start(workers):
            yield
    else:
        import dask
        from dask.threaded import get

        # Given by its name, Dask would import distributed to look for it: a sixth of a second.
        with dask.config.set(scheduler=get, num_workers=max(_THREADS_PER_WORKER, available_cores())):
            yield


@contextmanager
def _start(workers: int) -> Iterator[None]:
    import dask
    from distributed import Client, LocalCluster, Security

    threads = str(threads_per_worker(workers))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    environment["GDAL_CACHEMAX"] = os.environ["GDAL_CACHEMAX"]
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        # Dask's limit counts what torch holds as leaked and would pause or kill the worker.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.nanny.http.routes": [],
        # Ctrl-C reaches every process of a terminal; the driver alone is to stop the run.
        "distributed.worker.preload": ["import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"],
    }
    with (
        _restore_environment(environment),  # a nanny sets them in this process, too
        dask.config.set(settings),
        _silence_asyncio(),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=_THREADS_PER_WORKER,
            memory_limit=0,
            dashboard_address=None,
            # A server without pages listens all the same, by default on a port that others may have.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            host="127.0.0.1",
            security=Security.temporary(),
            silence_logs="CRITICAL",  # a worker that dies is reported by our own warning
        ) as cluster,
        Client(cluster),
    ):
        yield


@contextmanager
def _restore_environment(names: Iterable[str]) -> Iterator[None]:
    """Reset environment variables afterwards."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ |= before


@contextmanager
def _silence_asyncio() -> Iterator[None]:
    """Hide what an interrupted client's tasks log, which says nothing to the user."""
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _join(address: str) -> Iterator[None]:
    from distributed import Client

    try:
        # A client that fails to start restores, when it is collected, the scheduler it found; one that is not
        # to be the default touches nothing.
        with Client(address, timeout=_JOIN_SECONDS, set_as_default=False):
            pass
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"--scheduler {address}: cannot be reached: is it tcp://HOST:PORT?") from error
    if not address.startswith("tls://"):
        warnings.warn(
            f"--scheduler {address}: without TLS, whoever reaches the cluster can run code on it and here",
            Sar2eoWarning,
            stacklevel=3,
        )
    with Client(address, timeout=_JOIN_SECONDS) as client:
        _check_versions(client, address)
        yield


def _check_versions(client: Any, address: str) -> None:
    """Refuse a cluster without workers, which would wait for ever, or of another version."""
    from sar2eo._version import __version__

    if not client.scheduler_info()["workers"]:
        raise ClusterError(
            f"--scheduler {address}: the cluster has no workers yet: start some, then run again"
        )
    # A function of this package could not be loaded on a worker that lacks it.
    found = client.run(resolve_name, "sar2eo._version:__version__", on_error="return")
    for worker, version in found.items():
        if version != __version__:
            has = f"sar2eo {version}" if isinstance(version, str) else "no sar2eo that it can import"
            raise ClusterError(f"worker {worker} has {has}, this is {__version__}: install the same on all")


def check_workers(*, paths: Sequence[Path], device: str) -> None:
    """Raise `ClusterError` where a worker of the joined cluster lacks one of these files, or the device."""
    from distributed import get_client

    client = get_client()
    for path in paths:
        blind = [worker for worker, sees in client.run(os.path.exists, str(path)).items() if not sees]
        if blind:
            raise ClusterError(
                f"worker {blind[0]} does not see {path}: scenes, models and outputs need a place "
                "that all share"
            )
    for worker, found in client.run(resolve_device, device, on_error="return").items():
        if isinstance(found, Exception):
            raise ClusterError(f"worker {worker} lacks what the run needs: {found}")
