"""The similarity map against a plain numpy oracle, its peak, and how probable a match is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.matching.dcdm.similarity import (
    compute_match_probability,
    correlate,
    find_subpixel_peak,
    interpolate_to_pixels,
)


def oracle(template, template_valid, search, search_valid):
    """Correlation coefficient at every place, channel means over what is valid in both taken away.

    NaN where the two share too little.
    """
    (_, h, w), (_, H, W) = template.shape, search.shape
    found = np.full((H - h + 1, W - w + 1), np.nan)
    for r, c in np.ndindex(found.shape):
        both = (template_valid * search_valid[r : r + h, c : c + w]) > 0
        if both.sum() < 0.5 * max(template_valid.sum(), 2):
            continue
        f, g = template[:, both].astype(float), search[:, r : r + h, c : c + w][:, both].astype(float)
        f, g = f - f.mean(1, keepdims=True), g - g.mean(1, keepdims=True)
        power = (f**2).sum() * (g**2).sum()
        if power > 0:  # it is 0 where a single pixel is shared
            found[r, c] = (f * g).sum() / math.sqrt(power)
    return found


@given(
    st.integers(1, 3),
    st.tuples(st.integers(3, 5), st.integers(3, 5)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.integers(0, 2**32 - 1),
    st.floats(0, 0.4),
    st.floats(-20, 20),
)
def test_correlation_is_the_oracles(channels, small, more, seed, holes, level):
    draw = np.random.default_rng(seed)
    large = (small[0] + more[0], small[1] + more[1])
    template, search = draw.normal(size=(channels, *small)), level + draw.normal(size=(channels, *large))
    masks = [(draw.random(size) >= holes).astype(np.float32) for size in (small, large)]
    tensors = [torch.from_numpy(x.astype(np.float32))[None] for x in (template, search)]
    valid = [torch.from_numpy(x)[None, None] for x in masks]
    surface, known = correlate(tensors[0], valid[0], tensors[1], valid[1])
    expected = oracle(template.astype(np.float32), masks[0], search.astype(np.float32), masks[1])
    assert surface.shape == (1, *expected.shape)
    assert np.array_equal(known[0].numpy(), np.isfinite(expected))
    assert np.allclose(surface[0].numpy(), np.nan_to_num(expected, nan=-1.0), atol=2e-3)


def test_a_copy_is_found_where_it_was_cut_whatever_its_brightness():
    draw = np.random.default_rng(1)
    search = torch.from_numpy(draw.normal(size=(2, 3, 12, 14)).astype(np.float32))
    template = torch.stack([search[0, :, 4:9, 7:12] * 3 + 5, search[1, :, 0:5, 9:14] - 2])
    valid = torch.ones(2, 1, 12, 14)
    surface, known = correlate(template, valid[:, :, :5, :5], search, valid)
    assert known.all()
    assert [divmod(int(s.argmax()), 10) for s in surface] == [(4, 7), (0, 9)]
    assert torch.allclose(surface.flatten(1).amax(1), torch.ones(2), atol=1e-4)


def test_what_is_invalid_has_no_influence():
    draw = np.random.default_rng(2)
    search = torch.from_numpy(draw.normal(size=(1, 2, 10, 10)).astype(np.float32))
    valid = torch.ones(1, 1, 10, 10)
    valid[..., 6:, 7:] = 0
    template, template_valid = search[..., 2:7, 3:8].clone(), valid[..., 2:7, 3:8]
    spoilt = search.clone()
    spoilt[..., 6:, 7:] = 1e3
    template[..., 4:, 4:] = -1e3
    before = correlate(template, template_valid, search, valid)
    after = correlate(template, template_valid, spoilt, valid)
    assert torch.allclose(before.surface, after.surface, atol=1e-5)
    assert divmod(int(after.surface[0].argmax()), 6) == (2, 3)


def test_gradients_are_finite_where_nothing_can_be_known():
    template = torch.zeros(1, 1, 4, 4, requires_grad=True)
    surface, known = correlate(
        template, torch.ones(1, 1, 4, 4), torch.randn(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    )
    assert not known.any()
    assert (surface == -1).all()
    surface.sum().backward()
    assert torch.isfinite(template.grad).all()


def test_the_probability_of_a_match_by_hand():
    surface = torch.zeros(1, 7, 7)
    surface[0, 1, 1] = 1.0
    sharpness, none = torch.tensor(math.log(10.0)), torch.tensor(0.5)
    found = compute_match_probability(surface, torch.tensor([[1.2, 0.9]]), sharpness, none)
    # Rows 0 to 3 and columns 0 to 2 are near: one of e^10, eleven of 1; 37 others, and e^5 for no match.
    assert float(found) == pytest.approx((math.e**10 + 11) / (math.e**10 + 48 + math.e**5), rel=1e-5)
    elsewhere = compute_match_probability(surface, torch.tensor([[5.0, 5.0]]), sharpness, none)
    assert float(elsewhere) == pytest.approx(16 / (math.e**10 + 48 + math.e**5), rel=1e-4)


def test_a_map_of_more_places_has_the_same_odds_against_no_place():
    """Of a flat map every place is as likely, on whatever lattice, and so is none of them."""
    sharpness, none = torch.tensor(1.5), torch.tensor(0.25)
    coarse = compute_match_probability(torch.zeros(1, 9, 9), torch.tensor([[4.0, 4.0]]), sharpness, none)
    level = math.exp(math.exp(1.5) * 0.25)
    assert float(coarse) == pytest.approx(25 / (81 + level))
    fine = compute_match_probability(
        torch.zeros(1, 36, 36), torch.tensor([[17.0, 17.0]]), sharpness, none, step=4
    )
    assert float(fine) == pytest.approx(17**2 / (36**2 + 16 * level))


def test_maps_meet_at_their_corners():
    surface = torch.arange(12.0).view(1, 3, 4)
    fine = interpolate_to_pixels(surface, 4)
    assert fine.shape == (1, 9, 13)
    assert torch.allclose(fine[:, ::4, ::4], surface, atol=1e-5)


@given(st.floats(2, 6), st.floats(3, 9))
def test_the_peak_of_a_parabola_is_its_vertex(row, col):
    rows, cols = np.mgrid[:9, :13]
    surface = (-((rows - row) ** 2) - 0.5 * (cols - col) ** 2).astype(np.float32)
    found = find_subpixel_peak(surface)
    assert found == pytest.approx((row, col), abs=2e-3)


def test_a_peak_at_the_border_stays_there():
    surface = np.zeros((3, 4), np.float32)
    surface[0, 3] = 1
    assert find_subpixel_peak(surface) == (0.0, 3.0)
    assert find_subpixel_peak(np.zeros((1, 1), np.float32)) == (0.0, 0.0)
