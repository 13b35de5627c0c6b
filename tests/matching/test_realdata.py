"""Matching on real scenes: another matcher, another scene's SAR and places held out bear it out.

What is measured goes with the results: ``pytest tests/test_matching_realdata.py --junitxml=FILE``.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.real_matching import ALIGNER, RADIUS, SIDE, by_information

from sar2eo.matching.shifts import Displacement
from sar2eo.matching.structure import match

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

SCENES = ("la_west", "la_east", "san_antonio_west")

# Column and row of la_east's first pixel in la_west (1865.28 and 11087.15).
SEAM_ROW, SEAM_COL = 1865, 11087


@cache
def scene(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and grey values, NaN where there is no data."""
    with rasterio.open(folder / "scenes" / f"{name}_sar.tif") as sar:
        amplitude = sar.read(1).astype(np.float32)
    with rasterio.open(folder / "scenes" / f"{name}_eo.tif") as eo:
        grey, mask = eo.read().mean(axis=0, dtype=np.float32), eo.dataset_mask()
    amplitude[amplitude == 0] = np.nan
    grey[mask == 0] = np.nan
    return amplitude, grey


def windows(image: np.ndarray, step: int, cols: tuple[int, int] = (0, 10**6)) -> list[tuple[slice, slice]]:
    """Neighbourhoods of which at least half is valid."""
    found = []
    for row in range(0, image.shape[0] - SIDE + 1, step):
        for col in range(max(0, cols[0]), min(image.shape[1], cols[1]) - SIDE + 1, step):
            at = slice(row, row + SIDE), slice(col, col + SIDE)
            if np.isfinite(image[at]).mean() >= 0.5:
                found.append(at)
    return found


def measured(folder: Path, name: str, step: int, cols: tuple[int, int] = (0, 10**6)) -> list[Displacement]:
    sar, eo = scene(folder, name)
    return [
        Displacement(at[0].start + SIDE / 2, at[1].start + SIDE / 2, *ALIGNER.displacement(sar[at], eo[at]))
        for at in windows(sar, step, cols)
    ]


def test_drifts_of_two_scenes_agree_with_what_their_sars_say(real_data, record_property):
    """Both scenes hold one acquisition: where they meet, the SARs alone tell how their drifts differ."""
    west, east = scene(real_data, "la_west")[0], scene(real_data, "la_east")[0]
    drifts = [
        ALIGNER.drift(measured(real_data, "la_west", SIDE // 2, (SEAM_COL - 1359, 10**6))),
        ALIGNER.drift(measured(real_data, "la_east", SIDE // 2, (0, 1536))),
    ]
    assert all(drift is not None for drift in drifts)
    errors, unaligned = [], []
    for row in range(SEAM_ROW, west.shape[0] - SIDE + 1, SIDE // 2):
        one = west[row : row + SIDE, SEAM_COL:]
        two = east[row - SEAM_ROW : row - SEAM_ROW + SIDE, : one.shape[1]]
        if np.isfinite(one).mean() < 0.4:
            continue
        # The logarithm of amplitude against itself: what east shows at a pixel, west shows shifted.
        direct = match(one, np.log(two + 5), method="ncc", radius_px=12)
        assert direct.score > 0.95
        middle = row + SIDE / 2, (SEAM_COL + west.shape[1]) / 2
        first = drifts[0].at(*middle)
        second = drifts[1].at(middle[0] - SEAM_ROW, middle[1] - SEAM_COL)
        truth = np.array([direct.rows, direct.cols])
        errors.append(np.hypot(*(np.subtract(first, second) - truth)))
        unaligned.append(np.hypot(*truth))
    record_property("places", len(errors))
    record_property("apart_px", round(float(np.median(unaligned)), 2))
    record_property("error_px", round(float(np.median(errors)), 2))
    record_property("worst_px", round(float(max(errors)), 2))
    assert len(errors) >= 15
    assert np.median(unaligned) > 2
    assert np.median(errors) < 0.6
    assert max(errors) < 1.5


@pytest.mark.parametrize(("name", "share"), [("la_west", 0.55), ("la_east", 0.55), ("san_antonio_west", 0.9)])
def test_mutual_information_finds_the_shifts_that_are_sure(real_data, name, share, record_property):
    sar, eo = scene(real_data, name)
    near, sure = [], []
    for at in windows(sar, 1024)[:30]:
        found = ALIGNER.displacement(sar[at], eo[at])
        other = by_information(sar[at], eo[at])
        near.append(np.hypot(found.rows - other[0], found.cols - other[1]) < 2)
        sure.append(found.sure)
    near, sure = np.array(near), np.array(sure)
    record_property("agree", f"{near[sure].sum()} of {sure.sum()}")
    assert sure.mean() >= 0.8
    # By chance 0.5 % would.
    assert near[sure].mean() >= share
    if not sure.all():
        assert near[~sure].mean() < near[sure].mean()


@pytest.mark.parametrize("name", SCENES)
def test_drift_leaves_less_than_it_found(real_data, name, record_property):
    """Before: local shifts as measured. After: less the drift, as neighbourhoods apart predict it."""
    found = measured(real_data, name, SIDE)
    drift = ALIGNER.drift(found)
    assert drift is not None
    sure = [d for d in found if d.sure]
    before = np.hypot([d.rows for d in sure], [d.cols for d in sure])
    assert len(sure) >= 0.75 * len(found)
    assert drift.predicted_px < 0.6 * np.median(before)
    # Mutual information knows nothing of the drift, and finds the scene nearer to it than to no shift.
    sar, eo = scene(real_data, name)
    left, was = [], []
    for at in windows(sar, 1024):
        shift = np.array(by_information(sar[at], eo[at]))
        if np.abs(shift).max() < RADIUS - 1:
            middle = at[0].start + SIDE / 2, at[1].start + SIDE / 2
            left.append(np.hypot(*(shift - drift.at(*middle))))
            was.append(np.hypot(*shift))
    record_property("sure", f"{len(sure)} of {len(found)}")
    record_property("structure_before_px", round(float(np.median(before)), 2))
    for key, value in drift.facts().items():
        record_property(f"drift_{key}", value)
    for key, distances in (("before", was), ("after", left)):
        record_property(f"information_{key}_px", round(float(np.median(distances)), 2))
        record_property(f"information_{key}_within_2px", f"{np.less(distances, 2).sum()} of {len(distances)}")
    assert np.median(left) < 0.6 * np.median(was)
