"""Common interface of the data sets: samples with SAR and EO in [-1, 1], validity, metadata."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo.datasets.augmentation import ORIENTATIONS, Augmentation, Place, orient
from sar2eo.datasets.loading import Samples
from sar2eo.errors import PairsError, one_line
from sar2eo.geo.radiometry import (
    choose_recorded,
    default_channels,
    fill_invalid,
    reference_amplitudes,
    to_amplitude,
    to_model_range,
)
from sar2eo.model.card import ModelCard

_CACHE_BYTES = 512 * 2**20
_SAMPLED_FILES, _SAMPLED_BYTES = 32, 65536

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """SAR and EO image as stored in their files.

    `sar` has shape (polarisation, row, col) and values of the unit `quantity` (see `sar2eo.geo.radiometry`;
    None: no conversion); `eo` has shape (3, row, col). `valid` says where both are. `low` and `high` are the
    amplitudes that become -1 and 1, one for each polarisation.
    """

    sar: npt.NDArray[Any]
    eo: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    low: tuple[float, ...]
    high: tuple[float, ...]
    quantity: str | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self.sar.nbytes + self.eo.nbytes + self.valid.nbytes


@dataclass
class _PairCache:
    """Pairs in memory, up to a limit in bytes; each process has its own.

    Nothing is evicted: in a random order, recent pairs are no more likely to be needed again.
    """

    limit: int = _CACHE_BYTES
    used: int = 0
    pairs: dict[int, Pair] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "used": 0, "pairs": {}}


class PairsDataset(Samples):
    """Pairs of SAR and EO images.

    Files are opened for each sample, so a data set can be pickled for other processes.

    Parameters
    ----------
    ids : sequence of str
        Unique names of the pairs.
    size : tuple of int
        Minimum rows and columns of all images.
    polarisations : sequence of str
        Polarisations of the SAR bands, in their order.
    quantity, calibration : str
        Radiometry for the card of a model trained on them (see `sar2eo.geo.radiometry`).
    gsd_m : float or None
        Ground sample distance in true ground metres.
    scaling : {"p99", "db"} or float
        What amplitude is divided by, as in a card (see `sar2eo.model.card.ModelCard`).
    augmentation : Augmentation
        Crop, flips, turns and gain of the samples.
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
        scaling: Literal["p99", "db"] | float = "p99",
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
        self._cache = _PairCache()

    @abstractmethod
    def read(self, index: int) -> Pair:
        """Read a pair from its files; missing or broken ones raise `PairsError`."""

    @abstractmethod
    def describe(self) -> str:
        """Describe the pairs in one line, for the card of a model trained on them."""

    @abstractmethod
    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files of the SAR and the EO image."""

    def facts(self, index: int) -> dict[str, Any]:
        """Return metadata of a pair, as plain values."""
        return {}

    @property
    def places(self) -> tuple[str, ...]:
        """Name of each pair's place; pairs of one place may show the same ground on other dates."""
        return self.ids

    def overlapping(self, index: int) -> npt.NDArray[np.bool_]:
        """Return which pairs are known to overlap pair `index` on the ground, bool, shape (pairs,)."""
        return np.zeros(len(self), bool)

    def strangers(self, index: int) -> list[int]:
        """List the pairs of other places, or else without overlap, beginning half the data set away."""
        order = (index + len(self) // 2 + np.arange(len(self))) % len(self)
        return [int(other) for other in order[self._elsewhere(index)[order]]]

    def apart(self, index: int, other: int) -> bool:
        """Return whether two pairs show different ground; see `strangers`."""
        return bool(self._elsewhere(index)[other])

    @property
    def has_strangers(self) -> bool:
        """Whether every pair has a stranger; otherwise wrong matches cannot be tested."""
        return all(self._elsewhere(index).any() for index in range(len(self)))

    def _elsewhere(self, index: int) -> npt.NDArray[np.bool_]:
        numbers = self._place_numbers
        found = (numbers != numbers[index]) | (numbers.max() == 0)  # a single place: all others
        found[index] = False
        return np.asarray(found & ~self.overlapping(index))

    @cached_property
    def _place_numbers(self) -> npt.NDArray[np.intp]:
        return np.unique(np.array(self.places), return_inverse=True)[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of every sample."""
        return self.augmentation.shape(self.size)

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """Return a pair as augmented in one epoch; a pure function of its arguments and the settings.

        Returns
        -------
        dict
            "sar" and "eo": float32 tensors of shape (3, H, W) in [-1, 1]; "valid": float32 tensor of shape
            (1, H, W), 0 or 1; "id"; "index"; and `facts` of the pair as stored (the orbit direction does not
            turn with the image). Invalid pixels have the value of the nearest valid one.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index}: there are {len(self)} pairs")
        index %= len(self)
        pair = self._pair(index)
        return self._sample(index, pair, self.augmentation.place(epoch, index, _size(pair), self.size))

    def with_augmentation(self, augmentation: Augmentation) -> PairsDataset:
        """Return the same pairs with another augmentation; pairs in memory are shared."""
        other = copy(self)
        other.augmentation = augmentation
        return other

    def with_channels_of(self, card: ModelCard | PairsDataset) -> PairsDataset:
        """Return the same pairs with the channels of a card or of other pairs, if they have them.

        For models of dB also with their scaling.
        """
        other = copy(self)
        if card.scaling == "db":
            other.scaling = "db"
            other.channels = choose_recorded(self.polarisations, card.polarisations, card.channels)[1]
        elif set(card.polarisations) <= set(self.polarisations):
            other.channels = card.channels
        return other

    def fixed_samples(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the fixed crops of a pair, each in 8 orientations, in the order of `Place.variant`."""
        pair = self._pair(index)
        for crop in range(self.augmentation.variants(self.size)):
            for orientation in range(ORIENTATIONS):
                place = self.augmentation.fixed_place(index, crop, orientation, _size(pair), self.shape)
                yield self._sample(index, pair, place)

    def fingerprint(self) -> str:
        """Hash the names and sizes of all files, and the first bytes of some."""
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
        cache = self._cache
        if index in cache.pairs:
            return cache.pairs[index]
        pair = self.read(index)
        if any(side < least for side, least in zip(_size(pair), self.size, strict=True)):
            raise PairsError(
                f"{self.ids[index]}: {'x'.join(map(str, _size(pair)))} pixels, smaller than the others "
                f"({'x'.join(map(str, self.size))}): is the file complete?"
            )
        if cache.used + pair.nbytes <= cache.limit:
            cache.pairs[index] = pair
            cache.used += pair.nbytes
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
        divisors, decibels = (high - low).tolist(), self.scaling == "db"
        if decibels:
            divisors = reference_amplitudes(
                divisors,
                self.polarisations,
                quantity=pair.quantity or "dn",
                calibration=self.calibration,
                stored_as="bytes" if pair.sar.dtype == np.uint8 else None,
            )
        scaled = to_model_range(amplitude, divisors, self.polarisations, self.channels, decibels=decibels)
        return {
            "sar": _to_tensor(scaled, place),
            "eo": _to_tensor(eo, place),
            "valid": _to_tensor(valid[None].astype(np.float32), place),
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


def _to_tensor(values: FloatArray, place: Place) -> Tensor:
    # A copy: turned views have negative strides, and repeated channels share memory.
    return torch.from_numpy(np.array(orient(values, place.orientation), order="C"))


def read_raster(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read the values (band, row, col) and validity (row, col) of a GeoTIFF; scale and offset are applied."""
    import rasterio
    from rasterio.errors import RasterioError

    # Chips have no sidecar files; looking for them would list a folder of thousands each time.
    environment = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
    try:
        with environment, rasterio.open(path) as file:
            values, valid = file.read(), file.dataset_mask() > 0
            scales, offsets = file.scales, file.offsets
    except (RasterioError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: is the folder complete? ({one_line(error)})") from error
    if any(scale != 1 for scale in scales) or any(offsets):
        scale, offset = (np.asarray(numbers, np.float32)[:, None, None] for numbers in (scales, offsets))
        values = values * scale + offset
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return values, valid


def read_picture(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    """Read a PNG or JPEG in Pillow's `mode` ("L" or "RGB"), shape (band, row, col)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: is the folder complete? ({one_line(error)})") from error
    return np.moveaxis(np.atleast_3d(values), -1, 0)
