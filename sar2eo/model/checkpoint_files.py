"""The files of a checkpoint folder, read without torch: which must be there, what their headers say.

::

    model_index.json                     what diffusers' tools look for
    sar2eo.json                          the card
    unet/  config.json  diffusion_pytorch_model.safetensors
    vae/   config.json  diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json      the noise schedule of training
    prompt_embeds.safetensors            the fixed prompt's embedding, where the U-Net wants one

Weights are safetensors only: reading a pickle can run code, so pickles are refused by name and content.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sar2eo.errors import CheckpointError
from sar2eo.model.card import CARD_NAME, Card

__all__ = [
    "CONFIG",
    "MODEL_INDEX",
    "PROMPT_EMBEDS",
    "SCHEDULER_CONFIG",
    "TRAIN_TIMESTEPS",
    "VAE_CLASSES",
    "WEIGHTS",
    "TensorHeader",
    "VaeFacts",
    "check_fit",
    "checkpoint_files",
    "count_parameters",
    "describe_files",
    "file_sha256",
    "files_sha256",
    "folder_sha256",
    "read_json",
    "refuse_pickle",
    "tensor_headers",
    "vae_facts",
    "wants_prompt",
    "write_json",
]

CONFIG = "config.json"
MODEL_INDEX = "model_index.json"
PROMPT_EMBEDS = "prompt_embeds.safetensors"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
TRAIN_TIMESTEPS = 1000  # T of the paper, section 4.2

_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # a bare pickle; torch's zip of pickles


class TensorHeader(NamedTuple):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class VaeFacts(NamedTuple):
    """What the pipeline needs to know of a VAE, from its configuration."""

    class_name: str
    factor: int
    latent_channels: int


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files that make up a checkpoint, sorted, after checking that they are all there.

    Raises
    ------
    CheckpointError
        If the folder or a file is missing, or a pickle stands in for one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder (a checkpoint is a folder with {CARD_NAME})")
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(
            f"{folder} has no {CARD_NAME}: not a sar2eo checkpoint (see 'sar2eo model init')"
        )
    names = [MODEL_INDEX, CARD_NAME, SCHEDULER_CONFIG]
    names += [f"{part}/{name}" for part in ("unet", "vae") for name in (CONFIG, WEIGHTS)]
    for name in names:
        if not (folder / name).is_file():
            for path in sorted((folder / name).parent.glob("*")):
                refuse_pickle(path)
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
    if wants_prompt(read_json(folder / "unet" / CONFIG)):
        names.append(PROMPT_EMBEDS)
        if not (folder / PROMPT_EMBEDS).is_file():
            raise CheckpointError(
                f"{folder} is incomplete: its U-Net attends to a prompt, {PROMPT_EMBEDS} is missing"
            )
    return [folder / name for name in sorted(names)]


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError if a file is a pickle, by name or by content."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its header, eight bytes that may look like a pickle's.
    pickled = start.startswith(_PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix in _PICKLE_SUFFIXES or pickled:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when read: convert it to safetensors first"
        )


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    CheckpointError
        If the file is missing, or is not a JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(raw).__name__}")
    return raw


def tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """Read names, dtypes and shapes of a safetensors file, not its tensors.

    Raises
    ------
    CheckpointError
        If the file is missing, a pickle, or not whole.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    refuse_pickle(path)
    try:
        with safe_open(path, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: TensorHeader(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def count_parameters(folder: Path) -> dict[str, int]:
    """Count the values in the weights of "unet" and "vae"."""
    headers = {part: tensor_headers(folder / part / WEIGHTS).values() for part in ("unet", "vae")}
    return {part: sum(math.prod(header.shape) for header in found) for part, found in headers.items()}


def folder_sha256(folder: Path) -> str:
    """Hash a checkpoint: weights, configurations and card.

    It is the sha256 of the text that ``sha256sum`` prints for `checkpoint_files`, named relative to the
    folder; other files in the folder (a README) do not count.
    """
    return files_sha256(folder, checkpoint_files(folder))


def files_sha256(folder: Path, paths: Iterable[Path]) -> str:
    """Hash files in a folder, by their names in it: the sha256 of what ``sha256sum`` prints for them."""
    lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vae_facts(config: Mapping[str, Any]) -> VaeFacts:
    """Read downsampling factor and latent channels from a VAE's configuration.

    Raises
    ------
    CheckpointError
        For another class of VAE, or a configuration that lacks these values.
    """
    class_name = config.get("_class_name")
    if class_name not in VAE_CLASSES:
        raise CheckpointError(f"vae: _class_name={class_name!r}, must be one of {', '.join(VAE_CLASSES)}")
    blocks = config.get(
        "block_out_channels" if class_name == "AutoencoderKL" else "encoder_block_out_channels"
    )
    channels = config.get("latent_channels")
    if not isinstance(blocks, list | tuple) or not blocks or type(channels) is not int or channels < 1:
        raise CheckpointError(f"vae: {CONFIG} says latent_channels={channels!r}, block channels {blocks!r}")
    _check_scaling(config)
    # In every class each block but one halves the resolution.
    return VaeFacts(str(class_name), 2 ** (len(blocks) - 1), channels)


def _check_scaling(config: Mapping[str, Any]) -> None:
    """Refuse a scale of latents that would make all of them nothing, or not finite."""
    factor = config.get("scaling_factor", 1.0)
    if type(factor) not in (int, float) or not 0 < factor <= sys.float_info.max:
        raise CheckpointError(f"vae: {CONFIG} says scaling_factor={factor!r}, must be a positive number")


def wants_prompt(unet_config: Mapping[str, Any]) -> bool:
    """Tell from a U-Net's configuration whether it attends to a prompt.

    Raises
    ------
    CheckpointError
        If its blocks are no lists.
    """
    down, up = (unet_config.get(f"{way}_block_types", ()) for way in ("down", "up"))
    if not isinstance(down, list | tuple) or not isinstance(up, list | tuple):
        raise CheckpointError(f"unet: {CONFIG} says block types {down!r} and {up!r}, must be lists")
    blocks = [*down, *up]
    blocks.append(unet_config.get("mid_block_type", "UNetMidBlock2DCrossAttn"))
    return any("CrossAttn" in str(block) for block in blocks)


def check_fit(unet: Mapping[str, Any], vae: Mapping[str, Any], prompt: Sequence[int] | None) -> None:
    """Check that the parts of a checkpoint fit each other.

    Parameters
    ----------
    unet, vae : mapping
        Their configurations.
    prompt : sequence of int or None
        Shape of the prompt's embedding.

    Raises
    ------
    CheckpointError
        If channels or dimensions differ.
    """
    latent = vae["latent_channels"]
    channels = (unet["in_channels"], unet["out_channels"])
    if channels != (2 * latent, latent + 1):
        raise CheckpointError(
            f"the U-Net has {channels[0]} channels in and {channels[1]} out: must be {2 * latent} and "
            f"{latent + 1} for a VAE of {latent} latent channels (see 'sar2eo model init')"
        )
    _check_scaling(vae)
    images = (vae["in_channels"], vae.get("out_channels", vae["in_channels"]))
    if images != (3, 3):
        raise CheckpointError(f"the VAE has {images[0]} channels in and {images[1]} out: must be 3 and 3")
    width = unet["cross_attention_dim"]
    if wants_prompt(unet) and (prompt is None or len(prompt) != 3 or (prompt[0], prompt[2]) != (1, width)):
        shape = None if prompt is None else tuple(prompt)
        raise CheckpointError(
            f"the prompt's embedding has shape {shape}: the U-Net wants (1, tokens, {width})"
        )


def describe_files(folder: Path) -> dict[str, Any]:
    """Describe a checkpoint as JSON values: architecture, parameters, schedule, card and sha256."""
    unet, vae = (read_json(folder / part / CONFIG) for part in ("unet", "vae"))
    facts = vae_facts(vae)
    counts = count_parameters(folder)
    return {
        "path": str(folder),
        "sha256": folder_sha256(folder),
        "parameters": counts | {"total": sum(counts.values())},
        "unet": {
            "channels_in": unet["in_channels"],
            "channels_out": unet["out_channels"],
            "block_out_channels": unet.get("block_out_channels"),
            "down_block_types": unet.get("down_block_types"),
            "prompt": wants_prompt(unet),
            "dtype": tensor_headers(folder / "unet" / WEIGHTS)["conv_in.weight"].dtype,
        },
        "vae": {
            "class": facts.class_name,
            "factor": facts.factor,
            "latent_channels": facts.latent_channels,
            "scaling_factor": vae.get("scaling_factor"),
        },
        "schedule": read_json(folder / SCHEDULER_CONFIG),
        "card": Card.read(folder).to_dict(),
    }
