"""Laws of the lattice: cover everything, stay in place, never move for a region."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import lattices

from sar2eo.errors import SettingsError
from sar2eo.geo.windows import Lattice, Window, axis_origins


@given(lattices())
def test_windows_cover_every_pixel_and_start_on_the_factor(lattice: Lattice) -> None:
    rows, cols = lattice.shape
    covered = np.zeros((rows + lattice.tile, cols + lattice.tile), bool)
    for window in lattice:
        assert window.row % lattice.factor == 0
        assert window.col % lattice.factor == 0
        covered[window.slices] = True
    assert covered[:rows, :cols].all()


@given(lattices())
def test_only_the_last_window_reaches_past_the_edge_and_by_less_than_the_factor(lattice: Lattice) -> None:
    for size, origins in zip(lattice.shape, (lattice.rows, lattice.cols), strict=True):
        assert origins[0] == 0
        assert all(a < b for a, b in itertools.pairwise(origins))
        assert all(origin + lattice.tile <= size for origin in origins[:-1])
        past = origins[-1] + lattice.tile - size
        assert 0 <= past < lattice.factor or (len(origins) == 1 and past == lattice.tile - size)


@given(lattices())
def test_neighbours_share_at_least_the_overlap(lattice: Lattice) -> None:
    for origins in (lattice.rows, lattice.cols):
        steps = [b - a for a, b in itertools.pairwise(origins)]
        assert all(step <= lattice.tile - lattice.overlap for step in steps)
        assert all(step == lattice.tile - lattice.overlap for step in steps[:-1])


@given(lattices(), st.data())
def test_touching_agrees_with_intersecting_each_window(lattice: Lattice, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, lattice.shape[0] - 1))
    col = data.draw(st.integers(0, lattice.shape[1] - 1))
    region = Window(row, col, data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60)))
    expected = [i for i, window in enumerate(lattice) if window.intersection(region)]
    assert lattice.touching(region) == expected


@given(lattices(), st.integers(1, 9))
def test_batches_partition_the_windows_in_order(lattice: Lattice, size: int) -> None:
    together = [i for k in range(-(-len(lattice) // size)) for i in lattice.batch(k, size)]
    assert together == list(range(len(lattice)))


@given(
    st.builds(Window, *[st.integers(-40, 40)] * 2, *[st.integers(1, 40)] * 2),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_tiles_partition_a_window(window: Window, height: int, width: int) -> None:
    tiles = list(window.tiles(height, width))
    covered = np.zeros((window.height, window.width), int)
    for tile in tiles:
        assert 0 < tile.height <= height
        assert 0 < tile.width <= width
        assert tile.intersection(window) == tile
        covered[tile.shifted(-window.row, -window.col).slices] += 1
    assert (covered == 1).all()
    assert tiles == sorted(tiles)
    assert tiles[0][:2] == window[:2]


def test_origins_by_hand() -> None:
    assert axis_origins(1000, 512, 64, 8) == (0, 448, 488)
    assert axis_origins(1001, 512, 64, 8) == (0, 448, 496)
    assert axis_origins(512, 512, 64, 8) == (0,)
    assert axis_origins(100, 512, 64, 8) == (0,)
    assert axis_origins(960, 512, 64, 8) == (0, 448)


@pytest.mark.parametrize(
    ("tile", "overlap", "factor", "word"),
    [
        (500, 64, 8, "tile"),
        (512, 60, 8, "overlap"),
        (512, 264, 8, "overlap"),
        (0, 0, 8, "tile"),
        (512, -8, 8, "overlap"),
    ],
)
def test_sizes_that_do_not_fit_the_factor_are_refused(
    tile: int, overlap: int, factor: int, word: str
) -> None:
    with pytest.raises(SettingsError, match=word):
        Lattice((100, 100), tile, overlap, factor)


def test_windows_outside_of_the_lattice_do_not_exist() -> None:
    with pytest.raises(IndexError):
        Lattice((100, 100), 64, 0)[4]
