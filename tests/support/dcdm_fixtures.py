"""A matcher's folder, untrained and tiny, made by code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, save_matcher, values_sha256
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.model.card import MatcherCard
from sar2eo.model.diffusion import schedule_config
from sar2eo.model.network import create_vae


def untrained_matcher(folder: Path, vae: Any = None, **card: Any) -> Path:
    """Save an untrained matcher; its VAE has factor 4, so sides are multiples of 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = vae or create_vae("tiny")
        denoiser = MatchingDenoiser(latent_channels=4, widths=(16, 32), heads=2, top_regions=4, features=4)
    facts = {"name": "tiny", "polarisations": ("VH",), "template_px": 32, "search_px": 64}
    made = MatcherCard(**{**facts, "vae_sha256": values_sha256(vae), **card})
    schedule = schedule_config({}, set_alpha_to_one=True)
    return save_matcher(MatcherCheckpoint(denoiser=denoiser, vae=vae, schedule=schedule, card=made), folder)
