"""Paired augmentation: the same crop, flips and quarter turns for SAR, EO and validity.

As in C-DiffSET, section 4.2: random crop, horizontal and vertical flips, quarter turns. The augmentation of
an image is a pure function of (seed, epoch, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sar2eo.datasets.loading import Purpose, permutation, uniform
from sar2eo.errors import SettingsError

ORIENTATIONS = 8
"""Orientations of a square: quarter turns of the image and of its mirror image."""

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Place:
    """Crop, orientation (see `orient`) and SAR gain, a factor on the amplitude, of one image.

    `row` and `col` are the crop's origin in pixels, `shape` its rows and columns before turning. `variant` is
    ``crop * 8 + orientation`` for fixed crops, otherwise 0.
    """

    row: int
    col: int
    shape: tuple[int, int]
    orientation: int = 0
    gain: float = 1.0
    variant: int = 0


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random or fixed crop, flips, quarter turns and SAR gain.

    Parameters
    ----------
    crop : int or None
        Side of the crop in pixels; smaller images are taken whole. None: the size of the smallest image.
    flips : bool
        Mirror horizontally and vertically, each for half of the images.
    turns : bool
        Turn by 0 to 3 quarters; crops are then squares.
    gain : float
        SAR amplitude is multiplied by a factor from ``1 - gain`` to ``1 + gain`` before clipping; each
        orientation of a fixed crop has its own factor.
    seed : int
        Seed of all random choices.
    centre : bool
        Crop at the centre rather than at random.
    fixed : int or None
        Number of crops per image to choose from, instead of any place: those that
        `sar2eo.datasets.build_latent_cache` encodes for the same seed.
    align : int
        Crops start at multiples of this number of pixels; the VAE's factor, for crops shared with a cache.
    """

    crop: int | None = None
    flips: bool = False
    turns: bool = False
    gain: float = 0.0
    seed: int = 2025
    centre: bool = False
    fixed: int | None = None
    align: int = 1

    def __post_init__(self) -> None:
        for name in ("crop", "fixed", "align"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name}={value}: must be at least 1")
        if not 0 <= self.gain < 1:
            raise SettingsError(f"gain={self.gain:g}: must be from 0 to below 1")
        if self.fixed is not None and self.centre:
            raise SettingsError("centre and fixed exclude each other: choose one")

    @property
    def orientations(self) -> tuple[int, ...]:
        """Orientations to choose from, with equal probability."""
        match self.flips, self.turns:
            case True, True:
                return tuple(range(ORIENTATIONS))
            case True, False:
                return (0, 2, 4, 6)
            case False, True:
                return (0, 1, 2, 3)
            case _:
                return (0,)

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the crop from images of at least `size` (rows, columns)."""
        rows, cols = (min(side, self.crop or side) for side in size)
        return (min(rows, cols),) * 2 if self.turns else (rows, cols)

    def variants(self, size: tuple[int, int]) -> int:
        """Return the number of fixed crops of images of `size`: at most `fixed`, fewer in small images."""
        rows, cols = self._origins(size, self.shape(size))
        return min(self.fixed or 1, rows * cols)

    def fixed_place(
        self, index: int, crop: int, orientation: int, image: tuple[int, int], shape: tuple[int, int]
    ) -> Place:
        """Return a fixed crop, by number, of an image of shape `image`, in one orientation."""
        rows, cols = self._origins(image, shape)
        order = permutation(self.seed, Purpose.CROPS, 0, index, rows * cols)
        row, col = divmod(int(order[crop % len(order)]), cols)
        at = (row * self.align, col * self.align)
        variant = crop * ORIENTATIONS + orientation
        (drawn,) = uniform(self.seed, Purpose.GAIN, variant, index, 1)
        return Place(*at, shape, orientation, self._gain(drawn), variant)

    def _gain(self, drawn: float) -> float:
        return 1 + self.gain * (2 * float(drawn) - 1)

    def place(
        self, epoch: int, index: int, image: tuple[int, int], size: tuple[int, int] | None = None
    ) -> Place:
        """Draw crop, orientation and gain of an image in one epoch.

        `image` are its rows and columns, `size` the smallest of all images of the data set; by default those
        of this one.
        """
        size = size or image
        shape = self.shape(size)
        where = uniform(self.seed, Purpose.AUGMENTATION, epoch, index, 4)
        orientation = self.orientations[int(where[2] * len(self.orientations))]
        if self.fixed is not None:
            crop = int(where[0] * self.variants(size))
            return self.fixed_place(index, crop, orientation, image, shape)
        if self.centre:
            row, col = ((whole - part) // 2 for whole, part in zip(image, shape, strict=True))
        else:
            origins = self._origins(image, shape)
            row, col = (int(at * count) * self.align for at, count in zip(where, origins, strict=False))
        return Place(row, col, shape, orientation, self._gain(where[3]))

    def _origins(self, image: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
        """Count the rows and columns at which a crop can start."""
        rows, cols = ((whole - part) // self.align + 1 for whole, part in zip(image, shape, strict=True))
        return rows, cols


def orient(image: npt.NDArray[Scalar], orientation: int) -> npt.NDArray[Scalar]:
    """Turn an image (..., row, col) counter-clockwise by ``orientation % 4`` quarters; mirror it from 4 on.

    Orientation 2 is a half turn, 4 mirrors left and right, 6 mirrors up and down. Returns a view.
    """
    turned = np.rot90(image, orientation % 4, axes=(-2, -1))
    return turned[..., ::-1] if orientation >= 4 else turned
