"""The SAR encoder: backscatter in, SAR latents and a guess of the EO latents out, in one pass.

A VAE made for optical images loses much of what a radar image holds (experiments/picture). This network
learns to predict the optical image from backscatter directly. Its features become the latents that are
concatenated to the noisy EO latents (C-DiffSET, section 3.2). Beside them stands its guess of the EO latents,
where sampling starts.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from sar2eo.geo.radiometry import RANGE_DB

_PER_DECIBEL = 0.1 * 2.302585  # natural logarithm of power
_SPREAD_DB = 8.0  # standard deviation of backscatter over all kinds of ground
_BRIGHTEST = 6.0  # amplitude, of its reference level
_LOOKS_PX = (5, 17)  # sides of the means of intensity
_STRIDE = 4  # pixels a side of what the first convolution sees at once
_INPUTS = (2 + len(_LOOKS_PX)) * _STRIDE**2 + 2


class SarEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Encodes SAR tiles at factor 8, without any normalisation over the tile: a place looks the same in all.

    Parameters
    ----------
    sar_channels, latent_channels : int
        Channels of the SAR latents, and of the VAE's.
    widths : sequence of int
        Channels at 1/4, 1/8, 1/16 ... of the resolution.
    inner : int
        Channels between the features and the latents.
    """

    config_name = "config.json"
    factor = 2 * _STRIDE

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sar_channels: int = 16,
        latent_channels: int = 6,
        widths: tuple[int, ...] = (64, 128, 192, 256),
        inner: int = 96,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(_INPUTS, widths[0], 3, padding=1)
        self.down, self.enc = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(widths[level - 1], width, 2, stride=2))
            self.enc.append(nn.Sequential(Block(width, width), Block(width, width)))
        self.up, self.dec = nn.ModuleList(), nn.ModuleList()
        for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(nn.Conv2d(coarse, fine, 1))
            self.dec.append(Block(2 * fine, fine))
        self.last = Block(widths[0], widths[0])
        self.shrink = nn.Conv2d(widths[0], inner, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(inner, inner), Block(inner, inner))
        self.norm = ChannelNorm(inner)
        self.out = nn.Conv2d(inner, sar_channels + latent_channels, 3, padding=1)

    @property
    def pixel_multiple(self) -> int:
        """What sides of tiles must be multiples of."""
        return max(2, int(2 ** (len(self.config.widths) - 1))) * _STRIDE

    def forward(self, sar: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch of tiles.

        Parameters
        ----------
        sar : Tensor of float32, shape (B, 3, H, W)
            Backscatter in the model's range (`sar2eo.geo.radiometry.to_model_range`): co-polarised,
            cross-polarised, and their mean. A channel of -1 throughout was not recorded; with both, the
            result is the mean of what each yields.

        Returns
        -------
        sar_latents : Tensor of float32, shape (B, sar_channels, H / 8, W / 8)
        guess : Tensor of float32, shape (B, latent_channels, H / 8, W / 8)
            EO latents as far as radar decides them.
        """
        recorded = sar[:, :2].amax(dim=(2, 3)) > -1  # [B, 2]
        recorded |= ~recorded.any(dim=1, keepdim=True)  # a tile without any power is still one
        total: Tensor | float = 0.0
        for crossed in (0, 1):
            there = recorded[:, crossed, None, None, None]
            if there.any():  # always the whole batch: values may hang on its size in their last bits
                total = total + there * self._encode(sar[:, crossed, None] * RANGE_DB, crossed)
        mean = cast(Tensor, total) / recorded.sum(dim=1)[:, None, None, None]
        sar_latents, guess = mean.split([self.config.sar_channels, self.config.latent_channels], dim=1)
        return sar_latents, guess

    def _encode(self, decibels: Tensor, crossed: int) -> Tensor:
        """Encode dB above the polarisation's reference, shape (B, 1, H, W); crossed is 1 for VH and HV."""
        kind = torch.full_like(decibels[:, 0, 0, 0], crossed)
        x = self.stem(describe_backscatter(decibels, kind).contiguous(memory_format=torch.channels_last))
        kept = []
        for level, enc in enumerate(self.enc):
            x = enc(self.down[level - 1](x) if level else x)
            kept.append(x)
        for up, dec, fine in zip(self.up, self.dec, kept[-2::-1], strict=True):
            x = dec(torch.cat([functional.interpolate(up(x), scale_factor=2.0, mode="nearest"), fine], dim=1))
        y = self.out(functional.silu(self.norm(self.blocks(self.shrink(self.last(x))))))
        return cast(Tensor, y.float())


def describe_backscatter(decibels: Tensor, crossed: Tensor) -> Tensor:
    """Return dB, amplitude, logarithm of mean intensities and kind of polarisation, of 4 x 4 pixels at once.

    Parameters
    ----------
    decibels : Tensor of float32, shape (B, 1, H, W)
        dB above the polarisation's reference.
    crossed : Tensor, shape (B,)
        1 for VH and HV, 0 for VV and HH.

    Returns
    -------
    Tensor of float32, shape (B, 66, H / 4, W / 4)
    """
    power = torch.exp(decibels * _PER_DECIBEL)
    parts = [decibels / _SPREAD_DB, power.sqrt().clamp(max=_BRIGHTEST) - 1]
    parts += [
        torch.log(average_squares(power, side) + 1e-4) / (_PER_DECIBEL * _SPREAD_DB) for side in _LOOKS_PX
    ]
    x = functional.pixel_unshuffle(torch.cat(parts, dim=1), _STRIDE)
    flag = crossed.to(x.dtype).view(-1, 1, 1, 1).expand_as(x[:, :1])
    return torch.cat([x, flag, 1 - flag], dim=1)


def average_squares(x: Tensor, side: int) -> Tensor:
    """Average the square of `side` pixels around every pixel; beyond the border its values are repeated."""
    x = functional.pad(x, (side // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(functional.avg_pool2d(x, (side, 1), 1), (1, side), 1)


class ChannelNorm(nn.Module):
    """Normalises every pixel over its channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features of shape (B, width, H, W)."""
        y = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return y.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two convolutions beside an identity, which they start as."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = ChannelNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))
        same = channels_in == channels_out
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features of shape (B, channels_in, H, W) to (B, channels_out, H, W)."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return cast(Tensor, self.skip(x) + y)
