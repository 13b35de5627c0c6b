"""What the training runs of U-Net, VAE and matcher share: recipes, validation pairs, batches, the run."""

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
from sar2eo.settings import (
    DataSettings,
    LoopSettings,
    MatcherRecipe,
    TrainRecipe,
    VaeRecipe,
    replace_settings,
)
from sar2eo.training.loop import Outcome, Progress, describe_run, run_loop
from sar2eo.training.run_folder import RunFolder
from sar2eo.training.task import Batch, Task

Recipe = TypeVar("Recipe")
TaskKind = TypeVar("TaskKind", bound=Task)

_VALIDATION_PAIRS, _VALIDATION_BATCH = 32, 4
_MAX_LOADERS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation(Generic[TaskKind]):
    """A training run that passed all checks and has not begun.

    Parameters
    ----------
    task : Task
        Networks and losses.
    accelerator : Accelerator
        Device, precision and processes.
    pairs, held_out : PairsDataset
        Training and validation split; `held_out` is None for a run without validation.
    batches : callable
        ``batches(start, stop)`` loads this process's batches of steps `start` to before `stop`.
    identity : dict
        Settings, data and base with their fingerprints, as JSON values.
    """

    task: TaskKind
    accelerator: Accelerator
    pairs: PairsDataset
    held_out: PairsDataset | None
    batches: Callable[[int, int], Iterable[Batch]]
    identity: dict[str, Any]

    def run(self, settings: LoopSettings, out: str, progress: Progress | None) -> Outcome:
        """Train, or resume; see `sar2eo.training.loop.run_loop`."""
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


def build_recipe(
    kind: Callable[..., Recipe],
    data: DataSettings | str | Path,
    settings: LoopSettings,
    changes: dict[str, Any],
    **paths: str | Path | None,
) -> Recipe:
    """Build a recipe from the arguments of a Python call.

    Parameters
    ----------
    kind : type
        `TrainRecipe`, `VaeRecipe` or `MatcherRecipe`.
    data : DataSettings, str or Path
        A path is a folder of `sar2eo.build_pairs`.
    settings, changes
        Settings, and the fields that replace theirs.
    **paths
        Further fields of the recipe.
    """
    return kind(
        data=data if isinstance(data, DataSettings) else DataSettings(pairs=str(data)),
        settings=replace_settings(settings, changes),
        **{name: None if path is None else str(path) for name, path in paths.items()},
    )


def open_held_out(
    data: DataSettings, augmentation: Augmentation, training: PairsDataset
) -> PairsDataset | None:
    """Open the validation pairs with the channels of the training pairs.

    None, with a warning, if there are no such pairs or they lack a polarisation of the training pairs.
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
    return held_out.with_channels_of(training)


def check_identity(
    recipe: TrainRecipe | VaeRecipe | MatcherRecipe,
    accelerator: Accelerator,
    pairs: PairsDataset,
    **more: Any,
) -> dict[str, Any]:
    """Return what a run depends on, after checking it against the run in the recipe's folder.

    Parameters
    ----------
    recipe, accelerator, pairs
        Settings and folder, number of processes, and the training split.
    **more
        Base or VAE, with their fingerprints.
    """
    data = {"split_by": recipe.data.split_by, "pairs": len(pairs), "sha256": pairs.fingerprint()}
    identity = describe_run(recipe.settings, accelerator, data=data, **more)
    RunFolder(Path(recipe.out)).check(identity)
    return identity


def training_batches(
    samples: Any, settings: LoopSettings, accelerator: Accelerator
) -> Callable[[int, int], Iterable[Batch]]:
    """Return the batch loader of `run_loop`: this process's batches, ``settings.accumulate`` for each step.

    Parameters
    ----------
    samples : PairsDataset or CachedLatents
        The training split.
    settings, accelerator
        Batch size, seed and accumulation; processes and device.
    """
    order = Order(
        len(samples), settings.batch, settings.seed, accelerator.process_index, accelerator.num_processes
    )
    cores = available_cores() // accelerator.num_processes
    # On a CPU the network needs every core.
    workers = 0 if accelerator.device.type == "cpu" else min(_MAX_LOADERS, max(1, cores - 1))
    many, pin = settings.accumulate, accelerator.device.type == "cuda"
    return lambda start, stop: batches(samples, order, start * many, stop * many, workers, pin=pin)


def validation_batches(pairs: PairsDataset) -> Iterator[Batch]:
    """Load up to 32 pairs, spread evenly over the data set, the same every time."""
    step = max(1, math.ceil(len(pairs) / _VALIDATION_PAIRS))
    chosen = range(0, len(pairs), step)
    for first in range(0, len(chosen), _VALIDATION_BATCH):
        yield collate([pairs.sample(index, 0) for index in chosen[first : first + _VALIDATION_BATCH]])
