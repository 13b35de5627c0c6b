"""Pacing changes the order of a graph, and never what it computes."""

from pathlib import Path

import dask
import dask.local
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import amplitude, write_scene

import sar2eo
from sar2eo.compute.dask_run import pace
from sar2eo.translation import dataset


def is_batch(key: object) -> bool:
    return isinstance(key, tuple) and key[0] == "batch"


def example(count: int, reach: int) -> tuple[dict[object, object], list[str]]:
    """Batches in a row; each store adds up its own and the next ones, through a task between."""
    graph: dict[object, object] = {("batch", k): (lambda number: number, k) for k in range(count)}
    stores = []
    for k in range(count):
        near = [("batch", n) for n in range(k, min(k + reach, count))]
        graph[f"gather-{k}"] = (sum, near)
        graph[f"store-{k}"] = (lambda value: value * 10, f"gather-{k}")
        stores.append(f"store-{k}")
    return graph, stores


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 5))
def test_the_results_stay(count: int, reach: int, lead: int) -> None:
    graph, stores = example(count, reach)
    expected = dask.local.get_sync(graph, stores)
    assert dask.local.get_sync(pace(graph, stores, is_batch, lead), stores) == expected


@given(st.integers(2, 30), st.integers(1, 4), st.integers(1, 5))
def test_a_batch_follows_every_store_that_was_due_a_lead_earlier(count: int, reach: int, lead: int) -> None:
    graph, stores = example(count, reach)
    order = dask.order.order(pace(graph, stores, is_batch, lead))
    for k in range(count):
        due = min(k + reach, count) - 1
        for later in range(due + lead, count):
            assert order[f"store-{k}"] < order["batch", later]


def test_windows_in_flight_do_not_grow_with_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a scene of 40 rows of windows, at most a few rows and the lead are alive at any time."""
    alive, most = set(), []
    original = dataset.translate_batches

    def watched(*args: object) -> object:
        result = Watched(original(*args))
        alive.add(id(result))
        most.append(len(alive))
        result.seen = alive
        return result

    class Watched(dict):
        seen: set[int]

        def __del__(self) -> None:
            self.seen.discard(id(self))

    monkeypatch.setattr(dataset, "translate_batches", watched)
    scene = sar2eo.open_scene(write_scene(tmp_path / "scene.tif", amplitude((1960, 200), 1)))
    options = {"tile": 64, "overlap": 16, "batch": 1, "scaling": (255.0,), "block": (64, 128)}
    sar2eo.write_cog(sar2eo.translate(scene, "identity", **options), tmp_path / "eo.tif")
    assert len(most) == 41 * 4
    # A window is done with when the last block that it reaches into is stored, and that is due with a window
    # that is ten later: two rows below, two columns on. 16 run ahead, and four threads let go a little later.
    assert max(most) <= 10 + 16 + 4  # 164 without pacing
