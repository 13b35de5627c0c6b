"""The simulator: known truth, known statistics, and the look of the real scenes."""

import os
import subprocess
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from scipy import fft, stats

from sar2eo.errors import OutputError, PolarisationError, SettingsError
from sar2eo.simulation import (
    LandCover,
    ObjectKind,
    ObjectState,
    SimulationSettings,
    simulate_pair,
    write_pair,
)
from sar2eo.simulation.fields import MARGIN, resize, smoothstep, spectral_noise, stream
from sar2eo.simulation.landscape import make_landscape
from sar2eo.simulation.objects import CHANGE_DB, CROPS, plant_objects
from sar2eo.simulation.sensors import INCIDENCE, LOOKS, look_weights, project_to_range


@pytest.fixture(scope="module")
def pair():
    """A scene with every kind of land cover and object."""
    return simulate_pair(SimulationSettings(size=512, seed=5))


def mask_of(pair, *states, kinds=tuple(ObjectKind)):
    """Return where objects in any of the states are, of the given kinds."""
    chosen = [False, *(found.state in states and found.kind in kinds for found in pair.objects)]
    return np.array(chosen)[pair.label]


# Settings


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"size": 32}, SettingsError, "size=32"),
        ({"size": (256, 9000)}, SettingsError, "64 to 8192"),
        ({"seed": -1}, SettingsError, "seed=-1"),
        ({"shift": (0.0, 40.0)}, SettingsError, "at most 32"),
        ({"shift": (float("nan"), 0.0)}, SettingsError, "shift"),
        ({"polarisations": ("XX",)}, PolarisationError, "HH, HV, VH, VV"),
        ({"polarisations": ("VH", "VH")}, PolarisationError, "each once"),
        ({"polarisations": ()}, PolarisationError, "polarisations"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(wrong, error, words):
    with pytest.raises(error, match=words) as caught:
        SimulationSettings(**wrong)
    assert "\n" not in str(caught.value)


# Determinism


def test_the_same_seed_gives_the_same_pair_and_another_does_not(pair):
    again, other = simulate_pair(pair.settings), simulate_pair(SimulationSettings(size=512, seed=6))
    assert again.objects == pair.objects
    assert again.grid == pair.grid != other.grid
    for name in ("sar", "backscatter", "eo", "land_cover", "label", "sar_valid", "eo_valid"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pair, name), err_msg=name)
        assert (getattr(other, name) != getattr(pair, name)).any(), name
    assert (other.land_cover != pair.land_cover).mean() > 0.3


def test_a_polarisation_does_not_depend_on_which_others_are_asked_for():
    both = simulate_pair(SimulationSettings(size=128, polarisations=("VV", "VH")))
    one = simulate_pair(SimulationSettings(size=128, polarisations=("VH",)))
    np.testing.assert_array_equal(both.sar[1], one.sar[0])
    assert np.median(both.backscatter[0]) > 1.8 * np.median(
        both.backscatter[1]
    )  # co over cross, in amplitude


@settings(max_examples=12, deadline=None)
@given(
    st.tuples(st.integers(64, 160), st.integers(64, 160)),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_every_seed_and_shape_makes_a_sound_pair(size, seed, nodata_edges):
    pair = simulate_pair(SimulationSettings(size=size, seed=seed, nodata_edges=nodata_edges))
    assert pair.sar.shape == (1, *size)
    assert pair.sar.dtype == np.float32
    assert pair.eo.shape == (3, *size)
    np.testing.assert_array_equal(np.isfinite(pair.sar[0]), pair.sar_valid)
    assert (pair.backscatter > 0).all()
    np.testing.assert_array_equal((pair.eo > 0).all(axis=0), pair.eo_valid)
    assert pair.sar_valid.all() == pair.eo_valid.all() == (not nodata_edges)
    assert set(np.unique(pair.land_cover)) <= set(LandCover)
    assert pair.grid.shape == size
    assert pair.grid.crs == "EPSG:32611"
    assert pair.grid.ground_sample_distance_m() == pytest.approx((10, 10), rel=1e-3)


# Truth


def test_masks_of_truth_are_disjoint_and_cover_every_object(pair):
    masks = [mask_of(pair, state) for state in ObjectState]
    assert all(mask.any() for mask in masks)
    assert not any((a & b).any() for a, b in combinations(masks, 2))
    np.testing.assert_array_equal(np.any(masks, axis=0), pair.label > 0)
    pixels = np.bincount(pair.label.ravel())[1:]
    assert pixels.tolist() == [found.pixels for found in pair.objects]
    assert [found.number for found in pair.objects] == list(range(1, len(pair.objects) + 1))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_as_many_objects_of_a_kind_are_unchanged_as_changed(seed):
    counts = Counter(
        (o.kind, o.state) for o in simulate_pair(SimulationSettings(size=256, seed=seed)).objects
    )
    for kind in (ObjectKind.SHIP, ObjectKind.VEHICLE):
        by_one = counts[kind, ObjectState.SAR_ONLY]
        assert by_one == counts[kind, ObjectState.EO_ONLY] > 0
        assert counts[kind, ObjectState.UNCHANGED] == 2 * by_one
        assert counts[kind, ObjectState.CHANGED] == 0
    assert (
        counts[ObjectKind.FIELD, ObjectState.CHANGED] == counts[ObjectKind.FIELD, ObjectState.UNCHANGED] > 0
    )


def test_without_discrepancies_both_sensors_see_the_same_objects(pair):
    same = simulate_pair(SimulationSettings(size=512, seed=5, discrepancies=False))
    assert {found.state for found in same.objects} == {ObjectState.UNCHANGED}
    np.testing.assert_array_equal(same.label, pair.label)
    # Only what changed looks different: the SAR lacks no ship, and the EO shows the SAR's crops.
    differs = (same.eo != pair.eo).any(axis=0)
    assert differs[mask_of(pair, ObjectState.CHANGED)].mean() > 0.9
    assert not differs[mask_of(pair, ObjectState.UNCHANGED, kinds=(ObjectKind.FIELD,))].any()
    missed = mask_of(pair, ObjectState.EO_ONLY)
    assert np.median(same.backscatter[0][missed]) > 2 * np.median(pair.backscatter[0][missed])


def test_objects_lie_on_their_ground_where_both_sensors_have_data(pair):
    ground = {
        ObjectKind.SHIP: LandCover.WATER,
        ObjectKind.VEHICLE: LandCover.PAVED,
        ObjectKind.FIELD: LandCover.FIELD,
    }
    for kind, cover in ground.items():
        mask = mask_of(pair, *ObjectState, kinds=(kind,))
        assert mask.any()
        assert (pair.land_cover[mask] == cover).all()
    assert (pair.sar_valid & pair.eo_valid)[pair.label > 0].all()


def test_a_ship_is_seen_by_the_sensors_its_state_names(pair):
    water = (pair.land_cover == LandCover.WATER) & (pair.label == 0)
    sea_sar = np.median(pair.backscatter[0][water])
    sea_eo = np.median(pair.eo[:, water], axis=1)
    ships = [found for found in pair.objects if found.kind == ObjectKind.SHIP]
    for ship in ships:
        at = pair.label == ship.number
        in_sar = pair.backscatter[0][at].max() > 5 * sea_sar
        in_eo = np.abs(pair.eo[:, at] - sea_eo[:, None]).max() > 30
        assert in_sar == (ship.state != ObjectState.EO_ONLY), ship
        assert in_eo == (ship.state != ObjectState.SAR_ONLY), ship


def test_a_vehicle_seen_by_one_sensor_leaves_no_trace_in_the_other(pair):
    yards = np.median(pair.eo[0][pair.land_cover == LandCover.PAVED])
    bright, coloured = {}, {}
    for state in (ObjectState.SAR_ONLY, ObjectState.EO_ONLY, ObjectState.UNCHANGED):
        mask = mask_of(pair, state, kinds=(ObjectKind.VEHICLE,))
        bright[state] = np.median(pair.backscatter[0][mask])
        coloured[state] = np.median(np.abs(pair.eo[0][mask] - yards))
    assert bright[ObjectState.SAR_ONLY] > 2 * bright[ObjectState.EO_ONLY]
    assert bright[ObjectState.UNCHANGED] > 2 * bright[ObjectState.EO_ONLY]
    assert coloured[ObjectState.EO_ONLY] > 2 * coloured[ObjectState.SAR_ONLY]
    assert coloured[ObjectState.UNCHANGED] > 2 * coloured[ObjectState.SAR_ONLY]


def test_changed_fields_and_only_those_have_another_crop_at_each_date():
    setting = SimulationSettings(size=512, seed=5)
    landscape = make_landscape(setting)
    valid = np.zeros(setting.canvas, dtype=bool)
    valid[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    objects = plant_objects(landscape, valid)
    parcels = landscape.parcels.label
    differ = objects.crop_sar != objects.crop_eo
    changed = objects.mask(ObjectKind.FIELD, ObjectState.CHANGED)
    field = landscape.cover == LandCover.FIELD
    np.testing.assert_array_equal(differ[parcels] & field, changed)
    level = np.array([crop.cross_db for crop in CROPS])
    steps = np.abs(level[objects.crop_sar[differ]] - level[objects.crop_eo[differ]])
    assert (steps >= CHANGE_DB).all()


# Speckle


def test_speckle_over_the_whole_scene_has_the_looks_it_should(pair):
    ratio = (pair.sar[0] / pair.backscatter[0])[pair.sar_valid].astype(np.float64) ** 2
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert 1 / ratio.var() == pytest.approx(LOOKS, rel=0.04)
    expected = stats.gamma(LOOKS, scale=1 / LOOKS).ppf([0.05, 0.5, 0.95])
    np.testing.assert_allclose(np.quantile(ratio, [0.05, 0.5, 0.95]), expected, rtol=0.04)


def test_open_water_has_the_equivalent_number_of_looks(pair):
    # The largest square of open water: the sea's own texture is a small part of the variance there.
    sea = (pair.land_cover == LandCover.WATER) & (pair.label == 0) & pair.sar_valid
    table = np.pad(sea.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    full = table[48:, 48:] - table[:-48, 48:] - table[48:, :-48] + table[:-48, :-48] == 48**2
    row, col = np.argwhere(full)[0]
    power = pair.sar[0, row : row + 48, col : col + 48].astype(np.float64) ** 2
    assert power.mean() ** 2 / power.var() == pytest.approx(LOOKS, rel=0.15)


def test_speckle_is_correlated_over_the_resolution_cell(pair):
    ratio = np.where(pair.sar_valid, (pair.sar[0] / pair.backscatter[0]) ** 2, 1).astype(np.float64) - 1
    lags = [np.mean(ratio[:, d:] * ratio[:, : 512 - d]) / np.mean(ratio**2) for d in (1, 2, 6)]
    # A Gaussian point spread of standard deviation s gives intensity a correlation of exp(-d^2 / 2 s^2).
    assert lags[0] == pytest.approx(np.exp(-0.5 / 1.1**2), abs=0.03)
    assert lags[1] == pytest.approx(np.exp(-2 / 1.1**2), abs=0.03)
    assert lags[2] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("looks", [1.5, 3.0, 4.4, 5.0])
def test_weights_of_looks_have_the_number_asked_for(looks):
    weights = np.array(look_weights(looks))
    assert weights.sum() ** 2 / (weights**2).sum() == pytest.approx(looks)
    assert (weights > 0).all()
    assert (weights <= 1).all()


# Geometry


def _measured_shift(moved, still):
    """Locate the peak of the cross-correlation, between pixels by a parabola of its logarithm."""
    window = np.outer(np.hanning(still.shape[0]), np.hanning(still.shape[1]))
    spectra = [fft.rfft2((np.log(x) - np.log(x).mean()) * window) for x in (moved, still)]
    peak = fft.irfft2(spectra[0] * spectra[1].conj(), s=still.shape)
    at = np.unravel_index(peak.argmax(), peak.shape)
    found = []
    for axis, where in enumerate(at):
        low, mid, high = (np.roll(peak, step, axis)[at] for step in (1, 0, -1))
        offset = (low - high) / (2 * (low - 2 * mid + high))
        found.append((where + offset + peak.shape[axis] / 2) % peak.shape[axis] - peak.shape[axis] / 2)
    return found


@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.5, -1.25), (-0.4, 0.7), (-11.0, 6.3)])
def test_the_planted_shift_is_found_in_the_backscatter(shift):
    still = simulate_pair(SimulationSettings(size=256, seed=3))
    moved = simulate_pair(SimulationSettings(size=256, seed=3, shift=shift))
    assert _measured_shift(moved.backscatter[0], still.backscatter[0]) == pytest.approx(shift, abs=0.12)


def test_a_shift_moves_the_sar_and_nothing_else():
    still = simulate_pair(SimulationSettings(size=192, seed=3))
    moved = simulate_pair(SimulationSettings(size=192, seed=3, shift=(3, -5)))
    for name in ("eo", "land_cover", "label", "objects"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(still, name))
    # What the EO has at (row, col) the SAR has at (row + 3, col - 5).
    np.testing.assert_allclose(moved.backscatter[0, 3:, :-5], still.backscatter[0, :-3, 5:], rtol=2e-3)
    assert np.abs(moved.backscatter - still.backscatter).mean() > 0.1 * still.backscatter.mean()


def test_flat_land_stays_in_place():
    power = np.random.default_rng(0).random((5, 40), dtype=np.float32)
    flat = np.zeros_like(power)
    np.testing.assert_allclose(project_to_range(power, flat, flat), power, rtol=1e-6)


def test_a_height_appears_nearer_to_the_sensor():
    power = np.zeros((1, 60), dtype=np.float32)
    power[0, 20] = 1
    tower = np.zeros_like(power)
    tower[0, 20] = 4
    seen = project_to_range(power, np.zeros_like(power), tower)[0]
    centre = (seen * np.arange(60)).sum() / seen.sum()
    assert seen.sum() == pytest.approx(1)
    assert centre == pytest.approx(20 + 4 / np.tan(INCIDENCE), abs=1e-4)  # the sensor is in the east


def test_slopes_to_the_sensor_are_squeezed_and_brighter():
    slope = 0.3
    ramp = (np.abs(np.arange(100) - 50) * -slope + 15).astype(np.float32)[None].clip(0)
    seen = project_to_range(np.ones_like(ramp), ramp, np.zeros_like(ramp))[0]
    tangent = np.tan(INCIDENCE)
    facing = (1 + slope * tangent) / (1 - slope / tangent)
    averted = (1 - slope * tangent) / (1 + slope / tangent)
    crest = 50 + 15 / tangent
    assert seen[int(crest) + 4 : int(crest) + 14].mean() == pytest.approx(facing, rel=0.04)
    assert seen[24:60].mean() == pytest.approx(averted, rel=0.04)


def test_steep_slopes_fold_over_and_cast_a_shadow():
    cliff = np.zeros((1, 120), dtype=np.float32)
    cliff[0, 60] = 12
    seen = project_to_range(np.ones_like(cliff), np.zeros_like(cliff), cliff)[0]
    shadow = 12 * np.tan(INCIDENCE)
    assert seen[59] == 0
    assert (seen[int(60 - shadow) + 1 : 60] == 0).all()
    np.testing.assert_allclose(seen[: int(60 - shadow) - 1], 1, rtol=1e-6)
    top = int(60 + 12 / np.tan(INCIDENCE))
    assert seen[top : top + 2].sum() == pytest.approx(3)  # the ground there, and the top laid over it


def test_relief_is_displaced_only_in_mountains():
    landscape = make_landscape(SimulationSettings(size=256, seed=3))
    assert (landscape.terrain.relief_m[landscape.terrain.mountain == 0] == 0).all()
    assert np.ptp(landscape.terrain.relief_m) > 100


# Fields


def test_spectral_noise_is_standard_and_has_the_wavelengths_asked_for():
    field = spectral_noise(stream(1, "test"), (300, 200), longest=50, shortest=10)
    assert field.shape == (300, 200)
    assert field.std() == pytest.approx(1, abs=0.1)
    power = np.abs(fft.rfft(field, axis=1)) ** 2
    frequency = fft.rfftfreq(200)
    assert power[:, frequency > 0.25].sum() < 1e-3 * power.sum()


def test_streams_of_two_names_are_different_and_of_one_name_equal():
    draws = [stream(7, name).random(4).tolist() for name in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]


def test_resizing_keeps_straight_lines_straight():
    coarse = np.add.outer(np.arange(12), 2 * np.arange(15)).astype(np.float32)
    fine = resize(coarse, (40, 50), 4)
    expected = np.add.outer(np.arange(40), 2 * np.arange(50)) / 4
    np.testing.assert_allclose(fine[4:, 4:], expected[4:, 4:], rtol=1e-5)


def test_smoothstep_rises_from_zero_to_one():
    assert smoothstep(np.array([0, 1, 1.5, 2, 3]), 1, 2).tolist() == [0, 0, 0.5, 1, 1]


# Files


def test_written_files_are_like_real_ones(pair, tmp_path):
    paths = write_pair(pair, tmp_path / "new" / "folder")
    assert sorted(paths) == ["eo", "sar", "truth"]
    with rasterio.open(paths["sar"]) as dataset:
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 0
        assert dataset.descriptions == ("VH",)
        assert dataset.block_shapes == [(512, 512)]
        tags = dataset.tags()
        assert tags["TIFFTAG_DATETIME"] == "2021:06:15 13:52:41"
        assert tags["POLARIZATION"] == "VH"
        assert tags["SENSOR"] == "simulated"
        assert tags["PRODUCT"].startswith("SIM_IW_GRDH_")
        assert dataset.crs.to_epsg() == 32611
        assert dataset.transform == pair.grid.affine
        digital = dataset.read(1)
    np.testing.assert_array_equal(digital > 0, pair.sar_valid)
    valid = digital[pair.sar_valid]
    assert (valid == 255).mean() == pytest.approx(0.01, abs=0.003)
    scale = 255 / np.percentile(pair.sar[0][pair.sar_valid], 99)
    expected = np.clip(pair.sar[0][pair.sar_valid] * scale, 1, 255)
    assert np.abs(valid - expected).max() <= 0.5 + 1e-3


def test_written_eo_and_truth_read_back(pair, tmp_path):
    paths = write_pair(pair, tmp_path)
    with rasterio.open(paths["eo"]) as dataset:
        np.testing.assert_array_equal(dataset.read(), pair.eo)
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, pair.eo_valid)
        assert dataset.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert dataset.nodata is None
        assert dataset.tags()["SENSOR"] == "simulated"
    assert not list(tmp_path.glob("*.msk"))
    with rasterio.open(paths["truth"]) as dataset:
        cover, kind, state, number = dataset.read()
        tags = dataset.tags()
    np.testing.assert_array_equal(cover, pair.land_cover)
    np.testing.assert_array_equal(number, pair.label)
    for one in (ObjectState.SAR_ONLY, ObjectState.EO_ONLY):
        np.testing.assert_array_equal(state == one, mask_of(pair, one))
    np.testing.assert_array_equal(kind > 0, pair.label > 0)
    assert "1 ship" in tags["ObjectKind"]
    assert "6 field" in tags["LandCover"]


def test_every_polarisation_is_a_described_band(tmp_path):
    pair = simulate_pair(SimulationSettings(size=(64, 96), polarisations=("VV", "VH")))
    with rasterio.open(write_pair(pair, tmp_path)["sar"]) as dataset:
        assert dataset.descriptions == ("VV", "VH")
        assert dataset.shape == (64, 96)
        assert dataset.tags()["POLARIZATION"] == "VV VH"


def test_a_folder_that_cannot_be_made_is_one_line(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make this folder") as caught:
        write_pair(pair, tmp_path / "file")
    assert "\n" not in str(caught.value)


# The real thing, and memory


@pytest.mark.realdata
def test_amplitudes_resemble_a_real_scene(real_data):
    pair = simulate_pair(SimulationSettings(size=1024, seed=3))
    simulated = {
        cover: np.median(pair.sar[0][(pair.land_cover == cover) & pair.sar_valid])
        for cover in (LandCover.WATER, LandCover.RESIDENTIAL, LandCover.FIELD)
    }
    with rasterio.open(real_data / "scenes/la_west_sar.tif") as dataset:
        sea, city, fields = (
            np.median(dataset.read(1, window=((row, row + size), (col, col + size))))
            for row, col, size in ((7900, 10400, 200), (6144, 9700, 500), (1300, 60, 300))
        )
    town = simulated[LandCover.RESIDENTIAL]
    assert simulated[LandCover.WATER] / town == pytest.approx(sea / city, rel=0.35)
    assert simulated[LandCover.FIELD] / town == pytest.approx(fields / city, rel=0.35)


@pytest.mark.slow
def test_a_large_scene_stays_within_its_memory():
    code = (
        "from pathlib import Path\n"
        "from sar2eo.simulation import SimulationSettings, simulate_pair\n"
        "simulate_pair(SimulationSettings(size=2048))\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert int(run.stdout) < 1_500_000  # kB


def test_a_kill_leaves_nothing_half_written(tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    def kill(*_):
        raise KilledError

    pair = simulate_pair(SimulationSettings(size=64))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", kill)
        with pytest.raises(KilledError):
            write_pair(pair, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".eo.tif.tmp").touch()  # of a kill between the two names of a file
    paths = write_pair(pair, tmp_path)
    assert set(tmp_path.iterdir()) == set(paths.values())
