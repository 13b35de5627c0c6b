"""The order in which pairs are seen, and batches of them."""

from __future__ import annotations

import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sar2eo.errors import PairsError, Sar2eoError, SettingsError

__all__ = ["Batch", "Order", "Purpose", "Samples", "batches", "collate", "permutation", "uniform"]

Batch = dict[str, Any]
"""Tensors with a leading axis of images, and lists of everything else."""


class Samples(Dataset[dict[str, Any]], ABC):
    """What batches are made of: pairs, or their latents.

    Attributes
    ----------
    ids : tuple of str
        Of the pairs.
    epoch : int
        The pass that ``samples[index]`` belongs to.
    """

    ids: tuple[str, ...]
    epoch: int = 0

    @abstractmethod
    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """Return one pair as it is seen in one pass."""

    def __len__(self) -> int:
        return len(self.ids)

    def set_epoch(self, epoch: int) -> None:
        """Say which pass ``samples[index]`` belongs to from now on."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index, self.epoch)


@dataclass(frozen=True)
class Order:
    """Every index once per pass, shuffled; a pure function of the step, so a resume needs nothing else.

    A batch goes on into the next pass where the one before ends, so all have the same size.

    Parameters
    ----------
    n : int
        Number of pairs.
    batch : int
        Pairs per step.
    seed : int

    Raises
    ------
    PairsError
        If there are no pairs.
    SettingsError
        For a batch below 1.
    """

    n: int
    batch: int
    seed: int = 2025

    def __post_init__(self) -> None:
        if self.n < 1:
            raise PairsError("there are no pairs to go through: is the split empty?")
        if self.batch < 1:
            raise SettingsError(f"batch={self.batch}: must be at least 1")

    def indices(self, step: int) -> list[tuple[int, int]]:
        """Return the pass (epoch) and index of each pair of a step."""
        seen = range(step * self.batch, (step + 1) * self.batch)
        return [(i // self.n, int(_shuffled(self.n, self.seed, i // self.n)[i % self.n])) for i in seen]


@lru_cache(maxsize=4)
def _shuffled(n: int, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    return permutation(seed, Purpose.ORDER, epoch, 0, n)


class _ByEpoch(Dataset["dict[str, Any] | Sar2eoError"]):
    """Takes (epoch, index) as key, so that nothing in a worker has to change with the epoch.

    Our errors are returned: the loader would raise them with a worker's whole traceback as their message.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | Sar2eoError:
        epoch, index = key
        try:
            return self.samples.sample(index, epoch)
        except Sar2eoError as error:
            return error


class _Steps(Sampler[list[tuple[int, int]]]):
    def __init__(self, order: Order, steps: range) -> None:
        self.order, self.steps = order, steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.order.indices, self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def batches(
    samples: Samples, order: Order, start_step: int, stop_step: int, workers: int = 0, *, pin: bool = False
) -> Iterator[Batch]:
    """Load the batches of steps `start_step` to before `stop_step`, in order.

    Parameters
    ----------
    samples
        A `PairsDataset` or `CachedLatents`.
    order : Order
    start_step, stop_step : int
    workers : int
        Processes that read ahead; 0: read here, when a batch is asked for. The batches are the same.
    pin : bool
        Leave them in pinned memory, from where a GPU fetches them while it computes.

    Raises
    ------
    PairsError
        If a pair cannot be read.
    """
    loader = DataLoader(
        _ByEpoch(samples),
        batch_sampler=_Steps(order, range(start_step, stop_step)),
        num_workers=workers,
        collate_fn=_collate_or_error,
        worker_init_fn=_leave_signals,
        pin_memory=pin,
        # Its own, or the loader would draw from the global one.
        generator=torch.Generator(),
        # A fork of a process with threads (torch's, GDAL's) may hang; and workers of a fork server
        # would outlive a run that was killed, for it is the server's end that they wait for.
        multiprocessing_context="spawn" if workers else None,
    )
    with _scripts_hidden():
        iterator = iter(loader)  # which starts the workers
    try:
        for found in iterator:
            if isinstance(found, Sar2eoError):
                raise found
            yield found
    finally:
        del iterator  # which ends them: an error that is kept keeps this frame, and they ignore signals


def _collate_or_error(samples: Sequence[dict[str, Any] | Sar2eoError]) -> Batch | Sar2eoError:
    try:
        return collate([_sample_or_raise(sample) for sample in samples])
    except Sar2eoError as error:
        return error


def _sample_or_raise(sample: dict[str, Any] | Sar2eoError) -> dict[str, Any]:
    if isinstance(sample, Sar2eoError):
        raise sample
    return sample


def _leave_signals(_: int) -> None:
    """Let a worker read on: terminals and schedulers signal whole groups, and the run ends its step first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _scripts_hidden() -> Iterator[None]:
    """Keep workers from running the user's script once more, which would need a guard for that."""
    main = sys.modules["__main__"]
    names = ("__file__", "__spec__")
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in names if name in vars(main)}
    main.__spec__ = None  # which must be there
    try:
        yield
    finally:
        vars(main).update(hidden)


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack the tensors of samples and list everything else.

    Raises
    ------
    PairsError
        If tensors differ in shape.
    """
    batch: Batch = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, Tensor):
            shapes = {tuple(value.shape) for value in values}
            if len(shapes) > 1:
                raise PairsError(f"{key}: shapes {sorted(shapes)} do not fit in one batch: set a crop")
            batch[key] = torch.stack(values)
        else:
            batch[key] = values
    return batch


_WORD = 2**64


class Purpose(IntEnum):
    """What is drawn; each has a stream of its own under one seed."""

    ORDER = 1
    AUGMENTATION = 2
    CROPS = 3
    SPLIT = 4
    GAIN = 5


def uniform(seed: int, purpose: Purpose, epoch: int, index: int, count: int) -> npt.NDArray[np.float64]:
    """Draw `count` numbers in [0, 1) that belong to (seed, purpose, epoch, index).

    Raises
    ------
    SettingsError
        If one of them is not 0 to 2**64 - 1.
    """
    words = _words(seed, purpose, epoch, index, count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: Purpose, epoch: int, index: int, count: int) -> npt.NDArray[np.intp]:
    """Return 0 ... count - 1 in an order that belongs to (seed, purpose, epoch, index)."""
    return np.argsort(_words(seed, purpose, epoch, index, count), kind="stable")


def _words(seed: int, purpose: Purpose, epoch: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    for name, value in {"seed": seed, "epoch": epoch, "index": index}.items():
        if not 0 <= value < _WORD:
            raise SettingsError(f"{name}={value}: must be 0 to 2**64 - 1")
    # The lower half of the counter is left to the run of words.
    counter = (epoch << 128) + (index << 192)
    return np.random.Philox(key=seed + _WORD * purpose, counter=counter).random_raw(count)
