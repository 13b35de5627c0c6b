"""Settings of `sar2eo.train` and `sar2eo.train_vae`, and of the commands of those names.

Defaults are the paper's where it has any (C-DiffSET, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.errors import SettingsError
from sar2eo.model.card import PredictionType

__all__ = [
    "DataSettings",
    "Dataset",
    "LoopSettings",
    "Loss",
    "MatcherRecipe",
    "MatcherSettings",
    "TrainRecipe",
    "TrainSettings",
    "VaeRecipe",
    "VaeSettings",
]

Dataset = Literal["qxs", "sar2opt", "spacenet6"]
"""Published data sets whose folders are read as they come."""

Loss = Literal["c-diff", "c-diff-timestep", "l2"]
"""Likelihood of the variance channel, the same with the release's timestep weight, or squared error."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which pairs: built ones, or a published data set.

    Parameters
    ----------
    pairs : str or None
        Folder of `sar2eo.build_pairs`.
    dataset, root : str or None
        A published data set instead, and its folder.
    split_by : {"release", "place"}
        Of published data sets: the random list of the authors' release, or places that do not touch.
    """

    pairs: str | None = None
    dataset: Dataset | None = None
    root: str | None = None
    split_by: Literal["release", "place"] = "release"

    def __post_init__(self) -> None:
        if (self.pairs is None) == (self.dataset is None) or (self.dataset is None) != (self.root is None):
            raise SettingsError("give either pairs (a folder), or dataset and root (its folder)")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What every training run has; the defaults are each kind of run's own.

    Parameters
    ----------
    steps, batch, accumulate : int
        Optimiser steps; images per device and pass; passes per step.
    lr, warmup, decay
        Peak learning rate, steps to reach it (at most `steps`), and whether it then falls as a half cosine.
    weight_decay, max_grad_norm : float
    crop : int
        Side of random crops in pixels; images smaller than that are taken whole.
    seed : int
    ema : float
        Decay of the averaged weights that are validated and kept; 0: none.
    device, dtype : str
    threads : int or None
        Torch threads; None: all cores.
    validate_every, save_every : int
        Steps between; 0: only at the end.
    keep : int
        States kept for resuming.
    """

    steps: int
    batch: int
    accumulate: int = 1
    lr: float
    warmup: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    crop: int
    seed: int = 2025
    ema: float
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "crop", "keep"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise SettingsError(f"threads={self.threads}: must be at least 1")
        for name in ("warmup", "weight_decay", "validate_every", "save_every", "seed"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}={getattr(self, name):g}: must be above 0")
        if self.warmup > self.steps:
            raise SettingsError(
                f"warmup={self.warmup}: must be at most steps={self.steps}, or the learning rate never rises "
                f"to lr={self.lr:g}"
            )
        if not 0 <= self.ema < 1:
            raise SettingsError(f"ema={self.ema:g}: must be from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LoopSettings):
    """How a U-Net is fine-tuned; further fields are those of `LoopSettings`.

    Parameters
    ----------
    loss : {"c-diff", "c-diff-timestep", "l2"}
    prediction_type : str or None
        None: as the base's card says.
    gain_jitter : float
        The SAR is multiplied by a random factor of up to ``1 +- gain_jitter`` before clipping.
    dropout : float
        Share of the values in the U-Net's residual blocks that are left out at each step, against learning
        few pairs by heart.
    gradient_checkpointing : bool
    cache_latents : bool
        Encode the images once, before training.
    crops : int
        Fixed crops of each image in a cache (each in 8 orientations).
    lora : int or None
        Rank of adapters to train instead of all weights.
    """

    loss: Loss = "c-diff"
    prediction_type: PredictionType | None = None
    steps: int = 50_000
    batch: int = 16
    lr: float = 3e-5
    crop: int = 512
    gain_jitter: float = 0.0
    dropout: float = 0.0
    ema: float = 0.9999
    gradient_checkpointing: bool = False
    cache_latents: bool = False
    crops: int = 4
    lora: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gain_jitter < 1:
            raise SettingsError(f"gain_jitter={self.gain_jitter:g}: must be from 0 to below 1")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout={self.dropout:g}: must be from 0 to below 1")
        if self.crops < 1 or (self.lora is not None and self.lora < 1):
            raise SettingsError(f"crops={self.crops}, lora={self.lora}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Fine-tuning: the table ``[train]`` of a TOML recipe.

    Parameters
    ----------
    data
        The table ``[train.data]``.
    base : str
        Checkpoint folder, or a Stable Diffusion folder or hub id.
    revision : str or None
        Of a hub id.
    out : str
        Run folder; the same command goes on in it.
    latents : str or None
        Folder of the cache of latents, which several runs may share; None: in the run folder.
    settings
        The table ``[train.settings]``.
    """

    data: DataSettings
    base: str
    out: str
    revision: str | None = None
    latents: str | None = None
    settings: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if self.latents is not None and not self.settings.cache_latents:
            raise SettingsError(f"latents={self.latents}: goes with cache_latents (--cache-latents)")


@dataclass(frozen=True, kw_only=True)
class VaeSettings(LoopSettings):
    """How a VAE is trained from nothing; further fields are those of `LoopSettings`.

    Parameters
    ----------
    architecture : {"kl", "dc"}
        Stable Diffusion's or a deep-compression autoencoder; see `sar2eo.model.network.create_autoencoder`.
    latent_channels : int
    widths : tuple of int
        Channels of each level; one level more doubles the factor.
    layers : int
        Residual blocks per level.
    images : {"both", "eo", "sar"}
        Of the pairs.
    sar : float
        Share of the gradient that SAR images get, where EO images get 1: nobody decodes a SAR image, but
        its latents must tell what is there.
    l1, l2, gradient, texture, kl, adversarial : float
        Weights of the absolute error, of the squared error, of the absolute error of the image's gradient, of
        that of the log power of its detail (`sar2eo.training.vae_losses`), of the divergence from a standard
        normal, and of a patch discriminator (a few thousandths of the squared error's are plenty).
    adversarial_from : float
        Share of the steps after which the discriminator joins.
    decoder_only : bool
        Of a base: leave its encoder, and so its latents, as they are, and every U-Net that knows them.
    """

    architecture: Literal["kl", "dc"] = "kl"
    latent_channels: int = 8
    widths: tuple[int, ...] = (32, 64, 96, 128)
    layers: int = 1
    images: Literal["both", "eo", "sar"] = "both"
    sar: float = 1.0
    l1: float = 1.0
    l2: float = 0.0
    gradient: float = 1.0
    texture: float = 0.0
    kl: float = 1e-6
    adversarial: float = 0.0
    adversarial_from: float = 0.67
    decoder_only: bool = False
    steps: int = 20_000
    batch: int = 8
    lr: float = 4e-4
    crop: int = 256
    ema: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_channels < 1 or self.layers < 1 or not self.widths or min(self.widths) < 1:
            raise SettingsError(
                f"latent_channels={self.latent_channels}, widths={self.widths}, layers={self.layers}: must "
                "be at least 1"
            )
        for name in ("l1", "l2", "gradient", "texture", "kl", "adversarial"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name):g}: must not be negative")
        if not self.sar > 0:
            raise SettingsError(f"sar={self.sar:g}: must be above 0; images = 'eo' leaves SAR out")
        if not 0 <= self.adversarial_from <= 1:
            raise SettingsError(f"adversarial_from={self.adversarial_from:g}: must be a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class VaeRecipe:
    """Training of a VAE: the table ``[train-vae]`` of a TOML recipe.

    Parameters
    ----------
    data
        The table ``[train-vae.data]``.
    base : str or None
        Folder of a VAE (``vae/``) to go on from, with its own architecture; None: from nothing.
    out : str
        Run folder; the same command goes on in it.
    settings
        The table ``[train-vae.settings]``.
    """

    data: DataSettings
    out: str
    base: str | None = None
    settings: VaeSettings = field(default_factory=VaeSettings)

    def __post_init__(self) -> None:
        if self.settings.decoder_only and self.base is None:
            raise SettingsError("decoder_only: goes with a base, whose encoder is kept")


_MULTIPLE = 32  # pixels: regions of 4 x 4 latents of 8 x 8 pixels


@dataclass(frozen=True, kw_only=True)
class MatcherSettings(LoopSettings):
    """How a matcher is trained; further fields are those of `LoopSettings`, where crop is the search's side.

    Parameters
    ----------
    template : int
        Side of the templates in pixels.
    widths : tuple of int
        Channels of the denoiser at strides 8 and 16; (64, 128) makes a small one.
    top_regions : int
        Regions of the search that a region of the template attends to at stride 8.
    ssim, position, similarity : float
        Weights of 1 - SSIM of latents, of the attention's position term, and of the cross-entropy on the
        similarity map, beside the squared error, whose weight is 1.
    truth : float
        Share of the templates that are noised from the truth, as in the supplement's Eq. 2; the others begin
        with pure noise or with the network's own translation, as in sampling.
    negatives : float
        Share of a batch that is shown again with the search image of another place.
    false_accepts : float
        Share of wrong matches that may be accepted, from which the threshold follows.
    trials : int
        Matches of either kind, right and wrong search image, that the threshold is measured on.
    """

    template: int = 128
    widths: tuple[int, ...] = (128, 256)
    top_regions: int = 16
    ssim: float = 0.2
    position: float = 0.1
    similarity: float = 0.25
    truth: float = 0.25
    negatives: float = 0.25
    false_accepts: float = 0.005
    trials: int = 1000
    steps: int = 10_000
    batch: int = 16
    lr: float = 5e-4
    crop: int = 256
    ema: float = 0.998

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template % _MULTIPLE or self.crop % _MULTIPLE or not 0 < self.template < self.crop:
            raise SettingsError(
                f"template={self.template}, crop={self.crop}: must be multiples of {_MULTIPLE} pixels, the "
                "template smaller than the crop, which is what it is searched in"
            )
        if len(self.widths) != 2 or any(width < 16 or width % 16 for width in self.widths):
            raise SettingsError(f"widths={self.widths}: must be two positive multiples of 16")
        if self.top_regions < 1 or self.trials < 1:
            raise SettingsError(f"top_regions={self.top_regions}, trials={self.trials}: must be at least 1")
        for name in ("ssim", "position", "similarity"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name):g}: must not be negative")
        for name in ("truth", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name}={getattr(self, name):g}: must be a share from 0 to 1")
        if not 0 < self.false_accepts < 1:
            raise SettingsError(f"false_accepts={self.false_accepts:g}: must be a share above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class MatcherRecipe:
    """Training of a matcher: the table ``[train-matcher]`` of a TOML recipe.

    Parameters
    ----------
    data
        The table ``[train-matcher.data]``.
    out : str
        Run folder; the same command goes on in it.
    vae : str
        Folder with a trained VAE in ``vae/`` (of `sar2eo.train_vae`, or a checkpoint), or "bundled".
    base : str or None
        A matcher to go on from (a folder, a hub id, or "bundled"), with its own architecture and VAE; `vae`
        and the settings of the architecture are not looked at then.
    settings
        The table ``[train-matcher.settings]``.
    """

    data: DataSettings
    out: str
    vae: str = "bundled"
    base: str | None = None
    settings: MatcherSettings = field(default_factory=MatcherSettings)
