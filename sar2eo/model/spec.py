"""A model named by path and options, without its weights.

A `ModelSpec` can stand in a graph, travel to other processes and be written to a fingerprint;
`sar2eo.model.loading.load_translator` loads the weights. Nothing here needs torch until a model other than
``identity`` is resolved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sar2eo.compute.device import default_batch, default_threads, resolve_device, resolve_dtype
from sar2eo.errors import SettingsError
from sar2eo.model.card import SAMPLERS, TRAIN_TIMESTEPS, TranslatorCard
from sar2eo.model.compile_cache import use_compile_cache
from sar2eo.model.folder import BUNDLED, ModelFolder, find_folder, read_vae_facts

IDENTITY = "identity"
"""Name of the diagnostic model that returns its own input."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by path and options: picklable, without weights.

    Parameters
    ----------
    path : str
        "identity", "bundled", or a local checkpoint folder.
    sha256 : str
        Hash of the folder's weights, configurations and card; for identity of its name.
    parameters : int
        Number of weights of U-Net and VAE.
    factor, latent_channels : int
        The VAE's downsampling factor and channels.
    card : TranslatorCard or None
        None for identity.
    steps, sampler, spacing, seed, samples
        How to sample; results of ``samples`` different noises are averaged.
    device, dtype : str
        Device and precision of the networks, resolved (never "auto").
    batch : int
        Tiles per batch; smaller batches are padded.
    compile : bool
        Compile the U-Net.
    threads : int
        Torch threads on the CPU.
    """

    path: str
    sha256: str
    parameters: int
    factor: int
    latent_channels: int
    card: TranslatorCard | None
    steps: int
    sampler: str
    spacing: str
    seed: int
    samples: int
    device: str
    dtype: str
    batch: int
    compile: bool
    threads: int

    @property
    def folder(self) -> Path:
        """The checkpoint's folder on this machine; meaningless for identity."""
        return find_folder(self.path) if self.path == BUNDLED else Path(self.path)

    @property
    def temperature(self) -> float:
        """Factor on the starting noise: the card's with the card's sampler and steps, else 1 as in the paper.

        It makes up for the contrast that few steps lose, and would be too much for more.
        """
        card = self.card
        own = card is not None and (self.sampler, self.steps) == (card.sampler, card.steps)
        return card.temperature if card is not None and own else 1.0

    @property
    def decibels(self) -> bool:
        """Whether the model takes dB about a usual level, not amplitude."""
        return self.card is not None and self.card.scaling == "db"

    @property
    def confidence(self) -> bool:
        """Whether the model predicts a variance."""
        return self.card is not None

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that changes pixels, as JSON values; the path does not."""
        if self.card is None:
            return {"sha256": self.sha256, "samples": self.samples}
        names = ("sha256", "steps", "sampler", "spacing", "seed", "samples", "device", "dtype", "batch")
        values = {name: getattr(self, name) for name in (*names, "compile", "threads")}
        return values | {package: version(package) for package in ("torch", "diffusers")}


def resolve_model(
    model: str | Path,
    *,
    revision: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 2025,
    samples: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    batch: int | None = None,
    compile: bool = False,  # noqa: A002 (the name of torch's function and of the flag)
    threads: int | None = None,
) -> ModelSpec:
    """Find a model and resolve all options, without loading weights.

    Parameters
    ----------
    model : str or Path
        "bundled"; "identity"; a checkpoint folder; or, where no such path exists, an id "owner/name" on
        the hub, of which only safetensors and JSON files are fetched.
    revision : str or None
        Of a hub id.
    steps, sampler : int, str or None
        None: the card's. (The spacing is the card's as far as `resolve_spacing` allows.)
    seed : int
        Of the noise.
    samples : int
        Results to average.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    dtype : str
        "auto", "float32", "bfloat16" or "float16".
    batch, threads : int or None
        None: chosen for the device.
    compile : bool
        Compile the U-Net, or take it from the cache (`sar2eo.model.compile_cache.use_compile_cache`).

    Raises
    ------
    SettingsError
        For an option out of range, a device that this machine lacks, or a cache of compiled networks that
        belongs to another user.
    CheckpointError
        If there is no such checkpoint, or it is incomplete.
    """
    counts = {"steps": steps, "samples": samples, "batch": batch, "threads": threads}
    for name, value in counts.items():
        if value is not None and not 1 <= value <= TRAIN_TIMESTEPS:
            raise SettingsError(f"{name}={value}: must be 1 to {TRAIN_TIMESTEPS}")
    if not 0 <= seed < 2**64:
        raise SettingsError(f"seed={seed}: must be 0 to 2**64 - 1")
    if sampler is not None and sampler not in SAMPLERS:
        raise SettingsError(f"sampler={sampler!r}: must be one of {', '.join(SAMPLERS)}")
    if str(model) == IDENTITY:
        return _identity_spec(seed, samples, batch)
    folder = ModelFolder(find_folder(model, revision=revision), TranslatorCard)
    sha256 = folder.sha256()
    card, vae = folder.card(), read_vae_facts(folder.config("vae"))
    place = resolve_device(device)
    if compile:
        use_compile_cache()  # of this process; workers on other machines have their own
    steps, sampler = steps or card.steps, sampler or card.sampler
    return ModelSpec(
        path=BUNDLED if model == BUNDLED else str(folder.path.absolute()),
        sha256=sha256,
        parameters=sum(folder.count_parameters().values()),
        factor=vae.factor,
        latent_channels=vae.latent_channels,
        card=card,
        steps=steps,
        sampler=sampler,
        spacing=resolve_spacing(card.spacing, sampler, steps),
        seed=seed,
        samples=samples,
        device=place,
        dtype=resolve_dtype(dtype, place),
        batch=batch or default_batch(place),
        compile=compile,
        threads=threads or default_threads(),
    )


def resolve_spacing(spacing: str, sampler: str, steps: int) -> str:
    """Replace leading spacing by trailing where leading would not start near pure noise.

    Leading spacing starts at one timestep less than a whole number of intervals, which is far from
    T for few steps (a single one starts at t = 1, so it would call pure noise almost clean), and for
    numbers of steps that leave a large remainder.

    Parameters
    ----------
    spacing : {"leading", "trailing"}
        As asked for.
    sampler : {"ddim", "dpm++"}
        DPM-Solver++ takes one interval more than steps.
    steps : int
        1 to 1000.
    """
    intervals = steps if sampler == "ddim" else steps + 1
    first = (intervals - 1) * (TRAIN_TIMESTEPS // intervals) + 1
    sound = steps >= 10 and TRAIN_TIMESTEPS * 9 // 10 <= first < TRAIN_TIMESTEPS
    return spacing if sound else "trailing"


def _identity_spec(seed: int, samples: int, batch: int | None) -> ModelSpec:
    return ModelSpec(
        path=IDENTITY,
        sha256=hashlib.sha256(IDENTITY.encode()).hexdigest(),
        parameters=0,
        factor=1,
        latent_channels=3,
        card=None,
        steps=0,
        sampler="none",
        spacing="none",
        seed=seed,
        samples=samples,
        device="cpu",
        dtype="float32",
        batch=batch or default_batch("cpu"),
        compile=False,
        threads=1,
    )
