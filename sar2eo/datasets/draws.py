"""Random words as pure functions of what they are for: random access, and nothing to save for a resume.

Words come from a counter-based generator (Philox 4x64-10, Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405), whose raw stream numpy promises to keep, unlike that of its
permutations and integers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sar2eo.errors import SettingsError

__all__ = ["Purpose", "permutation", "uniform"]

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
