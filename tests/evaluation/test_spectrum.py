"""Power and correlation per octave, against images whose spectra are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sar2eo.evaluation.metrics import count_octaves, sum_octave_powers


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@given(seed=st.integers(0, 1000), rows=st.integers(16, 70), cols=st.integers(16, 70), gain=st.floats(0.1, 10))
def test_a_gain_is_a_ratio_and_full_correlation(seed: int, rows: int, cols: int, gain: float) -> None:
    truth = noise((3, rows, cols), seed)
    valid = np.ones((rows, cols))
    powers = sum_octave_powers(gain * truth + 5, truth, valid)
    np.testing.assert_allclose(powers.ratios, gain**2)
    np.testing.assert_allclose(powers.coherence, 1)
    np.testing.assert_allclose(sum_octave_powers(-truth, truth, valid).coherence, -1)
    assert len(powers.ratios) == count_octaves(rows, cols)


def test_octaves_have_the_wavelengths_they_say() -> None:
    columns = np.arange(128)
    for octave, wavelength in enumerate([3, 5.5, 11, 22]):
        wave = np.broadcast_to(np.sin(2 * np.pi * columns / wavelength), (128, 128))
        powers = sum_octave_powers(wave, wave, np.ones((128, 128))).truth
        assert powers.argmax() == octave
        assert powers[octave] > 0.99 * powers.sum()
    assert count_octaves(128, 128) == 5  # the coarsest: 32 to 64 pixels


def test_independent_noise_has_power_but_no_correlation() -> None:
    truth, other = noise((256, 256), 1), noise((256, 256), 2)
    powers = sum_octave_powers(other, truth, np.ones((256, 256)))
    np.testing.assert_allclose(powers.ratios[:4], 1, atol=0.15)
    assert np.abs(powers.coherence[:4]).max() < 0.1


def test_blur_lowers_power_as_its_transfer_function_says_and_keeps_correlation() -> None:
    truth = noise((256, 256), 3)
    blurred = gaussian_filter(truth, 1.0, mode="wrap")
    frequencies = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    transfer = np.exp(-2 * (np.pi * frequencies) ** 2) ** 2
    powers = sum_octave_powers(blurred, truth, np.ones((256, 256)))
    for octave in range(4):
        low, high = 0.5 ** (octave + 2), 1.0 if octave == 0 else 0.5 ** (octave + 1)
        expected = transfer[(frequencies >= low) & (frequencies < high)].mean()
        assert powers.ratios[octave] == pytest.approx(expected, rel=0.1)
    assert powers.coherence[2] > 0.95


def test_added_noise_raises_power_and_lowers_correlation() -> None:
    truth = noise((128, 128), 4)
    powers = sum_octave_powers(truth + noise((128, 128), 5), truth, np.ones((128, 128)))
    assert powers.ratios[0] == pytest.approx(2, rel=0.1)
    assert powers.coherence[0] == pytest.approx(1 / np.sqrt(2), rel=0.1)


@given(seed=st.integers(0, 1000))
def test_invalid_pixels_do_not_matter(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, prediction = noise((32, 40), seed), noise((32, 40), seed + 1)
    valid = draw.random((32, 40)) > 0.1
    changed = [np.where(valid, image, 1000.0) for image in (prediction, truth)]
    before, after = sum_octave_powers(prediction, truth, valid), sum_octave_powers(*changed, valid)
    np.testing.assert_allclose(after.ratios, before.ratios)
    np.testing.assert_allclose(after.coherence, before.coherence)


def test_powers_add_up_over_images_of_any_size() -> None:
    small, large = noise((32, 32), 6), noise((128, 128), 7)
    parts = [sum_octave_powers(2 * image, image, np.ones(image.shape)) for image in (small, large)]
    total = parts[0] + parts[1]
    np.testing.assert_allclose(total.ratios, 4)
    assert len(total.ratios) == count_octaves(128, 128)
    assert total.truth[0] == pytest.approx(parts[0].truth[0] + parts[1].truth[0])


def test_nothing_to_compare_is_nan() -> None:
    flat = np.ones((32, 32))
    powers = sum_octave_powers(noise((32, 32), 8), flat, flat)
    assert np.isnan(powers.ratios).all()
    assert np.isnan(powers.coherence).all()
