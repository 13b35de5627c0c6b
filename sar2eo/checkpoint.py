"""Checkpoints: make them from a base, import the authors' release, save, check, load and describe.

The folder's files are listed in `sar2eo.layout`. A checkpoint is read strictly: every tensor must be
there with the shape that the configuration gives it, and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from sar2eo.card import Card
from sar2eo.diffusion import create_scheduler, schedule_config
from sar2eo.errors import CheckpointError, OutputError, SettingsError
from sar2eo.layout import (
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
)
from sar2eo.network import SIZES, Vae, adapt_unet, create_unet, create_vae
from sar2eo.pretrained import (
    embed_prompt,
    find_base,
    pretrained_schedule,
    pretrained_unet,
    pretrained_vae,
    release_unet,
)
from sar2eo.weights import check_weights, create_empty, fill, read_tensors

__all__ = [
    "Checkpoint",
    "describe_checkpoint",
    "import_checkpoint",
    "init_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "verify_checkpoint",
]

_INIT_SEED = 2025


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint in memory.

    Parameters
    ----------
    unet : UNet2DConditionModel
        2 C channels in, C + 1 out (see `sar2eo.network`).
    vae : AutoencoderKL or AutoencoderTiny
        With C latent channels.
    schedule : dict
        Noise schedule of training, as `sar2eo.diffusion.schedule_config` returns it.
    prompt_embeds : Tensor or None
        Shape (1, tokens, dimensions); None for a U-Net without cross-attention.
    card : Card
    """

    unet: UNet2DConditionModel
    vae: Vae
    schedule: dict[str, Any]
    prompt_embeds: Tensor | None
    card: Card


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
        Folder in diffusers' layout, or hub id; its U-Net is adapted (`sar2eo.network.adapt_unet`) and
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
    _refuse_existing(Path(out))
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
    _refuse_existing(Path(out))
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
    _refuse_existing(out)
    embeds = checkpoint.prompt_embeds
    check_fit(checkpoint.unet.config, checkpoint.vae.config, None if embeds is None else embeds.shape)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        _write_files(checkpoint, partial)
        partial.rename(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write every file of a checkpoint."""
    index: dict[str, Any] = {"_class_name": "CDiffSET", "_diffusers_version": version("diffusers")}
    for part, module in {"unet": checkpoint.unet, "vae": checkpoint.vae}.items():
        (folder / part).mkdir()
        config = json.loads(module.to_json_string())
        config.pop("_name_or_path", None)  # where the base lay on this machine
        _write_json(folder / part / CONFIG, config)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, folder / part / WEIGHTS, metadata={"format": "pt"})
        index[part] = ["diffusers", type(module).__name__]
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    _write_json(folder / MODEL_INDEX, index)
    (folder / SCHEDULER_CONFIG).parent.mkdir()
    _write_json(folder / SCHEDULER_CONFIG, _scheduler_json(checkpoint))
    if checkpoint.prompt_embeds is not None:
        embeds = {"prompt_embeds": checkpoint.prompt_embeds.detach().float().cpu().contiguous()}
        save_file(embeds, folder / PROMPT_EMBEDS)
    checkpoint.card.write(folder)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _scheduler_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a DDIM configuration that plain diffusers samples with as this package does."""
    card = checkpoint.card
    # Refuses what is unsound.
    create_scheduler(card.sampler, card.spacing, card.prediction_type, checkpoint.schedule)
    fixed = {"clip_sample": False, "steps_offset": 1}
    chosen = {"prediction_type": card.prediction_type, "timestep_spacing": card.spacing}
    return {"_class_name": "DDIMScheduler", **checkpoint.schedule, **fixed, **chosen}


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
    kinds = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    classes = {"unet": UNet2DConditionModel, "vae": kinds[vae_facts(configs["vae"]).class_name]}
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


def _make_card(fields: dict[str, Any]) -> Card:
    try:
        return Card(**fields)
    except TypeError as error:
        raise SettingsError(f"card: {error}") from error


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise OutputError(f"{out} exists already: choose another folder or remove it")
