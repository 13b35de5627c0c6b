"""The lattice of chip cells."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.geo.chip_lattice import Cell, cell_boxes, corners_lonlat, list_cells, name_lattice
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window

CRS = "EPSG:32611"


def grid_at(left: float, top: float, shape: tuple[int, int], pixel: float = 10.0) -> Grid:
    """A north-up grid by its upper left corner in pixels of the CRS, y counted downwards."""
    return Grid(CRS, (pixel, 0.0, left * pixel, 0.0, -pixel, -top * pixel), shape)


@given(
    top=st.integers(-400_000, 400_000),
    left=st.integers(-400_000, 400_000),
    part=st.tuples(st.floats(-0.49, 0.49), st.floats(-0.49, 0.49)),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    size=st.integers(16, 64),
    stride=st.integers(1, 90),
)
def test_cells_are_the_ground_lattice_cut_to_the_scene(top, left, part, shape, size, stride):
    """The oracle walks over all pixels of an unshifted grid and asks which are corners of the lattice."""
    found = list_cells(grid_at(left + part[1], top + part[0], shape), size=size, stride=stride)
    rows = [r for r in range(shape[0] - size + 1) if (top + r) % stride == 0]
    cols = [c for c in range(shape[1] - size + 1) if (left + c) % stride == 0]
    expected = [Cell((top + r) // stride, (left + c) // stride, r, c) for r in rows for c in cols]
    assert found == expected


@given(shift=st.tuples(st.integers(-70, 70), st.integers(-70, 70)), off=st.floats(-0.4, 0.4))
def test_overlapping_scenes_have_the_same_cells(shift, off):
    one, other = (
        grid_at(5000, 7000, (200, 220)),
        grid_at(5000 + shift[1] + off, 7000 + shift[0] + off, (200, 220)),
    )
    places = {(cell.i, cell.j): (cell.row, cell.col) for cell in list_cells(one, size=32, stride=32)}
    shared = [cell for cell in list_cells(other, size=32, stride=32) if (cell.i, cell.j) in places]
    assert shared
    for cell in shared:
        row, col = places[cell.i, cell.j]
        # The same ground, to the nearest pixel.
        assert (cell.row + shift[0], cell.col + shift[1]) == (row, col)
    assert name_lattice(one) == name_lattice(other)
    assert name_lattice(one) != name_lattice(grid_at(5000, 7000, (200, 220), pixel=10.5))


def test_cells_without_enough_of_the_outline_are_not_tried():
    grid = grid_at(0, 0, (96, 96))
    # Of the second column of cells, 30 % lies in the outline; of the third, nothing.
    within = shapely.box(0, -960, 10 * (32 + 0.3 * 32), 0)

    def tried(min_valid: float) -> list[int]:
        cells = list_cells(grid, size=32, stride=32, within=within, min_valid=min_valid)
        return sorted({cell.j for cell in cells})

    assert tried(0.0) == [0, 1]
    assert tried(0.5) == [0, 1]
    assert tried(0.7) == [0]
    hole = within.difference(shapely.box(0, -330, 330, -310))
    assert len(list_cells(grid, size=32, stride=32, within=hole, min_valid=0.9)) == 3


def test_a_cell_has_its_window_box_and_corners():
    grid = grid_at(50_000, -400_000, (64, 64))
    cell = Cell(-12500, 1563, 7, 9)
    assert cell.window(32) == Window(7, 9, 32, 32)
    (box,) = cell_boxes([cell], grid, 32)
    assert box.bounds == grid.crop(cell.window(32)).bounds
    transform = np.array([grid.crop(cell.window(32)).transform])
    corners = corners_lonlat(CRS, transform, (32, 32))
    assert corners.shape == (1, 4, 2)
    ring = shapely.Polygon(corners[0])
    assert ring.exterior.is_ccw
    # 320 m a side, at 36 degrees north.
    degree_m = 111_320 * np.cos(np.radians(36.1))
    assert ring.bounds[2] - ring.bounds[0] == pytest.approx(320 / degree_m, rel=0.03)
    assert ring.bounds[3] - ring.bounds[1] == pytest.approx(320 / 111_000, rel=0.03)


def test_a_scene_smaller_than_a_cell_has_none():
    assert list_cells(grid_at(0, 0, (40, 40)), size=41, stride=1) == []
