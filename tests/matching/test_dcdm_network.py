"""The denoiser: sizes, parameters, what depends on what, and that it learns."""

import pytest
import torch

from sar2eo.matching.dcdm.network import MatchingDenoiser

TINY = {"latent_channels": 4, "widths": (16, 32), "heads": 2, "top_regions": 2, "features": 4}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


def inputs(template=8, search=16, batch=2):
    noisy, optical = torch.randn(2, batch, 4, template, template)
    return noisy, optical, torch.randn(batch, 4, search, search), torch.ones(batch, 1, search, search)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_the_default_size():
    with torch.device("meta"):
        full = MatchingDenoiser()
    assert count(full) == 8_224_639
    # The supplement's Table 2: sparse attention adds 1.5 % of parameters; here its gate.
    assert 0 < count(full.attend_fine.gate) < 0.015 * count(full)


def test_what_a_pass_yields():
    network = MatchingDenoiser(**TINY).eval()
    noisy, optical, search, valid = inputs()
    denoised, template_features, search_features, *_ = network(
        noisy, optical, search, valid, torch.tensor([3, 900])
    )
    assert denoised.clean.shape == (2, 4, 8, 8)
    assert denoised.before.shape == denoised.after.shape == (2, 4, 4, 8, 8)
    assert denoised.affinity.shape == (2, 4, 16)
    assert template_features.shape == (2, 4, 16, 16)
    assert search_features.shape == (2, 4, 32, 32)
    assert torch.allclose(denoised.after.flatten(3).sum(-1), torch.ones(2, 4, 4), atol=1e-5)
    assert not denoised.clean.isnan().any()


def test_every_input_matters():
    network = MatchingDenoiser(**TINY).eval()
    base = inputs()
    steps = torch.tensor([3, 900])
    first = network(*base, steps)[0].clean
    for index in range(3):
        changed = list(base)
        changed[index] = torch.randn_like(base[index])
        assert not torch.allclose(network(*changed, steps)[0].clean, first, atol=1e-4)
    assert not torch.allclose(network(*base, steps.flip(0))[0].clean, first, atol=1e-4)


def test_pairs_of_a_batch_do_not_know_each_other():
    network = MatchingDenoiser(**TINY).eval()
    noisy, optical, search, valid = inputs()
    steps = torch.tensor([10, 500])
    together = network(noisy, optical, search, valid, steps)[0].clean
    alone = network(noisy[1:], optical[1:], search[1:], valid[1:], steps[1:])[0].clean
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_sides_need_not_be_square_nor_of_one_size():
    network = MatchingDenoiser(**TINY).eval()
    noisy, optical = torch.randn(2, 1, 4, 4, 8)
    found = network(noisy, optical, torch.randn(1, 4, 12, 20), torch.ones(1, 1, 12, 20), torch.tensor([7]))
    assert found[0].clean.shape == (1, 4, 4, 8)
    assert found[0].after.shape == (1, 2, 4, 6, 10)


def test_every_parameter_learns():
    network = MatchingDenoiser(**TINY)
    # Parts that start as nothing let no gradient through to those before them.
    torch.nn.init.normal_(network.attend_coarse.calibration.convolutions[-1].weight, std=0.1)
    torch.nn.init.normal_(network.attend_fine.gate[-1].weight)
    torch.nn.init.constant_(network.attend_fine.gate[-1].bias, 0.0)
    denoised, a, b, *_ = network(*inputs(), torch.tensor([3, 900]))
    total = denoised.clean.square().mean() + denoised.after.square().mean() + a.std() + b.std()
    (total * 10 + network.sharpness + network.none).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The routing is drawn by a loss of its own, on logits that share their weights with the attention.
    assert without == []
