"""Parts of a pretrained Stable-Diffusion folder: U-Net, VAE, noise schedule, and the prompt's embedding.

Any folder in diffusers' layout of the 1.x and 2.x families serves (``unet/``, ``vae/``, ``scheduler/``,
``text_encoder/``, ``tokenizer/``), with plain or fp16 file names; safetensors only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, UNet2DConditionModel
from torch import Tensor

from sar2eo.errors import CheckpointError, one_line
from sar2eo.model.card import CARD_NAME
from sar2eo.model.checkpoint_files import (
    CONFIG,
    MODEL_INDEX,
    PROMPT_EMBEDS,
    SCHEDULER_CONFIG,
    WEIGHTS,
    read_json,
    refuse_pickle,
    tensor_headers,
)
from sar2eo.model.hub import find_folder
from sar2eo.model.network import Vae, add_variance_channel, vae_class
from sar2eo.model.weights import create_empty, fill

__all__ = [
    "PROMPT",
    "embed_prompt",
    "find_base",
    "pretrained_schedule",
    "pretrained_unet",
    "pretrained_vae",
    "release_unet",
]

PROMPT = "electro-optical image"
"""The fixed prompt (C-DiffSET, section 3.3)."""

_BASE_FILES = [
    f"{part}/{pattern}"
    for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
    for pattern in ("*.json", "*.safetensors", "*.txt")
] + [CARD_NAME, MODEL_INDEX, PROMPT_EMBEDS]  # of a base that is a checkpoint already
_HALF_PRECISION = ["*.fp16.safetensors"]
_NOT_NEEDED = ["*non_ema*"]
_PREFIXES = re.compile(r"^(module\.|unet\.)+")
_TEXT_WEIGHTS = "model.safetensors"


def find_base(base: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a base model, fetching it if it is a hub id."""
    folder = find_folder(base, revision=revision, allow=_BASE_FILES, ignore=_NOT_NEEDED + _HALF_PRECISION)
    if folder != Path(base).resolve() and not (folder / "unet" / WEIGHTS).is_file():
        # Some ids hold half-precision files only; others hold both, of which one is enough.
        folder = find_folder(base, revision=revision, allow=_BASE_FILES, ignore=_NOT_NEEDED)
    return folder


def pretrained_unet(folder: Path) -> UNet2DConditionModel:
    """Load the base's U-Net in float32.

    Raises
    ------
    CheckpointError
        If files are missing, or weights and configuration disagree.
    """
    return _load(UNet2DConditionModel, folder / "unet")


def pretrained_vae(folder: Path) -> Vae:
    """Load the base's VAE in float32; raises like `pretrained_unet`."""
    config = read_json(folder / "vae" / CONFIG)
    kind = vae_class(config)
    if kind is not AutoencoderDC:
        return _load(kind, folder / "vae")
    module: Vae = create_empty(kind, config)  # diffusers' way would warn of latents_mean
    fill(module, folder / "vae" / WEIGHTS)
    return module


def pretrained_schedule(folder: Path) -> dict[str, Any]:
    """Read the base's scheduler configuration."""
    return read_json(folder / SCHEDULER_CONFIG)


def embed_prompt(folder: Path) -> Tensor:
    """Embed `PROMPT` with the base's text encoder, tokenised without padding.

    Returns
    -------
    Tensor of float32, shape (1, tokens, dimensions)

    Raises
    ------
    CheckpointError
        If tokenizer or text encoder are missing or cannot be read.
    """
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder} has no {part}/, which the U-Net's prompt needs")
    variant = _variant(folder / "text_encoder", _TEXT_WEIGHTS)
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder, info = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
        )
    except Exception as error:  # transformers lets any exception of its parsers through
        raise CheckpointError(
            f"{folder}: tokenizer or text encoder cannot be read: {one_line(error, 200)}"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if info["missing_keys"]:
        raise CheckpointError(f"{folder}: the text encoder lacks {sorted(info['missing_keys'])[0]}")
    tokens = tokenizer(PROMPT, padding=False, truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        embedded: Tensor = encoder.float().eval()(tokens).last_hidden_state
    return embedded.clone()


def release_unet(path: Path, base: Path) -> UNet2DConditionModel:
    """Read U-Net weights of the authors' release into the architecture of their base, in float32.

    Parameters
    ----------
    path : Path
        A safetensors file of U-Net keys, perhaps prefixed ``module.`` or ``unet.``, with 2 C channels
        in and C (first stage: a variance channel is added) or C + 1 out.
    base : Path
        Folder of the base, of which only the configuration is read.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unexpected or misshapen, or the file is no safetensors file.
    """
    headers = tensor_headers(path)
    names = {key: _PREFIXES.sub("", key) for key in headers}
    shapes = {names[key]: header.shape for key, header in headers.items()}
    if "conv_in.weight" not in shapes or "conv_out.weight" not in shapes:
        raise CheckpointError(f"{path} holds no U-Net: it has no conv_in.weight or no conv_out.weight")
    config = read_json(base / "unet" / CONFIG)
    latent = config.get("in_channels", 4)
    channels_in, channels_out = shapes["conv_in.weight"][1], shapes["conv_out.weight"][0]
    if channels_in != 2 * latent or channels_out not in (latent, latent + 1):
        raise CheckpointError(
            f"{path}: its U-Net has {channels_in} channels in and {channels_out} out, must be {2 * latent} "
            f"in and {latent} (first stage) or {latent + 1} out"
        )
    config |= {"in_channels": channels_in, "out_channels": channels_out}
    unet = create_empty(UNet2DConditionModel, config)
    fill(unet, path, names)
    return add_variance_channel(unet) if channels_out == latent else unet


def _load(model_class: Any, folder: Path) -> Any:
    create_empty(model_class, read_json(folder / CONFIG))  # a clear error where diffusers' is not
    variant = _variant(folder, WEIGHTS)
    try:
        module, info = model_class.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # else diffusers asks for another package
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: weights do not fit {CONFIG}: {one_line(error, 200)}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"{folder}: weights do not fit {CONFIG}: {len(wrong)} keys, such as {wrong[0]}")
    return module.float()


def _variant(folder: Path, weights: str) -> str | None:
    """Return which file names a folder has: None for plain, "fp16"; and check that the file is sound."""
    stem, _, suffix = weights.rpartition(".")
    for variant, name in {None: weights, "fp16": f"{stem}.fp16.{suffix}"}.items():
        if (folder / name).is_file():
            tensor_headers(folder / name)
            return variant
    for path in sorted(folder.glob("*")):
        refuse_pickle(path)
    raise CheckpointError(f"{folder / weights} is missing")
