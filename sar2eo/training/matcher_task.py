"""Training task of a matcher (DCDM): templates cut at known places, losses, validation by matching."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from operator import ne
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo.compute.device import resolve_dtype
from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, compute_alpha_bars, save_matcher
from sar2eo.matching.dcdm.losses import position_loss, routing_loss, similarity_loss, structure_loss
from sar2eo.matching.dcdm.network import FEATURE_SCALE, REGION, Denoised
from sar2eo.matching.dcdm.similarity import (
    MapWeights,
    PlantedTemplates,
    compare_images,
    correlate_features,
    plant_templates,
)
from sar2eo.model.card import TRAIN_TIMESTEPS, MatcherCard
from sar2eo.model.diffusion import add_noise, l2_loss
from sar2eo.model.network import encode_images, pool_validity
from sar2eo.settings import MatcherSettings
from sar2eo.training.task import Batch, Facts, contact_sheet

_COARSE = 2  # latents along a token of the coarse attention
_PURE = 0.5  # share of pure noise among the templates noised as in sampling
_PICTURED = 4
_CACHE_BYTES = 2**29  # limit of the cached latents of search images
_LEARNED = MapWeights(pixels=1.0, structure=0.0)  # structure does not depend on training
_NEAR_PX, _NEARER_PX = 5.0, 2.0


class MatcherTask:
    """Trains a denoiser to translate a template and to decide where in a search image it lies, if at all.

    A noised truth (supplement, Eq. 2) reveals the answer, and a network trained on it alone takes its own
    first guess for the truth in later steps. So most templates start from pure noise, or from the network's
    translation of it, as in sampling (own choice): the network then learns the mean of all possible
    translations, which correlates better than any single one.

    Some templates of a batch are repeated with the search image of another pair, in which they do not lie:
    what the translation borrows there must not pass for a match.

    Parameters
    ----------
    checkpoint : MatcherCheckpoint
        In float32, on the CPU; its VAE is not trained.
    settings : MatcherSettings
        Template size, weights of the losses, shares of templates, seed.
    device : torch.device
        Where the network is trained.
    apart : callable, optional
        ``apart(i, j)`` returns whether two pairs show different ground; by default any two do.
    """

    averaged: tuple[str, ...] = ("denoiser",)

    def __init__(
        self,
        checkpoint: MatcherCheckpoint,
        settings: MatcherSettings,
        device: torch.device,
        apart: Callable[[int, int], bool] = ne,
    ) -> None:
        self.checkpoint, self._apart = checkpoint, apart
        self._settings, self._device = settings, device
        self._dtype = getattr(torch, resolve_dtype(settings.dtype, str(device)))
        self._vae = checkpoint.vae.eval().requires_grad_(False)
        self._vae.to(device, memory_format=torch.channels_last)
        self._denoiser = checkpoint.denoiser.requires_grad_(True)
        self._denoiser.to(device, memory_format=torch.channels_last)
        self._bars = compute_alpha_bars(checkpoint.schedule).to(device)
        self.factor = checkpoint.factor
        self._cache: dict[bytes, Tensor] = {}
        self.phases: dict[str, nn.Module] = {"denoiser": self._denoiser}

    @property
    def card(self) -> MatcherCard:
        """Card of the result, without metrics."""
        return self.checkpoint.card

    def active(self, phase: str, step: int) -> bool:
        """Return True: there is one phase, and it is always trained."""
        return True

    def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Facts]:
        """Return the sum of squared error, SSIM, position and similarity, weighted as the settings say."""
        planted = plant_templates(batch, self._settings.template, generator)
        images, positives = planted.images, len(planted.offsets)
        shown, searched = self._choose_searches(batch["index"])
        truth, optical, search = self._encode(planted)
        clean, seen = truth[shown], pool_validity(images.search_valid, self.factor)
        given = optical[shown], search[searched], seen[searched]
        noisy, timesteps, as_sampled = self._add_noise(clean, given, generator)
        denoised, of_templates, of_searches, sharpness, none = self.phases["denoiser"](
            noisy, *given, timesteps
        )
        stride = self.factor // FEATURE_SCALE
        valid = images.template_valid[shown]
        features = correlate_features(of_templates, valid, of_searches, images.search_valid[searched], stride)
        matches = torch.arange(len(shown), device=self._device) < positives
        offsets = planted.offsets[shown].float()
        similarity = similarity_loss(features.surface, offsets / stride, matches, sharpness, none)
        latents_valid = pool_validity(valid, self.factor)
        error = l2_loss(denoised.clean, clean, latents_valid)
        structure = structure_loss(denoised.clean, clean, latents_valid)
        position = self._position_loss(denoised, offsets[:positives], valid[:positives])
        weights = self._settings
        total = (
            error + weights.ssim * structure + weights.position * position + weights.similarity * similarity
        )
        facts = {"squared_error": error, "structure": structure, "position": position}
        near = _share_near(features.surface[:positives], planted.offsets, stride, as_sampled[:positives])
        return total, {k: v.detach() for k, v in {**facts, "similarity": similarity, "near": near}.items()}

    def _add_noise(
        self, clean: Tensor, given: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return noisy latents (B, C, h, w), timesteps (B,), and which are noised as in sampling (B,).

        Of the latter, half are pure noise, half the network's translation of pure noise, noised again.
        """
        count = len(clean)
        noise = torch.randn(clean.shape, generator=generator).to(self._device)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator).to(self._device)
        draws = torch.rand((2, count), generator=generator).to(self._device)
        sampled = draws[0] >= self._settings.truth
        pure, own = sampled & (draws[1] < _PURE), sampled & (draws[1] >= _PURE)
        timesteps[pure] = TRAIN_TIMESTEPS - 1
        source = clean.clone()
        if own.any():
            with torch.no_grad():
                last = torch.full((int(own.sum()),), TRAIN_TIMESTEPS - 1, device=self._device)
                source[own] = self.phases["denoiser"](noise[own], *(part[own] for part in given), last)[
                    0
                ].clean
        noisy = add_noise(source, noise, self._bars[timesteps])
        noisy[pure] = noise[pure]
        return noisy, timesteps, sampled

    def _choose_searches(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return numbers of templates and of their search images: each its own, then some of other pairs."""
        count = len(indices)
        own = list(range(count))
        wanted = round(self._settings.negatives * count)

        def stranger(i: int) -> int | None:
            further = ((i + step) % count for step in range(1, count))
            return next((j for j in further if self._apart(indices[i], indices[j])), None)

        others = list(islice(((i, j) for i in own if (j := stranger(i)) is not None), wanted))
        templates, searches = [*own, *(i for i, _ in others)], [*own, *(j for _, j in others)]
        return torch.tensor(templates, device=self._device), torch.tensor(searches, device=self._device)

    @torch.no_grad()
    def _encode(self, planted: PlantedTemplates) -> tuple[Tensor, Tensor, Tensor]:
        """Encode truth, template and search image by the frozen VAE."""
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=half):
            small = encode_images(self._vae, torch.cat([planted.truth, planted.images.template]))
            search = self._encode_searches(planted.images.search)
        truth, optical = small.float().chunk(2)
        return truth, optical, search.float()

    def _encode_searches(self, images: Tensor) -> Tensor:
        """Encode search images, with a cache: chips as large as the crop recur in 8 orientations."""
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in images.cpu().numpy()]
        new = [row for row, key in enumerate(keys) if key not in self._cache]
        made = dict(zip(new, encode_images(self._vae, images[new]), strict=True)) if new else {}
        latents = [made[row] if row in made else self._cache[key] for row, key in enumerate(keys)]
        for row, one in made.items():
            if (len(self._cache) + 1) * one.nbytes <= _CACHE_BYTES:
                self._cache[keys[row]] = one.clone()  # a view would keep the whole batch in memory
        return torch.stack(latents)

    def _position_loss(self, denoised: Denoised, offsets: Tensor, valid: Tensor) -> Tensor:
        """Return the position loss of matching pairs: of both attention maps, and of the routing."""
        token = self.factor * _COARSE
        queries = pool_validity(valid, token)
        maps = [part[: len(offsets)] for part in (denoised.before, denoised.after)]
        dense = torch.stack([position_loss(part, offsets / token, queries) for part in maps]).mean()
        _, h, w, H, W = maps[0].shape
        grid = (_COARSE * h, _COARSE * w, _COARSE * H, _COARSE * W)
        return dense + routing_loss(denoised.affinity[: len(offsets)], offsets / self.factor, grid, REGION)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Match templates at fixed places; ``score`` is the cross-entropy on the similarity map.

        ``cmr_5`` and ``cmr_2`` are the shares within 5 and 2 pixels of the truth, ``rmse`` the root mean
        squared distance in pixels, ``squared_error`` the mean squared error of the translated latents.
        """
        entropies, distances, errors = [], [], []
        for number, batch in enumerate(batches):
            planted = self._plant(batch, number)
            maps = self._compare(planted)
            places = planted.offsets.float() / maps.step
            every = torch.ones(len(places), dtype=torch.bool, device=places.device)
            args = (maps.features.surface, places, every, maps.sharpness, maps.none)
            entropies += [similarity_loss(*args)] * len(places)
            found = torch.from_numpy(maps.find_best(_LEARNED).shifts)
            distances.append((found - planted.offsets.cpu()).norm(dim=1))
            truth = self._encode(planted)[0]
            valid = pool_validity(planted.images.template_valid, self.factor)
            errors += [l2_loss(maps.last.clean, truth, valid)] * len(places)
        distance = torch.cat(distances)
        return {
            "score": float(torch.stack(entropies).mean()),
            "cmr_5": float((distance <= _NEAR_PX).double().mean()),
            "cmr_2": float((distance <= _NEARER_PX).double().mean()),
            "rmse": float(distance.square().mean().sqrt()),
            "squared_error": float(torch.stack(errors).mean()),
        }

    def _plant(self, batch: Batch, number: int) -> PlantedTemplates:
        generator = torch.Generator().manual_seed(self._settings.seed + number)
        return plant_templates(batch, self._settings.template, generator)

    def _compare(self, planted: PlantedTemplates) -> Any:
        # The denoiser itself: accelerate may have wrapped the one in `phases`.
        checkpoint = dataclasses.replace(self.checkpoint, denoiser=self._denoiser)
        return compare_images(checkpoint, planted.images, steps=self.card.steps, seed=self._settings.seed)

    @torch.no_grad()
    def picture(self, batch: Batch) -> Tensor:
        """Draw template | translation | truth | similarity of the first four pairs."""
        few = {name: batch[name][:_PICTURED] for name in ("sar", "eo", "valid")}
        planted = self._plant(few, 0)
        maps = self._compare(planted)
        surface = maps.features.surface[:, None]
        return contact_sheet(
            planted.images.template,
            maps.translated,
            planted.truth,
            (-surface).exp(),  # drawn as a variance: minus its logarithm is the similarity
            planted.images.template_valid,
        )

    def export(self, out: Path, facts: dict[str, Any]) -> Path:
        """Write a matcher's folder; its card has the last validation's metrics, and no threshold yet."""
        metrics = {f"validation_{name}": value for name, value in facts["metrics"].items()}
        card = dataclasses.replace(self.card, metrics=metrics)
        return save_matcher(dataclasses.replace(self.checkpoint, denoiser=self._denoiser, card=card), out)


def _share_near(surface: Tensor, offsets: Tensor, stride: int, counted: Tensor) -> Tensor:
    """Return the share of `counted` maps (B,) whose maximum is within 5 pixels of the true offset (B, 2)."""
    with torch.no_grad():
        top = surface.flatten(1).argmax(dim=1)
        found = torch.stack([top // surface.shape[2], top % surface.shape[2]], dim=1) * stride
        right = (found - offsets).float().norm(dim=1) <= _NEAR_PX
        share: Tensor = (right & counted).sum() / counted.sum().clamp_min(1)
        return share
