"""Sparse attention by regions against plain loops and dense attention; the calibration block."""

import math

import numpy as np
import pytest
import torch

from sar2eo.matching.dcdm.attention import (
    AttentionCalibration,
    CalibratedAttention,
    RegionAttention,
    _gates,
    count_displacement_votes,
    from_regions,
    gather_regions,
    to_regions,
)

WIDTH, CONTEXT, HEADS, REGION = 8, 12, 2, 4


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


def attention(top):
    return RegionAttention(WIDTH, CONTEXT, heads=HEADS, region=REGION, top=top)


def images(template=(8, 4), search=(12, 8)):
    return torch.randn(2, WIDTH, *template), torch.randn(2, CONTEXT, *search), torch.ones(2, 1, *search)


def open_gates(module):
    torch.nn.init.constant_(module.gate[-1].bias, 100.0)
    return module


def projected(module, features, context):
    normed = module.context_norm(context)
    return module.to_q(module.norm(features)), module.to_k(normed), module.to_v(normed)


def plain_dense(module, features, context):
    """Softmax attention over all tokens, without regions."""
    q, k, v = (part.flatten(2).unflatten(1, (HEADS, -1)) for part in projected(module, features, context))
    weights = (q.transpose(2, 3) @ k / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
    out = (weights @ v.transpose(2, 3)).transpose(2, 3).flatten(1, 2).view_as(features)
    return module.to_out(out)


def test_regions_go_apart_and_together_again():
    image = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    tokens = to_regions(image, 4)
    assert tokens.shape == (2, 6, 16, 3)
    # The second region of the first row of regions begins at column 4; its sixth token is one row down.
    assert torch.equal(tokens[1, 1, 5], image[1, :, 1, 5])
    assert torch.equal(tokens[0, 3, 0], image[0, :, 4, 0])
    assert torch.equal(from_regions(tokens, 4, (8, 12)), image)


def test_gathering_is_what_a_loop_gathers():
    tokens, chosen = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 6, 2))
    found = gather_regions(tokens, chosen)
    for b in range(2):
        for q in range(6):
            for k in range(2):
                assert torch.equal(found[b, q, k], tokens[b, chosen[b, q, k]])


def test_all_regions_and_open_gates_are_dense_attention():
    features, context, valid = images()
    sparse = open_gates(attention(top=6))
    expected = plain_dense(sparse, features, context)
    assert torch.allclose(sparse(features, context, valid).output, expected, atol=1e-5)
    assert not torch.allclose(
        open_gates(attention(top=1))(features, context, valid).output, expected, atol=1e-3
    )


def test_sparse_attention_is_what_loops_over_regions_give():
    features, context, valid = images()
    module = open_gates(attention(top=2))
    q, k, v = (to_regions(part, REGION) for part in projected(module, features, context))
    affinity = torch.einsum("bqc,bkc->bqk", q.mean(2), k.mean(2)) / math.sqrt(WIDTH)
    expected = torch.zeros_like(q)
    for b in range(2):
        for r in range(q.shape[1]):
            chosen = affinity[b, r].argsort(descending=True)[:2]
            keys, values = k[b, chosen].flatten(0, 1), v[b, chosen].flatten(0, 1)
            for head in range(HEADS):
                part = slice(head * 4, head * 4 + 4)
                weights = (q[b, r][:, part] @ keys[:, part].T / 2.0).softmax(dim=-1)
                expected[b, r, :, part] = weights @ values[:, part]
    expected = module.to_out(from_regions(expected, REGION, (8, 4)))
    found = module(features, context, valid)
    assert torch.allclose(found.output, expected, atol=1e-5)
    assert torch.allclose(found.affinity, affinity, atol=1e-5)
    assert found.weights.shape == (2, 2, 16, 32)
    assert torch.allclose(found.weights.sum(-1), torch.ones(2, 2, 16), atol=1e-5)


def test_what_is_not_valid_gets_no_attention_and_no_influence():
    features, context, valid = images()
    valid[:, :, :4] = 0  # two whole regions
    valid[:, :, 5, 6] = 0  # one token
    module = attention(top=6)
    spoilt = context.clone()
    # The norm is over the image, so only the direction of single channels may change what is valid.
    module.context_norm = torch.nn.Identity()
    spoilt[:, :, :4] = 100.0
    spoilt[:, :, 5, 6] = -100.0
    found = module(features, context, valid)
    assert torch.allclose(found.output, module(features, spoilt, valid).output, atol=1e-5)
    assert not torch.allclose(
        found.output, module(features, spoilt, torch.ones_like(valid)).output, atol=1e-2
    )


def test_the_gate_sees_maximum_share_and_entropy():
    module = attention(top=2)
    seen = []
    module.gate.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    # One query region of one token, two key regions of two tokens: shares 0.75 and 0.25.
    weights = torch.tensor([0.75, 0.0, 0.125, 0.125]).view(1, 1, 1, 1, 4)
    gates = _gates(module.gate, weights, 2)
    assert torch.allclose(seen[0][0, 0, 0], torch.tensor([[0.75, 0.75, 0.0], [0.125, 0.25, 1.0]]), atol=1e-5)
    assert torch.allclose(gates, torch.full((1, 1, 1, 1, 4), 1 / (1 + math.exp(-3.0))))


def test_a_closed_gate_lets_nothing_through():
    features, context, valid = images()
    module = attention(top=3)
    torch.nn.init.constant_(module.gate[-1].bias, -100.0)
    expected = module.to_out(torch.zeros_like(features))
    assert torch.allclose(module(features, context, valid).output, expected, atol=1e-6)


def test_votes_by_hand():
    # Two queries in a row, three keys: displacements -1 to 2.
    evidence = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(1, 1, 1, 2, 1, 3)
    # Displacement 0: 1 and 5; 1: 2 and 6; 2: 3 alone; -1: 4 alone.
    expected = torch.tensor([[3.0, 4.0, 1.5], [2.0, 3.0, 4.0]])
    assert torch.equal(count_displacement_votes(evidence)[0, 0, 0, :, 0], expected)


def test_votes_are_what_loops_count():
    evidence = torch.randn(1, 2, 2, 3, 4, 5)
    votes = count_displacement_votes(evidence).numpy()
    sums = {}
    for index in np.ndindex(2, 3, 4, 5):
        key = (index[2] - index[0], index[3] - index[1])
        sums[key] = sums.get(key, 0) + evidence[0, :, *index].numpy()
    for index in np.ndindex(2, 3, 4, 5):
        expected = sums[index[2] - index[0], index[3] - index[1]] / 6
        assert np.allclose(votes[0, :, *index], expected, atol=1e-6)


def test_calibration_begins_as_the_identity_and_keeps_sums():
    block = AttentionCalibration(HEADS, 4)
    logits, closed = torch.randn(1, HEADS, 2, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.bool)
    found = block(logits, closed)
    assert torch.allclose(found.flatten(4), logits.flatten(4).softmax(-1), atol=1e-6)
    torch.nn.init.normal_(block.convolutions[-1].weight)
    torch.nn.init.constant_(block.vote, 0.5)
    closed[:, 0, :2] = True
    found = block(logits, closed)
    assert not torch.allclose(found.flatten(4), logits.flatten(4).softmax(-1), atol=1e-3)
    assert torch.allclose(found.flatten(4).sum(-1), torch.ones(1, HEADS, 2, 3), atol=1e-5)
    assert float(found[..., 0, :2].detach().max()) == 0


def test_votes_overrule_one_query_that_looks_elsewhere():
    block = AttentionCalibration(1, 2)
    torch.nn.init.constant_(block.vote, 2.0)
    logits = torch.zeros(1, 1, 4, 4, 8, 8)
    for r in range(4):
        for c in range(4):
            logits[0, 0, r, c, r + 3, c + 1] = 4.0  # all look 3 down and 1 to the right
    logits[0, 0, 2, 2] = 0
    logits[0, 0, 2, 2, 7, 7] = 4.0  # but one
    after = block(logits, torch.zeros(1, 8, 8, dtype=torch.bool))
    assert int(logits[0, 0, 2, 2].argmax()) == 7 * 8 + 7
    assert int(after[0, 0, 2, 2].argmax()) == 5 * 8 + 3


def test_the_calibrating_convolution_moves_with_both_images():
    # One more row of shift for all queries moves the map by one key: no query or key has a place of its own.
    block = AttentionCalibration(1, 3)
    for convolution in block.convolutions:
        torch.nn.init.normal_(convolution.weight, std=0.4)
    evidence = torch.zeros(1, 1, 12, 1, 24, 1)
    evidence[0, 0, 6, 0, 11, 0], evidence[0, 0, 5, 0, 10, 0] = 1.0, 0.5
    base = block._smooth(torch.zeros_like(evidence))
    first = block._smooth(evidence) - base
    second = block._smooth(evidence.roll((0, 2), (2, 4))) - base
    third = block._smooth(evidence.roll((1, 1), (2, 4))) - base
    inner = (0, 0, slice(3, 9), 0, slice(7, 15), 0)
    shifted = (0, 0, slice(3, 9), 0, slice(9, 17), 0)
    both = (0, 0, slice(4, 10), 0, slice(8, 16), 0)
    assert torch.allclose(first[inner], second[shifted], atol=1e-5)
    assert torch.allclose(first[inner], third[both], atol=1e-5)
    assert float(first[inner].detach().abs().max()) > 1e-3


def test_a_new_calibration_leaves_plain_attention():
    features, context, valid = images()
    module = CalibratedAttention(WIDTH, CONTEXT, heads=HEADS, hidden=4)
    found = module(features, context, valid)
    assert torch.allclose(found.before, found.after, atol=1e-6)
    q, k, _ = (part.flatten(2).unflatten(1, (HEADS, -1)) for part in projected(module, features, context))
    weights = (q.transpose(2, 3) @ k / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
    assert torch.allclose(found.after, weights.mean(1), atol=1e-6)
    assert torch.allclose(found.output, plain_dense(module, features, context), atol=1e-5)
