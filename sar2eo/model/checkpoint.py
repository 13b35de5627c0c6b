"""Checkpoints of the translator: save, check, load, describe, and one call of the U-Net.

A checkpoint is read strictly: every tensor must be there with the shape that the configuration gives it, and
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from sar2eo.errors import CheckpointError
from sar2eo.model.card import TranslatorCard
from sar2eo.model.diffusion import create_scheduler, read_schedule
from sar2eo.model.encoder import SarEncoder
from sar2eo.model.folder import (
    PROMPT_EMBEDS,
    SCHEDULER_CONFIG,
    WEIGHTS,
    ModelFolder,
    check_fit,
    read_headers,
    read_vae_facts,
    wants_prompt,
)
from sar2eo.model.network import (
    SarCondition,
    Vae,
    apply_by_image,
    encode_images,
    find_vae_class,
    latent_multiple,
    split_prediction,
)
from sar2eo.model.weights import create_networks, fill, new_model_folder, read_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint in memory.

    Parameters
    ----------
    unet : UNet2DConditionModel
        K + C channels in, C + 1 out (see `sar2eo.model.network`); K is C without an encoder.
    vae : AutoencoderKL, AutoencoderTiny or AutoencoderDC
        With C latent channels.
    schedule : dict
        Noise schedule of training, as `sar2eo.model.diffusion.read_schedule` returns it.
    prompt_embeds : Tensor or None
        Shape (1, tokens, dimensions); None for a U-Net without cross-attention.
    """

    unet: UNet2DConditionModel
    vae: Vae
    schedule: dict[str, Any]
    prompt_embeds: Tensor | None
    card: TranslatorCard
    encoder: SarEncoder | None = None

    def encode_sar(self, sar: Tensor) -> SarCondition:
        """Encode SAR tiles (B, 3, H, W) in the model's range, by the encoder or, without one, by the VAE."""
        if self.encoder is None:
            return SarCondition(encode_images(self.vae, sar))
        latents, guess = apply_by_image(self.encoder, sar)
        return SarCondition(torch.cat([latents, guess, torch.ones_like(guess[:, :1])], dim=1), guess)

    def predict(self, sar_latents: Tensor, noisy: Tensor, timestep: int | Tensor) -> tuple[Tensor, Tensor]:
        """Run the U-Net on [SAR latent | noisy EO latent] (C-DiffSET, section 3.2).

        Parameters
        ----------
        sar_latents : Tensor of float32, shape (B, K, h, w)
            Of a `SarCondition`.
        noisy : Tensor of float32, shape (B, C, h, w)
        timestep : int or Tensor of int64, shape () or (B,)

        Returns
        -------
        prediction : Tensor of float32, shape (B, C, h, w)
            Noise or v, as the card says.
        raw_variance : Tensor of float32, shape (B, 1, h, w)
            For `sar2eo.model.network.to_variance` (Eq. 2).
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
        return read_vae_facts(dict(self.vae.config)).factor

    @property
    def pixel_multiple(self) -> int:
        """What sides of images must be multiples of."""
        multiple = self.factor * latent_multiple(self.unet.config)
        return multiple if self.encoder is None else lcm(multiple, self.encoder.pixel_multiple)


def save_checkpoint(checkpoint: Checkpoint, out: str | Path) -> Path:
    """Write a checkpoint folder, whole or not at all."""
    out = Path(out)
    embeds = checkpoint.prompt_embeds
    networks = {name: getattr(checkpoint, name) for name in checkpoint.card.networks}
    _check_networks(networks, embeds)
    with new_model_folder(out, "CDiffSET", networks, _ddim_config(checkpoint), checkpoint.card) as folder:
        if embeds is not None:
            save_file({"prompt_embeds": embeds.detach().float().cpu().contiguous()}, folder / PROMPT_EMBEDS)
    return out


def _check_networks(networks: dict[str, Any], embeds: Tensor | None) -> None:
    encoder = networks.get("encoder")
    check_fit(
        networks["unet"].config,
        networks["vae"].config,
        None if embeds is None else embeds.shape,
        None if encoder is None else encoder.config,
    )


def _ddim_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a DDIM configuration that plain diffusers samples with as this package does."""
    card = checkpoint.card
    # Refuses what is unsound.
    create_scheduler(card.sampler, card.spacing, card.prediction_type, checkpoint.schedule)
    fixed = {"clip_sample": False, "steps_offset": 1}
    chosen = {"prediction_type": card.prediction_type, "timestep_spacing": card.spacing}
    return {**checkpoint.schedule, **fixed, **chosen}


def load_checkpoint(folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Checkpoint:
    """Load a checkpoint for use, in evaluation mode.

    Parameters
    ----------
    device : str
        As torch spells it.
    dtype : str
        Of the U-Net and the prompt. VAE and encoder are always float32: bfloat16 is as coarse as the
        levels of an image.

    Raises
    ------
    CheckpointError
        As `verify_checkpoint`.
    """
    folder = Path(folder)
    checkpoint = verify_checkpoint(folder)
    kind = getattr(torch, dtype)
    fill(checkpoint.unet, folder / "unet" / WEIGHTS, device=device, dtype=kind)
    fill(checkpoint.vae, folder / "vae" / WEIGHTS, device=device)
    if checkpoint.encoder is not None:
        fill(checkpoint.encoder, folder / "encoder" / WEIGHTS, device=device)
    embeds = checkpoint.prompt_embeds
    if embeds is not None:
        embeds = read_tensors(folder / PROMPT_EMBEDS, device=device, dtype=kind)["prompt_embeds"]
    return replace(checkpoint, prompt_embeds=embeds)


def describe_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Describe a checkpoint as JSON values: architecture, parameters, schedule, card and sha256."""
    verify_checkpoint(folder)
    model = ModelFolder(Path(folder), TranslatorCard)
    unet = model.config("unet")
    facts = {
        "channels_in": unet["in_channels"],
        "channels_out": unet["out_channels"],
        "block_out_channels": unet.get("block_out_channels"),
        "down_block_types": unet.get("down_block_types"),
        "prompt": wants_prompt(unet),
        "dtype": read_headers(model.path / "unet" / WEIGHTS)["conv_in.weight"].dtype,
    }
    return model.describe(unet=facts)


def verify_checkpoint(folder: str | Path) -> Checkpoint:
    """Check a checkpoint without reading its weights: files, headers, shapes, schedule, card.

    Returns
    -------
    Checkpoint
        Without values: its tensors are on the device "meta".

    Raises
    ------
    CheckpointError
        Naming what is missing or does not fit.
    """
    folder = Path(folder)
    model = ModelFolder(folder, TranslatorCard)
    model.files()
    card, raw = model.card(), model.scheduler()
    schedule = read_schedule(raw, set_alpha_to_one=bool(raw.get("set_alpha_to_one", True)))
    create_scheduler(card.sampler, card.spacing, card.prediction_type, schedule)
    if raw.get("prediction_type") != card.prediction_type:
        raise CheckpointError(
            f"{folder}: the card says prediction_type {card.prediction_type}, {SCHEDULER_CONFIG} says "
            f"{raw.get('prediction_type')}"
        )
    classes = {
        "unet": UNet2DConditionModel,
        "vae": find_vae_class(model.config("vae")),
        "encoder": SarEncoder,
    }
    if card.encoder and read_vae_facts(model.config("vae")).factor != SarEncoder.factor:
        raise CheckpointError(f"{folder}: an encoder wants a VAE of factor {SarEncoder.factor}")
    networks = create_networks(model, {name: classes[name] for name in card.networks})
    embeds = None
    if wants_prompt(model.config("unet")):
        found = read_headers(folder / PROMPT_EMBEDS)
        if set(found) != {"prompt_embeds"}:
            raise CheckpointError(f"{folder / PROMPT_EMBEDS}: must hold just the tensor prompt_embeds")
        embeds = torch.empty(found["prompt_embeds"].shape, device="meta")
    _check_networks(networks, embeds)
    return Checkpoint(**networks, schedule=schedule, prompt_embeds=embeds, card=card)
