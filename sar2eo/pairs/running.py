"""Tasks whose results are kept: what was done by an earlier run is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sar2eo.computing import Progress, compute_keys, reporting
from sar2eo.pairs.planning import Meeting, Scenes
from sar2eo.pairs.work import PartStore

__all__ = ["Runner"]


class Runner:
    """Runs named tasks on Dask's scheduler in force; a task keeps its result in the store by itself.

    Parameters
    ----------
    store : PartStore
        Of results.
    progress : callable or None
        Called about once a second with counters.
    """

    def __init__(self, store: PartStore, progress: Progress | None) -> None:
        self.store, self.progress = store, progress
        self.known = store.load()
        self._scenes: dict[str, Any] = {}

    def share(self, found: Sequence[Meeting], scenes: Scenes) -> None:
        """Let tasks name scenes by `Meeting.sar_key` and `eo_key`, so that each is sent to a worker once."""
        for each in found:
            self._scenes |= {each.sar_key: scenes.sar[each.sar], each.eo_key: scenes.eo[each.eo]}

    def compute(
        self,
        tasks: Mapping[str, tuple[Any, ...]],
        shared: Mapping[str, Any] | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Run the tasks whose results are not known yet.

        Parameters
        ----------
        tasks : mapping
            Names to tuples of a function and its arguments, which may be names of what is shared.
        shared : mapping, optional
            Further values that tasks may name.
        counts : mapping, optional
            Totals to tell together with counters; without it, nothing is told.

        Returns
        -------
        dict
            Results of all tasks, by name.
        """
        todo = {name: task for name, task in tasks.items() if name not in self.known}
        if todo:
            # Keys are no names: Dask takes an argument that equals a key for the key's result.
            graph = {("part", name): task for name, task in todo.items()}
            with reporting(None if counts is None else self.progress, counts or {}):
                values = compute_keys({**self._scenes, **(shared or {}), **graph}, list(graph))
            self.known |= zip(todo, values, strict=True)
        return {name: self.known[name] for name in tasks}
