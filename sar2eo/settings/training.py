"""Settings of training and evaluation: pairs, loops, networks, figures.

Defaults are the paper's where it has any (C-DiffSET, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from sar2eo.settings.schema import Bounds, Flag, Recipe, Settings
from sar2eo.settings.vocabulary import (
    INPUT,
    MODEL,
    OUTPUT,
    RUN,
    CardSampler,
    CardSteps,
    Checkpoint,
    Count,
    Dataset,
    Device,
    Dtype,
    File,
    Folder,
    Fraction,
    Loss,
    Metric,
    Natural,
    Positive,
    PredictionType,
    Protocol,
    Revision,
    Samples,
    SamplingSteps,
    Seed,
    Share,
    Split,
    Threads,
    Weight,
)

Schedule = Literal["cosine", "constant"]
Architecture = Literal["kl", "dc"]
Models = Annotated[tuple[str, ...], Flag(metavar="MODEL_OR_BASELINE...")]
Metrics = tuple[Metric, ...]
Widths = Annotated[tuple[Count, ...], MODEL]
MatcherWidths = Annotated[tuple[Annotated[int, Bounds(least=16, multiple=16)], ...], MODEL]
Side = Annotated[int, Bounds(least=32, multiple=32)]  # pixels: regions of 4 x 4 latents of 8 x 8 pixels
SearchSide = Annotated[int, Bounds(least=64, multiple=64)]
OpenShare = Annotated[float, Bounds(above=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which pairs: built ones, or a published data set."""

    group = "Input"
    alternatives = ("pairs", "dataset")

    pairs: Annotated[Folder | None, "Pairs made by build-pairs."] = None
    dataset: Annotated[Dataset | None, "Published data set instead."] = None
    root: Annotated[Folder | None, "Folder of the data set."] = None
    split_by: Annotated[
        Literal["release", "place"],
        "Split of a data set: the random list of the authors' release, or places that do not touch.",
    ] = "release"

    def _check(self) -> None:
        if (self.pairs is None) == (self.dataset is None) or (self.dataset is None) != (self.root is None):
            self.refuse("give either {pairs:} (a folder), or {dataset:} and {root:} (its folder)")


Steps = Annotated[Count, "Optimiser steps."]
Batch = Annotated[Count, "Images per device and pass."]
LearningRate = Annotated[Positive, "Peak learning rate."]
Crop = Annotated[Count, "Side of random crops in pixels; smaller images are taken whole."]
Ema = Annotated[Fraction, "Decay of the averaged weights that are validated and kept; 0: none."]


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """What every training run has; the defaults are each kind of run's own."""

    group = "Training"

    steps: Steps
    batch: Batch
    accumulate: Annotated[Count, "Passes per step."] = 1
    lr: LearningRate
    warmup: Annotated[Natural, "Steps to reach the peak learning rate."] = 100
    decay: Annotated[Schedule, "Learning rate after its peak; constant lets a run be extended."] = "cosine"
    weight_decay: Annotated[Weight, "Weight decay of AdamW."] = 0.01
    max_grad_norm: Annotated[Positive, "Norm to which longer gradients are clipped."] = 1.0
    crop: Crop
    seed: Annotated[Seed, "Seed of order, crops, noise and timesteps."] = 2025
    ema: Ema
    device: Device = "auto"
    dtype: Dtype = "auto"
    threads: Threads = None
    validate_every: Annotated[Natural, "Steps between validations; 0: only at the end.", RUN] = 1000
    save_every: Annotated[Natural, "Steps between saved states; 0: only at the end.", RUN] = 1000
    keep: Annotated[Count, "Saved states to keep.", RUN] = 2

    def _check(self) -> None:
        if self.warmup > self.steps:
            self.refuse("{warmup}: must be at most {steps}, or the learning rate never rises to {lr}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LoopSettings):
    """How a U-Net is fine-tuned."""

    loss: Annotated[Loss, "Likelihood, the same with the release's weights, or squared error."] = "c-diff"
    prediction_type: Annotated[PredictionType | None, "Target; by default as the base says."] = None
    steps: Steps = 50_000
    batch: Batch = 16
    lr: LearningRate = 3e-5
    crop: Crop = 512
    gain_jitter: Annotated[Fraction, "Largest random change of the SAR's brightness, a share."] = 0.0
    dropout: Annotated[Fraction, "Share of values left out, against learning few pairs by heart."] = 0.0
    ema: Ema = 0.9999
    gradient_checkpointing: Annotated[bool, "Less memory, a third more time."] = False
    cache_latents: Annotated[bool, "Encode fixed crops once, before training."] = False
    crops: Annotated[Count, "Fixed crops of each image in a cache, each in 8 orientations."] = 4
    lora: Annotated[Count | None, "Rank of adapters to train instead of all weights."] = None


@dataclass(frozen=True, kw_only=True)
class RunRecipe(Recipe):
    """What every training run takes besides its settings."""

    group = "Run"

    data: DataSettings
    out: Annotated[Folder, "Folder of the run; the same command goes on in it.", OUTPUT]


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(RunRecipe):
    """Fine-tune a model: the table ``[train]`` of a TOML recipe."""

    base: Annotated[Checkpoint, "Checkpoint, or a Stable Diffusion model.", MODEL]
    revision: Revision = None
    latents: Annotated[
        Folder | None, "Cache of latents to share; by default in the run's folder.", OUTPUT
    ] = None
    settings: TrainSettings = field(default_factory=TrainSettings)

    def _check(self) -> None:
        if self.latents is not None and not self.settings.cache_latents:
            self.refuse("{latents}: goes with {settings.cache_latents:}")


@dataclass(frozen=True, kw_only=True)
class VaeSettings(LoopSettings):
    """How a VAE is trained from nothing."""

    architecture: Annotated[Architecture, "Stable Diffusion's, or a deep-compression one.", MODEL] = "kl"
    latent_channels: Annotated[Count, "Channels of the latents.", MODEL] = 8
    widths: Annotated[Widths, "Channels of each level; one level more doubles the factor."] = (
        32,
        64,
        96,
        128,
    )
    layers: Annotated[Count, "Residual blocks per level.", MODEL] = 1
    images: Annotated[Literal["both", "eo", "sar"], "Which images of the pairs.", INPUT] = "both"
    sar: Annotated[Positive, "Share of the gradient that SAR images get, where EO images get 1."] = 1.0
    l1: Annotated[Weight, "Weight of the absolute error."] = 1.0
    l2: Annotated[Weight, "Weight of the squared error."] = 0.0
    gradient: Annotated[Weight, "Weight of the absolute error of the image's gradient."] = 1.0
    texture: Annotated[Weight, "Weight of the absolute error of the log power of the image's detail."] = 0.0
    kl: Annotated[Weight, "Weight of the latents' divergence from a standard normal."] = 1e-6
    adversarial: Annotated[Weight, "Weight of a patch discriminator; 0: none."] = 0.0
    adversarial_from: Annotated[Share, "Share of the steps after which the discriminator joins."] = 0.67
    decoder_only: Annotated[bool, "With a base: keep its encoder, and so its latents.", MODEL] = False
    steps: Steps = 20_000
    batch: Batch = 8
    lr: LearningRate = 4e-4
    crop: Crop = 256
    ema: Ema = 0.999


@dataclass(frozen=True, kw_only=True)
class VaeRecipe(RunRecipe):
    """Train a VAE: the table ``[train-vae]`` of a TOML recipe."""

    base: Annotated[Folder | None, "VAE to go on from, with its own architecture.", MODEL] = None
    settings: VaeSettings = field(default_factory=VaeSettings)

    def _check(self) -> None:
        if self.settings.decoder_only and self.base is None:
            self.refuse("{settings.decoder_only:}: goes with a base, whose encoder is kept")


@dataclass(frozen=True, kw_only=True)
class MatcherSettings(LoopSettings):
    """How a matcher is trained."""

    template: Annotated[Side, "Side of the templates in pixels.", MODEL] = 128
    widths: Annotated[MatcherWidths, "Channels at strides 8 and 16; 64,128 makes a small one."] = (128, 256)
    top_regions: Annotated[Count, "Regions of the search that a template's region attends to.", MODEL] = 16
    ssim: Annotated[Weight, "Weight of 1 - SSIM of latents; the squared error's is 1."] = 0.2
    position: Annotated[Weight, "Weight of the attention's position term."] = 0.1
    similarity: Annotated[Weight, "Weight of the cross-entropy on the similarity map."] = 0.25
    truth: Annotated[Share, "Share of templates noised from the truth, the others as in sampling."] = 0.25
    negatives: Annotated[Share, "Share of a batch shown again with another place's search image."] = 0.25
    false_accepts: Annotated[OpenShare, "Share of wrong matches that may be accepted."] = 0.005
    trials: Annotated[Count, "Right and wrong matches each that the threshold is measured on."] = 1000
    steps: Steps = 10_000
    batch: Batch = 16
    lr: LearningRate = 5e-4
    crop: Annotated[Side, "Side of the search images in pixels."] = 256
    ema: Ema = 0.998

    def _check(self) -> None:
        super()._check()
        if self.template >= self.crop:
            self.refuse("{template}: must be smaller than {crop}, the side of what it is searched in")
        if len(self.widths) != 2:
            self.refuse("{widths}: must be two numbers")


@dataclass(frozen=True, kw_only=True)
class MatcherRecipe(RunRecipe):
    """Train a matcher: the table ``[train-matcher]`` of a TOML recipe."""

    vae: Annotated[Folder, "Trained VAE; 'bundled' is the package's own.", MODEL] = "bundled"
    base: Annotated[Checkpoint | None, "Matcher to go on from, with its own VAE.", MODEL] = None
    settings: MatcherSettings = field(default_factory=MatcherSettings)


SweepSteps = Annotated[tuple[SamplingSteps, ...], "Numbers of steps to compare."]
Limit = Annotated[Count | None, "Largest number of pairs, spread evenly over the split.", INPUT]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """What is measured, and how images are sampled."""

    group = "Evaluation"

    split: Annotated[Split, "Split that is judged.", INPUT] = "test"
    metrics: Annotated[Metrics, "Some of psnr, ssim, scc, lpips, fid, features."] = ("psnr", "ssim", "scc")
    protocol: Annotated[Protocol, "How images become 0..1: the usual way, or the release's."] = "usual"
    steps: CardSteps = None
    sampler: CardSampler = None
    samples: Annotated[Samples, "Images to draw from each scene, judged singly and as their mean."] = 1
    sweep_steps: SweepSteps = ()
    upper_bound: Annotated[bool, "Judge the VAE's own reconstruction of the truth, too."] = False
    against: Annotated[Models, "Further models, or the baselines."] = ("mean-colour", "sar-grey")
    lpips_weights: Annotated[File | None, "AlexNet's weights, .safetensors; else no LPIPS."] = None
    fid_weights: Annotated[File | None, "Inception's weights, .safetensors; else no FID."] = None
    limit: Limit = None
    seed: Annotated[Seed, "Seed of the noise."] = 2025
    device: Device = "auto"
    dtype: Dtype = "auto"
    threads: Threads = None
    batch: Annotated[Count | None, "Images at a time; by default what the device's memory holds.", RUN] = None

    def _check(self) -> None:
        if not self.metrics:
            self.refuse("{metrics:}: must name at least one of psnr, ssim, scc, lpips, fid, features")


@dataclass(frozen=True, kw_only=True)
class ReportRecipe(Recipe):
    """What every evaluation takes besides its settings."""

    model: Annotated[Checkpoint, "Model to judge.", MODEL]
    data: DataSettings
    out: Annotated[Folder, "Folder of the report."]
    overwrite: Annotated[bool, "Replace an existing report, or unfinished work of another."] = False


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe(ReportRecipe):
    """Judge a model: the table ``[evaluate]`` of a TOML recipe."""

    settings: EvaluateSettings = field(default_factory=EvaluateSettings)


@dataclass(frozen=True, kw_only=True)
class MatchEvaluationSettings(Settings):
    """How matches are judged."""

    group = "Evaluation"

    split: Annotated[Split, "Split that is judged.", INPUT] = "test"
    against: Annotated[
        tuple[Literal["structure", "phase", "ncc"], ...],
        "Methods that are not learned, in the same table: structure, phase, ncc.",
    ] = ("structure", "phase", "ncc")
    search: Annotated[SearchSide | None, "Side of search images, twice the templates'; or as trained."] = None
    offsets: Annotated[Count, "Templates from each pair."] = 1
    noise: Annotated[tuple[Weight, ...], "Variances of noise on the templates, in percent."] = (0.0,)
    steps: CardSteps = None
    sweep_steps: SweepSteps = ()
    limit: Limit = None
    resamples: Annotated[Count, "Draws of the bootstrap over places."] = 2000
    seed: Annotated[Seed, "Seed of places and noise."] = 2025
    device: Device = "auto"
    threads: Threads = None

    def _check(self) -> None:
        if not self.noise or self.noise[0] != 0:
            self.refuse("{noise}: must begin with 0, of which most figures are")


@dataclass(frozen=True, kw_only=True)
class MatchEvaluationRecipe(ReportRecipe):
    """Judge a matcher: the table ``[evaluate-matcher]`` of a TOML recipe."""

    settings: MatchEvaluationSettings = field(default_factory=MatchEvaluationSettings)
