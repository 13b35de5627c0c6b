"""A base folder in the layout of Stable Diffusion, with random weights, made by code."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
TINY_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
}
# Stable Diffusion's, as its scheduler's configuration says it.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def stable_diffusion_folder(
    folder: Path,
    *,
    unet: dict[str, Any] = TINY_UNET,
    vae: dict[str, Any] = TINY_VAE,
    text: dict[str, Any] = TINY_TEXT,
    half: bool = False,
    prediction_type: str = "epsilon",
) -> Path:
    """Write unet/, vae/, scheduler/, text_encoder/ and tokenizer/; half: in float16 under fp16 names."""
    torch.manual_seed(1)
    variant, dtype = ("fp16", torch.float16) if half else (None, torch.float32)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        parts = {"unet": UNet2DConditionModel(**unet), "vae": AutoencoderKL(**vae)}
    finally:
        torch.set_default_dtype(default)
    for part, module in parts.items():
        module.save_pretrained(folder / part, variant=variant)
    DDIMScheduler(**SCHEDULE, prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    encoder = CLIPTextModel(
        CLIPTextConfig(vocab_size=len(vocabulary()), eos_token_id=1, bos_token_id=0, **text)
    )
    nn.Module.to(encoder, dtype).save_pretrained(folder / "text_encoder", variant=variant)
    return folder


def vocabulary() -> list[str]:
    letters = [*string.ascii_lowercase, "-"]
    return ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "el"]


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer of single letters and one merge, "e l"."""
    folder.mkdir(parents=True)
    numbered = {token: number for number, token in enumerate(vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(numbered))
    (folder / "merges.txt").write_text("#version: 0.2\ne l\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
