"""Scene-anchored noise: golden values, independence of the range, and statistics."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.errors import SettingsError
from sar2eo.model.noise import draw_scene_noise

# Philox 4x64-10 of counter 0 under key 0, as published with the generator (Random123, kat_vectors).
KNOWN_ANSWER = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)


def test_first_latent_pixel_is_box_muller_of_the_published_philox_words() -> None:
    u = [(word >> 11) * 2.0**-53 for word in KNOWN_ANSWER]
    expected = []
    for first, second in ((u[0], u[1]), (u[2], u[3])):
        radius = math.sqrt(-2.0 * math.log(1.0 - first))
        expected += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    np.testing.assert_allclose(draw_scene_noise(0, range(1), range(1), 4)[:, 0, 0], expected, rtol=1e-6)


def test_golden_values_in_the_middle_of_a_scene() -> None:
    found = draw_scene_noise(7, range(1000, 1001), range(70000, 70002), 5, sample=3)
    golden = [
        [-0.2941935, 2.0926785],
        [1.5021445, 0.5084153],
        [-0.5429589, 2.5709336],
        [0.07265836, 1.1758003],
        [-0.48039398, 1.5041026],
    ]
    np.testing.assert_allclose(found[:, 0], golden, rtol=2e-7)
    assert found.dtype == np.float32


@given(
    seed=st.integers(0, 2**64 - 1),
    row=st.integers(0, 50),
    col=st.integers(0, 50),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 9),
    sample=st.integers(0, 5),
)
def test_values_do_not_depend_on_the_range_asked_for(
    seed: int, row: int, col: int, height: int, width: int, channels: int, sample: int
) -> None:
    part = draw_scene_noise(seed, range(row, row + height), range(col, col + width), channels, sample)
    whole = draw_scene_noise(seed, range(60), range(60), 9, sample)
    assert part.shape == (channels, height, width)
    assert np.array_equal(part, whole[:channels, row : row + height, col : col + width])


def test_values_are_standard_normal() -> None:
    noise = draw_scene_noise(2025, range(256), range(256), 4).astype(np.float64).ravel()
    n = noise.size
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs((noise**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for x in (-2.0, -1.0, 0.0, 1.0, 2.0):
        share = 0.5 * math.erfc(-x / math.sqrt(2))
        assert abs((noise < x).mean() - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_neighbours_channels_samples_and_seeds_are_uncorrelated() -> None:
    here = draw_scene_noise(2025, range(128), range(128), 8)
    others = {
        "next row": (here[:, 1:], here[:, :-1]),
        "next column": (here[:, :, 1:], here[:, :, :-1]),
        "next channel": (here[1:], here[:-1]),
        "next group of channels": (here[4:], here[:4]),
        "transposed": (here, here.transpose(0, 2, 1)),
        "next sample": (here, draw_scene_noise(2025, range(128), range(128), 8, sample=1)),
        "next seed": (here, draw_scene_noise(2026, range(128), range(128), 8)),
    }
    for name, (a, b) in others.items():
        correlation = float((a.astype(np.float64) * b).mean())
        # The diagonal correlates with itself when transposed: 1/128 of the pixels.
        expected = 1 / 128 if name == "transposed" else 0.0
        assert abs(correlation - expected) < 5 / math.sqrt(a.size) * math.sqrt(2), name
        assert not np.array_equal(a, b), name


@pytest.mark.parametrize(("seed", "sample"), [(-1, 0), (2**64, 0), (0, -1)])
def test_seed_and_sample_out_of_range_are_refused(seed: int, sample: int) -> None:
    with pytest.raises(SettingsError, match="must be 0 to"):
        draw_scene_noise(seed, range(1), range(1), 1, sample)
