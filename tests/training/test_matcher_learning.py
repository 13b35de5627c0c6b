"""Slow: a matcher that is trained for a moment finds templates that it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.model_fixtures import simulate_pair, to_model_input

from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, hash_values
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.model.card import MatcherCard
from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.diffusion import read_schedule
from sar2eo.settings import MatcherSettings
from sar2eo.training.matcher_task import MatcherTask

SIDE, TEMPLATE, STEPS = 64, 32, 100


def scenes(first: int, count: int) -> dict[str, object]:
    """Simulate pairs of 64 pixels; the tiny VAE has factor 4."""
    drawn = [simulate_pair(SIDE, SIDE, seed) for seed in range(first, first + count)]
    sar = torch.from_numpy(np.stack([to_model_input(s) for s, _ in drawn]))
    eo = torch.from_numpy(np.stack([e * 2 - 1 for _, e in drawn]))
    return {"sar": sar, "eo": eo, "valid": torch.ones(count, 1, SIDE, SIDE), "index": list(range(count))}


@pytest.mark.slow
def test_a_trained_matcher_finds_what_it_has_never_seen(checkpoint: Path) -> None:
    vae = load_checkpoint(checkpoint).vae
    settings = MatcherSettings(widths=(32, 64), template=TEMPLATE, crop=SIDE, dtype="float32", threads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        denoiser = MatchingDenoiser(latent_channels=4, widths=settings.widths)
    made = MatcherCheckpoint(
        denoiser=denoiser,
        vae=vae,
        schedule=read_schedule({}, set_alpha_to_one=True),
        card=MatcherCard(name="learning", vae_sha256=hash_values(vae)),
    )
    task = MatcherTask(made, settings, torch.device("cpu"))
    held_out = [scenes(10_000 + 8 * k, 8) for k in range(4)]
    before = task.validate(held_out)  # type: ignore[arg-type]
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
    for step in range(STEPS):
        batch = scenes(8 * step, 8)
        loss, _ = task.loss("denoiser", batch, step, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimiser.step()
    after = task.validate(held_out)  # type: ignore[arg-type]
    # By chance one in fourteen is within 5 pixels.
    assert before["cmr_5"] < 0.25 < 0.35 < after["cmr_5"]
    assert after["score"] < before["score"] - 2
    # Of latents of variance 1 nothing at all would have an error of 1.
    assert after["squared_error"] < 0.8 < before["squared_error"]
