"""Cache of latents of pairs, encoded once before training.

Latents of a flipped or cropped image differ from flipped or cropped latents: the VAE sees other neighbours
and is not symmetric. So each image has a fixed list of crops, which start at multiples of the VAE's factor,
and each crop is encoded in 8 orientations, each with its own gain. The same list without a cache is
``Augmentation(fixed=..., align=factor, gain=...)``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sar2eo.datasets.augmentation import ORIENTATIONS, Augmentation
from sar2eo.datasets.loading import Samples
from sar2eo.datasets.pairs import PairsDataset
from sar2eo.errors import PairsError, SettingsError
from sar2eo.model.network import pool_validity
from sar2eo.store.atomic import write_file, write_json

_MANIFEST = "latents.json"
_VERSION = 2
_SHARD_BYTES = 2**26
_PIXEL_BYTES = 32  # assumed per latent pixel, to size shards before the first image is encoded


class CachedLatents(Samples):
    """Samples from a folder of cached latents; see `build_latent_cache`.

    An incomplete folder raises `PairsError`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = _read_manifest(folder)
        if manifest is None:
            raise PairsError(f"{folder} has no {_MANIFEST}: not a cache of latents")
        self.ids: tuple[str, ...] = tuple(manifest["ids"])
        self.size: tuple[int, int] = tuple(manifest["size"])
        self.per_shard: int = manifest["per_shard"]
        self.facts: dict[str, Any] = manifest["facts"]
        self.augmentation = _augmentation(self.facts)
        absent = [path for path in _shards(folder, len(self.ids), self.per_shard) if not path.exists()]
        if absent:
            raise PairsError(f"{folder} lacks {absent[0].name}: repeat the command that builds it")

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """Return the latents of a pair as augmented in one epoch.

        "sar_latents" and "eo_latents" are tensors of shape (C, h, w); "valid_latents" has shape (1, h, w),
        float32, 1 where every pixel is valid; also "id" and "index".
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index}: there are {len(self)} pairs")
        index %= len(self)
        # Only the number of the crop is drawn, so the size of this image does not matter.
        variant = self.augmentation.place(epoch, index, self.size).variant
        shard, image = divmod(index, self.per_shard)
        at = image * self.augmentation.variants(self.size) * ORIENTATIONS + variant
        path = _shard(self.folder, shard)
        try:
            # Mapped, sliced and closed for each sample, so memory does not grow over an epoch.
            with safe_open(path, framework="pt") as file:
                sar, eo, valid = (
                    file.get_slice(name)[at : at + 1][0].clone() for name in ("sar", "eo", "valid")
                )
        except (OSError, SafetensorError) as error:
            raise PairsError(f"{path} cannot be read ({error}): delete it and repeat the command") from error
        return {
            "sar_latents": sar,
            "eo_latents": eo,
            "valid_latents": valid.float(),
            "id": self.ids[index],
            "index": index,
        }


def build_latent_cache(
    dataset: PairsDataset,
    encode: Callable[[Tensor], Tensor],
    folder: Path,
    *,
    crops: int,
    crop: int | None,
    factor: int,
    seed: int,
    gain: float = 0.0,
    model_sha256: str,
    batch: int = 8,
    dtype: torch.dtype = torch.float32,
) -> CachedLatents:
    """Encode fixed crops of every pair in 8 orientations; resumes an interrupted call.

    Parameters
    ----------
    dataset : PairsDataset
        The pairs; their own augmentation is ignored.
    encode : callable
        Encodes images (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H / factor, W / factor).
    folder : Path
        Folder of the cache, created if need be. One with other pairs, settings or weights is refused.
    crops : int
        Crops of each image; fewer where an image allows fewer.
    crop : int or None
        Side in pixels, a multiple of the factor; smaller images are taken whole.
    factor : int
        Image pixels per latent pixel along each axis.
    seed : int
        Seed of the crops, and of the choice among them.
    gain : float
        Largest relative change of the SAR amplitude (see `Augmentation`).
    model_sha256 : str
        Hash of the VAE's weights.
    batch : int
        Images encoded at a time.
    dtype : torch.dtype
        Type of the latents on disk.
    """
    facts = {
        "data": dataset.fingerprint(),
        "model": model_sha256,
        "crops": crops,
        "crop": crop,
        "factor": factor,
        "seed": seed,
        "gain": gain,
        "dtype": str(dtype).removeprefix("torch."),
        "version": _VERSION,
    }
    augmentation = _augmentation(facts)
    rows, cols = augmentation.shape(dataset.size)
    if rows % factor:
        raise SettingsError(
            f"crop={rows}: must be a multiple of {factor}, the factor of the VAE; {rows - rows % factor} is "
            "the next below"
        )
    variants = augmentation.variants(dataset.size) * ORIENTATIONS
    latent_bytes = 2 * variants * (rows // factor) * (cols // factor) * _PIXEL_BYTES
    per_shard = max(1, _SHARD_BYTES // latent_bytes)
    layout = {"ids": list(dataset.ids), "size": list(dataset.size), "per_shard": per_shard}
    _check_or_write_manifest(folder, facts, layout)
    fixed = dataset.with_augmentation(augmentation)
    for number, path in enumerate(_shards(folder, len(dataset), per_shard)):
        if not path.exists():
            images = range(number * per_shard, min((number + 1) * per_shard, len(dataset)))
            shard = _encode_images(fixed, images, encode, batch, factor, dtype)
            write_file(path, save(shard))
    return CachedLatents(folder)


def _encode_images(
    dataset: PairsDataset,
    images: range,
    encode: Callable[[Tensor], Tensor],
    batch: int,
    factor: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Encode all variants of some images, stacked along the first axis."""
    parts: dict[str, list[Tensor]] = {"sar": [], "eo": [], "valid": []}
    waiting: list[dict[str, Any]] = []

    def encode_waiting() -> None:
        for name in ("sar", "eo"):
            latents = encode(torch.stack([sample[name] for sample in waiting]))
            parts[name].append(latents.detach().to("cpu", dtype))
        valid = torch.stack([sample["valid"] for sample in waiting])
        parts["valid"].append(pool_validity(valid, factor).to(torch.uint8))
        waiting.clear()

    for sample in itertools.chain.from_iterable(map(dataset.fixed_samples, images)):
        waiting.append(sample)
        if len(waiting) == batch:
            encode_waiting()
    if waiting:
        encode_waiting()
    return {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}


def _augmentation(facts: dict[str, Any]) -> Augmentation:
    return Augmentation(
        crop=facts["crop"],
        flips=True,
        turns=True,
        seed=facts["seed"],
        gain=facts["gain"],
        fixed=facts["crops"],
        align=facts["factor"],
    )


def _shard(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.safetensors"


def _shards(folder: Path, images: int, per_shard: int) -> list[Path]:
    return [_shard(folder, number) for number in range(-(-images // per_shard))]


def _check_or_write_manifest(folder: Path, facts: dict[str, Any], layout: dict[str, Any]) -> None:
    """Write the manifest of a new cache, or check that of an existing one."""
    existing = _read_manifest(folder)
    if existing is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PairsError(f"{folder}: cannot create this folder for latents: {error.strerror}") from error
        write_json(folder / _MANIFEST, {"facts": facts, **layout})
        return
    other = [name for name in facts if existing["facts"].get(name) != facts[name]]
    if other or any(existing[name] != layout[name] for name in layout):
        raise PairsError(
            f"{folder}: holds latents of another {', '.join(other) or 'layout'}: delete it, or choose "
            "another folder"
        )


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / _MANIFEST
    if folder.exists() and not folder.is_dir():
        raise PairsError(f"{folder} is a file, but latents need a folder: give another path")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PairsError(f"{path} cannot be read: {error}: delete {folder} and repeat the command") from error
    if not isinstance(manifest, dict) or set(manifest) != {"facts", "ids", "size", "per_shard"}:
        raise PairsError(f"{path} is not a manifest of latents: delete {folder} and repeat the command")
    return manifest
