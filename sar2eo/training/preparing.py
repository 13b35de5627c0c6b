"""What every training run shares before its first step: its parts, its held-out pairs, its settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import Accelerator

from sar2eo.datasets import Augmentation, PairsDataset, open_dataset
from sar2eo.errors import PairsError, TrainingWarning
from sar2eo.recipe import DataSettings, LoopSettings, MatcherRecipe, TrainRecipe, VaeRecipe
from sar2eo.training.feeding import validation_batches
from sar2eo.training.folder import RunFolder
from sar2eo.training.loop import Outcome, Progress, identity_of, run_loop
from sar2eo.training.task import Batch, Task

__all__ = ["Preparation", "checked_identity", "chosen_data", "open_held_out"]

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
