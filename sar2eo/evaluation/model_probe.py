"""Measure inside a model: its VAE, its variance at a known noise, its estimates during sampling."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sar2eo.datasets import Batch
from sar2eo.model.checkpoint import Checkpoint
from sar2eo.model.diffusion import add_noise, compute_target, create_scheduler, sample
from sar2eo.model.interface import Translator
from sar2eo.model.loading import load_translator
from sar2eo.model.network import SarCondition, decode_latents, encode_images, to_variance
from sar2eo.model.noise import draw_scene_noise
from sar2eo.model.spec import ModelSpec


class TruthPrediction(NamedTuple):
    """Prediction from the noised truth, at latent resolution, shape (B, h, w).

    `error` is the squared error, mean over the latent's channels; `valid` is True where every pixel below is.
    """

    variance: Tensor
    error: Tensor
    valid: Tensor


class Probe:
    """Measures inside a checkpoint that a translator holds, sampled as its spec says."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        self.checkpoint = checkpoint
        self.spec = spec
        self.card = checkpoint.card
        self._multiple = checkpoint.pixel_multiple
        # With all timesteps, whichever sampler is in use.
        self._schedule: Any = self._scheduler("ddim", "trailing")
        self._schedule.set_timesteps(1000)

    @torch.inference_mode()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Encode and decode the truth by the VAE, in float32; shape (B, 3, H, W), in [-1, 1]."""
        height, width = batch["eo"].shape[2:]
        decoded = [self._decode(self._encode(eo[None])) for eo in batch["eo"]]
        return torch.cat(decoded)[..., :height, :width]

    @torch.inference_mode()
    def predict_from_truth(self, batch: Batch, timestep: int | None = None) -> TruthPrediction:
        """Predict from the noised truth (C-DiffSET, Fig. 7), by default at the card's timestep of confidence.

        Variance and error are then of the same prediction. A pair's noise is that of its draw 0. `batch`
        holds "sar" and "eo", shape (B, 3, H, W), "valid" and "index".
        """
        timestep = self.card.confidence_timestep if timestep is None else timestep
        factor = self.spec.factor
        rows, cols = (-(-side // factor) for side in batch["eo"].shape[2:])
        alpha_bar = self._schedule.alphas_cumprod[[timestep]].to(self.spec.device)
        variances, errors = [], []
        for sar, eo, index in zip(batch["sar"], batch["eo"], batch["index"], strict=True):
            latents = self._encode(eo[None])
            noise = self._noise(index, latents.shape[2:])
            noisy = add_noise(latents, noise, alpha_bar)
            known = self._encode_sar(sar).with_trust(0)
            prediction, raw = self.checkpoint.predict(known, noisy, timestep)
            target = compute_target(latents, noise, alpha_bar, self.card.prediction_type)
            errors.append((target - prediction).square().mean(1)[:, :rows, :cols].cpu())
            variances.append(to_variance(raw)[:, 0, :rows, :cols].cpu())
        valid = (
            functional.avg_pool2d(pad_to_multiple(batch["valid"], factor, value=0.0), factor)[:, 0] > 1 - 1e-6
        )
        return TruthPrediction(torch.cat(variances), torch.cat(errors), valid)

    @torch.inference_mode()
    def trace_denoising(self, sar: Tensor, index: int, count: int = 8) -> tuple[list[int], Tensor]:
        """Follow the estimate of the clean image through draw 0 of a pair (C-DiffSET, Fig. 8).

        `sar` has shape (3, H, W). Returns `count` timesteps, from the first to the last, and their images,
        shape (timesteps, 3, H, W), in [-1, 1].
        """
        condition = self._encode_sar(sar)
        clean: list[tuple[int, Tensor]] = []

        def predict(sar_latents: Tensor, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
            prediction, raw = self.checkpoint.predict(sar_latents, latents, timestep)
            estimate = self._schedule.step(prediction, timestep.cpu(), latents, return_dict=False)[1]
            clean.append((int(timestep), estimate))
            return prediction, raw

        noise = self._noise(index, condition.latents.shape[2:])
        scheduler = self._scheduler(self.spec.sampler, self.spec.spacing)
        spec = self.spec
        card = self.card
        sample(
            predict,
            condition,
            noise,
            scheduler,
            spec.steps,
            card.confidence_timestep,
            spec.temperature,
            card.start,
        )
        shown = np.unique(np.linspace(0, len(clean) - 1, min(count, len(clean))).round().astype(int))
        images = torch.cat([self._decode(clean[i][1]) for i in shown])
        return [clean[i][0] for i in shown], images[..., : sar.shape[1], : sar.shape[2]]

    def _scheduler(self, sampler: str, spacing: str) -> Any:
        return create_scheduler(sampler, spacing, self.card.prediction_type, self.checkpoint.schedule)

    def _encode(self, images: Tensor) -> Tensor:
        return encode_images(self.checkpoint.vae, self._pad(images))

    def _encode_sar(self, sar: Tensor) -> SarCondition:
        return self.checkpoint.encode_sar(self._pad(sar[None]))

    def _pad(self, images: Tensor) -> Tensor:
        return pad_to_multiple(images, self._multiple).to(self.spec.device)

    def _decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.checkpoint.vae, latents).clamp(-1, 1).cpu()

    def _noise(self, index: int, shape: torch.Size) -> Tensor:
        row, col = (pixel // self.spec.factor for pixel in find_noise_origin(index))
        (height, width), channels = shape, self.spec.latent_channels
        drawn = draw_scene_noise(self.spec.seed, range(row, row + height), range(col, col + width), channels)
        return torch.from_numpy(drawn)[None].to(self.spec.device)


PITCH_PX = 2**20
"""Pixels between pairs, and between draws of one, in the plane of scene-anchored noise."""


class Drawn(NamedTuple):
    """Images drawn by a model for a batch, in so many seconds.

    `eo` has shape (B, 3, H, W), float32 in [-1, 1] in the levels of bytes; `variance` (B, h, w), or is None.
    """

    eo: Tensor
    variance: Tensor | None
    seconds: float


class ModelImages:
    """Translates batches of pairs, by the translator of a spec with a single sample.

    The noise of a pair depends only on its index in the data set, the number of the draw and the seed, not on
    the other pairs or their order.
    """

    def __init__(self, spec: ModelSpec, translator: Translator | None = None) -> None:
        self.spec = spec
        self.translator = translator or load_translator(spec)

    def with_steps(self, steps: int) -> ModelImages:
        """Return the same model with another number of steps."""
        return ModelImages(self.spec, self.translator.with_steps(steps))

    def draw(self, batch: Batch, number: int = 0) -> Drawn:
        """Draw images for a batch with "sar", shape (B, 3, H, W) of any size, and "index".

        `number` is that of the draw, of several independent ones.
        """
        height, width = batch["sar"].shape[2:]
        rows, cols = (-(-side // self.spec.factor) for side in (height, width))
        sar = pad_to_multiple(batch["sar"], self.translator.multiple).numpy()
        origins = [find_noise_origin(index, number) for index in batch["index"]]
        start, images, variances = time.perf_counter(), [], []
        for first in range(0, len(sar), self.spec.batch):
            part = slice(first, first + self.spec.batch)
            translation = self.translator.translate(sar[part], origins[part])
            images.append(torch.from_numpy(translation.eo))
            if translation.variance is not None:
                variances.append(torch.from_numpy(translation.variance[..., :rows, :cols]))
        seconds = time.perf_counter() - start
        eo = torch.cat(images)[..., :height, :width].float() / 127.5 - 1
        return Drawn(eo, torch.cat(variances) if variances else None, seconds)


def find_noise_origin(index: int, number: int = 0) -> tuple[int, int]:
    """Return the pixel of the noise plane where the noise of a pair's draw starts."""
    return index * PITCH_PX, number * PITCH_PX


def pad_to_multiple(images: Tensor, factor: int, *, value: float | None = None) -> Tensor:
    """Pad images below and to the right to multiples of a factor, by reflection or with a value."""
    height, width = images.shape[-2:]
    margins = (0, -width % factor, 0, -height % factor)
    if value is not None:
        return functional.pad(images, margins, value=value)
    # Reflection cannot reach further than the image.
    mode = "reflect" if margins[1] < width and margins[3] < height else "replicate"
    return functional.pad(images, margins, mode=mode)
