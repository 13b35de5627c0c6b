"""What a sample of a scene's values says: undeclared fill, the quantity, and whether they are radar.

The sample is drawn from the whole scene at full resolution, so that every region of it is read alike.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sar2eo.errors import RadiometryError, RadiometryWarning, SceneError, refuse_misfit
from sar2eo.geo.radiometry import QUANTITIES, sample_windows
from sar2eo.geo.windows import Window
from sar2eo.scenes.metadata import Facts, fall_back_on_written
from sar2eo.scenes.raster import OpenedSource, Raster, RasterReader, decode
from sar2eo.scenes.reader import BoolArray, FloatArray

_SIDE = 64  # rows and columns of a window
_ALONG, _FEW = 5, 3  # windows along each side of a scene
_INNER, _FINER = 4, 32  # windows inside of it, along either axis
_READERS = 4
_UNSIGNED = ("bytes", "unsigned")
_DB_RANGE = (-100.0, 100.0)  # 96.3 are those of the digital number 65535

_LEAST = 16  # rows and columns of a scene, in fewer of which a constant says nothing
# Of a window: the least share of it that a region of fill covers.
_REGION = 1 / 8
# In a region of fill nothing else stands; in a dark sea, clipped to one value, something does.
_HOLES = 5e-4
# A value that is fill, and stands by itself in so large a share of the rest, may be a measurement there.
_SCATTERED = 0.01
_FILL = 0.001
# Of the variance of a scene, what neighbouring pixels differ by: speckle, even of many looks, has more.
_SMOOTH = 2e-3
_EQUAL = 0.97  # share of neighbours that are alike in classes and masks
_PARTS = ({"i", "q"}, {"real", "imag"}, {"real", "imaginary"}, {"re", "im"})


@dataclass(frozen=True)
class _Sample:
    """Windows of one band."""

    stored: list[npt.NDArray[Any]]  # as they are stored
    valid: list[BoolArray]
    border: list[BoolArray]  # pixels on the scene's border

    def decoded(self, reader: RasterReader, number: int) -> list[FloatArray]:
        """Return the values of the windows, NaN where there is no data."""
        band = reader.bands[number]
        pairs = zip(self.stored, self.valid, strict=True)
        return [
            decode(stored, valid if band.fill is None else valid & (stored != band.fill), band)
            for stored, valid in pairs
        ]


def look_at_values(opened: OpenedSource, given: Facts, *, keep: bool, force: bool) -> OpenedSource:
    """Mask fill that no header declares, and complete the facts by what the caller says and by the values.

    Parameters
    ----------
    opened : OpenedSource
    given : Facts
        What the caller says, which goes before what the source says.
    keep : bool
        Whether fill stays as it is.
    force : bool
        Warn of what is said, and contradicts the values, instead of refusing it.

    Raises
    ------
    RadiometryError
        If the quantity is not known, or contradicts the values, or a constant may be fill or not.
    SceneError
        If bands named by the caller alone are no radar.
    """
    reader, label, kind, said = opened.reader, opened.label, opened.kind, opened.facts.quantity
    facts = fall_back_on_written(given.over(opened.facts), label)
    if kind == "complex" and given.quantity not in (None, "amplitude"):
        raise RadiometryError(f"{label}: complex samples are read as amplitude, not {given.quantity}")
    if opened.plain:
        assert isinstance(reader, RasterReader)  # noqa: S101
        if opened.unapplied:
            _doubt(
                f"{label}: tags state a scale or an offset that GDAL does not apply: open what "
                f"gdal_translate -of VRT {opened.unapplied} IN OUT.vrt makes",
                force,
            )
        known = kind == "complex" or (kind in _UNSIGNED and facts.quantity != "db")
        samples: list[_Sample] = []
        if not (known and keep and not opened.unnamed):
            few = known and not opened.unnamed
            samples = _read(reader, _border(reader, _FEW) if few else _all(reader))
            if few and any(_find_regions(sample) for sample in samples):
                samples = _read(reader, _all(reader))
        reader = reader if keep else _mask_fill(reader, samples, label)
        if kind == "complex":
            quantity = "amplitude"
        elif known:
            quantity = facts.quantity or "dn"
        else:
            values = _draw_values(reader, samples, label)
            quantity = _determine_quantity(values, kind, given.quantity, said, label, force=force)
        if opened.unnamed and kind != "complex":
            _check_radar(reader, samples, label, force=force)
        facts = replace(facts, quantity=quantity)
    elif given.quantity in ("intensity", "db"):
        _doubt(f"{label}: a product of {said}, and not of {given.quantity}", force)
    if facts.calibration is None and facts.quantity == "dn":
        facts = replace(facts, calibration="none")
    return replace(opened, reader=reader, facts=facts)


def _doubt(message: str, force: bool, error: type[SceneError] = RadiometryError) -> None:
    refuse_misfit(message, error, verb="reads it", force=force)


def _border(reader: RasterReader, along: int) -> list[Window]:
    """Return windows along the border of a scene, each in one storage block where blocks are usual."""
    high, wide = sides = [min(_SIDE, size) for size in reader.grid.shape]
    down, across = (
        [int(at) // _SIDE * _SIDE for at in np.linspace(0, size - side, along)[:-1]] + [size - side]
        for size, side in zip(reader.grid.shape, sides, strict=True)
    )
    places = [(row, col) for row in (0, down[-1]) for col in across]
    places += [(row, col) for row in down for col in (0, across[-1])]
    return [Window(row, col, high, wide) for row, col in dict.fromkeys(places)]


def _all(reader: RasterReader) -> list[Window]:
    return _border(reader, _ALONG) + sample_windows(reader.grid.shape, strata=_INNER, size=_SIDE)


def _read(reader: RasterReader, windows: list[Window]) -> list[_Sample]:
    samples = [_Sample([], [], []) for _ in reader.bands]
    rows, cols = reader.grid.shape
    # In parallel since reading waits and decodes.
    with ThreadPoolExecutor(_READERS) as pool:
        blocks = pool.map(lambda window: list(reader.read_stored(window)), windows)
        for window, bands in zip(windows, blocks, strict=True):
            row, col = np.ogrid[window.slices]
            border = (row == 0) | (row == rows - 1) | (col == 0) | (col == cols - 1)
            for i, stored, valid in bands:
                finite = valid & np.isfinite(stored)
                for kept, new in zip(vars(samples[i]).values(), (stored, finite, border), strict=True):
                    kept.append(new)
    return samples


def _mask_fill(reader: RasterReader, samples: list[_Sample], label: str) -> RasterReader:
    """Take a constant that fills a scene from its border inwards for no data, in each band, and say so.

    Raises
    ------
    RadiometryError
        If the constant also stands alone between other values, where it may be a measurement.
    """
    if min(reader.grid.shape) < _LEAST:
        return reader
    found = [_find_fill(reader, sample, i, label) for i, sample in enumerate(samples)]
    if all(fill is None for fill in found):
        return reader
    named = ", ".join(dict.fromkeys(f"{fill:g}" for fill in found if fill is not None))
    warnings.warn(
        f"{label}: {named} fills it from the border inwards, and is taken for no data, which the file does "
        "not say (--nodata none keeps it)",
        RadiometryWarning,
        stacklevel=4,
    )
    bands = [replace(band, fill=fill) for band, fill in zip(reader.bands, found, strict=True)]
    return replace(reader, bands=tuple(bands))


def _find_regions(sample: _Sample) -> list[float]:
    """Return the values that fill regions from the border inwards without a hole, the largest first."""
    regions: Counter[float] = Counter()
    holes: Counter[float] = Counter()
    for stored, valid, border in zip(sample.stored, sample.valid, sample.border, strict=True):
        # Declared nodata may lie between the border and the fill.
        outer = valid & (border if valid.all() else border | ndimage.binary_dilation(~valid))
        values, counts = np.unique(stored[outer], return_counts=True)
        value = values[counts.argmax()] if values.size else None
        if value is None or np.iscomplex(value):
            continue
        parts, _ = ndimage.label(valid & (stored == value))
        region = np.isin(parts, np.unique(parts[outer & (parts > 0)]))
        if region.sum() >= _REGION * region.size:
            regions[float(value.real)] += int(region.sum())
            holes[float(value.real)] += int(ndimage.binary_fill_holes(region).sum() - region.sum())
    return [value for value, size in regions.most_common() if holes[value] <= _HOLES * size]


def _find_fill(reader: RasterReader, sample: _Sample, number: int, label: str) -> float | None:
    """Return the value of undeclared fill, None where there is none."""
    solid = _find_regions(sample)
    if not solid:
        return None
    fill = solid[0]
    alone = other = 0
    for stored, valid in zip(sample.stored, sample.valid, strict=True):
        same = valid & (stored == fill)
        alone += int((same & ~ndimage.binary_opening(same, np.ones((2, 2)))).sum())
        other += int((valid & ~same).sum())
    if other == 0:  # a small scene in a large frame, or a scene of one value
        (finer,) = _read(replace(reader, bands=(reader.bands[number],)), _finer(reader))
        pairs = zip(finer.stored, finer.valid, strict=True)
        return fill if any((valid & (stored != fill)).any() for stored, valid in pairs) else None
    if alone > _SCATTERED * other:
        raise RadiometryError(
            f"{label}: {fill:g} fills it from the border inwards, and also stands between other values: give "
            f"--nodata {fill:g} if it means no data there too, or --nodata none if it is measured"
        )
    return fill


def _check_radar(reader: RasterReader, samples: list[_Sample], label: str, *, force: bool) -> None:
    """Refuse values without speckle, as DEMs, angles and masks have; with `force`, warn.

    Raises
    ------
    SceneError
        If neighbouring pixels hardly differ.
    """
    for i, sample in enumerate(samples):
        blocks = sample.decoded(reader, i)
        steps = _valid(np.diff(block, axis=1) for block in blocks)
        values = _valid(blocks)
        if steps.size < _SIDE**2:
            continue
        smooth = np.mean(steps**2, dtype=float) / 2 <= _SMOOTH * values.var(dtype=float)
        if smooth or np.mean(steps == 0) > _EQUAL:
            _doubt(
                f"{label}: named {reader.polarisations[i]}, but its values, {values.min():g} to "
                f"{values.max():g}, hardly change from pixel to pixel, as in a DEM, an angle or a mask",
                force,
                SceneError,
            )


def looks_like_parts(raster: Raster) -> bool:
    """Whether two bands are the real and imaginary parts of complex samples, by their names or values."""
    if len(raster.bands) != 2 or raster.names is not None or raster.kind not in ("signed", "float"):
        return False
    words = {word for text in raster.texts for word in re.split(r"[^a-z]+", text.lower())}
    if any(pair <= words for pair in _PARTS):
        return True
    reader = RasterReader(raster.bands, ("I", "Q"), raster.grid, raster.block_shape, raster.files)
    bands = [_valid(sample.decoded(reader, i)) for i, sample in enumerate(_read(reader, _all(reader)))]
    return all(v.size > 1 and abs(v.mean()) < 0.1 * v.std() and 0.3 < np.mean(v < 0) < 0.7 for v in bands)


def _finer(reader: RasterReader) -> list[Window]:
    return sample_windows(reader.grid.shape, strata=_FINER, size=_SIDE)


def _draw_values(reader: RasterReader, samples: list[_Sample], label: str) -> FloatArray:
    """Return the valid values of a sample, or of a finer one while all is nodata; none where all is."""
    for found in (samples, None):
        drawn = _read(reader, _finer(reader)) if found is None else found
        values = _valid(block for i, sample in enumerate(drawn) for block in sample.decoded(reader, i))
        if values.size:
            break
    return values


def _determine_quantity(
    values: FloatArray, kind: str, given: str | None, said: str | None, label: str, *, force: bool
) -> str:
    """Determine the quantity, and weigh what the caller or the metadata say of it against the values.

    Numbers are dB if most are negative and all lie within the range of dB, and signed integers without a
    negative one are dn.
    """
    stated = given or said
    if not values.size:
        if given:
            return given
        raise RadiometryError(
            f"{label}: no valid pixel found to determine the quantity from; {_ask(QUANTITIES)}"
        )
    shown = f"{label}: values from {values.min():g} to {values.max():g}"
    if stated is not None:
        truth = _contradict(stated, values, kind)
        if truth:
            who = "which is stated" if given else "which the metadata say"
            _doubt(f"{shown} do not look like {stated}, {who}: {truth}", force)
        elif not given:
            _check_zeros(stated, values, label)
        return stated
    if _mostly_negative(values) and not _contradict("db", values, kind):
        return _check_zeros("db", values, label)
    if kind == "signed" and values.min() >= 0:
        return "dn"
    possible = [quantity for quantity in QUANTITIES if not _contradict(quantity, values, kind)]
    if possible:
        raise RadiometryError(f"{shown} may be {' or '.join(possible)}; {_ask(possible)}")
    raise RadiometryError(f"{shown}: {_contradict('dn', values, kind)}")


def _valid(blocks: Iterable[FloatArray]) -> FloatArray:
    return np.concatenate([block[np.isfinite(block)] for block in blocks])


def _ask(quantities: Iterable[str]) -> str:
    return f"say what they are with --quantity {'|'.join(quantities)}"


def _contradict(quantity: str, values: FloatArray, kind: str) -> str | None:
    """Say what values look like that cannot be of a quantity; None where they can."""
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    in_range = _DB_RANGE[0] <= low and high <= _DB_RANGE[1]
    if quantity != "db" and not _mostly_negative(values):
        rest = values[values != low]
        if low < _DB_RANGE[0] and rest.size < values.size - 1 and (rest >= 0).all():
            return f"if {low:g} means nodata, give --nodata {low:g}"
        return None
    if _mostly_negative(values):
        for factor in (10, 100):
            if not in_range and middle < _DB_RANGE[0] / 2 and _is_db(values / np.float32(factor)):
                return (
                    f"they look like dB times {factor}: open what gdal_translate -of VRT -a_scale "
                    f"{1 / factor:g} IN OUT.vrt makes"
                )
        if in_range:
            return None if quantity == "db" else "most are negative, they look like dB: --quantity db"
        # One value outside of what all others are in.
        for extreme in (low, high):
            rest = values[values != extreme]
            if rest.size and rest.size < values.size - 1 and _is_db(rest):
                return f"if {extreme:g} means nodata, give --nodata {extreme:g}"
        return "most are negative, and dB of radar lie within -100 to 100"
    if kind in _UNSIGNED:
        return "they are unsigned integers without GDAL scale and offset: --quantity dn"
    if not in_range:
        return "dB of radar lie within -100 to 100: --quantity dn|amplitude|intensity"
    if low >= 0 and middle < 5:
        return "none is negative, as intensity or amplitude: --quantity intensity|amplitude"
    return None


def _mostly_negative(values: FloatArray) -> bool:
    # Undeclared fill is often exactly 0, and says nothing about the rest.
    real = values[values != 0]
    return bool(real.size) and float(np.mean(real < 0)) > 0.5


def _is_db(values: FloatArray) -> bool:
    return bool(_DB_RANGE[0] <= values.min() and values.max() <= _DB_RANGE[1])


def _check_zeros(quantity: str, values: FloatArray, label: str) -> str:
    """Refuse dB with many values of exactly 0: as fill they would count as brighter than nearly all land."""
    share = float(np.mean(values == 0)) if quantity == "db" else 0.0
    if share > _FILL:
        raise RadiometryError(
            f"{label}: dB, and {share:.1%} of the values are exactly 0, brighter than nearly all land: "
            "if 0 means nodata, give --nodata 0, else --quantity db"
        )
    return quantity
