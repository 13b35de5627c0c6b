"""Checkpoints: save, check, load and describe.

The folder's files are listed in `sar2eo.model.checkpoint_files`. A checkpoint is read strictly: every tensor
must be
there with the shape that the configuration gives it, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from sar2eo.errors import CheckpointError, OutputError
from sar2eo.model.card import Card
from sar2eo.model.checkpoint_files import (
    CONFIG,
    MODEL_INDEX,
    PROMPT_EMBEDS,
    SCHEDULER_CONFIG,
    WEIGHTS,
    check_fit,
    checkpoint_files,
    describe_files,
    read_json,
    tensor_headers,
    vae_facts,
    wants_prompt,
    write_json,
)
from sar2eo.model.diffusion import create_scheduler, schedule_config
from sar2eo.model.network import Vae, latent_multiple, split_prediction, vae_class
from sar2eo.model.weights import check_weights, create_empty, fill, read_tensors
from sar2eo.store.atomic import atomic_folder

__all__ = [
    "Checkpoint",
    "describe_checkpoint",
    "load_checkpoint",
    "refuse_existing",
    "save_checkpoint",
    "verify_checkpoint",
    "write_part",
    "write_pipeline",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint in memory.

    Parameters
    ----------
    unet : UNet2DConditionModel
        2 C channels in, C + 1 out (see `sar2eo.model.network`).
    vae : AutoencoderKL, AutoencoderTiny or AutoencoderDC
        With C latent channels.
    schedule : dict
        Noise schedule of training, as `sar2eo.model.diffusion.schedule_config` returns it.
    prompt_embeds : Tensor or None
        Shape (1, tokens, dimensions); None for a U-Net without cross-attention.
    card : Card
    """

    unet: UNet2DConditionModel
    vae: Vae
    schedule: dict[str, Any]
    prompt_embeds: Tensor | None
    card: Card

    def predict(self, sar_latents: Tensor, noisy: Tensor, timestep: int | Tensor) -> tuple[Tensor, Tensor]:
        """Run the U-Net on [SAR latent | noisy EO latent] (C-DiffSET, section 3.2).

        Parameters
        ----------
        sar_latents, noisy : Tensor of float32, shape (B, C, h, w)
        timestep : int or Tensor of int64, shape () or (B,)

        Returns
        -------
        prediction : Tensor of float32, shape (B, C, h, w)
            Noise or v, as the card says.
        raw_variance : Tensor of float32, shape (B, 1, h, w)
            For `sar2eo.model.network.variance_of` (Eq. 2).
        """
        dtype = next(self.unet.parameters()).dtype
        inputs = torch.cat([sar_latents, noisy], dim=1).to(dtype, memory_format=torch.channels_last)
        timesteps = torch.as_tensor(timestep, device=inputs.device).expand(len(inputs)).contiguous()
        prompt = None if self.prompt_embeds is None else self.prompt_embeds.expand(len(inputs), -1, -1)
        output = self.unet(inputs, timesteps, encoder_hidden_states=prompt, return_dict=False)[0]
        return split_prediction(output)

    @property
    def factor(self) -> int:
        """Pixels along a latent."""
        return vae_facts(dict(self.vae.config)).factor

    @property
    def pixel_multiple(self) -> int:
        """What sides of images must be multiples of."""
        return self.factor * latent_multiple(self.unet.config)


def save_checkpoint(checkpoint: Checkpoint, out: str | Path) -> Path:
    """Write a checkpoint folder whole or not at all: beside its place first, then renamed.

    Raises
    ------
    OutputError
        If the folder exists or cannot be written.
    CheckpointError
        If the parts do not fit each other.
    """
    out = Path(out)
    embeds = checkpoint.prompt_embeds
    check_fit(checkpoint.unet.config, checkpoint.vae.config, None if embeds is None else embeds.shape)
    refuse_existing(out)
    with atomic_folder(out) as folder:
        networks = {"unet": checkpoint.unet, "vae": checkpoint.vae}
        write_pipeline(folder, "CDiffSET", networks, _scheduler_config(checkpoint))
        if embeds is not None:
            save_file({"prompt_embeds": embeds.detach().float().cpu().contiguous()}, folder / PROMPT_EMBEDS)
        checkpoint.card.write(folder)
    return out


def write_pipeline(
    folder: Path, name: str, networks: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Write networks and a noise schedule as diffusers lays out a pipeline.

    Parameters
    ----------
    folder : Path
    name : str
        Of the pipeline's class.
    networks : mapping of str to ModelMixin
        By the names of their folders.
    scheduler : mapping
        Configuration of a DDIMScheduler.
    """
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": version("diffusers")}
    for part, module in networks.items():
        write_part(module, folder / part)
        kind = type(module)
        index[part] = [kind.__module__.partition(".")[0], kind.__name__]  # library and class
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    write_json(folder / MODEL_INDEX, index)
    (folder / SCHEDULER_CONFIG).parent.mkdir()
    config = {"_class_name": "DDIMScheduler", **scheduler}
    if "_use_default_values" in config:  # which diffusers lists in the order of a set, another one each time
        config["_use_default_values"] = sorted(config["_use_default_values"])
    write_json(folder / SCHEDULER_CONFIG, config)


def write_part(module: Any, folder: Path, **changes: Any) -> None:
    """Write one network in diffusers' layout: its configuration and its weights.

    Parameters
    ----------
    module : ModelMixin
        Of diffusers.
    folder : Path
        New.
    **changes
        Fields of the configuration that are to be others.
    """
    folder.mkdir(parents=True)
    config = json.loads(module.to_json_string())
    config.pop("_name_or_path", None)  # where the base lay on this machine
    write_json(folder / CONFIG, config | changes)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a DDIM configuration that plain diffusers samples with as this package does."""
    card = checkpoint.card
    # Refuses what is unsound.
    create_scheduler(card.sampler, card.spacing, card.prediction_type, checkpoint.schedule)
    fixed = {"clip_sample": False, "steps_offset": 1}
    chosen = {"prediction_type": card.prediction_type, "timestep_spacing": card.spacing}
    return {**checkpoint.schedule, **fixed, **chosen}


def verify_checkpoint(folder: str | Path) -> None:
    """Check a checkpoint without reading its weights: files, headers, shapes, schedule, card.

    Raises
    ------
    CheckpointError
        Naming what is missing or does not fit.
    """
    _empty_checkpoint(Path(folder))


def load_checkpoint(folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Checkpoint:
    """Load a checkpoint for use, in evaluation mode.

    Parameters
    ----------
    folder : str or Path
    device : str
        As torch spells it.
    dtype : str
        Of the U-Net and the prompt. The VAE is float32 always: bfloat16 is as coarse as the levels of
        an image.

    Raises
    ------
    CheckpointError
        As `verify_checkpoint`.
    """
    folder = Path(folder)
    checkpoint = _empty_checkpoint(folder)
    kind = getattr(torch, dtype)
    fill(checkpoint.unet, folder / "unet" / WEIGHTS, device=device, dtype=kind)
    fill(checkpoint.vae, folder / "vae" / WEIGHTS, device=device)
    embeds = checkpoint.prompt_embeds
    if embeds is not None:
        embeds = read_tensors(folder / PROMPT_EMBEDS, device=device, dtype=kind)["prompt_embeds"]
    return Checkpoint(**vars(checkpoint) | {"prompt_embeds": embeds})


def describe_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Describe a checkpoint as JSON values: architecture, parameters, schedule, card and sha256.

    Raises
    ------
    CheckpointError
        As `verify_checkpoint`.
    """
    verify_checkpoint(folder)
    return describe_files(Path(folder))


def _empty_checkpoint(folder: Path) -> Checkpoint:
    """Check a checkpoint folder and return it without values: its tensors are on the device "meta"."""
    checkpoint_files(folder)
    card = Card.read(folder)
    raw = read_json(folder / SCHEDULER_CONFIG)
    schedule = schedule_config(raw, set_alpha_to_one=bool(raw.get("set_alpha_to_one", True)))
    create_scheduler(card.sampler, card.spacing, card.prediction_type, schedule)
    if raw.get("prediction_type") != card.prediction_type:
        raise CheckpointError(
            f"{folder}: the card says prediction_type {card.prediction_type}, {SCHEDULER_CONFIG} says "
            f"{raw.get('prediction_type')}"
        )
    configs = {part: read_json(folder / part / CONFIG) for part in ("unet", "vae")}
    classes = {"unet": UNet2DConditionModel, "vae": vae_class(configs["vae"])}
    modules = {}
    for part, config in configs.items():
        modules[part] = create_empty(classes[part], config)
        check_weights(modules[part], folder / part / WEIGHTS)
    embeds = None
    if wants_prompt(configs["unet"]):
        found = tensor_headers(folder / PROMPT_EMBEDS)
        if set(found) != {"prompt_embeds"}:
            raise CheckpointError(f"{folder / PROMPT_EMBEDS}: must hold just the tensor prompt_embeds")
        embeds = torch.empty(found["prompt_embeds"].shape, device="meta")
    check_fit(modules["unet"].config, modules["vae"].config, None if embeds is None else embeds.shape)
    return Checkpoint(**modules, schedule=schedule, prompt_embeds=embeds, card=card)


def refuse_existing(out: Path) -> None:
    """Raise OutputError if a path is taken."""
    if out.exists():
        raise OutputError(f"{out} exists already: choose another folder or remove it")
