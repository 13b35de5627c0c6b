"""The C-DiffSET translator: a batch of SAR tiles in, EO tiles and their variance out."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sar2eo.compute.dask_run import timed
from sar2eo.errors import CheckpointError, Sar2eoWarning, SettingsError, lacks_memory
from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.compile_cache import use_compile_cache
from sar2eo.model.diffusion import create_scheduler, sample
from sar2eo.model.folder import ModelFolder
from sar2eo.model.interface import Translation
from sar2eo.model.network import SarCondition, Vae, decode_latents, encode_images
from sar2eo.model.noise import draw_scene_noise
from sar2eo.model.spec import ModelSpec, resolve_spacing

FloatArray = npt.NDArray[np.float32]

_DEVICE_LOCKS: dict[str, threading.Lock] = {}
"""One translation at a time per device, whatever the number of threads and models."""


class DiffusionTranslator:
    """Translates batches of tiles with a checkpoint (C-DiffSET, section 3.4).

    Parameters
    ----------
    spec : ModelSpec
        As `sar2eo.model.spec.resolve_model` returns it.

    Raises
    ------
    CheckpointError
        If the folder is broken, or holds another checkpoint than the one that was resolved.
    SettingsError
        If the cache of compiled networks is not this user's own (`use_compile_cache`).

    Attributes
    ----------
    checkpoint : Checkpoint
        The networks in memory.
    multiple : int
        Sides of tiles, in pixels, must be multiples of this.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if spec.card is None or ModelFolder(spec.folder, TranslatorCard).sha256() != spec.sha256:
            raise CheckpointError(
                f"{spec.path} changed since the run was prepared, or differs on this machine"
            )
        self._spec = spec
        self._device = torch.device(spec.device)
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._lock = _DEVICE_LOCKS.setdefault(spec.device, threading.Lock())
        self.checkpoint = checkpoint = load_checkpoint(spec.folder, device=spec.device, dtype=spec.dtype)
        self._card = spec.card
        self._schedule = checkpoint.schedule
        self._vae: Vae = _channels_last(checkpoint.vae)
        self._half_vae = self._vae
        if self._dtype != torch.float32:
            self._half_vae = nn.Module.to(copy.deepcopy(self._vae), self._dtype)
        _channels_last(checkpoint.unet)
        self._networks = checkpoint
        if spec.compile:
            use_compile_cache()  # also where this is a process of a cluster
            compiled: Any = torch.compile(checkpoint.unet, dynamic=False)  # a batch has one shape: _translate
            self._networks = replace(checkpoint, unet=compiled)
        self._at_once = spec.batch
        self.multiple = checkpoint.pixel_multiple

    def translate(self, sar: FloatArray, origins: Sequence[tuple[int, int]]) -> Translation:
        """Translate up to ``batch`` tiles; parameters as in `sar2eo.model.interface.Translator`.

        Warns
        -----
        Sar2eoWarning
            If the device's memory does not hold a batch: from then on fewer tiles are translated at once.
        """
        self._check(sar, origins)
        with self._lock, timed("model_seconds"), torch.inference_mode():
            if self._device.type == "cpu" and torch.get_num_threads() != self._spec.threads:
                torch.set_num_threads(self._spec.threads)  # which a new thread does not always inherit
            while True:
                parts = self._translate_all(sar, origins)
                if parts is not None:
                    return _concatenate(parts)
                self._shrink(sar.shape[2:])

    def _translate_all(self, sar: FloatArray, origins: Sequence[tuple[int, int]]) -> list[Translation] | None:
        """Translate as many tiles at once as fitted before; None if the memory does not hold them."""
        size = self._at_once
        try:
            return [
                self._translate(sar[first : first + size], origins[first : first + size])
                for first in range(0, len(sar), size)
            ]
        except torch.OutOfMemoryError:
            return None  # what the traceback holds is free only after this
        except Exception as error:
            if lacks_memory(error):  # a CPU's
                return None
            reason = getattr(error, "inner_exception", None)  # of torch._dynamo.exc.BackendCompilerFailed
            if isinstance(reason, torch.OutOfMemoryError):
                return None
            if reason is None:
                raise
            first_line = next(iter(str(reason).splitlines()), "")
            raise SettingsError(
                f"--compile: the U-Net cannot be compiled ({type(reason).__name__}: {first_line}): is there "
                "a C++ compiler (g++, or CXX)? Without --compile none is needed"
            ) from error

    def _shrink(self, sides: Sequence[int]) -> None:
        if self._at_once == 1:
            raise SettingsError(
                f"{self._spec.device} has too little memory for one tile of {sides[0]} x {sides[1]} pixels "
                f"in {self._spec.dtype}: use a smaller --tile, a half --dtype, or --device cpu"
            )
        self._at_once = -(-self._at_once // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"{self._spec.device} has too little memory for a batch: from here on {self._at_once} tiles are "
            "translated at once; pixels may differ by one level from those of whole batches (--batch)",
            Sar2eoWarning,
            stacklevel=4,
        )

    def with_steps(self, steps: int) -> DiffusionTranslator:
        """Return a translator of the same weights with a single sample of another number of steps."""
        other = copy.copy(self)
        spacing = resolve_spacing(self._card.spacing, self._spec.sampler, steps)
        other._spec = replace(self._spec, steps=steps, samples=1, spacing=spacing)
        return other

    def _check(self, sar: FloatArray, origins: Sequence[tuple[int, int]]) -> None:
        batch, factor = self._spec.batch, self._spec.factor
        if not 1 <= len(sar) <= batch or len(origins) != len(sar):
            raise SettingsError(f"{len(sar)} tiles with {len(origins)} origins: must be 1 to {batch} of each")
        numbers = [*sar.shape[2:], *(number for origin in origins for number in origin)]
        if any(number % factor for number in numbers):
            raise SettingsError(
                f"tiles of {sar.shape[2]} x {sar.shape[3]} pixels at {list(origins)}: tile, overlap and "
                f"origins must be multiples of the model's factor {factor}"
            )
        if any(side % self.multiple for side in sar.shape[2:]):
            raise SettingsError(
                f"tiles of {sar.shape[2]} x {sar.shape[3]} pixels: this model's U-Net wants tiles that are "
                f"multiples of {self.multiple}"
            )

    def _translate(self, sar: FloatArray, origins: Sequence[tuple[int, int]]) -> Translation:
        spec, tiles = self._spec, len(sar)
        # 1. Pad to the fixed batch by repeating the last tile, so that every call has one shape.
        missing = self._at_once - tiles
        sar = np.concatenate([sar, np.repeat(sar[-1:], missing, axis=0)])  # [B, 3, T, T]
        origins = [*origins, *([origins[-1]] * missing)]

        # 2. Encode the SAR image: posterior mean, scaled.
        condition = self._encode(_channels_last(self._to_device(torch.from_numpy(sar))))  # [B, K, h, w]

        decoded, variances = [], []
        for index in range(spec.samples):
            # 3. The noise that belongs to each tile's place in the scene.
            noise = self._noise(origins, condition.latents.shape[2:], index)  # [B, C, h, w]

            # 4. Denoise.
            latents, variance = sample(
                self._networks.predict,
                condition,
                noise,
                create_scheduler(spec.sampler, spec.spacing, self._card.prediction_type, self._schedule),
                spec.steps,
                self._card.confidence_timestep,
                spec.temperature,
                self._card.start,
            )  # [B, C, h, w], [B, 1, h, w]
            variances.append(variance)

            # 5. Decode; not in bfloat16, which is as coarse as the levels of an image.
            exact = self._dtype == torch.bfloat16
            decoded.append(self._by_vae(decode_latents, latents, exact=exact).clamp(-1, 1))  # [B, 3, T, T]

        # 6. Mean over the samples to bytes, their spread, the mean variance; without the padding.
        stack = torch.stack(decoded)  # [N, B, 3, T, T]
        if not stack.isfinite().all():
            raise CheckpointError(
                f"{spec.path} yields values that are not finite in {spec.dtype}: try --dtype float32"
            )
        eo = to_eo_bytes(_to_numpy(stack.mean(dim=0)[:tiles]))  # [B, 3, T, T]
        spread = None
        if spec.samples > 1:
            spread = _to_numpy(stack.std(dim=0).mean(dim=1)[:tiles] * 127.5)  # [B, T, T]
        mean_variance = torch.stack(variances).mean(dim=0)[:tiles, 0]  # [B, h, w]
        return Translation(eo, _to_numpy(mean_variance), spread)

    def _encode(self, images: Tensor) -> SarCondition:
        if self.checkpoint.encoder is None:
            return SarCondition(self._by_vae(encode_images, images.to(self._dtype)))
        # Its normalisations stay in float32.
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype if half else None, enabled=half):
            return self.checkpoint.encode_sar(images)

    def _noise(self, origins: Sequence[tuple[int, int]], shape: torch.Size, index: int) -> Tensor:
        height, width = shape
        channels = self._spec.latent_channels
        corners = [(row // self._spec.factor, col // self._spec.factor) for row, col in origins]
        drawn = [
            draw_scene_noise(self._spec.seed, range(r, r + height), range(c, c + width), channels, index)
            for r, c in corners
        ]
        return self._to_device(torch.from_numpy(np.stack(drawn)))

    def _by_vae(
        self, apply: Callable[[Vae, Tensor], Tensor], inputs: Tensor, *, exact: bool = False
    ) -> Tensor:
        """Encode or decode; exactly in float32, else in half precision and again where that overflows."""
        if exact or self._dtype == torch.float32:
            return apply(self._vae, inputs.float())
        result = apply(self._half_vae, inputs)
        broken = ~result.isfinite().flatten(1).all(dim=1)  # [B]
        if broken.any():
            # The other tiles keep their values: a tile does not depend on the rest of its batch.
            result[broken] = apply(self._vae, inputs.float())[broken]
        return result

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _concatenate(parts: list[Translation]) -> Translation:
    """Concatenate translations."""
    if len(parts) == 1:
        return parts[0]
    spreads = [part.spread for part in parts if part.spread is not None]
    return Translation(
        np.concatenate([part.eo for part in parts]),
        np.concatenate([part.variance for part in parts if part.variance is not None]),
        np.concatenate(spreads) if spreads else None,
    )


def _channels_last(item: Any) -> Any:
    """Lay a network's or batch's values out pixel by pixel, which convolutions are fastest on."""
    return item.to(memory_format=torch.channels_last)


def _to_numpy(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.float().contiguous().cpu().numpy()
    return array
