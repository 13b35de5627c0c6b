"""One face for all data sets: SAR and EO in [-1, 1], validity, and facts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo.datasets.augmentation import ORIENTATIONS, Augmentation, Place, orient
from sar2eo.datasets.loading import Samples
from sar2eo.errors import PairsError
from sar2eo.geo.radiometry import default_channels, fill_invalid, to_amplitude, to_model_range
from sar2eo.model.card import ModelCard

__all__ = ["Pair", "PairsDataset", "Raster", "picture", "raster"]

_HELD_BYTES = 512 * 2**20
_SAMPLED_FILES, _SAMPLED_BYTES = 32, 65536

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """A pair of images as they are stored.

    Parameters
    ----------
    sar : ndarray, shape (polarisation, row, col)
    eo : ndarray of uint8, shape (3, row, col)
    valid : ndarray of bool, shape (row, col)
        Where both are.
    low, high : tuple of float
        Amplitude, one for each polarisation, that becomes -1 and 1.
    quantity : str or None
        What SAR values are; None: scaled as they stand.
    """

    sar: npt.NDArray[Any]
    eo: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    low: tuple[float, ...]
    high: tuple[float, ...]
    quantity: str | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.sar.nbytes + self.eo.nbytes + self.valid.nbytes


@dataclass
class _Held:
    """Pairs kept as they are stored, until a bound of memory; in each process by itself.

    Nothing is ever given up for another: in a random order, what was seen last is not what comes next.
    """

    bound: int = _HELD_BYTES
    taken: int = 0
    pairs: dict[int, Pair] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"bound": self.bound, "taken": 0, "pairs": {}}


class PairsDataset(Samples):
    """Pairs of SAR and EO images.

    Files are opened for each sample, so a data set may be handed to other processes.

    Parameters
    ----------
    ids : sequence of str
    size : tuple of int
        Rows and columns that every image has at least.
    polarisations : sequence of str
        Of the SAR images, in the order of their bands.
    quantity, calibration : str
        What a model trained on them should be told (see `sar2eo.geo.radiometry`).
    gsd_m : float or None
        Ground sample distance in true ground metres.
    scaling : {"p99"} or float
        Amplitude that becomes 1, as a card says it (see `sar2eo.model.card.ModelCard`).
    augmentation : Augmentation

    Attributes
    ----------
    epoch : int
        The pass that ``dataset[index]`` belongs to.
    """

    def __init__(
        self,
        ids: Sequence[str],
        *,
        size: tuple[int, int],
        polarisations: Sequence[str],
        quantity: str,
        calibration: str = "none",
        gsd_m: float | None = None,
        scaling: Literal["p99"] | float = "p99",
        augmentation: Augmentation,
    ) -> None:
        self.ids = tuple(ids)
        self.size = size
        self.polarisations = tuple(polarisations)
        self.channels = default_channels(self.polarisations)
        self.quantity = quantity
        self.calibration = calibration
        self.gsd_m = gsd_m
        self.scaling = scaling
        self.augmentation = augmentation
        self._held = _Held()

    @abstractmethod
    def read(self, index: int) -> Pair:
        """Read a pair from its files.

        Raises
        ------
        PairsError
            If a file is missing, broken, or not what it should be.
        """

    @abstractmethod
    def describe(self) -> str:
        """Say in one line what the pairs are, for the card of a model that was trained on them."""

    @abstractmethod
    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files of the SAR and the EO image."""

    def facts(self, index: int) -> dict[str, Any]:
        """Return what else is known of a pair, as plain values."""
        return {}

    @property
    def places(self) -> tuple[str, ...]:
        """Where pairs lie, one name each: those of one place may show the same ground, on another date."""
        return self.ids

    def meeting(self, index: int) -> npt.NDArray[np.bool_]:
        """Return which pairs are known to show some of the same ground as one, shape (pairs,)."""
        return np.zeros(len(self), bool)

    def strangers(self, index: int) -> list[int]:
        """Return pairs of other ground, from half of all further on: of other places, where there are any."""
        order = (index + len(self) // 2 + np.arange(len(self))) % len(self)
        return [int(other) for other in order[self._elsewhere(index)[order]]]

    def apart(self, index: int, other: int) -> bool:
        """Tell whether two pairs show different ground: of other places, where there are any."""
        return bool(self._elsewhere(index)[other])

    @property
    def has_strangers(self) -> bool:
        """Whether every pair has one: else a wrong match cannot be told from a right one."""
        return all(self._elsewhere(index).any() for index in range(len(self)))

    def _elsewhere(self, index: int) -> npt.NDArray[np.bool_]:
        numbers = self._place_numbers
        found = (numbers != numbers[index]) | (numbers.max() == 0)
        found[index] = False
        return np.asarray(found & ~self.meeting(index))

    @cached_property
    def _place_numbers(self) -> npt.NDArray[np.intp]:
        return np.unique(np.array(self.places), return_inverse=True)[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of every sample."""
        return self.augmentation.shape(self.size)

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """Return a pair as it is seen in one pass; a pure function of its arguments and the settings.

        Returns
        -------
        dict
            "sar" and "eo", tensors of float32 of shape (3, H, W) in [-1, 1]; "valid", the same of
            shape (1, H, W), 0 or 1; "id"; "index"; and what `facts` says, of the pair as it is stored:
            turning it does not change the orbit's direction there. Invalid pixels have the value of
            their nearest valid one.

        Raises
        ------
        IndexError
            For an index out of range.
        PairsError
            See `read`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index}: there are {len(self)} pairs")
        index %= len(self)
        pair = self._pair(index)
        return self._sample(index, pair, self.augmentation.place(epoch, index, _size(pair), self.size))

    def augmented(self, augmentation: Augmentation) -> PairsDataset:
        """Return the same pairs under another augmentation; pairs held in memory are shared."""
        other = copy(self)
        other.augmentation = augmentation
        return other

    def seen_by(self, card: ModelCard | PairsDataset) -> PairsDataset:
        """Return the same pairs with the channels of a card, or of other pairs, if they have them."""
        other = copy(self)
        if set(card.polarisations) <= set(self.polarisations):
            other.channels = card.channels
        return other

    def fixed_samples(self, index: int) -> Iterator[dict[str, Any]]:
        """Return the fixed crops of a pair, each in all orientations; in the order of `Place.variant`."""
        pair = self._pair(index)
        for crop in range(self.augmentation.variants(self.size)):
            for orientation in range(ORIENTATIONS):
                place = self.augmentation.fixed_place(index, crop, orientation, _size(pair), self.shape)
                yield self._sample(index, pair, place)

    def fingerprint(self) -> str:
        """Return a hash of the list of files, their sizes, and some of their bytes."""
        state = hashlib.sha256(repr((type(self).__name__, self.describe(), self.ids)).encode())
        few = set(np.linspace(0, len(self) - 1, min(_SAMPLED_FILES, len(self))).astype(int).tolist())
        for index in range(len(self)):
            for path in self.files(index):
                state.update(f"{path.name} {_stat_size(path)}\n".encode())
                if index in few:
                    with path.open("rb") as file:
                        state.update(file.read(_SAMPLED_BYTES))
        return state.hexdigest()

    def _pair(self, index: int) -> Pair:
        held = self._held
        if index in held.pairs:
            return held.pairs[index]
        pair = self.read(index)
        if any(side < least for side, least in zip(_size(pair), self.size, strict=True)):
            raise PairsError(
                f"{self.ids[index]}: {'x'.join(map(str, _size(pair)))} pixels, smaller than the others "
                f"({'x'.join(map(str, self.size))}): is it whole?"
            )
        if held.taken + pair.nbytes <= held.bound:
            held.pairs[index] = pair
            held.taken += pair.nbytes
        return pair

    def _sample(self, index: int, pair: Pair, place: Place) -> dict[str, Any]:
        rows = slice(place.row, place.row + place.shape[0])
        cols = slice(place.col, place.col + place.shape[1])
        valid = pair.valid[rows, cols]
        eo = pair.eo[:, rows, cols].astype(np.float32) / np.float32(127.5) - np.float32(1)
        sar = pair.sar[:, rows, cols]
        amplitude = to_amplitude(sar, pair.quantity) if pair.quantity else sar.astype(np.float32)
        if not valid.any():
            amplitude, eo = np.zeros_like(amplitude), np.zeros_like(eo)
        elif not valid.all():
            amplitude, eo = fill_invalid(amplitude, valid), fill_invalid(eo, valid)
        low, high = (np.asarray(values, np.float32) for values in (pair.low, pair.high))
        amplitude = (amplitude - low[:, None, None]) * np.float32(place.gain)
        scaled = to_model_range(amplitude, (high - low).tolist(), self.polarisations, self.channels)
        return {
            "sar": _tensor(scaled, place),
            "eo": _tensor(eo, place),
            "valid": _tensor(valid[None].astype(np.float32), place),
            "id": self.ids[index],
            "index": index,
            **self.facts(index),
        }


def _size(pair: Pair) -> tuple[int, int]:
    rows, cols = pair.eo.shape[1:]
    return rows, cols


def _stat_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise PairsError(f"{path}: cannot be read: {error.strerror}: is the folder complete?") from error


def _tensor(values: FloatArray, place: Place) -> Tensor:
    # A copy: turned views have negative strides, and repeated channels share memory.
    return torch.from_numpy(np.array(orient(values, place.orientation), order="C"))


class Raster(NamedTuple):
    """Values of shape (band, row, col), and where they are, of shape (row, col)."""

    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]


def raster(path: Path) -> Raster:
    """Read a GeoTIFF with its mask; a scale and an offset are applied.

    Raises
    ------
    PairsError
        If it cannot be read.
    """
    import rasterio
    from rasterio.errors import RasterioError

    # A chip has no sidecar files, and looking for some lists a folder of thousands each time.
    environment = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
    try:
        with environment, rasterio.open(path) as file:
            values, valid = file.read(), file.dataset_mask() > 0
            scales, offsets = file.scales, file.offsets
    except (RasterioError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: is the folder complete? ({_line(error)})") from error
    if any(scale != 1 for scale in scales) or any(offsets):
        values = values * _by_band(scales) + _by_band(offsets)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return Raster(values, valid)


def picture(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    """Read a PNG or JPEG as shape (band, row, col), of Pillow's `mode` (L or RGB).

    Raises
    ------
    PairsError
        If it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: is the folder complete? ({_line(error)})") from error
    return np.moveaxis(np.atleast_3d(values), -1, 0)


def _by_band(numbers: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.asarray(numbers, np.float32)[:, None, None]


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
