"""A matcher's folder, untrained and tiny, made by code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, hash_values, save_matcher
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.model.card import MatcherCard
from sar2eo.model.diffusion import read_schedule
from sar2eo.model.network import create_vae


def untrained_matcher(folder: Path, vae: Any = None, **card: Any) -> Path:
    """Save an untrained matcher; its VAE has factor 4, so sides are multiples of 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = vae or create_vae("tiny")
        denoiser = MatchingDenoiser(latent_channels=4, widths=(16, 32), heads=2, top_regions=4, features=4)
    facts = {"name": "tiny", "polarisations": ("VH",), "template_px": 32, "search_px": 64}
    made = MatcherCard(**{**facts, "vae_sha256": hash_values(vae), **card})
    schedule = read_schedule({}, set_alpha_to_one=True)
    return save_matcher(MatcherCheckpoint(denoiser=denoiser, vae=vae, schedule=schedule, card=made), folder)
