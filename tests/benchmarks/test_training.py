"""Training steps with latents from a cache, against the same steps that encode their images."""

from pathlib import Path

import pytest
import torch
from measuring import Baseline
from support.dataset_fixtures import built_pairs

from sar2eo.model.creation import init_checkpoint
from sar2eo.settings import DataSettings, TrainRecipe, TrainSettings
from sar2eo.training.phase import Phase
from sar2eo.training.unet_run import prepare_training

pytestmark = pytest.mark.benchmark_only

BATCH, CROP, STEPS = 2, 128, 2
ROUNDS = 5


def steps_of(folder: Path, *, cached: bool):
    """Return a function that takes a few steps, reading included, and goes on where it stopped."""
    settings = TrainSettings(
        batch=BATCH, crop=CROP, crops=1, cache_latents=cached, device="cpu", dtype="float32", ema=0.0
    )
    recipe = TrainRecipe(
        data=DataSettings(pairs=str(folder / "pairs")),
        base=str(folder / "base"),
        out=str(folder / ("cached" if cached else "uncached")),
        settings=settings,
    )
    prepared = prepare_training(recipe)
    phase = Phase("unet", prepared.task, prepared.accelerator, settings)
    source = iter(prepared.batches(0, 10_000))

    def steps() -> None:
        for step in range(STEPS):
            phase.update(step, [next(source)], [torch.Generator().manual_seed(step)])

    return steps


def test_cached_latents(compare, tmp_path):
    built_pairs(tmp_path / "pairs", counts={"train": 4, "val": 1}, size=160, holes=False)
    init_checkpoint(tmp_path / "base", size="small")
    seen = STEPS * BATCH

    def rates(cached: float, uncached: float) -> str:
        return f"{seen / cached:.2f} samples/s with a cache, {seen / uncached:.2f} without"

    compare(
        f"training, U-Net small, crops of {CROP}, latents cached",
        steps_of(tmp_path, cached=True),
        [Baseline("encoding every image", steps_of(tmp_path, cached=False), note=rates)],
        rounds=ROUNDS,
        warmups=1,
    )
