"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) in a U-Net, by peft; merged for use."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from sar2eo.errors import SettingsError
from sar2eo.weights import create_empty

__all__ = ["add_adapters", "plain_unet"]

_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
_WHOLE = ("conv_in", "conv_out")  # they hold what the base lacks: the SAR's channels and the variance


def add_adapters(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Freeze a U-Net but for adapters of its attention, and its first and last convolution, in place.

    Parameters
    ----------
    unet : UNet2DConditionModel
    rank : int
        Of the adapters; they are scaled by 1, and start without effect.
    seed : int
        Of their first values.

    Raises
    ------
    SettingsError
        If it has no attention to adapt.
    """
    names = {name for name, module in unet.named_modules() if isinstance(module, nn.Linear)}
    if not any(name.endswith(tuple(_TARGETS)) for name in names):
        raise SettingsError(f"lora={rank}: the base's U-Net has no attention to adapt; train it whole")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS), unet)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(_WHOLE))


def plain_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a U-Net of its own with the same weights on the CPU, adapters merged into them."""
    weights = {
        name.replace(".base_layer.", "."): tensor.detach().cpu().clone()
        for name, tensor in unet.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in unet.named_modules():
        if isinstance(module, Linear):
            delta: Tensor = module.get_delta_weight("default")
            weights[f"{name}.weight"] += delta.detach().cpu()
    plain: UNet2DConditionModel = create_empty(UNet2DConditionModel, unet.config)
    plain.load_state_dict(weights, assign=True)
    return plain
