"""Crops looked for in the truth, against plain loops, and against a script on real images."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.ndimage import gaussian_filter, shift, sobel

from sar2eo.evaluation.crop_search import (
    describe_orientations,
    find_crop,
    is_found,
    measure_offsets,
    to_grey,
)


def picture(rows: int, cols: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(rows, cols))
    smooth = gaussian_filter(noise, 2, mode="wrap")
    return np.asarray(128 + 40 * smooth / smooth.std(), np.float32)


def describe_by_loops(grey: np.ndarray) -> np.ndarray:
    smooth = gaussian_filter(grey.astype(np.float64), 1.5)
    down, right = sobel(smooth, 0), sobel(smooth, 1)
    bins = np.zeros((8, *grey.shape))
    for row, col in np.ndindex(*grey.shape):
        angle = np.arctan2(down[row, col], right[row, col]) % np.pi / np.pi * 8
        lower, share = int(angle), angle - int(angle)
        length = np.hypot(down[row, col], right[row, col])
        bins[lower % 8, row, col] += length * (1 - share)
        bins[(lower + 1) % 8, row, col] += length * share
    pooled = np.stack([gaussian_filter(part, 2) for part in bins])
    return pooled / (np.sqrt((pooled**2).sum(0)) + 0.01 * np.hypot(down, right).mean() + 1e-6)


def find_by_loops(prediction: np.ndarray, truth: np.ndarray) -> list[tuple[int, int]]:
    (height, width), (top, left) = ([side // part for side in truth.shape] for part in (2, 4))
    inside = np.s_[..., top : top + height, left : left + width]
    channels = describe_by_loops(prediction)[inside], describe_by_loops(truth)
    greys = gaussian_filter(prediction[inside], 1.5), gaussian_filter(truth, 1.5)
    scores = np.zeros((2, truth.shape[0] - height + 1, truth.shape[1] - width + 1))
    for row, col in np.ndindex(*scores.shape[1:]):
        place = np.s_[..., row : row + height, col : col + width]
        part = channels[1][place]
        scores[0, row, col] = (channels[0] * part).sum() / np.sqrt((part**2).sum())
        scores[1, row, col] = np.corrcoef(greys[0].ravel(), greys[1][place].ravel())[0, 1]
    best = [np.unravel_index(score.argmax(), score.shape) for score in scores]
    return [(int(row) - top, int(col) - left) for row, col in best]


@pytest.mark.parametrize("shape", [(64, 64), (66, 71)])
def test_places_are_those_of_plain_loops(shape: tuple[int, int]) -> None:
    truth = picture(*shape, 1)
    prediction = np.asarray(shift(truth, (3, -2), mode="wrap") + 0.7 * (picture(*shape, 2) - 128), np.float32)
    np.testing.assert_allclose(describe_orientations(truth), describe_by_loops(truth), atol=2e-5)
    assert find_crop(prediction, truth).tolist() == [
        list(found) for found in find_by_loops(prediction, truth)
    ]
    assert find_crop(truth, truth).tolist() == [[0, 0], [0, 0]]


def test_structure_does_not_care_which_side_is_bright_and_grey_does() -> None:
    truth = picture(96, 96, 3)
    structure, grey = find_crop(255 - truth, truth)
    assert structure.tolist() == [0, 0]
    assert np.abs(grey).max() > 5


def test_flat_crops_are_never_found_and_small_images_tell_nothing() -> None:
    truth = picture(64, 80, 4)
    flat = find_crop(np.full_like(truth, 9), truth)
    assert is_found(flat, np.zeros(2)).tolist() == [0, 0]
    small = find_crop(truth[:63], truth[:63])
    assert np.isnan(is_found(small, np.zeros(2))).all()


def test_the_offset_is_the_median_of_what_lies_near_at_each_place() -> None:
    near = [[2, 1], [3, 1], [4, 10], [50, 0], [np.inf, np.inf], [np.nan, np.nan]]
    few = [[9, 9], [99, 99]]
    offsets = measure_offsets(np.array(near + few, float), ["a"] * len(near) + ["b"] * len(few))
    assert offsets.tolist() == [[3, 1]] * len(near) + [[3.5, 5]] * len(few)
    assert is_found(np.array([[8, 6], [-2, 1], [9, 1]]), offsets[:3]).tolist() == [1, 1, 0]
    assert (measure_offsets(np.full((2, 2), 40.0), ["a", "a"]) == 0).all()


@pytest.mark.realdata
def test_real_crops_are_found_where_the_script_of_the_measure_finds_them(real_data: Path) -> None:
    script = real_data.parent / "measures" / "picture.py"
    if not script.exists():
        pytest.skip(f"needs {script.name}")
    spec = importlib.util.spec_from_file_location("picture", script)
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    window = ((2048, 2560), (3072, 3584))
    with rasterio.open(real_data / "scenes" / "la_west_eo.tif") as file:
        eo = file.read([1, 2, 3], window=window)
        mask = file.dataset_mask(window=window) > 0
    with rasterio.open(real_data / "scenes" / "la_west_sar.tif") as file:
        sar = file.read(1, window=window).astype(np.float32)
        mask &= file.dataset_mask(window=window) > 0
    truth = to_grey(eo)
    np.testing.assert_allclose(truth, measure.grey(eo), rtol=1e-6)
    tiles = [np.s_[y : y + 256, x : x + 256] for y, x in measure.tiles(mask)]
    assert tiles
    found = np.array([find_crop(sar[tile], truth[tile]) for tile in tiles])
    np.testing.assert_array_equal(found.swapaxes(0, 1), measure.score(sar, truth, mask))
