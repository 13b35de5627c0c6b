"""Checkpoints that are new: from a base, from the authors' release, untrained, or packed for others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.model.card import Card
from sar2eo.model.checkpoint import Checkpoint, load_checkpoint, refuse_existing, save_checkpoint
from sar2eo.model.checkpoint_files import wants_prompt
from sar2eo.model.diffusion import schedule_config
from sar2eo.model.network import SIZES, Vae, adapt_unet, create_unet, create_vae
from sar2eo.model.stable_diffusion import (
    embed_prompt,
    find_base,
    pretrained_schedule,
    pretrained_unet,
    pretrained_vae,
    release_unet,
)
from sar2eo.model.weights import disk_dtype, narrow

__all__ = ["import_checkpoint", "init_checkpoint", "pack_checkpoint"]

_INIT_SEED = 2025
_MEASURED_BY = ("sampler", "steps", "temperature")


def init_checkpoint(
    out: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    size: str | None = None,
    vae: str | Path | None = None,
    zero_terminal_snr: bool = False,
    untrained: bool = False,
    **card: Any,
) -> Path:
    """Make a checkpoint to be trained: from a Stable-Diffusion base, or untrained from nothing.

    Parameters
    ----------
    out : str or Path
        New folder.
    base : str, Path or None
        Folder in diffusers' layout, or hub id; its U-Net is adapted (`sar2eo.model.network.adapt_unet`) and
        the prompt embedded.
    revision : str or None
        Of a hub id.
    size : {"tiny", "small", "region"} or None
        Instead of a base: an untrained checkpoint without cross-attention, the same every time.
    vae : str, Path or None
        With a size: folder of a trained VAE (``vae/`` as `sar2eo.train_vae` and every checkpoint have it),
        whose latents the untrained U-Net is made for.
    zero_terminal_snr : bool
        Let the noise schedule end in pure noise (https://arxiv.org/abs/2305.08891); the card then says
        v_prediction and trailing spacing, unless told otherwise.
    untrained : bool
        With a base: take its architecture, VAE and prompt, but fresh weights for the U-Net (the first
        row of C-DiffSET, Table 3).
    **card
        Fields of the card; by default named after the folder, predicting what the base predicts.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SettingsError
        If not just one of base and size is given, a VAE comes with a base, `untrained` without one, or a
        field is none of the card's.
    CheckpointError
        If the base or the VAE is not what it should be, or the schedule does not suit what is predicted.
    OutputError
        If the folder exists.
    """
    if (base is None) == (size is None):
        raise SettingsError(f"give either a base or a size ({', '.join(SIZES)})")
    if vae is not None and base is not None:
        raise SettingsError(
            f"vae={str(vae)!r}: goes with a size; a base has its own, and its U-Net knows no other"
        )
    if untrained and base is None:
        raise SettingsError("untrained: goes with a base; a size is untrained as it is")
    refuse_existing(Path(out))
    prompt_embeds = None
    if base is not None:
        folder = find_base(base, revision)
        raw = pretrained_schedule(folder)
        pretrained, autoencoder = pretrained_unet(folder), pretrained_vae(folder)
        unet = adapt_unet(_fresh(pretrained) if untrained else pretrained)
        if wants_prompt(unet.config):
            prompt_embeds = embed_prompt(folder)
    else:
        raw = {}
        unet, autoencoder = _untrained(str(size), vae)
    defaults = {"name": Path(out).name, "prediction_type": raw.get("prediction_type", "epsilon")}
    if zero_terminal_snr:
        raw = raw | {"rescale_betas_zero_snr": True}
        defaults |= {"prediction_type": "v_prediction", "spacing": "trailing"}
    checkpoint = Checkpoint(
        unet=unet,
        vae=autoencoder,
        schedule=schedule_config(raw, set_alpha_to_one=True),
        prompt_embeds=prompt_embeds,
        card=_make_card(defaults | card),
    )
    return save_checkpoint(checkpoint, out)


def _fresh(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Create a U-Net of the same architecture with untrained weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_INIT_SEED)
        return UNet2DConditionModel.from_config(unet.config)


def _untrained(size: str, vae: str | Path | None) -> tuple[UNet2DConditionModel, Vae]:
    """Create a U-Net, the same every time, and a VAE for it unless a folder has one."""
    with torch.random.fork_rng(devices=[]):
        trained = None if vae is None else pretrained_vae(Path(vae))
        torch.manual_seed(_INIT_SEED)
        autoencoder = create_vae(size) if trained is None else trained
        return create_unet(size, autoencoder.config.latent_channels), autoencoder


def import_checkpoint(
    out: str | Path, *, unet: str | Path, base: str | Path, revision: str | None = None, **card: Any
) -> Path:
    """Make a checkpoint of the authors' release: U-Net weights, and a base for all the rest.

    Parameters
    ----------
    out : str or Path
        New folder.
    unet : str or Path
        ``model.safetensors`` of U-Net keys, perhaps prefixed ``module.`` or ``unet.``; of the first
        stage (C channels out: the variance channel is added) or the second (C + 1).
    base, revision
        As in `init_checkpoint`: the model that the release was trained from.
    **card
        Fields of the card, over those of the release: noise prediction, 50 DDIM steps of leading
        spacing, confidence from the middle one (timestep 481).

    Raises
    ------
    SettingsError, CheckpointError, OutputError
        As in `init_checkpoint`; CheckpointError too if a key is missing, unexpected or misshapen.
    """
    refuse_existing(Path(out))
    folder = find_base(base, revision)
    imported = release_unet(Path(unet), folder)
    vae = pretrained_vae(folder)
    defaults: dict[str, Any] = {
        "name": Path(out).name,
        "prediction_type": "epsilon",
        "sampler": "ddim",
        "spacing": "leading",
        "steps": 50,
        "confidence_timestep": 481,
    }
    checkpoint = Checkpoint(
        unet=imported,
        vae=vae,
        schedule=schedule_config(pretrained_schedule(folder), set_alpha_to_one=False),
        prompt_embeds=embed_prompt(folder) if wants_prompt(imported.config) else None,
        card=_make_card(defaults | card),
    )
    return save_checkpoint(checkpoint, out)


def pack_checkpoint(
    folder: str | Path,
    out: str | Path,
    *,
    dtype: str = "float16",
    vae: str | Path | None = None,
    **card: Any,
) -> Path:
    """Copy a checkpoint for others to use: in half the bytes, with the last words on its card.

    Parameters
    ----------
    folder : str or Path
        A trained checkpoint.
    out : str or Path
        New folder.
    dtype : {"float16", "bfloat16", "float32"}
        Of the weights on disk.
    vae : str, Path or None
        Folder of a VAE whose decoder was trained further (``sar2eo.train_vae`` with ``decoder_only``), to
        take the place of the checkpoint's.
    **card
        Fields of the card that are to be others.

    Raises
    ------
    SettingsError, CheckpointError, OutputError
        As in `init_checkpoint`; CheckpointError too if a weight is too large for the dtype, or the VAE has
        other latents than the U-Net knows.
    """
    refuse_existing(Path(out))
    kept = disk_dtype(dtype)
    loaded = load_checkpoint(folder)
    changed = loaded.card.changed(**card)
    resampled = any(getattr(changed, name) != getattr(loaded.card, name) for name in _MEASURED_BY)
    if (resampled or vae is not None) and "metrics" not in card:
        changed = changed.changed(metrics={})  # those of another decoder or way of sampling
    autoencoder = loaded.vae if vae is None else pretrained_vae(Path(vae))
    if not _same_latents(autoencoder, loaded.vae):
        raise CheckpointError(f"{vae}: its encoder is not that of {folder}, whose U-Net knows other latents")
    narrow((loaded.unet, autoencoder), kept, folder)
    return save_checkpoint(dataclasses.replace(loaded, vae=autoencoder, card=changed), out)


def _same_latents(one: Vae, other: Vae) -> bool:
    """Tell whether two VAEs have one encoder and scale latents alike."""
    scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    if any(one.config.get(name) != other.config.get(name) for name in scaling):
        return False
    mine, theirs = (
        {k: v for k, v in vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
        for vae in (one, other)
    )
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _make_card(fields: dict[str, Any]) -> Card:
    try:
        return Card(**fields)
    except TypeError as error:
        raise SettingsError(f"card: {error}") from error
