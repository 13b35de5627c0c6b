"""Results of tasks, kept as small files until a run is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sar2eo.compute.dask_run import Progress, compute_keys, report_progress
from sar2eo.store.atomic import checksum, write_file

_READERS = 4
_NAME = re.compile(r"(.+)\.([0-9a-f]{8})\.[a-z]+")


def keep_result(folder: Path, name: str, data: bytes, suffix: str = "json") -> None:
    """Write ``<name>.<checksum>.<suffix>``; a folder that is gone belongs to a run that has ended.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_file(folder / f"{name}.{checksum(data)}.{suffix}", data)


def read_result(path: Path) -> tuple[str, bytes] | None:
    """Read a file of `keep_result`: the name and the bytes; a damaged one is deleted, and None returned."""
    match = _NAME.fullmatch(path.name)
    data = path.read_bytes() if match else b""
    if match and checksum(data) == match[2]:
        return match[1], data
    # A thread of a run that was interrupted may be just renaming it.
    path.unlink(missing_ok=True)
    return None


class TaskResults:
    """Runs named tasks on Dask's active scheduler, and keeps their results as JSON.

    Parameters
    ----------
    folder : Path or None
        Existing folder that every worker sees, with the results of an earlier run; None keeps nothing.
    is_whole : callable, optional
        Whether what a kept result refers to is still there; else its task runs again.
    """

    def __init__(self, folder: Path | None, is_whole: Callable[[Any], bool] = lambda _: True) -> None:
        self._folder = None if folder is None else folder.absolute()
        self.known: dict[str, Any] = {}
        if folder is not None:
            with ThreadPoolExecutor(_READERS) as pool:
                for found in pool.map(read_result, sorted(folder.iterdir())):
                    if found and is_whole(value := json.loads(found[1])):
                        self.known[found[0]] = value

    def compute(
        self,
        tasks: Mapping[str, tuple[Any, ...]],
        shared: Mapping[str, Any] | None = None,
        *,
        progress: Progress | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Run the tasks whose results are not known yet; return the results of all, by name.

        Parameters
        ----------
        tasks : mapping
            Names to tuples of a function, which returns JSON values, and its arguments; an argument that is
            the name of a shared value stands for it.
        shared : mapping, optional
            Values that are sent to each worker once.
        progress : callable, optional
            Called about once a second with `counts` and the counters of all workers.
        counts : mapping, optional
            Totals, by name.
        """
        # Keys are tuples: Dask takes an argument that equals a key for the key's result.
        graph = {
            ("result", name): (_run, self._folder, name, *task)
            for name, task in tasks.items()
            if name not in self.known
        }
        if graph:
            with report_progress(progress, counts or {}):
                values = compute_keys({**(shared or {}), **graph}, list(graph))
            self.known |= {name: value for (_, name), value in zip(graph, values, strict=True)}
        return {name: self.known[name] for name in tasks}


def _run(folder: Path | None, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    value = function(*arguments)
    if folder is not None:
        keep_result(folder, name, json.dumps(value, separators=(",", ":")).encode())
    return value
