"""SAR values to amplitude and to the model's range, and polarisations to three channels.

What a checkpoint expects stands in its card. Here are the formulas. Amplitude is ``A = DN``, ``A = sqrt(I)``
of intensity, or ``A = 10^(dB / 20)``. Each polarisation is divided by one number D for the whole scene: ``x =
2 clip(A / D, 0, 1) - 1``, in [-1, 1]. With the scene's own 99th percentile as D, a constant factor does not
matter, so digital numbers and calibrated amplitude of one scene agree. Models of dB take
``x = clip(20 log10(A / D) / 30, -1, 1)``, where D is a usual level of backscatter, the same for all scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PolarisationError, RadiometryError
from sar2eo.geo.windows import Window
from sar2eo.settings.vocabulary import Calibration, Polarisation, Quantity

Channels = tuple[tuple[str, ...], ...]
"""Three channels, each the mean of the polarisations it names."""

QUANTITIES: tuple[str, ...] = get_args(Quantity)
CALIBRATIONS: tuple[str, ...] = get_args(Calibration)
POLARISATIONS: tuple[str, ...] = get_args(Polarisation)

REFERENCE_DB = {"VV": -10.0, "HH": -10.0, "VH": -16.0, "HV": -16.0}
"""A usual sigma0 of land in C band, by polarisation, in dB; it is 0 for models of dB."""

RANGE_DB = 30.0
"""Most dB above and below the reference that models of dB see."""

FloatArray = npt.NDArray[np.float32]

_BRIGHT_DB = 9.0  # of a scene's 99th percentile, above the reference
_PLAUSIBLE_DB = (-8.0, 25.0)  # of the same: open sea, and a city full of corners
_DN_OF_SIGMA0 = 330.0  # of Sentinel-1 GRD: digital number for a sigma0 of 1, amid the swath
_BETA0_OF_SIGMA0 = 1.28  # amplitude, at 38 degrees of incidence

_READERS = 4
_STRATA, _SAMPLED_PX = 16, 256
_ENOUGH = 1 << 22  # valid pixels, of some 64 windows: a quarter of what a sample of a full scene holds


def to_amplitude(values: npt.ArrayLike, quantity: str) -> FloatArray:
    """Convert SAR values to amplitude, which is linear and known up to a constant factor.

    Parameters
    ----------
    values : array_like
        Any shape. NaN is nodata and stays NaN.
    quantity : {"dn", "amplitude", "intensity", "db"}
        dn and amplitude stay as they are, intensity becomes its square root, dB becomes ``10^(dB / 20)``.

    Returns
    -------
    ndarray of float32, shape of `values`
        Negative dn, amplitude and intensity (which noise subtraction leaves) become 0.

    Raises
    ------
    RadiometryError
        For another quantity.
    """
    array = np.asarray(values, dtype=np.float32)
    match quantity:
        case "dn" | "amplitude":
            return np.maximum(array, np.float32(0))
        case "intensity":
            return np.sqrt(np.maximum(array, np.float32(0)))
        case "db":
            decades: FloatArray = np.power(np.float32(10), array * np.float32(0.05))
            return decades
        case _:
            raise RadiometryError(f"quantity={quantity!r}: must be one of {', '.join(QUANTITIES)}")


def default_channels(polarisations: Sequence[str]) -> Channels:
    """Choose the polarisations of the model's three channels.

    One polarisation is repeated three times. Two become co, cross, and their mean. Three stand for
    themselves. Four become HH, mean(HV, VH), VV (C-DiffSET, section 3.2).

    Raises
    ------
    PolarisationError
        For none, more than four, repeated or unknown polarisations.
    """
    names = tuple(polarisations)
    if not 1 <= len(names) <= 4 or len(set(names)) != len(names) or not set(names) <= set(POLARISATIONS):
        raise PolarisationError(
            f"polarisations={','.join(names) or 'none'}: must be one to four different ones "
            f"of {', '.join(POLARISATIONS)}"
        )
    if len(names) == 4:
        return (("HH",), ("HV", "VH"), ("VV",))
    if len(names) == 2:
        first, second = sorted(names, key=lambda name: name[0] != name[1])
        return ((first,), (second,), (first, second))
    if len(names) == 1:
        return (names,) * 3
    return tuple((name,) for name in names)


def nearest_polarisation(wanted: str, names: Sequence[str]) -> str:
    """Return the polarisation itself, else the first of its kind (co or cross) in `names`, else the first."""
    crossed = wanted[0] != wanted[1]
    return min(names, key=lambda name: (name != wanted, (name[0] != name[1]) != crossed))


def choose_recorded(
    found: Sequence[str], polarisations: Sequence[str], channels: Channels
) -> tuple[tuple[str, ...], Channels]:
    """Choose, for a model that makes do with some of its polarisations, those of their kinds that are there.

    Parameters
    ----------
    found : sequence of str
        Polarisations of the scene.
    polarisations : sequence of str
        Those that the model knows.
    channels : tuple of tuple of str
        Those that each of the model's channels averages.

    Returns
    -------
    polarisations : tuple of str
        Of the scene.
    channels : tuple of tuple of str
        Of the scene's; empty where nothing of the kind was recorded.

    Raises
    ------
    PolarisationError
        If nothing of any kind was.
    """
    linear = [name for name in found if name in REFERENCE_DB]
    nearest = {name: nearest_polarisation(name, linear) for name in polarisations if linear}
    used = {name: other for name, other in nearest.items() if (name[0] == name[1]) == (other[0] == other[1])}
    if not used:
        raise PolarisationError(
            f"the scene has {', '.join(found)}, the model takes {', '.join(polarisations)}, or one of them"
        )
    chosen = tuple(tuple(used[name] for name in names if name in used) for names in channels)
    return tuple(dict.fromkeys(used.values())), chosen


def to_model_range(
    amplitude: FloatArray,
    divisors: Sequence[float],
    polarisations: Sequence[str],
    channels: Channels,
    *,
    decibels: bool = False,
) -> FloatArray:
    """Scale amplitude to [-1, 1] and mix polarisations into three channels.

    Parameters
    ----------
    amplitude : ndarray of float32, shape (polarisation, row, col)
        Without NaN.
    divisors : sequence of float
        One positive amplitude per polarisation: ``x = 2 clip(amplitude / divisor, 0, 1) - 1``.
    polarisations : sequence of str
        Names of the first axis.
    channels : tuple of tuple of str
        Polarisations whose scaled values each channel averages; a channel of none is -1.
    decibels : bool
        ``x = clip(20 log10(amplitude / divisor) / 30, -1, 1)`` instead.

    Returns
    -------
    ndarray of float32, shape (3, row, col)
        In [-1, 1]; read-only where the channels are one polarisation repeated.
    """
    scaled = amplitude / np.asarray(divisors, dtype=np.float32)[:, None, None]
    if decibels:
        np.clip(scaled, 10 ** (-RANGE_DB / 20), 10 ** (RANGE_DB / 20), out=scaled)
        np.log10(scaled, out=scaled)
        scaled *= np.float32(20 / RANGE_DB)
        np.clip(scaled, -1, 1, out=scaled)
    else:
        np.clip(scaled, 0, 1, out=scaled)
        scaled *= np.float32(2)
        scaled -= np.float32(1)
    order = list(polarisations)
    # Without copies where a channel is one polarisation, or all channels are the same.
    mixed: dict[tuple[str, ...], FloatArray] = {
        names: scaled[order.index(names[0])]
        if len(names) == 1
        else np.mean([scaled[order.index(name)] for name in names], axis=0)
        for names in channels
        if names
    }
    if () in channels:
        mixed[()] = np.full(scaled.shape[1:], -1, np.float32)
    if len(mixed) == 1:
        return np.broadcast_to(mixed[channels[0]], (len(channels), *scaled.shape[1:]))
    return np.stack([mixed[names] for names in channels])


def fill_invalid(values: FloatArray, valid: npt.NDArray[np.bool_]) -> FloatArray:
    """Give every invalid pixel the value of its nearest valid one.

    Parameters
    ----------
    values : ndarray of float32, shape (band, row, col)
        Anything where invalid.
    valid : ndarray of bool, shape (row, col)
        With at least one valid pixel.
    """
    from scipy.ndimage import distance_transform_edt

    # The nearest valid pixel of an invalid one lies beside an invalid one: the rest need not be searched.
    rows, cols = _around_invalid(valid, 0), _around_invalid(valid, 1)
    nearest = distance_transform_edt(~valid[rows, cols], return_distances=False, return_indices=True)
    filled = values.copy()
    filled[:, rows, cols] = values[:, rows, cols][:, nearest[0], nearest[1]]
    return filled


def _around_invalid(valid: npt.NDArray[np.bool_], axis: int) -> slice:
    """Return the slice of an axis from one before the first invalid pixel to one after the last."""
    places = np.flatnonzero(~valid.all(axis=1 - axis))
    return slice(0, 0) if places.size == 0 else slice(max(0, int(places[0]) - 1), int(places[-1]) + 2)


def to_eo_bytes(image: FloatArray) -> npt.NDArray[np.uint8]:
    """Map an image from [-1, 1] to bytes: ``(x + 1) * 127.5``, rounded to nearest and clipped to 0..255."""
    out = np.empty(image.shape, np.uint8)
    scaled = np.empty(image.shape[1:], np.float32)
    # Part by part: what lies between stays small.
    for i, part in enumerate(image):
        np.add(part, np.float32(1), out=scaled)
        np.multiply(scaled, np.float32(127.5), out=scaled)
        np.rint(scaled, out=scaled)
        out[i] = np.clip(scaled, 0, 255, out=scaled)
    return out


def sample_windows(
    shape: tuple[int, int], *, seed: int = 2025, strata: int = _STRATA, size: int = _SAMPLED_PX
) -> list[Window]:
    """Draw one window from every cell of a regular partition of a scene.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the scene.
    seed : int
        Of the places within the cells.
    strata : int
        Most cells along each axis; small scenes have fewer and are sampled whole.
    size : int
        Most rows and columns of a window, in pixels.
    """
    draw = np.random.Generator(np.random.Philox(seed))
    edges = [np.linspace(0, n, min(strata, -(-n // size)) + 1).astype(int).tolist() for n in shape]
    found = []
    for top, bottom in zip(edges[0], edges[0][1:], strict=False):
        for left, right in zip(edges[1], edges[1][1:], strict=False):
            height, width = min(size, bottom - top), min(size, right - left)
            row = int(draw.integers(top, bottom - height + 1))
            col = int(draw.integers(left, right - width + 1))
            found.append(Window(row, col, height, width))
    return found


def sample_percentiles(
    read: Callable[[Window], FloatArray],
    shape: tuple[int, int],
    *,
    percentile: float = 99.0,
    seed: int = 2025,
) -> tuple[float, ...]:
    """Estimate a percentile of the valid amplitude of each polarisation, from full-resolution blocks.

    Never from overviews: averaging overviews pull high percentiles down.

    Parameters
    ----------
    read : callable
        Takes a window and returns amplitude, shape (polarisation, row, col), NaN where there is no data.
    shape : tuple of int
        Rows and columns of the scene.
    percentile : float
        In percent.
    seed : int
        Of the sampled places.

    Raises
    ------
    RadiometryError
        If a polarisation has no valid pixel, or its percentile is not positive.
    """
    values = _valid_samples(read, sample_windows(shape, seed=seed))
    for windows in _more_windows(shape, seed):
        # A few valid windows do not speak for a scene. Such bands are nearly empty: more fit into memory.
        few = [band for band, v in enumerate(values) if v.size < _ENOUGH]
        if not few:
            break
        for band, found in zip(few, _valid_samples(partial(_bands, read, few), windows), strict=True):
            values[band] = found
    empty = [band for band, v in enumerate(values) if v.size == 0]
    if empty:
        rows = [Window(r, 0, min(512, shape[0] - r), shape[1]) for r in range(0, shape[0], 512)]
        for band, found in zip(empty, _valid_samples(partial(_bands, read, empty), rows), strict=True):
            values[band] = found
    if any(v.size == 0 for v in values):
        raise RadiometryError("the scene has no valid pixel: is --nodata right?")
    return compute_percentiles(values, percentile=percentile)


def compute_percentiles(values: Sequence[FloatArray], *, percentile: float = 99.0) -> tuple[float, ...]:
    """Compute a percentile of each polarisation's sample.

    Parameters
    ----------
    values : sequence of ndarray of float32
        Finite amplitudes, none of them empty. They are reordered in place.
    percentile : float
        In percent.

    Raises
    ------
    RadiometryError
        If one is not positive.
    """
    found = tuple(float(np.percentile(v, percentile, overwrite_input=True)) for v in values)
    if not all(np.isfinite(p) and p > 0 for p in found):
        raise RadiometryError(
            f"the {percentile:g}th percentile of amplitude is {', '.join(f'{p:g}' for p in found)}, so the "
            "scene cannot be scaled: is --quantity right, or is the scene empty?"
        )
    return found


def reference_amplitudes(
    percentiles: Sequence[float],
    polarisations: Sequence[str],
    *,
    quantity: str,
    calibration: str | None = None,
    stored_as: str | None = None,
) -> tuple[float, ...]:
    """Return the amplitude of the reference level of each polarisation, for models of dB.

    Values that are calibrated need no more than that; digital numbers are taken for those of Sentinel-1,
    bytes for a picture whose 99th percentile is 255. So a place has one level, whatever part of a scene is
    seen. Only where the scene's percentile says that this is not so, the percentile itself decides.

    Parameters
    ----------
    percentiles : sequence of float
        99th percentiles of amplitude, one for each polarisation.
    polarisations : sequence of str
    quantity, calibration : str
        Of the scene.
    stored_as : str or None
        "bytes" for digital numbers of 8 bits.
    """
    bright = 10 ** (_BRIGHT_DB / 20)
    found = []
    for name, percentile in zip(polarisations, percentiles, strict=True):
        level = 10 ** (REFERENCE_DB[name] / 20)
        if quantity == "dn":
            level = 255 / bright if stored_as == "bytes" else level * _DN_OF_SIGMA0
        elif calibration == "beta0":
            level *= _BETA0_OF_SIGMA0
        above = 20 * np.log10(percentile / level)
        found.append(level if _PLAUSIBLE_DB[0] <= above <= _PLAUSIBLE_DB[1] else percentile / bright)
    return tuple(found)


def _more_windows(shape: tuple[int, int], seed: int) -> Iterator[list[Window]]:
    """Yield finer samples than that of `sample_windows`, until one would hold the whole scene."""
    for strata in (2 * _STRATA, 4 * _STRATA):
        if max(shape) <= strata // 2 * _SAMPLED_PX:
            return
        yield sample_windows(shape, seed=seed, strata=strata)


def _bands(read: Callable[[Window], FloatArray], bands: list[int], window: Window) -> FloatArray:
    return read(window)[bands]


def _valid_samples(read: Callable[[Window], FloatArray], windows: list[Window]) -> list[FloatArray]:
    """Read the finite values of every polarisation, in parallel since reading waits and decodes."""

    def valid(window: Window) -> list[FloatArray]:
        return [values[np.isfinite(values)] for values in read(window)]

    with ThreadPoolExecutor(_READERS) as pool:
        blocks = list(pool.map(valid, windows))
    parts = [list(kept) for kept in zip(*blocks, strict=True)]
    del blocks
    return [_concatenate(kept) for kept in parts]


def _concatenate(parts: list[FloatArray]) -> FloatArray:
    """Concatenate arrays and free the parts one by one: a sample is large, and is not held twice."""
    joined = np.empty(sum(part.size for part in parts), np.float32)
    end = joined.size
    while parts:
        part = parts.pop()
        joined[end - part.size : end] = part
        end -= part.size
    return joined
