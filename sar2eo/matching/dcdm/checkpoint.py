"""A matcher's folder: saved whole, read strictly, safetensors and JSON only.

::

    model_index.json       what diffusers' tools look for
    sar2eo-matcher.json    the card
    denoiser/  vae/        config.json  diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
"""

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
from sar2eo.matching.dcdm.matcher_card import MATCHER_CARD_NAME, MatcherCard
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.model.checkpoint import refuse_existing, write_pipeline
from sar2eo.model.checkpoint_files import (
    CONFIG,
    SCHEDULER_CONFIG,
    WEIGHTS,
    read_json,
    refuse_pickle,
    vae_facts,
)
from sar2eo.model.diffusion import schedule_config
from sar2eo.model.network import Vae, vae_class
from sar2eo.model.weights import check_weights, create_empty, disk_dtype, fill, narrow
from sar2eo.store.atomic import atomic_folder

__all__ = [
    "MatcherCheckpoint",
    "alpha_bars",
    "describe_matcher",
    "load_matcher",
    "matching_scheduler",
    "pack_matcher",
    "save_matcher",
    "values_sha256",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class MatcherCheckpoint:
    """A matcher in memory.

    Parameters
    ----------
    denoiser : MatchingDenoiser
    vae : AutoencoderKL, AutoencoderTiny or AutoencoderDC
        Frozen; of factor 8 in earnest, any in tests.
    schedule : dict
        Noise schedule of training, as `sar2eo.model.diffusion.schedule_config` returns it.
    card : MatcherCard
    """

    denoiser: MatchingDenoiser
    vae: Vae
    schedule: dict[str, Any]
    card: MatcherCard

    @property
    def factor(self) -> int:
        """Pixels along a latent."""
        return vae_facts(dict(self.vae.config)).factor


def matching_scheduler(schedule: dict[str, Any]) -> Any:
    """Return diffusers' scheduler of a network that predicts x0, with trailing timesteps."""
    chosen = {"prediction_type": "sample", "timestep_spacing": "trailing"}
    return DDIMScheduler(**schedule, **chosen, clip_sample=False, steps_offset=1)


def alpha_bars(schedule: dict[str, Any]) -> Tensor:
    """Return the products of 1 - beta (supplement, Eq. 2), shape (1000,)."""
    found: Tensor = matching_scheduler(schedule).alphas_cumprod
    return found


def values_sha256(module: nn.Module) -> str:
    """Hash names, shapes and values of a network, in float32, whatever file they came from."""
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def save_matcher(checkpoint: MatcherCheckpoint, out: str | Path) -> Path:
    """Write a matcher's folder whole or not at all: beside its place first, then renamed.

    Raises
    ------
    OutputError
        If the folder exists or cannot be written.
    """
    out = Path(out)
    refuse_existing(out)
    with atomic_folder(out) as folder:
        networks = {"denoiser": checkpoint.denoiser, "vae": checkpoint.vae}
        write_pipeline(folder, "DCDM", networks, dict(matching_scheduler(checkpoint.schedule).config))
        checkpoint.card.write(folder)
    return out


def pack_matcher(folder: str | Path, out: str | Path, *, dtype: str = "float16", **card: Any) -> Path:
    """Copy a trained matcher for others to use: in half the bytes, with the last words on its card.

    Parameters
    ----------
    folder : str or Path
        A trained matcher.
    out : str or Path
        New folder.
    dtype : {"float16", "bfloat16", "float32"}
        Of the weights on disk.
    **card
        Fields of the card that are to be others; metrics are added to those that it has.

    Raises
    ------
    SettingsError, CheckpointError, OutputError
        For what cannot be, before anything is written.
    """
    refuse_existing(Path(out))
    kept = disk_dtype(dtype)
    loaded = load_matcher(folder)
    narrow((loaded.denoiser, loaded.vae), kept, folder)
    metrics = {**loaded.card.metrics, **card.pop("metrics", {})}
    changed = loaded.card.changed(**card, metrics=metrics, vae_sha256=values_sha256(loaded.vae))
    return save_matcher(dataclasses.replace(loaded, card=changed), out)


def load_matcher(folder: str | Path, *, device: str = "cpu") -> MatcherCheckpoint:
    """Load a matcher for use, in evaluation mode and float32.

    Parameters
    ----------
    folder : str or Path
    device : str
        As torch spells it.

    Raises
    ------
    CheckpointError
        If something is missing, unsafe, or does not fit, or the VAE is not the one it was trained with.
    """
    folder = Path(folder)
    check_files(folder)
    card = MatcherCard.read(folder)
    raw = read_json(folder / SCHEDULER_CONFIG)
    if raw.get("prediction_type") != "sample":
        raise CheckpointError(
            f"{folder}: {SCHEDULER_CONFIG} says prediction_type {raw.get('prediction_type')!r}, must be "
            "'sample': is it a matcher's?"
        )
    schedule = schedule_config(raw, set_alpha_to_one=bool(raw.get("set_alpha_to_one", True)))
    configs = {part: read_json(folder / part / CONFIG) for part in ("denoiser", "vae")}
    kinds = {"denoiser": MatchingDenoiser, "vae": vae_class(configs["vae"])}
    parts = {part: create_empty(kinds[part], config) for part, config in configs.items()}
    if parts["denoiser"].config.latent_channels != vae_facts(configs["vae"]).latent_channels:
        raise CheckpointError(f"{folder}: denoiser and VAE differ in their latent channels")
    for part, module in parts.items():
        check_weights(module, folder / part / WEIGHTS)
    for part, module in parts.items():
        fill(module, folder / part / WEIGHTS, device=device)
        module.to(memory_format=torch.channels_last)  # which convolutions are fastest on
    if values_sha256(parts["vae"]) != card.vae_sha256:
        raise CheckpointError(f"{folder}: its VAE is not the one that the card names: was it exchanged?")
    return MatcherCheckpoint(**parts, schedule=schedule, card=card)


def describe_matcher(folder: str | Path) -> dict[str, Any]:
    """Describe a matcher as JSON values: architecture, parameters, schedule, card.

    Raises
    ------
    CheckpointError
        As `load_matcher`.
    """
    loaded = load_matcher(folder)
    parts = {"denoiser": loaded.denoiser, "vae": loaded.vae}
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}
    return {
        "path": str(folder),
        "parameters": counts | {"total": sum(counts.values())},
        "denoiser": {name: value for name, value in loaded.denoiser.config.items() if name[0] != "_"},
        "vae": vae_facts(dict(loaded.vae.config))._asdict(),
        "schedule": loaded.schedule,
        "card": loaded.card.to_dict(),
    }


def check_files(folder: Path) -> None:
    """Raise CheckpointError unless a folder has all files of a matcher, none of them a pickle."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder (a matcher is a folder with {MATCHER_CARD_NAME})")
    names = [MATCHER_CARD_NAME, SCHEDULER_CONFIG]
    names += [f"{part}/{name}" for part in ("denoiser", "vae") for name in (CONFIG, WEIGHTS)]
    for name in names:
        if not (folder / name).is_file():
            for path in sorted((folder / name).parent.glob("*")):
                refuse_pickle(path)
            hint = ": not a matcher (see 'sar2eo train-matcher')" if name == MATCHER_CARD_NAME else ""
            raise CheckpointError(f"{folder} has no {name}{hint}")
