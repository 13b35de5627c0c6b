"""The denoiser: the latents of an optical template, translated into the SAR domain where it lies.

It predicts the clean latent x0 (supplement, section 1, Eq. 4) from [noisy latent | optical latent] and
attends to the search image's latents. Own choices, for the supplement names only the parts: a U-Net of
two levels, strides 8 and 16 for a VAE of factor 8; calibrated attention (ACB) at the coarse one, gated
sparse attention at the fine one; the search image's features are computed once for all steps.

The translated latent and the search image's are compared through a small network that both share
(`features`): a latent of 8 x 8 pixels holds where in it an edge lies, so that the plain latents of one
image cut 2 pixels further no longer correlate at all (measured), and a template never lies on the search
image's own lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from sar2eo.matching.dcdm.attention import CalibratedAttention, RegionAttention
from sar2eo.model.network import pool_validity

REGION = 4
"""Side of a region of attention, in tokens; sides of latents must be multiples of it."""

FEATURE_SCALE = 2
"""Features have so many rows and columns for one of a latent."""

_GROUPS = 8
_FIRST_SHARPNESS = 2.3  # exp(2.3) = 10
_FIRST_NONE = 0.5


@dataclass(frozen=True, eq=False)
class SearchContext:
    """Features of a search image, the same for every step.

    Parameters
    ----------
    fine, coarse : Tensor, shape (B, C, H, W) and (B, C', H / 2, W / 2)
        Features at strides 8 and 16.
    valid, valid_coarse : Tensor, shape (B, 1, H, W) and (B, 1, H / 2, W / 2)
        1 where they are of valid pixels, else 0.
    """

    fine: Tensor
    coarse: Tensor
    valid: Tensor
    valid_coarse: Tensor


@dataclass(frozen=True, eq=False)
class Denoised:
    """Output of one pass.

    Parameters
    ----------
    clean : Tensor of float32, shape (B, C, h, w)
        The predicted x0.
    before, after : Tensor of float32, shape (B, h / 2, w / 2, H / 2, W / 2)
        Attention of the template's tokens to the search image's at stride 16, mean over the heads, before
        and after calibration.
    affinity : Tensor of float32, shape (B, regions, regions)
        Logits that route the attention at stride 8.
    """

    clean: Tensor
    before: Tensor
    after: Tensor
    affinity: Tensor


class MatchingDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Translates optical latents into SAR latents, given the SAR image to search in.

    Parameters
    ----------
    latent_channels : int
        Of the VAE.
    widths : sequence of int
        Channels at strides 8 and 16; (128, 256) makes about 9 M parameters, (16, 32) a network for tests.
    top_regions : int
        Regions of 4 x 4 tokens that a region attends to at stride 8.
    calibration : int
        Channels of the attention calibration block.
    features : int
        Channels of what is compared.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 12,
        widths: Sequence[int] = (128, 256),
        heads: int = 4,
        top_regions: int = 16,
        calibration: int = 8,
        features: int = 16,
    ) -> None:
        super().__init__()
        fine, coarse = widths
        time = 4 * fine
        self.time_waves = Timesteps(fine, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(fine, time)
        self.search_in = nn.Conv2d(latent_channels, fine, 3, padding=1)
        self.search_fine = nn.ModuleList([_block(fine), _block(fine)])
        self.search_down = Downsample2D(fine, use_conv=True, out_channels=coarse, name="op")
        self.search_coarse = nn.ModuleList([_block(coarse)])
        self.template_in = nn.Conv2d(2 * latent_channels, fine, 3, padding=1)
        self.fine_down = nn.ModuleList([_block(fine, time=time), _block(fine, time=time)])
        self.down = Downsample2D(fine, use_conv=True, out_channels=coarse, name="op")
        self.coarse_first = _block(coarse, time=time)
        self.attend_coarse = CalibratedAttention(coarse, coarse, heads=heads, hidden=calibration)
        self.coarse_second = _block(coarse, time=time)
        self.up = Upsample2D(coarse, use_conv=True, out_channels=fine)
        self.merge = _block(2 * fine, fine, time=time)
        self.attend_fine = RegionAttention(fine, fine, heads=heads, region=REGION, top=top_regions)
        self.fine_up = nn.ModuleList([_block(fine, time=time), _block(fine, time=time)])
        self.norm_out = nn.GroupNorm(_GROUPS, fine)
        self.conv_out = nn.Conv2d(fine, latent_channels, 3, padding=1)
        self.head = _head(latent_channels, fine, features)
        self.sharpness = nn.Parameter(torch.tensor(_FIRST_SHARPNESS))
        self.none = nn.Parameter(torch.tensor(_FIRST_NONE))

    def forward(
        self, noisy: Tensor, optical: Tensor, search: Tensor, search_valid: Tensor, timesteps: Tensor
    ) -> tuple[Denoised, Tensor, Tensor, Tensor, Tensor]:
        """Compute everything for a training step: accelerate wraps forward passes only.

        Returns what is denoised, the features of template and search image (see `features`), and `sharpness`
        and `none`, which turn correlations into probabilities (`sar2eo.matching.dcdm.similarity`).
        """
        denoised = self.denoise(noisy, optical, self.encode_search(search, search_valid), timesteps)
        compared = self.features(denoised.clean), self.features(search)
        return denoised, *compared, self.sharpness, self.none

    def encode_search(self, search: Tensor, valid: Tensor) -> SearchContext:
        """Compute the features that all steps attend to, of scaled latents (B, C, H, W), multiples of 4.

        `valid`, shape (B, 1, H, W), is 1 where they are of valid pixels alone, else 0.
        """
        x = self.search_in(search)
        for block in self.search_fine:
            x = block(x, None)
        y = self.search_down(x)
        for block in self.search_coarse:
            y = block(y, None)
        return SearchContext(x, y, valid, pool_validity(valid, 2))

    def denoise(self, noisy: Tensor, optical: Tensor, context: SearchContext, timesteps: Tensor) -> Denoised:
        """Predict the clean latent (supplement, Eq. 4).

        `noisy` and `optical` are scaled latents, shape (B, C, h, w), multiples of 4; timesteps are int64,
        shape (B,).
        """
        waves = self.time_waves(timesteps).to(noisy.dtype)
        time = self.time_embedding(waves)
        x = self.template_in(torch.cat([noisy, optical], dim=1))
        for block in self.fine_down:
            x = block(x, time)
        y = self.coarse_first(self.down(x), time)
        mapped = self.attend_coarse(y, context.coarse, context.valid_coarse)
        y = self.coarse_second(y + mapped.output, time)
        x = self.merge(torch.cat([x, self.up(y)], dim=1), time)
        attended = self.attend_fine(x, context.fine, context.valid)
        x = x + attended.output
        for block in self.fine_up:
            x = block(x, time)
        clean = self.conv_out(functional.silu(self.norm_out(x))).float()
        grid = (*y.shape[-2:], *context.coarse.shape[-2:])
        before, after = (part.unflatten(2, grid[2:]).unflatten(1, grid[:2]) for part in mapped[1:])
        return Denoised(clean, before, after, attended.affinity)

    def features(self, latents: Tensor) -> Tensor:
        """Return features to compare: float32, shape (B, F, 2 H, 2 W) for latents of shape (B, C, H, W)."""
        features: Tensor = self.head(latents.to(self.conv_out.weight.dtype)).float()
        return features


def _block(channels: int, out: int | None = None, time: int | None = None) -> Any:
    return ResnetBlock2D(in_channels=channels, out_channels=out, temb_channels=time, groups=_GROUPS)


def _head(latent_channels: int, width: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(latent_channels, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, FEATURE_SCALE**2 * features, 3, padding=1),
        nn.PixelShuffle(FEATURE_SCALE),
    )
