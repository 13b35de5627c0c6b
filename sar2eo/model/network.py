"""The C-DiffSET U-Net from a Stable-Diffusion U-Net, its two outputs, and the VAE's latents.

The U-Net takes [SAR latent | noisy EO latent] along the channels, in this order, and returns the
diffusion prediction and one more channel from which the variance comes (C-DiffSET, sections 3.2 and
3.3, Eq. 2; the starting weights and the variance's range as in the authors' release).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import max_pool2d

from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.model.folder import read_vae_facts

Vae: TypeAlias = AutoencoderKL | AutoencoderTiny | AutoencoderDC

Size = Literal["tiny", "small", "region"]
"""Untrained architectures: tiny is for tests, small and region for one region on modest hardware."""

SIZES: tuple[str, ...] = get_args(Size)

VARIANCE_MIN, VARIANCE_MAX = 1e-6, 10.0

_GROUPS_AT_MOST = 16
_ATTENTION_HEAD_DIM = 32  # channels of an attention head

_VARIANCE_SHIFT = math.log(math.expm1(1 - VARIANCE_MIN))  # inverse softplus: a raw 0 becomes variance 1


class SarCondition(NamedTuple):
    """What the U-Net receives of the radar image.

    Parameters
    ----------
    latents : Tensor of float32, shape (B, K, h, w)
        SAR latents; of an encoder also its guess of the EO latents, and the trust in it as a channel.
    guess : Tensor of float32, shape (B, C, h, w), or None
        Of an encoder: where sampling starts.
    """

    latents: Tensor
    guess: Tensor | None = None

    def with_trust(self, trust: float) -> Tensor:
        """Return the latents with another trust in the guess: 0 asks what is known, 1 keeps the guess."""
        if self.guess is None:
            return self.latents
        return torch.cat([self.latents[:, :-1], torch.full_like(self.latents[:, -1:], trust)], dim=1)


def double_input(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let a U-Net take [SAR latent | noisy EO latent]: C input channels become 2 C, in place.

    The first convolution's weights are repeated and halved, so that two equal latents give the same
    activations as one before.
    """
    old = unet.conv_in
    new = _create_convolution_like(old, 2 * old.in_channels, old.out_channels)
    weight = torch.cat([old.weight, old.weight], dim=1) / 2
    new.load_state_dict({"weight": weight, "bias": old.bias})
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)
    return unet


def add_variance_channel(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Add one output channel with zero weights and bias, in place: its variance starts at 1."""
    old = unet.conv_out
    new = _create_convolution_like(old, old.in_channels, old.out_channels + 1)
    weight = torch.cat([old.weight, torch.zeros_like(old.weight[:1])])
    bias = torch.cat([old.bias, torch.zeros_like(old.bias[:1])])
    new.load_state_dict({"weight": weight, "bias": bias})
    unet.conv_out = new
    unet.register_to_config(out_channels=new.out_channels)
    return unet


def adapt_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Turn a latent diffusion U-Net (C channels in and out) into a C-DiffSET U-Net, in place.

    Parameters
    ----------
    unet : UNet2DConditionModel
        With as many channels in as out; 4 in Stable Diffusion.

    Returns
    -------
    UNet2DConditionModel
        The same with 2 C channels in and C + 1 out, also in its configuration, from which diffusers reloads
        it.
    """
    if unet.config.in_channels != unet.config.out_channels:
        raise CheckpointError(
            f"the base's U-Net has {unet.config.in_channels} channels in and {unet.config.out_channels} out: "
            "must be equal (is it a text-to-image model, and not yet adapted?)"
        )
    return add_variance_channel(double_input(unet))


def _create_convolution_like(old: nn.Conv2d, channels_in: int, channels_out: int) -> nn.Conv2d:
    geometry: Any = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    return nn.Conv2d(channels_in, channels_out, **geometry, device=old.weight.device, dtype=old.weight.dtype)


def split_prediction(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split the U-Net's output into prediction and raw variance, in float32.

    Parameters
    ----------
    output : Tensor, shape (B, C + 1, h, w)

    Returns
    -------
    prediction : Tensor of float32, shape (B, C, h, w)
    raw_variance : Tensor of float32, shape (B, 1, h, w)
        For `to_variance`.
    """
    return output[:, :-1].float(), output[:, -1:].float()


def to_variance(raw: Tensor) -> Tensor:
    """Map the U-Net's last channel to a variance in [1e-6, 10]; 0 becomes 1."""
    variance = functional.softplus(raw.float() + _VARIANCE_SHIFT) + VARIANCE_MIN
    return variance.clamp(VARIANCE_MIN, VARIANCE_MAX)


def encode_images(vae: Vae, images: Tensor) -> Tensor:
    """Encode images to scaled latents: posterior mean, shifted and scaled as the VAE's configuration says.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W)
        In [-1, 1], in the VAE's dtype.

    Returns
    -------
    Tensor of float32, shape (B, C, H / f, W / f)
    """
    latents: Tensor = apply_by_image(lambda part: encode_raw(vae, part), images)
    shift, scale = _read_latent_statistics(vae, latents.device)
    return (latents.float() - shift) * scale


def encode_raw(vae: Vae, images: Tensor) -> Tensor:
    """Encode images to latents that are not scaled; parameters as in `encode_images`."""
    encoded = vae.encode(images)
    if isinstance(vae, AutoencoderKL):
        latents: Tensor = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent
    return latents


def decode_latents(vae: Vae, latents: Tensor) -> Tensor:
    """Decode scaled latents of float32, shape (B, C, h, w), to images of float32, (B, 3, H, W)."""
    shift, scale = _read_latent_statistics(vae, latents.device)
    raw = (latents / scale + shift).to(vae.dtype)
    decoded: Tensor = apply_by_image(lambda part: vae.decode(part).sample, raw)
    return decoded.float()


def apply_by_image(apply: Callable[[Tensor], Any], batch: Tensor) -> Any:
    """Apply a network image by image on a CPU, where a batch takes twice the time.

    Buffers of a batch at full resolution are so large that the allocator returns them to the system after
    each layer, and gets them back page by page. The network returns a tensor, or a tuple of some.
    """
    if batch.device.type != "cpu" or len(batch) < 2:
        return apply(batch)
    parts = [apply(image) for image in batch.split(1)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _read_latent_statistics(vae: Vae, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return shift and scale of latents, broadcastable to (B, C, h, w), in diffusers' convention."""
    config: Any = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    shift, spread = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return shift, config.scaling_factor / spread


def create_unet(size: str, latent_channels: int = 4) -> UNet2DConditionModel:
    """Create an untrained C-DiffSET U-Net, which needs no prompt.

    Parameters
    ----------
    size : {"tiny", "small", "region"}
        About 1.2 M, 12 M and 16 M parameters; tiny and small are of convolutions alone, region attends
        to itself at its two lower levels and takes latents whose sides are multiples of 4 (see
        `latent_multiple`).
    latent_channels : int
        C of the VAE.
    """
    _check_size(size)
    widths = {"tiny": (32, 64, 80), "small": (64, 128, 192, 256), "region": (128, 192, 288)}[size]
    plain = 1 if size == "region" else len(widths)
    attending = len(widths) - plain
    unet = UNet2DConditionModel(
        in_channels=2 * latent_channels,
        out_channels=latent_channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attending,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("AttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
        attention_head_dim=_ATTENTION_HEAD_DIM,
        norm_num_groups=_norm_groups(widths),
    )
    return add_variance_channel(unet)


def latent_multiple(config: Mapping[str, Any]) -> int:
    """Return what the sides of latents must be multiples of, from a U-Net's configuration.

    Other blocks are given the size to return to; diffusers' AttnUpBlock2D always doubles.
    """
    doubles = "AttnUpBlock2D" in config["up_block_types"]
    return int(2 ** (len(config["block_out_channels"]) - 1)) if doubles else 1


def find_vae_class(config: Mapping[str, Any]) -> Any:
    """Return the class of diffusers that a VAE's configuration names; raises like `read_vae_facts`."""
    kinds = {kind.__name__: kind for kind in get_args(Vae)}
    return kinds[read_vae_facts(config).class_name]


def create_vae(size: str) -> Vae:
    """Create an untrained VAE: of factor 4 (tiny) or 8, with four latent channels or twelve (region)."""
    _check_size(size)
    if size == "region":
        return create_autoencoder(12, (24, 48, 96, 192), architecture="dc")
    return create_autoencoder(4, (16, 32, 48) if size == "tiny" else (32, 64, 96, 128))


def create_autoencoder(
    latent_channels: int, widths: Sequence[int], layers: int = 1, architecture: str = "kl"
) -> Vae:
    """Create an untrained VAE of convolutions alone, so that it takes images of any size.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level; every level but one halves the resolution.
    layers : int
        Residual blocks per level of the encoder; the decoder of "kl" has one more.
    architecture : {"kl", "dc"}
        Stable Diffusion's, or that of deep-compression autoencoders (https://arxiv.org/abs/2410.10733):
        shortcuts between space and channels, which learn several times faster, and no normalisation
        over the image, so that a place looks the same in every tile.
    """
    if architecture == "dc":
        return _create_dc(latent_channels, tuple(widths), layers)
    return AutoencoderKL(
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=latent_channels,
        norm_num_groups=_norm_groups(widths),
        mid_block_add_attention=False,
    )


def _create_dc(latent_channels: int, widths: tuple[int, ...], layers: int) -> AutoencoderDC:
    if widths[-1] % latent_channels or any(4 * fine % coarse for fine, coarse in pairwise(widths)):
        raise SettingsError(
            f"widths={widths}, latent_channels={latent_channels}: the shortcuts of a dc autoencoder need a "
            "last width that is a multiple of the latent channels, and widths that divide 4 times the one "
            "before (24, 48, 96, 192, say, with 12 channels)"
        )
    every = {"layers_per_block": (layers,) * len(widths), "qkv_multiscales": ((),) * len(widths)}
    sides: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {**every, "block_out_channels": widths}.items()
    }
    return AutoencoderDC(latent_channels=latent_channels, **sides)


def _norm_groups(widths: Sequence[int]) -> int:
    """Return how many groups a normalisation has: the most up to 16 that divide every width."""
    common = math.gcd(*widths)
    return max(groups for groups in range(1, _GROUPS_AT_MOST + 1) if common % groups == 0)


def _check_size(size: str) -> None:
    if size not in SIZES:
        raise SettingsError(f"size={size!r}: must be one of {', '.join(SIZES)}")


def pool_validity(valid: Tensor, factor: int) -> Tensor:
    """Return which latent pixels are of valid pixels alone.

    Parameters
    ----------
    valid : Tensor, shape (B, 1, H, W)
        0 or 1.

    Returns
    -------
    Tensor, shape (B, 1, H / factor, W / factor)
    """
    return 1 - max_pool2d(1 - valid, factor)
