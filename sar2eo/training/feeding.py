"""Batches for the loop: each process its share, from the step where a run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from sar2eo.cluster import available_cores
from sar2eo.datasets import Order, PairsDataset, batches, collate
from sar2eo.recipe import LoopSettings
from sar2eo.training.task import Batch

__all__ = ["ShareOrder", "training_batches", "validation_batches"]

_VALIDATION_PAIRS, _VALIDATION_BATCH = 32, 4
_LOADERS_AT_MOST = 8


@dataclass(frozen=True)
class ShareOrder(Order):
    """One process's share of an order: batches in turn.

    Parameters
    ----------
    process, processes : int
    """

    process: int = 0
    processes: int = 1

    def indices(self, step: int) -> list[tuple[int, int]]:
        """Return the pass and index of each pair of this process's batch of that number."""
        return super().indices(step * self.processes + self.process)


def training_batches(
    samples: Any, settings: LoopSettings, accelerator: Accelerator
) -> Callable[[int, int], Iterable[Batch]]:
    """Return what `run_loop` takes batches from: this process's, several for a step if they accumulate.

    Parameters
    ----------
    samples
        A data set of pairs, or a cache of their latents.
    settings : LoopSettings
    accelerator : Accelerator
    """
    order = ShareOrder(
        len(samples), settings.batch, settings.seed, accelerator.process_index, accelerator.num_processes
    )
    cores = available_cores() // accelerator.num_processes
    # On a CPU the network has use for every core.
    workers = 0 if accelerator.device.type == "cpu" else min(_LOADERS_AT_MOST, max(1, cores - 1))
    many, pin = settings.accumulate, accelerator.device.type == "cuda"
    return lambda start, stop: batches(samples, order, start * many, stop * many, workers, pin=pin)


def validation_batches(pairs: PairsDataset) -> Iterator[Batch]:
    """Load a few pairs, spread over the data set, the same every time."""
    step = max(1, math.ceil(len(pairs) / _VALIDATION_PAIRS))
    chosen = range(0, len(pairs), step)
    for first in range(0, len(chosen), _VALIDATION_BATCH):
        yield collate([pairs.sample(index, 0) for index in chosen[first : first + _VALIDATION_BATCH]])
