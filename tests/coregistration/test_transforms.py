"""Fits to tie points: planted transforms among wrong points are recovered, thin evidence is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo.coregistration.tie_points import list_ties
from sar2eo.coregistration.transforms import Evidence, fit_transform, weigh
from sar2eo.matching.shifts import Displacement
from sar2eo.settings import CoregisterSettings

GRID = 256
RADIUS = 24


def lattice(side: int = 7) -> np.ndarray:
    return np.array([(GRID * (i + 0.5), GRID * (j + 0.5)) for i in range(side) for j in range(side)])


def affine_field(places: np.ndarray, constant: np.ndarray, linear: np.ndarray) -> np.ndarray:
    return constant + (places - places.mean(axis=0)) @ linear.T


def ties_of(at: np.ndarray, shifts: np.ndarray, sure: np.ndarray | None = None) -> list[Displacement]:
    sure = np.ones(len(at), bool) if sure is None else sure
    return [
        Displacement(*map(float, (*a, *s, 0.3)), bool(ok)) for a, s, ok in zip(at, shifts, sure, strict=True)
    ]


def settled(transform: str, **changes: object) -> CoregisterSettings:
    return CoregisterSettings(transform=transform, grid=GRID, **changes)


def weighed(
    transform: str, shifts: np.ndarray, sure: np.ndarray | None = None, **changes: object
) -> Evidence:
    at = lattice()
    return weigh(ties_of(at, shifts, sure), at, settled(transform, **changes), RADIUS)


@st.composite
def planted(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, true shifts of an affine drift, noisy ones with wrong ones among them, and which are right."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    at = lattice()
    numbers = st.floats(-1, 1)
    constant = 10 * np.array([draw(numbers), draw(numbers)])
    linear = 4e-3 * np.array([[draw(numbers) for _ in range(2)] for _ in range(2)])
    truth = affine_field(at, constant, linear)
    right = np.ones(len(at), bool)
    right[random.choice(len(at), draw(st.integers(0, 16)), replace=False)] = False
    found = truth + random.normal(0, 0.3, truth.shape)
    # Wrong ones lie anywhere in the search, but not where they would pass for right.
    wrong = random.uniform(-RADIUS, RADIUS, truth.shape)
    near = np.hypot(*(wrong - truth).T) < 6
    wrong[near] = truth[near] + 12
    found[~right] = wrong[~right]
    return at, truth, found, right


@given(planted())
@settings(max_examples=25)
def test_a_planted_affine_drift_is_recovered_among_wrong_points(case):
    at, truth, found, right = case
    evidence = weigh(ties_of(at, found), at, settled("affine"), 40)
    assert evidence.refusal is None
    assert (evidence.inlier == right).all()
    assert np.abs(evidence.transform.shifts(at) - truth).max() < 0.6
    # Least squares over what is right, and nothing else.
    terms = np.column_stack([np.ones(right.sum()), at[right]])
    expected = np.linalg.lstsq(terms, found[right], rcond=None)[0].T
    np.testing.assert_allclose(evidence.transform.coefficients, expected, rtol=1e-6, atol=1e-9)


@given(planted())
@settings(max_examples=25)
def test_one_shift_is_the_median_of_those_that_agree(case):
    at, truth, found, right = case
    constant = truth.mean(axis=0)
    found = found - truth + constant
    evidence = weigh(ties_of(at, found), at, settled("shift"), 40)
    assert evidence.refusal is None
    expected = np.median(found[evidence.inlier], axis=0)
    np.testing.assert_allclose(evidence.transform.coefficients[:, 0], expected)
    np.testing.assert_array_equal(evidence.transform.coefficients[:, 1:], 0)
    assert np.abs(expected - constant).max() < 0.35
    assert not (evidence.inlier & ~right & (np.hypot(*(found - constant).T) > 4)).any()


def test_a_smooth_field_is_followed_where_an_affine_one_is_not_enough():
    at = lattice(10)
    truth = np.column_stack([4 * np.sin(at[:, 1] / 700), 3 * np.cos(at[:, 0] / 600)])
    noisy = truth + np.random.default_rng(3).normal(0, 0.2, truth.shape)
    ties = ties_of(at, noisy)
    errors = {}
    for kind in ("affine", "local"):
        found = fit_transform(ties, settled(kind))
        errors[kind] = float(np.sqrt(np.mean(np.sum((found.shifts(at) - truth) ** 2, axis=1))))
    assert errors["local"] < 0.5
    assert errors["affine"] > 3 * errors["local"]


@pytest.mark.parametrize("transform", ["shift", "affine"])
def test_a_point_does_not_predict_itself(transform):
    """Left out of its own fold's fit: whatever a point says, its prediction is the same."""
    at = lattice()
    random = np.random.default_rng(5)
    shifts = np.array([4.0, -2.0]) + random.normal(0, 0.4, at.shape)
    before = weighed(transform, shifts)
    changed = shifts.copy()
    changed[17] += [1.0, 0.5]
    after = weighed(transform, changed)
    np.testing.assert_array_equal(before.predicted[17], after.predicted[17])
    assert (before.predicted != after.predicted).any()


def test_quality_is_of_points_the_fits_did_not_see_in_pixels_and_metres():
    at = lattice()
    sign = np.where(np.arange(len(at)) % 2, 1.0, -1.0)
    evidence = weighed("shift", np.column_stack([6 + 0.5 * sign, np.full(len(at), -8.0)]))
    quality = evidence.quality((10.0, 20.0))
    assert quality["points"] == 49
    errors = evidence.shifts - evidence.predicted
    assert quality["after"]["rmse_px"] == pytest.approx(np.sqrt(np.mean(np.sum(errors**2, axis=1))), abs=1e-4)
    # Rows are 6.5 or 5.5 pixels of 10 m off, columns 8 of 20 m.
    share = (sign > 0).mean()
    rows = share * 6.5**2 + (1 - share) * 5.5**2
    assert quality["before"]["rmse_px"] == pytest.approx(np.sqrt(rows + 64), abs=1e-3)
    assert quality["before"]["rmse_m"] == pytest.approx(np.sqrt(100 * rows + 400 * 64), abs=1e-2)
    assert 0.45 <= quality["after"]["rmse_px"] <= 1.05
    row = list_ties(ties_of(at, evidence.shifts), evidence, (10.0, 20.0))[0]
    assert row["accepted"]
    assert row["inlier"]
    assert row["shift_m"] == pytest.approx(np.hypot(10 * row["shift_rows"], 160), abs=1e-3)
    assert row["residual_px"] == pytest.approx(np.hypot(*errors[0]), abs=1e-4)


def test_points_that_are_not_sure_count_for_nothing():
    shifts = np.full((49, 2), 3.0)
    sure = np.ones(49, bool)
    shifts[:20], sure[:20] = 19.0, False
    shifts[20] = np.nan
    evidence = weighed("affine", shifts, sure)
    assert evidence.refusal is None
    assert len(evidence.at) == 28
    rows = list_ties(ties_of(lattice(), shifts, sure), evidence, (10.0, 10.0))
    assert [row["accepted"] for row in rows] == [False] * 21 + [True] * 28
    assert rows[20]["shift_rows"] is None
    assert rows[0]["residual_px"] is None
    assert rows[21]["residual_px"] == pytest.approx(0, abs=1e-6)


def thin_cases() -> dict[str, tuple[np.ndarray, np.ndarray, dict[str, object], str]]:
    random = np.random.default_rng(8)
    at = lattice()
    everywhere = random.uniform(-20, 20, at.shape)
    few, corner = np.zeros(49, bool), np.zeros(49, bool)
    few[:4] = True
    corner[[0, 1, 2, 7, 8, 9, 14, 15, 16, 21, 22]] = True
    steep = affine_field(at, np.array([14.0, 0.0]), np.array([[0.016, 0.0], [0.0, 0.0]]))
    # Half of them agree, and most of these only just.
    order, angles = random.permutation(49), np.linspace(0, 2 * np.pi, 16, endpoint=False)
    loose = everywhere + np.where(everywhere > 0, 15, -15)
    loose[order[:10]] = 3.0
    loose[order[10:26]] = 3 + 2.8 * np.column_stack([np.cos(angles), np.sin(angles)])
    every = np.ones(49, bool)
    return {
        "few": (np.full(at.shape, 2.0), few, {}, "4 of 49 tie points are sure"),
        "everywhere": (everywhere, every, {}, "of 49"),
        "corner": (np.full(at.shape, 2.0), corner, {}, "must cover 25%"),
        "steep": (steep, every, {}, "beyond the 24"),
        "loose": (loose, every, {}, "predicted to 2.8"),
    }


@pytest.mark.parametrize("name", ["few", "everywhere", "corner", "steep", "loose"])
def test_thin_evidence_is_refused_with_numbers(name):
    shifts, sure, changes, words = thin_cases()[name]
    transform = "shift" if name == "loose" else "affine"
    evidence = weighed(transform, shifts, sure, **changes)
    assert evidence.refusal is not None
    assert words in evidence.refusal
    assert "\n" not in evidence.refusal


@pytest.mark.parametrize("transform", ["shift", "affine", "local"])
def test_noise_never_passes_for_a_transform(transform):
    """Shifts at random, all sure of themselves: no transform of any kind."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        assert weighed(transform, random.uniform(-20, 20, (49, 2))).refusal is not None


@pytest.mark.parametrize("transform", ["affine", "local"])
def test_points_on_one_line_do_not_tell_an_affine_transform(transform):
    at = np.column_stack([np.full(16, 128.0), GRID * (np.arange(16) + 0.5)])
    ties = ties_of(at, np.full((16, 2), 3.0))
    evidence = weigh(ties, at, settled(transform), RADIUS)
    if transform == "affine":
        assert "no affine fits" in evidence.refusal
    else:
        # A field of order 0 needs no second direction.
        np.testing.assert_allclose(evidence.transform.shifts(at), 3.0, atol=1e-6)


def test_stretch_beyond_any_misregistration_is_no_transform():
    at = lattice()
    shifts = affine_field(at, np.zeros(2), np.array([[0.0, 0.05], [0.0, 0.0]]))
    assert fit_transform(ties_of(at, shifts), settled("affine", tolerance=1.0)) is None
