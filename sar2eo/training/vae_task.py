"""Training task of a VAE on the EO and SAR images of pairs: losses, validation, statistics of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from sar2eo.errors import SettingsError
from sar2eo.model.folder import read_vae_facts, write_json
from sar2eo.model.network import Vae, create_autoencoder, encode_raw
from sar2eo.model.weights import write_network
from sar2eo.settings import VaeSettings
from sar2eo.training.task import Batch, Facts
from sar2eo.training.vae_losses import (
    BLOCK,
    Moments,
    PatchDiscriminator,
    Tally,
    absolute_error,
    balance_errors,
    discriminator_loss,
    divergence,
    generator_loss,
    gradient_error,
    replace_invalid,
    squared_error,
    texture_error,
)

NOTES = "vae.json"
"""File beside the exported folder ``vae/``: metrics and statistics of the latents."""

_KINDS = {"both": ("eo", "sar"), "eo": ("eo",), "sar": ("sar",)}
_FIRST_LOG_VARIANCE = _LOG_VARIANCE = -6.0  # a deviation of 0.05
_FIRST_SPREAD = 0.1
_PICTURED = 4


class VaeNetwork(nn.Module):
    """A VAE whose forward pass returns all that its losses need: accelerate wraps forward passes only.

    Parameters
    ----------
    vae : AutoencoderKL or AutoencoderDC
        An AutoencoderDC has no posterior; a fixed log variance is used for it.
    """

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, add the posterior's noise, decode.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            In [-1, 1].
        noise : Tensor, shape (B, C, H / f, W / f)
            Standard normal.

        Returns
        -------
        reconstruction : Tensor of float32, shape (B, 3, H, W)
        mean, log_variance : Tensor of float32, shape (B, C, H / f, W / f)
        """
        if isinstance(self.vae, AutoencoderKL):
            posterior = self.vae.encode(images).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        else:
            mean = encode_raw(self.vae, images).float()
            log_variance = torch.full_like(mean, _LOG_VARIANCE)
        latents = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decode(latents).sample.float(), mean, log_variance


class VaeTask:
    """Trains a VAE by reconstruction, divergence and, for the last steps, a patch discriminator.

    The errors of EO and SAR images are balanced (see `sar2eo.training.vae_losses.balance_errors`). The
    discriminator judges EO images only, if there are any: SAR images are never decoded in use, and their
    speckle is too easy to recognise.

    The validation score is minus the PSNR of the EO images (of the SAR images in a run without EO), plus the
    deviation of the worst octave of their power spectrum from the truth's, both in dB: blur raises PSNR and
    lowers the power of the finest octave.

    Parameters
    ----------
    settings : VaeSettings
        Architecture, weights of the losses, seed.
    samples : callable
        Returns batches of training images for the statistics of latents, the same every time.
    base : AutoencoderKL, AutoencoderDC or None
        VAE to continue from, instead of a new one.
    """

    averaged: tuple[str, ...] = ("vae",)

    def __init__(
        self, settings: VaeSettings, samples: Callable[[], Iterable[Batch]], base: Vae | None = None
    ) -> None:
        self._settings, self._samples = settings, samples
        self._kinds = _KINDS[settings.images]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.vae = _create_vae(settings) if base is None else _prepare_base(base, settings)
            discriminator = PatchDiscriminator()
        if isinstance(self.vae, AutoencoderDC):
            self.vae.to(memory_format=torch.channels_last)  # it normalises over the channels
        facts = read_vae_facts({**self.vae.config, "_class_name": type(self.vae).__name__})
        self.factor, self._channels = facts.factor, facts.latent_channels
        self.phases: dict[str, nn.Module] = {"vae": VaeNetwork(self.vae)}
        if settings.adversarial:
            self.phases["discriminator"] = discriminator
        self._adversary_from = math.ceil(settings.adversarial_from * settings.steps)
        self._last: tuple[Batch, Tensor] | None = None

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse images whose rows or columns are no multiples of the factor, or too few for texture."""
        if any(side % self.factor for side in shape):
            raise SettingsError(
                f"images of {shape[0]} x {shape[1]} pixels: the VAE's factor is {self.factor}, so sides "
                "must be multiples of it; choose another crop"
            )
        if self._settings.texture and min(shape) < BLOCK:
            raise SettingsError(
                f"images of {shape[0]} x {shape[1]} pixels: texture is measured in blocks of {BLOCK}; "
                "choose a larger crop, or texture=0"
            )

    def active(self, phase: str, step: int) -> bool:
        """Return whether a phase is trained: the VAE always, the discriminator in the last steps."""
        return phase == "vae" or step >= self._adversary_from

    def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Facts]:
        """Return the loss of the VAE or of the discriminator; see `sar2eo.training.task.Task`."""
        images, valid = self._stack_images(batch)
        if phase == "discriminator":
            return self._discriminator_loss(batch, images, generator)
        settings = self._settings
        reconstruction, mean, log_variance = self._reconstruct(images, generator)
        facts: Facts = {}
        errors = []
        parts = (part.chunk(len(self._kinds)) for part in (reconstruction, images, valid))
        for kind, *own in zip(self._kinds, *parts, strict=True):
            l1, gradient = absolute_error(*own), gradient_error(*own)
            l2 = squared_error(*own)
            errors.append(settings.l1 * l1 + settings.l2 * l2 + settings.gradient * gradient)
            facts |= {f"{kind}_l1": l1.detach(), f"{kind}_gradient": gradient.detach()}
            if settings.texture:
                texture = texture_error(*own)
                errors[-1] = errors[-1] + settings.texture * texture
                facts[f"{kind}_texture"] = texture.detach()
        shares = [settings.sar if kind == "sar" else 1.0 for kind in self._kinds]
        error, kl = balance_errors(errors, shares), divergence(mean, log_variance, valid, images.shape[1])
        total = error + settings.kl * kl
        posterior_std = (0.5 * log_variance.detach()).exp().mean()
        facts |= {"kl": kl.detach(), "posterior_std": posterior_std}
        if "discriminator" in self.phases and self.active("discriminator", step):
            fake = self._select_judged(batch, reconstruction)
            adversarial = generator_loss(self.phases["discriminator"](fake).float(), batch["valid"])
            total = total + settings.adversarial * adversarial
            facts |= {"adversarial": adversarial.detach()}
            self._last = (batch, fake.detach())
        return total, facts

    def _discriminator_loss(
        self, batch: Batch, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Facts]:
        if self._last is not None and self._last[0] is batch:
            fake = self._last[1]  # computed by the VAE's phase of this step
        else:
            with torch.no_grad():
                fake = self._select_judged(batch, self._reconstruct(images, generator)[0])
        self._last = None
        discriminator = self.phases["discriminator"]
        real_scores = discriminator(batch[self._kinds[0]]).float()
        fake_scores = discriminator(fake).float()
        facts = {"real": real_scores.detach().mean(), "fake": fake_scores.detach().mean()}
        return discriminator_loss(real_scores, fake_scores, batch["valid"]), facts

    def _select_judged(self, batch: Batch, reconstruction: Tensor) -> Tensor:
        """Return the reconstructions of one kind that the discriminator judges, shape (B, 3, H, W)."""
        truth = batch[self._kinds[0]]
        return replace_invalid(reconstruction[: len(truth)], truth, batch["valid"])

    def _reconstruct(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        size = [side // self.factor for side in images.shape[-2:]]
        shape = (len(images), self._channels, *size)
        noise = torch.randn(shape, generator=generator).to(images.device, non_blocking=True)
        found: tuple[Tensor, Tensor, Tensor] = self.phases["vae"](images, noise)
        return found

    def _stack_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return all images of a batch, shape (B, 3, H, W), and their validity, (B, 1, H, W)."""
        images = torch.cat([batch[kind] for kind in self._kinds])
        return images, batch["valid"].repeat(len(self._kinds), 1, 1, 1)

    def _decode_mean(self, images: Tensor) -> Tensor:
        """Reconstruct as in use: from the posterior mean, in float32, clipped to [-1, 1]."""
        decoded: Tensor = self.vae.decode(encode_raw(self.vae, images)).sample
        return decoded.clamp(-1, 1)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Compute PSNR in dB and the ratio of power to the truth's per octave, for EO and SAR.

        ``eo_power_0`` covers wavelengths below 4 pixels, each further octave doubles them (see
        `sar2eo.evaluation.metrics`). Errors are pooled over all pixels.
        """
        tallies = {kind: Tally() for kind in self._kinds}
        for batch in batches:
            for kind, tally in tallies.items():
                tally.add(self._decode_mean(batch[kind]), batch[kind], batch["valid"])
        metrics: dict[str, float] = {}
        for kind, tally in tallies.items():
            metrics |= {f"{kind}_{name}": value for name, value in tally.metrics().items()}
        judged = self._kinds[0]
        return metrics | {"score": tallies[judged].worst_octave_db() - metrics[f"{judged}_psnr"]}

    @torch.no_grad()
    def picture(self, batch: Batch) -> Tensor:
        """Draw up to four pairs, one a row: truth and reconstruction of the EO, then of the SAR image."""
        columns = []
        for kind in self._kinds:
            truth = batch[kind][:_PICTURED]
            columns += [truth, self._decode_mean(truth)]
        rows = torch.cat([torch.cat(list(column), dim=-2) for column in columns], dim=-1)
        return ((rows + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()

    def export(self, out: Path, facts: dict[str, Any]) -> Path:
        """Write ``vae/`` in diffusers' layout, with statistics of its latents, and ``vae.json`` with metrics.

        The mean and standard deviation of each latent channel of EO images (of SAR images in a run without
        EO) go into the configuration, by which `sar2eo.model.network.encode_images` scales latents: it is EO
        latents that are noised and denoised, and SAR latents have other statistics. A frozen encoder keeps
        its scaling.
        """
        measured = self._measure_latents()
        mean, std = (measured[self._kinds[0]][name] for name in ("mean", "std"))
        scaling = {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}
        write_network(self.vae, out / "vae", **({} if self._settings.decoder_only else scaling))
        notes = {
            **facts,
            "images": self._settings.images,
            "factor": self.factor,
            "parameters": sum(t.numel() for t in self.vae.state_dict().values()),
            "latents": measured,
        }
        write_json(out / NOTES, notes)
        return out

    @torch.no_grad()
    def _measure_latents(self) -> dict[str, dict[str, list[float]]]:
        """Compute mean and standard deviation of each channel over wholly valid latents, by kind of image."""
        tallies = {kind: Moments(self._channels) for kind in self._kinds}
        device = self.vae.decoder.conv_out.weight.device
        for batch in self._samples():
            whole = functional.avg_pool2d(batch["valid"].to(device), self.factor)[:, 0] == 1
            for kind, tally in tallies.items():
                latents = encode_raw(self.vae, batch[kind].to(device))
                tally.add(latents.movedim(1, -1)[whole])
        return {name: tally.summarise() for name, tally in tallies.items()}


def _create_vae(settings: VaeSettings) -> Vae:
    vae = create_autoencoder(
        settings.latent_channels, settings.widths, settings.layers, settings.architecture
    )
    if isinstance(vae, AutoencoderKL):
        _narrow_posterior(vae)
    return vae


def _prepare_base(base: Vae, settings: VaeSettings) -> Vae:
    """Return the base, with a frozen encoder if only the decoder is trained."""
    if isinstance(base, AutoencoderTiny):
        raise SettingsError(
            "base: an AutoencoderTiny cannot be trained; give an AutoencoderKL or AutoencoderDC"
        )
    if settings.decoder_only:
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
    return base


def _narrow_posterior(vae: AutoencoderKL) -> None:
    """Start with a narrow posterior: at its usual width of 1, noise dominates the first thousand steps."""
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] *= _FIRST_SPREAD
        vae.quant_conv.bias[channels:] = _FIRST_LOG_VARIANCE
