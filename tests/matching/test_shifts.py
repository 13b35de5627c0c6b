import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo.matching.shifts import Displacement, fit_drift

APART = 512
RADIUS = 24.0


def lattice(rows: int, cols: int, step: int = 512) -> np.ndarray:
    """Centres of neighbourhoods, as (place, 2)."""
    down, right = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    return 256.0 + step * np.stack([down.ravel(), right.ravel()], 1)


def displacements(at, shifts, sure=True):
    return [
        Displacement(*map(float, place), *map(float, shift), score=0.2, sure=sure)
        for place, shift in zip(at, shifts, strict=True)
    ]


def planted(order: int, coefficients: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Polynomial in rows and cols / 4096, written out as a sum."""
    y, x = at[:, 0] / 4096 - 0.5, at[:, 1] / 4096 - 0.5
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    return sum(c * (y**i * x**j)[:, None] for c, (i, j) in zip(coefficients, powers, strict=False))


def spoiled(shifts: np.ndarray, share: float, noise: float, draw) -> np.ndarray:
    wrong = draw.random(len(shifts)) < share
    guesses = draw.uniform(-RADIUS, RADIUS, shifts.shape)
    return np.where(wrong[:, None], guesses, shifts + draw.normal(0, noise, shifts.shape))


@settings(max_examples=15)
@given(
    order=st.integers(0, 2), share=st.floats(0, 0.3), noise=st.floats(0, 0.7), seed=st.integers(0, 2**32 - 1)
)
def test_planted_drift_is_found_among_outliers(order, share, noise, seed):
    draw = np.random.default_rng(seed)
    at = lattice(8, 8)
    truth = planted(order, draw.uniform(-5, 5, (6, 2)), at)
    drift = fit_drift(displacements(at, spoiled(truth, share, noise, draw)), apart_px=APART)
    assert drift is not None
    found = np.array([drift.at(*place) for place in at])
    errors = np.hypot(*(found - truth).T)
    assert np.median(errors) < 0.3 + noise
    assert np.quantile(errors, 0.9) < 1.5
    assert drift.used <= drift.of == len(at)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_order_is_the_lowest_that_predicts(order):
    draw = np.random.default_rng(order)
    at = lattice(8, 8)
    coefficients = np.array([[3, -4], [6, 5], [-8, 9], [-6, 7], [9, 4], [7, -8]], float)
    shifts = planted(order, coefficients, at) + draw.normal(0, 0.4, (len(at), 2))
    drift = fit_drift(displacements(at, shifts), apart_px=APART)
    assert drift is not None
    assert drift.order == order
    # Median length of a two-dimensional normal error is 1.18 deviations.
    assert drift.residual_px == pytest.approx(1.18 * 0.4, rel=0.35)
    assert drift.predicted_px >= 0.8 * drift.residual_px


def test_relief_that_no_polynomial_describes_takes_a_spline():
    draw = np.random.default_rng(5)
    at = lattice(14, 14)
    truth = np.stack([np.sin(at[:, 0] / 1500), 5 * np.sin(at[:, 0] / 900) * np.cos(at[:, 1] / 1100)], 1)
    drift = fit_drift(displacements(at, truth + draw.normal(0, 0.4, truth.shape)), apart_px=APART)
    assert drift is not None
    assert drift.order == "spline"
    found = np.array([drift.at(*place) for place in at])
    assert np.median(np.hypot(*(found - truth).T)) < 0.7


def test_a_hill_that_moves_otherwise_is_not_taken_for_wrong():
    at = lattice(12, 12)
    hill = np.exp(-((at - 3300) ** 2).sum(axis=1) / (2 * 900**2))
    truth = np.stack([np.zeros(len(at)), 14 * hill], 1)
    drift = fit_drift(displacements(at, truth), apart_px=APART)
    assert drift is not None
    assert drift.at(3328, 3328)[1] == pytest.approx(14, abs=1.5)
    assert drift.at(256, 256)[1] == pytest.approx(0, abs=1.0)


def test_sparse_shifts_that_are_wrong_change_little():
    at = lattice(8, 8)
    shifts = np.full((len(at), 2), (2.0, -3.0))
    shifts[[5, 20, 41, 60]] = [(20, 20), (-15, 9), (8, -22), (-20, -20)]
    drift = fit_drift(displacements(at, shifts), apart_px=APART)
    assert drift is not None
    assert (drift.order, drift.used, drift.of) == (0, 60, 64)
    assert drift.at(2000, 2000) == pytest.approx((2, -3), abs=0.01)


@given(count=st.integers(0, 120), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_chance_is_too_thin(count, seed):
    draw = np.random.default_rng(seed)
    at = lattice(11, 11)[:count]
    assert fit_drift(displacements(at, draw.uniform(-RADIUS, RADIUS, (count, 2))), apart_px=APART) is None


def test_few_shifts_and_unsure_ones_are_too_thin():
    at = lattice(8, 8)
    shifts = np.zeros((len(at), 2))
    assert fit_drift(displacements(at[:7], shifts[:7]), apart_px=APART) is None
    assert fit_drift(displacements(at, shifts, sure=False), apart_px=APART) is None
    both = displacements(at[:7], shifts[:7]) + displacements(at[7:], shifts[7:], sure=False)
    assert fit_drift(both, apart_px=APART) is None
    assert fit_drift(displacements(at[:16], np.full((16, 2), np.nan)), apart_px=APART) is None


def test_shifts_that_share_pixels_prove_nothing_by_themselves():
    # Eight neighbourhoods on one spot agree, but no two of them are apart.
    at = lattice(2, 4, step=32)
    assert fit_drift(displacements(at, np.zeros((8, 2))), apart_px=APART) is None


@pytest.mark.parametrize("rows", [1, 2])
def test_a_narrow_scene_is_fitted_along_its_length(rows):
    at = lattice(rows, 40)
    truth = np.stack([np.zeros(len(at)), at[:, 1] / 4096], 1)
    drift = fit_drift(displacements(at, truth), apart_px=APART)
    assert drift is not None
    assert drift.at(256, 10240) == pytest.approx((0, 2.5), abs=0.05)


def test_beyond_what_was_measured_the_shift_is_that_of_the_edge():
    at = lattice(8, 8)
    drift = fit_drift(displacements(at, at / 1024), apart_px=APART)
    assert drift is not None
    assert drift.at(-9000, 50000) == pytest.approx((0.0, 4.0), abs=0.02)
    assert drift.at(0, 4096) == pytest.approx((0.0, 4.0), abs=0.02)


def test_uncertainty_falls_with_the_number_of_shifts():
    draw = np.random.default_rng(8)
    found = []
    for side in (5, 14):
        at = lattice(side, side)
        drift = fit_drift(displacements(at, draw.normal(0, 1, (len(at), 2))), apart_px=APART)
        assert drift is not None
        found.append(drift.uncertainty_px)
    # Of the mean of n shifts of deviation 1: sqrt(2 / n).
    assert found[0] == pytest.approx(np.sqrt(2 / 25), rel=0.5)
    assert found[1] < found[0] / 1.5


def test_same_shifts_give_the_same_drift_and_facts_are_json():
    draw = np.random.default_rng(4)
    at = lattice(9, 9)
    shifts = spoiled(np.zeros((len(at), 2)), 0.2, 0.5, draw)
    one, two = (fit_drift(displacements(at, shifts), apart_px=APART) for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.facts() == two.facts()
    assert one.at(700, 800) == two.at(700, 800)
    assert set(json.loads(json.dumps(one.facts()))) == {
        "order",
        "residual_px",
        "predicted_px",
        "uncertainty_px",
        "used",
        "of",
    }
