"""Fine-tuning task of the U-Net (C-DiffSET, section 3.3): latents, losses, validation, LoRA adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from sar2eo.errors import SettingsError
from sar2eo.model.card import TRAIN_TIMESTEPS, TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, save_checkpoint
from sar2eo.model.diffusion import add_noise, c_diff_loss, compute_target, create_scheduler, l2_loss, sample
from sar2eo.model.network import (
    SarCondition,
    decode_latents,
    encode_images,
    pool_validity,
    to_variance,
)
from sar2eo.model.weights import create_empty
from sar2eo.settings import TrainSettings
from sar2eo.training.task import Batch, Facts, contact_sheet

VALIDATION_TIMESTEPS = (50, 250, 500, 750, 950)
_SAMPLED_PAIRS, _SAMPLED_STEPS = 4, 10
_ENCODED_AT_ONCE = 4  # images; the float32 encoder needs the most memory
_WEIGHTINGS = {"c-diff": "none", "c-diff-timestep": "timestep"}


class UNetTask:
    """Trains a U-Net to predict noise, or v, in the latents of EO images, given those of SAR images.

    Parameters
    ----------
    checkpoint : Checkpoint
        The base, in float32, on the CPU.
    card : Card
        Card of the result; its prediction type is the training target.
    settings : TrainSettings
        Loss, dropout, adapters, seed.
    device : torch.device
        Where networks are trained.
    """

    def __init__(
        self, checkpoint: Checkpoint, card: TranslatorCard, settings: TrainSettings, device: torch.device
    ) -> None:
        self.card = card
        self._settings, self._device, self._schedule = settings, device, checkpoint.schedule
        self._unet: UNet2DConditionModel = checkpoint.unet.requires_grad_(True)
        if settings.lora is not None:
            add_adapters(self._unet, settings.lora, settings.seed)
        for module in self._unet.modules():
            if isinstance(module, ResnetBlock2D):
                module.dropout.p = settings.dropout
        if settings.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
        self._unet.to(device, memory_format=torch.channels_last)
        self._vae = checkpoint.vae.eval().requires_grad_(False)
        self._vae.to(device, memory_format=torch.channels_last)
        if checkpoint.encoder is not None:
            checkpoint.encoder.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        embeds = checkpoint.prompt_embeds
        prompt = None if embeds is None else embeds.float().to(device)
        self._checkpoint = dataclasses.replace(checkpoint, prompt_embeds=prompt)
        self.factor, self._multiple = checkpoint.factor, checkpoint.pixel_multiple
        self._alpha_bars: Tensor = self._scheduler().alphas_cumprod.to(device)
        self.phases: dict[str, nn.Module] = {"unet": self._unet}
        self.averaged: tuple[str, ...] = ("unet",)

    @property
    def vae(self) -> Any:
        """The frozen VAE, on the device, in float32."""
        return self._vae

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse images whose rows or columns are no multiples of what the networks need."""
        if any(side % self._multiple for side in shape):
            raise SettingsError(
                f"images of {shape[0]} x {shape[1]} pixels: with this base the sides must be multiples of "
                f"{self._multiple}; set a crop"
            )

    def active(self, phase: str, step: int) -> bool:
        """Return True: there is one phase, and it is always trained."""
        return True

    def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Facts]:
        """Return the loss of one batch at timesteps drawn uniformly from all 1000 (C-DiffSET, Eq. 1 to 3)."""
        sar, eo, valid = self._encode(batch)
        drawn = torch.randn(eo.shape, generator=generator)
        chosen = torch.randint(TRAIN_TIMESTEPS, (len(eo),), generator=generator)
        if self._settings.dropout:
            # Dropout draws from the global generators, so a resumed run must seed them the same way.
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        noise, timesteps = (values.to(self._device, non_blocking=True) for values in (drawn, chosen))
        if self._checkpoint.encoder is not None:
            sar = self._lend_truth(sar, batch["eo"], generator)
        loss, error, variance = self._compute_losses(sar, eo, valid, noise, timesteps)
        return loss, {"squared_error": error, "variance": variance}

    def _lend_truth(self, sar: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """Give the guess of an encoder a share of the truth without its texture, and say so as trust.

        The guess is right by little, so a U-Net that is honest about it would draw another picture for each
        noise. With a guess that deserves trust it learns to keep it and to draw the texture alone. At trust 0
        it learns what is known, which is what the variance is taken from.
        """
        shape = (len(sar), 1, 1, 1)
        trust = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
        trust = trust.to(self._device)
        smooth = images
        for _ in range(2):
            smooth = avg_pool2d(smooth, 5, stride=1, padding=2, count_include_pad=False)
        with torch.no_grad():
            parts = [encode_images(self._vae, part) for part in smooth.split(_ENCODED_AT_ONCE)]
        smooth = torch.cat(parts)
        channels = smooth.shape[1]
        guess = torch.lerp(sar[:, -channels - 1 : -1], smooth, trust)
        return torch.cat([sar[:, : -channels - 1], guess, trust.expand_as(sar[:, -1:])], dim=1)

    def _compute_losses(
        self, sar: Tensor, eo: Tensor, valid: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss; and, without gradient, the squared error and the mean variance."""
        alpha_bar = self._alpha_bars[timesteps]
        noisy = add_noise(eo, noise, alpha_bar)  # [B, C, h, w]
        target = compute_target(eo, noise, alpha_bar, self.card.prediction_type)
        prediction, raw = self._predict(sar, noisy, timesteps)
        with torch.no_grad():
            error, variance = l2_loss(prediction, target, valid), to_variance(raw).mean()
        if self._settings.loss == "l2":
            return l2_loss(prediction, target, valid), error, variance
        weighting = _WEIGHTINGS[self._settings.loss]
        return c_diff_loss(prediction, raw, target, alpha_bar, weighting, valid), error, variance

    def _predict(self, sar: Tensor, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return prediction and raw variance of the U-Net in `phases`, which the loop prepared."""
        prepared: Any = self.phases["unet"]
        return dataclasses.replace(self._checkpoint, unet=prepared).predict(sar, noisy, timestep)

    def encode_batch(self, batch: Batch) -> Batch:
        """Encode a batch into the form that `sar2eo.datasets.CachedLatents` returns."""
        return dict(zip(("sar_latents", "eo_latents", "valid_latents"), self._encode(batch), strict=True))

    @torch.no_grad()
    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return SAR and EO latents (B, C, h, w) and validity (B, 1, h, w), cached or by the frozen VAE."""
        if "eo_latents" in batch:
            return batch["sar_latents"].float(), batch["eo_latents"].float(), batch["valid_latents"].float()
        sar, eo = (batch[name].split(_ENCODED_AT_ONCE) for name in ("sar", "eo"))
        return (
            torch.cat([self._checkpoint.encode_sar(part).latents for part in sar]),
            torch.cat([encode_images(self._vae, part) for part in eo]),
            pool_validity(batch["valid"], self.factor),
        )

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Compute the loss at fixed timesteps and noise, as ``score``, and the PSNR in dB of four pairs."""
        sums: dict[str, float] = {}
        weight = 0
        sampled: list[Tensor] = []
        for number, batch in enumerate(batches):
            sar, eo, valid = self._encode(batch)
            for timestep in VALIDATION_TIMESTEPS:
                noise = self._noise(eo.shape, number * TRAIN_TIMESTEPS + timestep)
                steps = torch.full((len(eo),), timestep, device=self._device)
                loss, error, variance = self._compute_losses(sar, eo, valid, noise, steps)
                share = len(eo) / len(VALIDATION_TIMESTEPS)
                for name, value in {"score": loss, "squared_error": error, "variance": variance}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * share
            weight += len(eo)
            room = _SAMPLED_PAIRS - sum(len(found) for found in sampled)
            if room > 0:
                sampled.append(_compute_psnr(*self._translate(batch, room)[:3]))
        metrics = {name: value / weight for name, value in sums.items()}
        return metrics | {"psnr": float(torch.cat(sampled).mean())}

    def picture(self, batch: Batch) -> Tensor:
        """Draw SAR | prediction | EO | confidence of the first four pairs."""
        predicted, eo, valid, variance = self._translate(batch, _SAMPLED_PAIRS)
        return contact_sheet(batch["sar"][: len(eo)], predicted, eo, variance, valid)

    def _translate(self, batch: Batch, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Translate the first pairs; return predicted and true images in [-1, 1], validity, variance."""
        few = {key: value[:count] for key, value in batch.items() if key in ("sar", "eo", "valid")}
        sar, eo, _ = self._encode(few)
        encoder = self._checkpoint.encoder
        guess = None if encoder is None else sar[:, -eo.shape[1] - 1 : -1]
        latents, variance = sample(
            self._predict,
            SarCondition(sar, guess),
            self._noise(eo.shape, 0),
            self._scheduler(),
            _SAMPLED_STEPS,
            self.card.confidence_timestep,
            start=self.card.start,
        )
        parts = torch.split(latents, _ENCODED_AT_ONCE)
        predicted = torch.cat([decode_latents(self._vae, part) for part in parts])
        return predicted.clamp(-1, 1), few["eo"], few["valid"], variance

    def _noise(self, shape: torch.Size, number: int) -> Tensor:
        draw = torch.Generator().manual_seed(self._settings.seed + number)
        return torch.randn(shape, generator=draw).to(self._device)

    def _scheduler(self) -> Any:
        return create_scheduler("ddim", self.card.spacing, self.card.prediction_type, self._schedule)

    def export(self, out: Path, facts: dict[str, Any]) -> Path:
        """Write a checkpoint folder with merged adapters; its card has the last validation's metrics."""
        metrics = {f"validation_{name}": value for name, value in facts["metrics"].items()}
        card = dataclasses.replace(self.card, metrics=metrics)
        unet = merge_adapters(self._unet)
        return save_checkpoint(dataclasses.replace(self._checkpoint, unet=unet, card=card), out)


def _compute_psnr(predicted: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the PSNR in dB over the valid pixels of each pair that has some, of images in [-1, 1]."""
    error = (((predicted - truth) / 2).square() * valid).sum(dim=(1, 2, 3))
    count = valid.sum(dim=(1, 2, 3)) * truth.shape[1]
    mean = error[count > 0] / count[count > 0]
    return -10 * mean.clamp(min=1e-10).log10()


_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
_TRAINED_WHOLE = ("conv_in", "conv_out")  # new channels that the base lacks: SAR input and variance


def add_adapters(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Add LoRA adapters to a U-Net's attention in place; only they and its outer convolutions are trained.

    Parameters
    ----------
    unet : UNet2DConditionModel
        Refused if it has no attention.
    rank : int
        Rank of the adapters; their scale is 1, and they start without effect.
    seed : int
        Seed of their initial values.
    """
    names = {name for name, module in unet.named_modules() if isinstance(module, nn.Linear)}
    if not any(name.endswith(tuple(_TARGETS)) for name in names):
        raise SettingsError(f"lora={rank}: the base's U-Net has no attention to adapt; train it whole")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS), unet)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(_TRAINED_WHOLE))


def merge_adapters(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of a U-Net on the CPU with its adapters merged into the weights."""
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
