"""A matcher on disk and in memory: its two networks, the noise schedule and the card."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from sar2eo.errors import CheckpointError
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.model.card import MatcherCard
from sar2eo.model.diffusion import read_schedule
from sar2eo.model.folder import SCHEDULER_CONFIG, WEIGHTS, ModelFolder, read_vae_facts
from sar2eo.model.network import Vae, find_vae_class
from sar2eo.model.weights import (
    create_networks,
    fill,
    narrow,
    new_model_folder,
    parse_disk_dtype,
    refuse_existing,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class MatcherCheckpoint:
    """A matcher in memory: its frozen VAE, and the noise schedule of its training (`read_schedule`)."""

    denoiser: MatchingDenoiser
    vae: Vae
    schedule: dict[str, Any]
    card: MatcherCard

    @property
    def factor(self) -> int:
        """Pixels along a latent."""
        return read_vae_facts(dict(self.vae.config)).factor


def create_matching_scheduler(schedule: dict[str, Any]) -> Any:
    """Create diffusers' scheduler for a network that predicts x0, with trailing timesteps."""
    chosen = {"prediction_type": "sample", "timestep_spacing": "trailing"}
    return DDIMScheduler(**schedule, **chosen, clip_sample=False, steps_offset=1)


def compute_alpha_bars(schedule: dict[str, Any]) -> Tensor:
    """Return the products of 1 - beta (supplement, Eq. 2), shape (1000,)."""
    found: Tensor = create_matching_scheduler(schedule).alphas_cumprod
    return found


def hash_values(module: nn.Module) -> str:
    """Hash names, shapes and values of a network in float32, whatever its file's dtype."""
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def save_matcher(checkpoint: MatcherCheckpoint, out: str | Path) -> Path:
    """Write a matcher's folder, whole or not at all."""
    out = Path(out)
    networks = {"denoiser": checkpoint.denoiser, "vae": checkpoint.vae}
    scheduler = dict(create_matching_scheduler(checkpoint.schedule).config)
    with new_model_folder(out, "DCDM", networks, scheduler, checkpoint.card):
        return out


def pack_matcher(folder: str | Path, out: str | Path, *, dtype: str = "float16", **card: Any) -> Path:
    """Copy a trained matcher for publishing: weights in half precision, and a final card.

    Parameters
    ----------
    folder : str or Path
        A trained matcher.
    out : str or Path
        New folder.
    dtype : {"float16", "bfloat16", "float32"}
        Dtype of the weights on disk.
    **card
        Fields of the card to change; metrics are added to those of the card.

    Raises
    ------
    SettingsError, CheckpointError, OutputError
        If something does not fit, before anything is written.
    """
    refuse_existing(Path(out))
    kept = parse_disk_dtype(dtype)
    loaded = load_matcher(folder)
    narrow((loaded.denoiser, loaded.vae), kept, folder)
    metrics = {**loaded.card.metrics, **card.pop("metrics", {})}
    changed = loaded.card.with_changes(**card, metrics=metrics, vae_sha256=hash_values(loaded.vae))
    return save_matcher(dataclasses.replace(loaded, card=changed), out)


def load_matcher(folder: str | Path, *, device: str = "cpu") -> MatcherCheckpoint:
    """Load a matcher for use, in evaluation mode and float32.

    Raises `CheckpointError` if something is missing, unsafe, or does not fit, or the VAE is not the one it
    was trained with.
    """
    model = ModelFolder(Path(folder), MatcherCard)
    model.files()
    card, raw = model.card(), model.scheduler()
    if raw.get("prediction_type") != "sample":
        raise CheckpointError(
            f"{folder}: {SCHEDULER_CONFIG} says prediction_type {raw.get('prediction_type')!r}, must be "
            "'sample': is it a matcher's?"
        )
    schedule = read_schedule(raw, set_alpha_to_one=bool(raw.get("set_alpha_to_one", True)))
    vae = model.config("vae")
    networks = create_networks(model, {"denoiser": MatchingDenoiser, "vae": find_vae_class(vae)})
    if networks["denoiser"].config.latent_channels != read_vae_facts(vae).latent_channels:
        raise CheckpointError(f"{folder}: denoiser and VAE differ in their latent channels")
    for name, network in networks.items():
        fill(network, model.path / name / WEIGHTS, device=device)
        network.to(memory_format=torch.channels_last)  # which convolutions are fastest on
    if hash_values(networks["vae"]) != card.vae_sha256:
        raise CheckpointError(f"{folder}: its VAE is not the one that the card names: was it exchanged?")
    return MatcherCheckpoint(**networks, schedule=schedule, card=card)


def describe_matcher(folder: str | Path) -> dict[str, Any]:
    """Describe a matcher as JSON values: architecture, parameters, schedule, card and sha256."""
    loaded = load_matcher(folder)
    denoiser = {name: value for name, value in loaded.denoiser.config.items() if name[0] != "_"}
    return ModelFolder(Path(folder), MatcherCard).describe(denoiser=denoiser)
