"""Blending against a plain-numpy oracle, and the laws it must keep."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import lattices

from sar2eo.geo.blending import axis_weights, gather_block, upsample
from sar2eo.geo.windows import Lattice, Window


def padded(image: np.ndarray, lattice: Lattice) -> np.ndarray:
    rows = lattice.shape[0]
    return np.pad(image, ((0, 0), (0, lattice.tile + 8), (0, lattice.tile + 8)))[:, : rows + lattice.tile + 8]


def crop_fetch(image: np.ndarray, lattice: Lattice):
    whole = padded(image, lattice)
    return lambda index, rows, cols: whole[:, *lattice[index].slices][:, rows, cols]


def oracle(lattice: Lattice, windows: list[np.ndarray]) -> np.ndarray:
    """sum(w x) / sum(w) over whole windows, pixel by pixel, in float64."""
    weights = [
        np.outer(v, u)
        for v in axis_weights(lattice.rows, lattice.tile, lattice.overlap)
        for u in axis_weights(lattice.cols, lattice.tile, lattice.overlap)
    ]
    size = (lattice.rows[-1] + lattice.tile, lattice.cols[-1] + lattice.tile)
    total, weight = np.zeros((windows[0].shape[0], *size)), np.zeros(size)
    for window, w, x in zip(lattice, weights, windows, strict=True):
        total[:, *window.slices] += w * x
        weight[window.slices] += w
    return (total / weight)[:, : lattice.shape[0], : lattice.shape[1]]


@given(lattices())
def test_weights_never_vanish_together_and_do_not_taper_at_the_edge(lattice: Lattice) -> None:
    for origins in (lattice.rows, lattice.cols):
        weights = axis_weights(origins, lattice.tile, lattice.overlap)
        total = np.zeros(origins[-1] + lattice.tile)
        for origin, weight in zip(origins, weights, strict=True):
            assert (weight >= 0).all()
            total[origin : origin + lattice.tile] += weight
        assert (total > 0).all()
        assert weights[0, 0] == 1
        assert weights[-1, -1] == 1


@given(lattices(), st.integers(0, 2**32 - 1), st.data())
def test_blending_equals_the_oracle_in_every_block(lattice: Lattice, seed: int, data: st.DataObject) -> None:
    windows = list(
        np.random.default_rng(seed).random((len(lattice), 2, lattice.tile, lattice.tile), np.float32)
    )
    expected = oracle(lattice, windows)
    row, col = (data.draw(st.integers(0, n - 1)) for n in lattice.shape)
    height = data.draw(st.integers(1, lattice.shape[0] - row))
    width = data.draw(st.integers(1, lattice.shape[1] - col))
    block = Window(row, col, height, width)
    found = gather_block(block, lattice, 2, np.float32, lambda i, r, c: windows[i][:, r, c])
    np.testing.assert_allclose(found, expected[:, *block.slices], rtol=1e-5, atol=1e-6)


@given(lattices(), st.integers(0, 2**32 - 1))
def test_windows_cut_from_one_image_blend_back_to_it(lattice: Lattice, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (3, *lattice.shape), np.uint8)
    found = gather_block(lattice.scene, lattice, 3, np.uint8, crop_fetch(image, lattice))
    np.testing.assert_array_equal(found, image)


def test_crossfade_by_hand() -> None:
    weights = axis_weights((0, 6), tile=8, overlap=2)
    np.testing.assert_allclose(weights[0], [1, 1, 1, 1, 1, 1, 0.75, 0.25])
    np.testing.assert_allclose(weights[1], [0.25, 0.75, 1, 1, 1, 1, 1, 1])


def test_a_pulled_back_window_crossfades_over_the_overlap_only() -> None:
    weights = axis_weights((0, 2), tile=8, overlap=2)  # they share 6 pixels, 2 to 7; the band is 4 and 5
    np.testing.assert_allclose(weights[0], [1, 1, 1, 1, 0.75, 0.25, 0, 0])
    np.testing.assert_allclose(weights[1], [0, 0, 0.25, 0.75, 1, 1, 1, 1])


def test_a_skipped_window_counts_as_nothing() -> None:
    lattice = Lattice((8, 14), 8, 2)
    one = np.full((1, 8, 8), 100, np.uint8)
    found = gather_block(
        lattice.scene, lattice, 1, np.uint8, lambda i, r, c: one[:, r, c] if i == 0 else None
    )
    assert (found[0, :, :6] == 100).all()
    assert (found[0, :, 8:] == 0).all()


def test_upsampling_is_linear_interpolation_of_centres() -> None:
    ramp = np.array([[0, 1, 2]], np.float32)
    np.testing.assert_allclose(
        upsample(ramp, 2, slice(0, 2), slice(0, 6)), [[0, 0.25, 0.75, 1.25, 1.75, 2]] * 2
    )
    np.testing.assert_allclose(upsample(ramp.T, 2, slice(1, 4), slice(0, 1)), [[0.25], [0.75], [1.25]])
    np.testing.assert_array_equal(upsample(np.full((1, 1), 5, np.float32), 4, slice(0, 4), slice(0, 4)), 5)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 8]), st.data())
def test_a_part_of_the_upsampled_field_is_bit_equal_to_the_whole(
    h: int, w: int, factor: int, data: st.DataObject
) -> None:
    field = np.random.default_rng(h * 10 + w).random((h, w), np.float32)
    whole = upsample(field, factor, slice(0, h * factor), slice(0, w * factor))
    assert field.min() <= whole.min()
    assert whole.max() <= field.max()
    top, left = data.draw(st.integers(0, h * factor - 1)), data.draw(st.integers(0, w * factor - 1))
    rows = slice(top, data.draw(st.integers(top + 1, h * factor)))
    cols = slice(left, data.draw(st.integers(left + 1, w * factor)))
    np.testing.assert_array_equal(upsample(field, factor, rows, cols), whole[rows, cols])
