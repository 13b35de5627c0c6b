"""The measure of seams, on images whose seams are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from support.seams import measure_seams

import sar2eo
from sar2eo.geo.blending import gather_block
from sar2eo.geo.windows import Lattice

LATTICE = Lattice((160, 224), tile=64, overlap=16, factor=4)


def noise(shape, seed=0, deviation=20.0):
    return np.random.default_rng(seed).normal(128, deviation, shape)


def as_bytes(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def blended(windows):
    """Blend as the pipeline does; windows by their index."""
    block = LATTICE.scene
    return gather_block(block, LATTICE, 3, np.uint8, lambda index, r, c: windows[index][:, r, c])


@given(seed=st.integers(0, 2**32 - 1))
def test_noise_without_windows_has_no_seams(seed):
    image = as_bytes(noise((3, *LATTICE.shape), seed))
    found = measure_seams(image, np.ones(LATTICE.shape, bool), LATTICE)
    assert found.border_ratio == pytest.approx(1, abs=0.06)
    assert found.texture_ratio == pytest.approx(1, abs=0.15)


def test_windows_of_independent_noise_lose_a_third_of_the_power_where_they_blend():
    """Crossfading linearly, w^2 + (1 - w)^2 is 2/3 on average."""
    windows = [as_bytes(noise((3, 64, 64), seed)) for seed in range(len(LATTICE))]
    found = measure_seams(blended(windows), np.ones(LATTICE.shape, bool), LATTICE)
    assert found.texture_ratio == pytest.approx(2 / 3, abs=0.06)


def test_windows_of_one_picture_have_no_seams():
    whole = as_bytes(noise((3, 172, 256)))
    windows = [whole[:, *window.slices] for window in LATTICE]
    image = blended(windows)
    np.testing.assert_array_equal(image, whole[:, :160, :224])


def test_steps_at_the_borders_are_seen_and_steps_elsewhere_are_not():
    lattice = Lattice((128, 192), tile=64, overlap=0, factor=4)
    rows, cols = (
        np.searchsorted(starts, np.arange(size), "right")
        for starts, size in zip((lattice.rows, lattice.cols), lattice.shape, strict=True)
    )
    flat = noise((3, *lattice.shape), deviation=5.0)
    everywhere = np.ones(lattice.shape, bool)
    checks = 15.0 * ((rows[:, None] + cols) % 2)
    assert measure_seams(as_bytes(flat + checks), everywhere, lattice).border_ratio > 2
    # A pattern of the decoder's own period is in the borders and beside them.
    grid = 15.0 * ((np.arange(128)[:, None] // 4 + np.arange(192) // 4) % 2)
    assert measure_seams(as_bytes(flat + grid), everywhere, lattice).border_ratio == pytest.approx(
        1, abs=0.02
    )


def test_what_is_not_valid_is_not_compared():
    image = as_bytes(noise((3, *LATTICE.shape)))
    valid = np.ones(LATTICE.shape, bool)
    valid[:, 90:] = False
    spoiled = image.copy()
    spoiled[:, ~valid] = 0
    whole = measure_seams(spoiled, np.ones(LATTICE.shape, bool), LATTICE)
    part = measure_seams(spoiled, valid, LATTICE)
    assert part == measure_seams(np.where(valid, image, 77).astype(np.uint8), valid, LATTICE)
    assert part.border_samples < whole.border_samples


def test_one_window_has_nothing_to_compare():
    alone = Lattice((64, 64), tile=64, overlap=16, factor=4)
    found = measure_seams(np.zeros((3, 64, 64), np.uint8), np.ones((64, 64), bool), alone)
    assert np.isnan([found.border_ratio, found.texture_ratio]).all()
    assert (found.border_samples, found.texture_samples) == (0, 0)


@pytest.mark.slow
@pytest.mark.realdata
def test_the_bundled_model_leaves_no_seams_on_a_whole_scene(
    real_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    out = tmp_path / "eo.tif"
    sar2eo.write_cog(sar2eo.translate(sar2eo.open_scene(real_data / "scenes" / "la_west_sar.tif")), out)
    with rasterio.open(out) as file:
        found = measure_seams(file.read(), file.dataset_mask() > 0, Lattice(file.shape, 512, 64, 8))
    record_property("seams", str(found))
    assert found.border_ratio == pytest.approx(1, abs=0.02)
    # Two textures are averaged in an overlap: a third of their power would be lost there if they were
    # independent. The noise that windows share leaves all but a twentieth.
    assert found.texture_ratio >= 0.95
