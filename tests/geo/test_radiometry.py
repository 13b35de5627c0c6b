"""Radiometry against plain numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import amplitude

from sar2eo.errors import PolarisationError, RadiometryError
from sar2eo.geo.radiometry import (
    default_channels,
    nearest_polarisation,
    sample_percentiles,
    sample_windows,
    to_amplitude,
    to_eo_bytes,
    to_model_range,
)
from sar2eo.geo.windows import Window


def test_quantities_by_hand() -> None:
    np.testing.assert_allclose(to_amplitude([0, 3, -1], "dn"), [0, 3, 0])
    np.testing.assert_allclose(to_amplitude([0, 9, -1], "intensity"), [0, 3, 0])
    np.testing.assert_allclose(to_amplitude([-20, 0, 20, 6.0206], "db"), [0.1, 1, 10, 2], rtol=1e-5)
    assert np.isnan(to_amplitude([np.nan], "db")).all()
    with pytest.raises(RadiometryError, match="power"):
        to_amplitude([1.0], "power")


@given(st.floats(0.01, 1e4), st.integers(0, 99))
def test_scaling_by_the_own_percentile_does_not_care_about_a_factor(factor: float, seed: int) -> None:
    values = amplitude((30, 40), seed)
    channels = default_channels(("VV",))

    def model_input(scene: np.ndarray) -> np.ndarray:
        found = sample_percentiles(lambda w: scene[:, *w.slices], (30, 40))
        return to_model_range(scene, found, ("VV",), channels)

    np.testing.assert_allclose(model_input(values), model_input(values * np.float32(factor)), atol=2e-5)


def test_model_range_by_hand() -> None:
    values = np.array([[[0, 50, 100, 400]], [[0, 20, 10, 5]]], np.float32)
    found = to_model_range(values, (100, 20), ("VV", "VH"), (("VV",), ("VH",), ("VV", "VH")))
    np.testing.assert_allclose(found[0, 0], [-1, 0, 1, 1])
    np.testing.assert_allclose(found[1, 0], [-1, 1, 0, -0.5])
    np.testing.assert_allclose(found[2, 0], [-1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        ("VH", ("VV", "HV", "VH"), "VH"),
        ("VH", ("VV", "HV", "HH"), "HV"),
        ("VV", ("HV", "HH"), "HH"),
        ("VV", ("VH", "HV"), "VH"),
    ],
)
def test_the_nearest_polarisation_is_of_its_kind(wanted: str, names: tuple[str, ...], expected: str) -> None:
    assert nearest_polarisation(wanted, names) == expected


def test_channels_of_the_paper() -> None:
    assert default_channels(("VH",)) == (("VH",),) * 3
    assert default_channels(("HH", "HV", "VH", "VV")) == (("HH",), ("HV", "VH"), ("VV",))
    assert default_channels(("VV", "HH", "VH", "HV")) == (("HH",), ("HV", "VH"), ("VV",))
    assert default_channels(("VH", "VV")) == (("VV",), ("VH",), ("VV", "VH"))
    assert default_channels(("HH", "HV")) == (("HH",), ("HV",), ("HH", "HV"))
    assert default_channels(("HH", "HV", "VV")) == (("HH",), ("HV",), ("VV",))


@pytest.mark.parametrize("names", [(), ("VV", "VV"), ("vv",), ("HH", "HV", "VH", "VV", "VV")])
def test_other_channels_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(PolarisationError):
        default_channels(names)


def test_bytes_round_to_nearest_and_clip() -> None:
    levels = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(to_eo_bytes(levels / np.float32(127.5) - 1), levels)
    np.testing.assert_array_equal(to_eo_bytes(np.array([-3, 3], np.float32)), [0, 255])


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(0, 5))
def test_sampled_windows_lie_inside_and_apart(rows: int, cols: int, seed: int) -> None:
    windows = sample_windows((rows, cols), seed=seed)
    assert windows == sample_windows((rows, cols), seed=seed)
    for window in windows:
        assert Window(0, 0, rows, cols).intersection(window) == window
    small = [w for w in windows if w.row < 2000]
    assert not any(a.intersection(b) for i, a in enumerate(small) for b in small[:i])
    if max(rows, cols) <= 4096:
        assert sum(w.height * w.width for w in windows) == rows * cols


def test_percentile_is_within_one_percent_of_exact_on_a_large_uneven_scene() -> None:
    draw = np.random.default_rng(3)
    level = np.repeat(np.repeat(draw.uniform(10, 100, (12, 13)), 512, 0), 512, 1).astype(np.float32)
    scene = (level * np.sqrt(draw.gamma(4.4, 1 / 4.4, level.shape)).astype(np.float32))[None]
    scene[0, :700, :900] = np.nan
    found = sample_percentiles(lambda w: scene[:, *w.slices], level.shape)
    assert found[0] == pytest.approx(np.nanpercentile(scene, 99), rel=0.01)


def test_percentile_is_within_one_percent_where_a_small_part_is_valid() -> None:
    # As `gdalwarp -cutline` leaves an area of a larger scene: few windows of a coarse sample fall into it.
    draw = np.random.default_rng(7)
    level = np.repeat(np.repeat(draw.lognormal(3, 0.6, (12, 12)), 80, 0), 80, 1).astype(np.float32)
    for row, col in ((3000, 4100), (5111, 700), (1900, 2850)):
        scene = np.full((2, 7000, 6000), np.nan, np.float32)
        scene[0, row : row + 960, col : col + 960] = level * np.sqrt(draw.gamma(4.4, 1 / 4.4, level.shape))
        scene[1] = 7
        found = sample_percentiles(lambda w, scene=scene: scene[:, *w.slices], scene.shape[1:])
        assert found[0] == pytest.approx(np.nanpercentile(scene[0], 99), rel=0.01)
        assert found[1] == 7


def test_a_scene_that_is_nearly_empty_is_searched_whole() -> None:
    scene = np.full((1, 9000, 4200), np.nan, np.float32)
    scene[0, 8888, 4000:4010] = np.arange(1, 11)
    assert sample_percentiles(lambda w: scene[:, *w.slices], scene.shape[1:])[0] == pytest.approx(9.91)


def test_an_empty_polarisation_leaves_the_sample_of_the_others_as_it_is() -> None:
    scene = np.full((2, 9000, 4200), np.nan, np.float32)
    scene[0] = np.random.default_rng(1).rayleigh(1, scene.shape[1:])
    scene[1, 8888, 4000:4010] = np.arange(1, 11)
    alone = sample_percentiles(lambda w: scene[:1, *w.slices], scene.shape[1:])
    assert sample_percentiles(lambda w: scene[:, *w.slices], scene.shape[1:]) == (
        *alone,
        pytest.approx(9.91),
    )


@pytest.mark.parametrize(("value", "word"), [(np.nan, "no valid pixel"), (0.0, "cannot be scaled")])
def test_empty_and_constant_zero_scenes_are_refused(value: float, word: str) -> None:
    scene = np.full((1, 50, 60), value, np.float32)
    with pytest.raises(RadiometryError, match=word):
        sample_percentiles(lambda w: scene[:, *w.slices], (50, 60))
