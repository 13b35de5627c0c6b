"""What every training run shares before its first step: its parts, its held-out pairs, its settings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import Accelerator

from sar2eo.compute.cluster import available_cores
from sar2eo.datasets import Augmentation, Order, PairsDataset, batches, collate, open_dataset
from sar2eo.errors import PairsError, TrainingWarning
from sar2eo.settings import DataSettings, LoopSettings, MatcherRecipe, TrainRecipe, VaeRecipe
from sar2eo.training.loop import Outcome, Progress, identity_of, run_loop
from sar2eo.training.run_folder import RunFolder
from sar2eo.training.task import Batch, Task

__all__ = [
    "Preparation",
    "ShareOrder",
    "checked_identity",
    "chosen_data",
    "open_held_out",
    "training_batches",
    "validation_batches",
]

TaskKind = TypeVar("TaskKind", bound=Task)


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation(Generic[TaskKind]):
    """A training run before its first step; all that can be checked has been.

    Parameters
    ----------
    task : Task
    accelerator : Accelerator
    pairs : PairsDataset
        Of the training split.
    held_out : PairsDataset or None
        Of the validation split.
    batches : callable
        From a step to another, to the batches between.
    identity : dict
        What the run depends on.
    """

    task: TaskKind
    accelerator: Accelerator
    pairs: PairsDataset
    held_out: PairsDataset | None
    batches: Callable[[int, int], Iterable[Batch]]
    identity: dict[str, Any]

    def run(self, settings: LoopSettings, out: str, progress: Progress | None) -> Outcome:
        """Train, or go on with it; see `sar2eo.training.loop.run_loop`."""
        held_out = self.held_out
        return run_loop(
            self.task,
            self.accelerator,
            settings=settings,
            batches=self.batches,
            validation=None if held_out is None else lambda: validation_batches(held_out),
            out=Path(out),
            identity=self.identity,
            progress=progress,
        )


def open_held_out(
    data: DataSettings, augmentation: Augmentation, training: PairsDataset
) -> PairsDataset | None:
    """Open the validation pairs, with the channels of the training pairs.

    None, with a warning, where there are none, or they lack a polarisation of the training pairs.
    """
    try:
        held_out = open_dataset(data, "val", augmentation=augmentation)
        if not set(training.polarisations) <= set(held_out.polarisations):
            raise PairsError(
                f"its pairs have {', '.join(held_out.polarisations)}, training has "
                f"{', '.join(training.polarisations)}"
            )
    except PairsError as error:
        warnings.warn(f"trains without validation: {error}", TrainingWarning, stacklevel=2)
        return None
    return held_out.seen_by(training)


def checked_identity(
    recipe: TrainRecipe | VaeRecipe | MatcherRecipe,
    accelerator: Accelerator,
    pairs: PairsDataset,
    **more: Any,
) -> dict[str, Any]:
    """Return what a run depends on, which must be what its folder was begun with.

    Parameters
    ----------
    recipe : TrainRecipe, VaeRecipe or MatcherRecipe
    accelerator : Accelerator
    pairs : PairsDataset
        Of the training split.
    **more
        Base or VAE, with their fingerprints.

    Raises
    ------
    TrainingError
        As of `RunFolder.check`.
    """
    data = {"split_by": recipe.data.split_by, "pairs": len(pairs), "sha256": pairs.fingerprint()}
    identity = identity_of(recipe.settings, accelerator, data=data, **more)
    RunFolder(Path(recipe.out)).check(identity)
    return identity


def chosen_data(data: DataSettings | str | Path) -> DataSettings:
    """Return which pairs; a path is a folder of `sar2eo.build_pairs`."""
    return data if isinstance(data, DataSettings) else DataSettings(pairs=str(data))


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
