"""Losses of the matcher against hand-computed values and plain loops."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from sar2eo.matching.dcdm.losses import (
    place_targets,
    position_loss,
    routing_loss,
    similarity_loss,
    structure_loss,
)


def gaussian(distances, sigma):
    weights = np.exp(-(np.asarray(distances, float) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def test_targets_are_gaussians_at_query_plus_shift():
    found = place_targets(torch.tensor([1.25, 0.0]), 2, 5)
    assert found.shape == (2, 2, 5)
    assert found[0, 1].numpy() == pytest.approx(gaussian(np.arange(5) - 2.25, 1.0), abs=1e-6)
    assert found[1, 0].numpy() == pytest.approx(gaussian(np.arange(5), 1.0), abs=1e-6)


def test_structure_is_that_of_scikit_image():
    draw = np.random.default_rng(1)
    truth = draw.normal(size=(1, 2, 12, 14)).astype(np.float32)
    prediction = (0.7 * truth + 0.3 * draw.normal(size=truth.shape)).astype(np.float32)
    expected = [
        structural_similarity(a, b, win_size=7, data_range=4.0, use_sample_covariance=False)
        for a, b in zip(prediction[0], truth[0], strict=True)
    ]
    found = structure_loss(torch.from_numpy(prediction), torch.from_numpy(truth), torch.ones(1, 1, 12, 14))
    assert float(found) == pytest.approx(1 - np.mean(expected), abs=1e-4)


def test_structure_looks_at_whole_valid_windows_alone():
    draw = np.random.default_rng(2)
    truth = torch.from_numpy(draw.normal(size=(1, 2, 12, 20)).astype(np.float32))
    prediction, valid = truth.clone(), torch.ones(1, 1, 12, 20)
    prediction[..., :5] = 9.0
    assert float(structure_loss(prediction, truth, valid)) > 0.1
    valid[..., :5] = 0
    assert float(structure_loss(prediction, truth, valid)) == pytest.approx(0.0, abs=1e-5)
    assert float(structure_loss(prediction, truth, torch.zeros_like(valid))) == 0.0


def test_position_by_hand():
    # One query, two keys in a row; it lies at key 1 exactly, the attention is a quarter and three quarters.
    attention = torch.tensor([0.25, 0.75]).view(1, 1, 1, 1, 2)
    target = gaussian([1, 0], 1.0)
    expected = -(target[0] * math.log(0.25) + target[1] * math.log(0.75)) + abs(0.75 - 1) / 2
    found = position_loss(attention, torch.tensor([[0.0, 1.0]]), torch.ones(1, 1, 1, 1))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_position_is_least_at_the_true_places_and_counts_valid_queries():
    h, w, H, W = 3, 2, 8, 7
    shifts = torch.tensor([[2.0, 3.0]])
    rows, cols = place_targets(shifts[:, 0], h, H), place_targets(shifts[:, 1], w, W)
    true = torch.einsum("bhH,bwW->bhwHW", rows, cols)
    everywhere = torch.full_like(true, 1 / (H * W))
    valid = torch.ones(1, 1, h, w)
    best, blind = (float(position_loss(a, shifts, valid)) for a in (true, everywhere))
    moved = float(position_loss(true, shifts + torch.tensor([[0.0, 2.0]]), valid))
    assert best < blind < moved
    spoilt = true.clone()
    spoilt[:, 1, 1] = everywhere[:, 1, 1]
    valid[..., 1, 1] = 0
    rest = float(position_loss(spoilt, shifts, valid))
    assert rest == pytest.approx(float(position_loss(true, shifts, valid)), rel=1e-6)
    assert float(position_loss(spoilt, shifts, torch.ones_like(valid))) > rest


def test_routing_is_cross_entropy_to_the_regions_of_the_places():
    shifts = torch.tensor([[2.0, 0.5]])
    grid, region = (4, 8, 8, 12), 4
    affinity = torch.randn(1, 2, 6)
    expected = 0.0
    logs = affinity.log_softmax(-1)[0].numpy()
    for query in range(2):
        target = np.zeros((2, 3))
        for r in range(4):
            for c in range(4):
                along_rows = gaussian(np.arange(8) - r - 2.0, 1.0)
                along_cols = gaussian(np.arange(12) - (4 * query + c) - 0.5, 1.0)
                both = np.outer(along_rows, along_cols)
                target += both.reshape(2, 4, 3, 4).sum(axis=(1, 3)) / 16
        expected -= (target.ravel() * logs[query]).sum() / 2
    assert float(routing_loss(affinity, shifts, grid, region)) == pytest.approx(expected, rel=1e-5)


def test_similarity_by_hand_for_a_match_and_for_none():
    surface = torch.zeros(2, 1, 3)
    surface[:, 0, 1] = 1.0
    sharpness, none = torch.tensor(math.log(2.0)), torch.tensor(0.5)
    places = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    found = similarity_loss(surface, places, torch.tensor([True, False]), sharpness, none)
    total = math.log(2 + math.e**2 + math.e)
    target = gaussian([1, 0, 1], 0.5)
    match = total - 2 * target[1]
    assert float(found) == pytest.approx((match + total - 1) / 2, rel=1e-5)


def test_similarity_teaches_the_level_of_no_match():
    none = torch.tensor(0.0, requires_grad=True)
    surface = torch.full((1, 4, 4), 0.2)
    args = (surface, torch.zeros(1, 2), torch.tensor([False]), torch.tensor(3.0))
    similarity_loss(*args, none).backward()
    assert float(none.grad) < 0  # a higher level makes no match more probable
