"""Order for a graph whose results are stored: read ahead by so much, and no more.

Dask decides by itself what to run next, and may translate windows all over a scene before it stores a
block; what waits for its neighbours then grows with the scene. Here a batch waits, without using its
result, for a gate: a task that does nothing, once all blocks that were due some batches earlier are
stored. That holds on every scheduler, and so memory is flat: about one row of the lattice and the lead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dask.core import get_dependencies

__all__ = ["paced"]

Graph = dict[Any, Any]


def paced(
    graph: Mapping[Any, Any], stores: Sequence[Any], is_batch: Callable[[Any], bool], lead: int
) -> Graph:
    """Let batches wait for blocks that were due `lead` batches earlier.

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
        The same graph with more dependencies: none points forward, so there is no cycle.
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
    """Return the batches that a task needs, looking through whatever lies between."""
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
