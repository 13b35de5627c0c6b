"""What a training run will take, before it is begun: ``--dry-run``.

Nothing is written; a batch is read and two steps are taken and thrown away, to be timed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import torch

from sar2eo.compute.dask_run import peak_rss_bytes
from sar2eo.datasets import collate
from sar2eo.settings import TrainRecipe
from sar2eo.training.loop import environment_of
from sar2eo.training.phase import Phase
from sar2eo.training.setup import Preparation
from sar2eo.training.task import Batch
from sar2eo.training.unet_run import prepare_training
from sar2eo.training.unet_task import UNetTask

__all__ = ["plan_training"]

_STATE_BYTES = 16  # of a trained weight: itself, its average, two moments
_TIMED_STEPS = 2


def plan_training(recipe: TrainRecipe) -> dict[str, Any]:
    """Describe a run without doing it.

    Returns
    -------
    dict
        Nested, for printing: data, model, steps, memory and disk, seconds.

    Raises
    ------
    Sar2eoError
        All that the run itself would raise before work starts.
    """
    prepared = prepare_training(recipe)
    settings, unet = recipe.settings, prepared.task.phases["unet"]
    total = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    seen = settings.steps * settings.batch * settings.accumulate * prepared.accelerator.num_processes
    seconds = _seconds_per_step(prepared, recipe)
    disk = _STATE_BYTES * trained * (settings.keep + 1) + 2 * 4 * total
    return {
        "data": {
            "pairs": len(prepared.pairs),
            "of": prepared.pairs.describe(),
            "crop": list(prepared.pairs.shape),
            "validation": "yes" if prepared.held_out else "none",
        },
        "model": {
            "base": recipe.base,
            "parameters": total,
            "trained": trained,
            "predicts": prepared.task.card.prediction_type,
            "loss": settings.loss,
        },
        "steps": {"steps": settings.steps, "images": seen, "passes": seen / len(prepared.pairs)},
        "takes": {
            **environment_of(prepared.accelerator),
            "memory, GB": round(_memory(prepared) / 1e9, 2),
            "memory available, GB": round(psutil.virtual_memory().available / 1e9, 1),
            "disk without cached latents, GB": round(disk / 1e9, 2),
            "seconds a step": round(seconds, 3),
            "hours, estimated": round(settings.steps * seconds / 3600, 2),
        },
        "out": str(Path(recipe.out)),
    }


def _seconds_per_step(prepared: Preparation[UNetTask], recipe: TrainRecipe) -> float:
    """Take a few steps on one batch; return the seconds of the quickest."""
    settings = recipe.settings
    pairs = [prepared.pairs.sample(index % len(prepared.pairs), 0) for index in range(settings.batch)]
    device = prepared.accelerator.device
    batch: Batch = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in collate(pairs).items()
    }
    if settings.cache_latents:
        batch = prepared.task.encoded(batch)
    phase = Phase("unet", prepared.task, prepared.accelerator, settings)
    many = settings.accumulate
    taken = []
    for step in range(_TIMED_STEPS):
        start = time.perf_counter()
        phase.update(step, [batch] * many, [torch.Generator().manual_seed(step)] * many)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _memory(prepared: Preparation[UNetTask]) -> float:
    """Return the most that the steps took, in bytes, on the device."""
    if prepared.accelerator.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(prepared.accelerator.device))
    return peak_rss_bytes()
