"""Blocks of remote rasters: what they are joined to equals the whole, and each is read once."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.geo.windows import Window
from sar2eo.scenes import raster
from sar2eo.scenes.raster import read_blocks

Case = tuple[tuple[int, int], tuple[int, int], list[Window]]


class Source:
    """A raster of numbers with a mask, and what was read of it."""

    def __init__(self, shape: tuple[int, int], pause: float = 0.0) -> None:
        self.values = np.arange(2 * shape[0] * shape[1], dtype=np.uint16).reshape(2, *shape)
        self.mask = self.values[:1] % 3 == 0
        self.read_counts = np.zeros(shape, int)
        self.calls = 0
        self.pause = pause

    def __call__(self, window: Window) -> tuple[np.ndarray, ...]:
        time.sleep(self.pause)
        self.calls += 1
        self.read_counts[window.slices] += 1
        rows, cols = window.slices
        return self.values[:, rows, cols], self.mask[:, rows, cols]


def check(source: Source, window: Window, block_shape: tuple[int, int]) -> None:
    values, mask = read_blocks(source, window, source.values.shape[1:], block_shape, source)
    rows, cols = window.slices
    np.testing.assert_array_equal(values, source.values[:, rows, cols])
    np.testing.assert_array_equal(mask, source.mask[:, rows, cols])
    assert (values.dtype, mask.dtype) == (np.uint16, bool)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    block_shape = draw(st.integers(1, 50)), draw(st.integers(1, 50))

    def window() -> Window:
        row, col = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        return Window(row, col, draw(st.integers(1, shape[0] - row)), draw(st.integers(1, shape[1] - col)))

    return shape, block_shape, [window() for _ in range(draw(st.integers(1, 5)))]


@given(cases())
def test_windows_equal_the_whole_and_no_pixel_is_read_twice(case: Case) -> None:
    shape, block_shape, asked = case
    source = Source(shape)
    for window in asked:
        check(source, window, block_shape)
    assert source.read_counts.max() == 1


def test_what_is_not_known_is_one_call_and_around_a_corner_that_is_known_two() -> None:
    source = Source((40, 40))
    check(source, Window(0, 0, 10, 10), (10, 10))
    assert source.calls == 1
    check(source, Window(5, 5, 30, 30), (10, 10))
    assert source.calls == 3
    check(source, Window(0, 0, 40, 40), (10, 10))
    assert source.read_counts.max() == 1


def test_threads_wait_for_each_other_instead_of_reading_twice() -> None:
    source = Source((64, 64), pause=0.05)
    asked = [Window(row, 0, 40, 64) for row in (0, 8, 16, 24)]
    threads = [threading.Thread(target=check, args=(source, window, (16, 16))) for window in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.read_counts.max() == 1
    assert source.read_counts.min() == 1


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "CACHE_BYTES", 10_000)
    source = Source((64, 64))
    for _ in range(2):
        check(source, Window(0, 0, 64, 64), (16, 16))
    kept = sum(plane.nbytes for planes in raster._kept.values() for plane in planes)
    assert 5_000 < kept <= 10_000
    assert source.read_counts.max() == 2
