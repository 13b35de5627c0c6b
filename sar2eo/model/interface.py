"""The translator's interface: tiles of SAR in, tiles of EO out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Translation(NamedTuple):
    """EO images of a batch of B tiles of T x T pixels.

    Parameters
    ----------
    eo : ndarray of uint8, shape (B, 3, T, T)
        Red, green, blue.
    variance : ndarray of float32, shape (B, T / f, T / f), or None
        Predicted variance at latent resolution (f: the VAE's factor); None where the model has none.
    spread : ndarray of float32, shape (B, T, T), or None
        Sample standard deviation over several samples in levels (0 to 255), mean over the bands; None
        for a single sample.
    """

    eo: npt.NDArray[np.uint8]
    variance: npt.NDArray[np.float32] | None
    spread: npt.NDArray[np.float32] | None


class Translator(Protocol):
    """Translates batches of tiles, one batch at a time on each device.

    The seconds spent inside the model, without waiting for the device, are added to the counter
    ``model_seconds`` (`sar2eo.compute.dask_run.timed`).

    Attributes
    ----------
    multiple : int
        Sides of tiles, in pixels, must be multiples of this: the model's factor, or a multiple of it.
    """

    multiple: int

    def translate(self, sar: npt.NDArray[np.float32], origins: Sequence[tuple[int, int]]) -> Translation:
        """Translate up to ``batch`` tiles.

        Parameters
        ----------
        sar : ndarray of float32, shape (B, 3, T, T)
            In [-1, 1]; T a multiple of `multiple`.
        origins : sequence of (row, col)
            First pixel of each tile in the whole scene, multiples of the factor; the noise is anchored
            there.
        """
        ...

    def with_steps(self, steps: int) -> Translator:
        """Return a translator with the same weights, another number of steps and a single sample."""
        ...
