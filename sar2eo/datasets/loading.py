"""Batches of pairs: shuffled order, loading by worker processes, collation, seeded random numbers."""

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
from torch.utils.data import DataLoader, Dataset

from sar2eo.errors import PairsError, Sar2eoError, SettingsError

Batch = dict[str, Any]
"""Tensors with a leading axis of images, and lists of everything else."""


class Samples(Dataset[dict[str, Any]], ABC):
    """Samples by index and epoch: pairs, or their latents; ``samples[index]`` is of epoch 0."""

    ids: tuple[str, ...]

    @abstractmethod
    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """Return one pair as augmented in one epoch."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index, 0)


@dataclass(frozen=True)
class Order:
    """Shuffled order of `n` pairs in batches: every index once per pass.

    It is a pure function of the step, so a resumed run needs no stored state. A batch at the end of a pass is
    filled from the next one, so all batches have the same size. Processes take batches in turn: this is
    number `process` of `processes`.
    """

    n: int
    batch: int
    seed: int = 2025
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise PairsError("there are no pairs to go through: is the split empty?")
        if self.batch < 1:
            raise SettingsError(f"batch={self.batch}: must be at least 1")

    def indices(self, step: int) -> list[tuple[int, int]]:
        """Return (epoch, index) of each pair in this process's batch of a step."""
        number = step * self.processes + self.process
        seen = range(number * self.batch, (number + 1) * self.batch)
        return [(i // self.n, int(_shuffle(self.n, self.seed, i // self.n)[i % self.n])) for i in seen]


@lru_cache(maxsize=4)
def _shuffle(n: int, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    return permutation(seed, Purpose.ORDER, epoch, 0, n)


class _ByEpoch(Dataset["dict[str, Any] | Sar2eoError"]):
    """Data set with (epoch, index) as key, so that workers keep no epoch.

    Our own errors are returned: the loader would raise them with a worker's traceback as their message.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | Sar2eoError:
        epoch, index = key
        try:
            return self.samples.sample(index, epoch)
        except Sar2eoError as error:
            return error


def batches(
    samples: Samples, order: Order, start_step: int, stop_step: int, workers: int = 0, *, pin: bool = False
) -> Iterator[Batch]:
    """Load the batches of steps `start_step` to before `stop_step`, in order.

    So many `workers`, processes, read ahead; with 0 this process reads on request. The batches are the same.
    From pinned memory (`pin`) a GPU copies while it computes.
    """
    loader = DataLoader(
        _ByEpoch(samples),
        batch_sampler=map(order.indices, range(start_step, stop_step)),
        num_workers=workers,
        collate_fn=_collate_or_error,
        worker_init_fn=_ignore_signals,
        pin_memory=pin,
        # Without one, the loader would draw from the global generator.
        generator=torch.Generator(),
        # A forked process with threads (torch's, GDAL's) may hang; and workers of a fork server would
        # outlive a killed run, since they wait for the end of the server.
        multiprocessing_context="spawn" if workers else None,
    )
    with _hide_main_script():
        iterator = iter(loader)  # starts the workers
    try:
        for found in iterator:
            if isinstance(found, Sar2eoError):
                raise found
            yield found
    finally:
        del iterator  # ends the workers, also if a caller keeps an error and with it this frame


def _collate_or_error(samples: Sequence[dict[str, Any] | Sar2eoError]) -> Batch | Sar2eoError:
    try:
        return collate([_sample_or_raise(sample) for sample in samples])
    except Sar2eoError as error:
        return error


def _sample_or_raise(sample: dict[str, Any] | Sar2eoError) -> dict[str, Any]:
    if isinstance(sample, Sar2eoError):
        raise sample
    return sample


def _ignore_signals(_: int) -> None:
    """Ignore signals in a worker: they reach whole process groups, and the run first finishes its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _hide_main_script() -> Iterator[None]:
    """Keep spawned workers from running the user's script again, so it needs no ``__main__`` guard."""
    main = sys.modules["__main__"]
    names = ("__file__", "__spec__")
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in names if name in vars(main)}
    main.__spec__ = None  # spawn needs the attribute
    try:
        yield
    finally:
        vars(main).update(hidden)


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack the tensors of samples, which must have one shape, and list everything else."""
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
    """Purpose of random numbers; each has its own stream under one seed."""

    ORDER = 1
    AUGMENTATION = 2
    CROPS = 3
    SPLIT = 4
    GAIN = 5


def uniform(seed: int, purpose: Purpose, epoch: int, index: int, count: int) -> npt.NDArray[np.float64]:
    """Draw `count` numbers in [0, 1), a pure function of (seed, purpose, epoch, index)."""
    words = _draw_words(seed, purpose, epoch, index, count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: Purpose, epoch: int, index: int, count: int) -> npt.NDArray[np.intp]:
    """Shuffle 0 ... count - 1, a pure function of (seed, purpose, epoch, index)."""
    return np.argsort(_draw_words(seed, purpose, epoch, index, count), kind="stable")


def _draw_words(seed: int, purpose: Purpose, epoch: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    for name, value in {"seed": seed, "epoch": epoch, "index": index}.items():
        if not 0 <= value < _WORD:
            raise SettingsError(f"{name}={value}: must be 0 to 2**64 - 1")
    # The lower half of the counter numbers the words.
    counter = (epoch << 128) + (index << 192)
    return np.random.Philox(key=seed + _WORD * purpose, counter=counter).random_raw(count)
