"""Built pairs as samples: scaling, validity, augmentation, batches."""

import multiprocessing
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import psutil
import pytest
import rasterio
import torch
from support.dataset_fixtures import built_pairs, changed_index, landscape

from sar2eo.datasets import Augmentation, Order, batches, collate, open_dataset
from sar2eo.datasets.augmentation import orient
from sar2eo.datasets.pairs import _PairCache
from sar2eo.errors import PairsError, SettingsError, TrainingWarning
from sar2eo.model.card import TranslatorCard
from sar2eo.settings import DataSettings, TrainSettings
from sar2eo.training.setup import open_held_out, training_batches


def opened(folder, split="train", **augmentation):
    chosen = Augmentation(**augmentation) if augmentation else None
    return open_dataset(DataSettings(pairs=str(folder)), split, augmentation=chosen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return built_pairs(tmp_path_factory.mktemp("pairs"))


def test_a_sample_is_what_the_files_say(folder):
    dataset = opened(folder)
    assert len(dataset) == 6
    assert (dataset.polarisations, dataset.quantity, dataset.calibration) == (("VV",), "dn", "none")
    assert dataset.gsd_m == pytest.approx(10.0, rel=0.001)
    sample = dataset[1]
    assert (sample["id"], sample["index"]) == ("pair-0001", 1)
    assert sample["day_gap"] == 3.0
    assert sample["orbit_direction"] is None
    amplitude, eo = landscape(1, 64)
    expected = np.clip(amplitude / 600, 0, 1) * 2 - 1  # 600: the scene's, in the index
    for channel in sample["sar"]:
        np.testing.assert_allclose(channel, expected, atol=1e-6)
    np.testing.assert_allclose(sample["eo"], eo / 127.5 - 1, atol=1e-6)
    assert sample["valid"].shape == (1, 64, 64)
    assert (sample["valid"] == 1).all()
    assert {sample[name].dtype for name in ("sar", "eo", "valid")} == {torch.float32}


def test_invalid_pixels_are_marked_and_filled(folder):
    sample = opened(folder)[0]
    hole = sample["valid"][0] == 0
    assert hole[:8, :16].all()
    assert hole.sum() == 8 * 16
    # Filled from beside: neither black nor what the file has there.
    assert sample["sar"][0, 0, 0] == sample["sar"][0, 8, 0]
    assert torch.isfinite(sample["sar"]).all()
    assert sample["sar"][:, hole].min() > -1
    assert sample["eo"][0, 3, 0] == sample["eo"][0, 8, 0]


def test_a_crop_without_a_valid_pixel_is_black(tmp_path):
    built_pairs(tmp_path, counts={"train": 1})
    dataset = opened(tmp_path, crop=4, seed=0)
    samples = (dataset.sample(0, epoch) for epoch in range(500))
    empty = next(sample for sample in samples if not sample["valid"].any())
    assert (empty["sar"] == -1).all()
    assert (empty["eo"] == 0).all()


@pytest.mark.parametrize("quantity", ["dn", "intensity", "db"])
def test_quantities_give_the_same_sample(tmp_path, folder, quantity):
    other = opened(built_pairs(tmp_path, quantity=quantity))
    assert other.quantity == ("dn" if quantity == "dn" else "amplitude")  # what a network sees
    torch.testing.assert_close(other[1]["sar"], opened(folder)[1]["sar"], atol=1e-4, rtol=0)


def test_scenes_of_two_quantities_are_each_read_as_their_own(tmp_path):
    built_pairs(tmp_path, counts={"train": 2}, holes=False)
    decibels = built_pairs(tmp_path / "db", counts={"train": 2}, quantity="db", holes=False)
    chip = "chips/pair-0001_sar.tif"
    (decibels / chip).replace(tmp_path / chip)
    plain = opened(built_pairs(tmp_path / "plain", counts={"train": 2}, holes=False))[1]
    changed_index(tmp_path, quantity=["dn", "db"], calibration=["sigma0", "none"])
    mixed = opened(tmp_path)
    assert (mixed.quantity, mixed.calibration) == ("amplitude", "none")
    torch.testing.assert_close(mixed[1]["sar"], plain["sar"], atol=1e-4, rtol=0)


def test_two_polarisations_make_three_channels(tmp_path):
    dataset = opened(built_pairs(tmp_path, polarisations=("VH", "VV"), holes=False))
    sar = dataset[0]["sar"]
    amplitude, _ = landscape(0, 64)
    vh, vv = (np.clip(amplitude // band / (600 / band), 0, 1) * 2 - 1 for band in (1, 2))
    np.testing.assert_allclose(sar[0], vv, atol=1e-6)
    np.testing.assert_allclose(sar[1], vh, atol=1e-6)
    np.testing.assert_allclose(sar[2], (vv + vh) / 2, atol=1e-6)


def test_scenes_share_their_common_polarisation(tmp_path):
    built_pairs(tmp_path, counts={"train": 2}, polarisations=("VH", "VV"), holes=False)
    changed_index(tmp_path, polarisations=[["VH", "VV"], ["HH", "VH"]])
    dataset = opened(tmp_path)
    assert dataset.polarisations == ("VH",)
    amplitude, _ = landscape(1, 64)
    second_band = np.clip(amplitude // 2 / 300, 0, 1) * 2 - 1
    np.testing.assert_allclose(dataset[1]["sar"][0], second_band, atol=1e-6)
    changed_index(tmp_path, polarisations=[["VH", "VV"], ["HH", "HV"]])
    with pytest.raises(PairsError, match="no polarisation in common"):
        opened(tmp_path)


def test_scaling_is_the_scenes_not_the_chips(tmp_path, folder):
    bright = opened(built_pairs(tmp_path, scaling=[100.0]))[1]["sar"]
    plain = opened(folder)[1]["sar"]
    expected = ((plain + 1) * 6).clamp(max=2) - 1
    inside = plain < 1  # where 600 has not clipped it already
    torch.testing.assert_close(bright[inside], expected[inside], atol=1e-5, rtol=0)
    assert (bright[~inside] == 1).all()


def test_stored_scale_and_offset_are_applied(tmp_path, folder):
    built_pairs(tmp_path, holes=False)
    with rasterio.open(tmp_path / "chips" / "pair-0001_sar.tif", "r+") as file:
        file.scales, file.offsets = (0.5,), (10.0,)
    amplitude, _ = landscape(1, 64)
    expected = np.clip((amplitude * 0.5 + 10) / 600, 0, 1) * 2 - 1
    np.testing.assert_allclose(opened(tmp_path)[1]["sar"][0], expected, atol=1e-6)


def test_the_same_part_of_all_images(folder):
    """SAR, EO and validity are cut and turned alike; against plain slicing of the whole."""
    whole = opened(folder)
    dataset = opened(folder, crop=24, flips=True, turns=True, seed=11)
    assert dataset.shape == (24, 24)
    seen = 0
    for epoch in range(6):
        for index in range(6):
            place = dataset.augmentation.place(epoch, index, (64, 64))
            rows = slice(place.row, place.row + 24)
            cols = slice(place.col, place.col + 24)
            ours, all_of_it = dataset.sample(index, epoch), whole[index]
            valid = ours["valid"][0].numpy() > 0
            seen += not valid.all()
            for name in ("sar", "eo", "valid"):
                part = orient(all_of_it[name].numpy()[:, rows, cols], place.orientation)
                # A crop is filled by itself.
                kept = slice(None) if name == "valid" else (slice(None), valid)
                np.testing.assert_array_equal(ours[name][kept], part[kept])
    assert seen >= 2


def test_gain_comes_before_clipping(folder):
    dataset = opened(folder, gain=0.5, seed=3)
    plain = opened(folder)
    amplitude, _ = landscape(1, 64)
    gains = set()
    for epoch in range(4):
        gain = dataset.augmentation.place(epoch, 1, (64, 64)).gain
        expected = np.clip(amplitude * gain / 600, 0, 1) * 2 - 1
        np.testing.assert_allclose(dataset.sample(1, epoch)["sar"][0], expected, atol=1e-6)
        torch.testing.assert_close(dataset.sample(1, epoch)["eo"], plain[1]["eo"])
        gains.add(round(gain, 6))
    assert len(gains) == 4


def test_epochs(folder):
    dataset = opened(folder, crop=16, seed=1)
    first = dataset[2]["eo"]
    assert not torch.equal(dataset.sample(2, 1)["eo"], first)
    torch.testing.assert_close(dataset.sample(2, 0)["eo"], first)
    assert dataset[-1]["index"] == 5
    with pytest.raises(IndexError, match="there are 6"):
        dataset[6]
    assert len(list(dataset)) == 6  # iterating ends


def test_chips_of_two_sizes_give_one_shape(tmp_path):
    built_pairs(tmp_path, counts={"train": 3}, sizes={1: 48}, holes=False)
    assert opened(tmp_path).shape == (48, 48)
    for dataset in (opened(tmp_path), opened(tmp_path, crop=512, flips=True, turns=True)):
        assert {dataset[i]["sar"].shape for i in range(3)} == {(3, 48, 48)}
    centre = opened(tmp_path)[0]["eo"]
    np.testing.assert_allclose(centre, landscape(0, 64)[1][:, 8:56, 8:56] / 127.5 - 1, atol=1e-6)


def test_memory_is_bounded_and_changes_nothing(folder):
    dataset, other = opened(folder), opened(folder)
    one = dataset._pair(0).nbytes
    dataset._cache = _PairCache(limit=2 * one)
    for _ in range(2):
        for index in range(6):
            torch.testing.assert_close(dataset[index]["sar"], other[index]["sar"])
    assert len(dataset._cache.pairs) == 2
    assert dataset._cache.used == 2 * one
    assert not pickle.loads(pickle.dumps(dataset))._cache.pairs  # noqa: S301  (what workers get)


def test_a_calibration_that_is_not_known_is_none(tmp_path):
    built_pairs(tmp_path, quantity="db")
    changed_index(tmp_path, calibration=[None] * 11)
    dataset = opened(tmp_path)
    assert dataset.calibration == "none"
    assert (
        TranslatorCard(name="x", quantity=dataset.quantity, calibration=dataset.calibration).quantity
        == "amplitude"
    )


def test_workers_load_the_same_batches(folder):
    dataset = opened(folder, crop=32, flips=True, turns=True, gain=0.2, seed=5)
    order = Order(len(dataset), 4, seed=9)
    state = torch.get_rng_state()
    alone = list(batches(dataset, order, 1, 4))
    together = list(batches(dataset, order, 1, 4, workers=2))
    assert torch.equal(torch.get_rng_state(), state)  # nobody's noise is touched
    assert len(alone) == 3
    for ours, theirs in zip(alone, together, strict=True):
        assert ours["id"] == theirs["id"]
        for name in ("sar", "eo", "valid"):
            assert torch.equal(ours[name], theirs[name])
    assert alone[0]["sar"].shape == (4, 3, 32, 32)
    (resumed,) = batches(dataset, order, 3, 4)
    assert torch.equal(resumed["sar"], alone[2]["sar"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_run(folder, number):
    dataset = opened(folder, crop=32)
    source = batches(dataset, Order(len(dataset), 2), 0, 30, workers=1)
    next(source)
    below = psutil.Process().children(recursive=True)
    readers = [p for p in below if "spawn_main" in " ".join(p.cmdline())]
    assert readers
    for reader in readers:  # as a terminal or a scheduler does: to the whole group
        reader.send_signal(number)
    assert len(list(source)) == 29


SCRIPT = """
import sys, time
import psutil
from sar2eo.datasets import Order, batches, open_dataset
from sar2eo.settings import DataSettings
print("begun", flush=True)
dataset = open_dataset(DataSettings(pairs=sys.argv[1]), "train")
source = batches(dataset, Order(len(dataset), 2), 0, 30, workers=1)
next(source)
print(*(p.pid for p in psutil.Process().children(recursive=True)), __file__, flush=True)
if sys.argv[2] == "wait":
    time.sleep(120)
print(len(list(source)), flush=True)
"""


def run_script(tmp_path, folder, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, script, folder, how], stdout=subprocess.PIPE, text=True)


def test_a_script_needs_no_guard_and_runs_once(folder, tmp_path):
    told, _ = run_script(tmp_path, folder, "go").communicate(timeout=120)
    begun, middle, count = told.splitlines()
    assert begun == "begun"
    assert middle.endswith("script.py")  # its name is given back
    assert int(count) == 29


def test_workers_end_with_a_run_that_was_killed(folder, tmp_path):
    run = run_script(tmp_path, folder, "wait")
    assert run.stdout.readline() == "begun\n"
    below = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()[:-1]]
    assert below
    run.kill()
    run.wait()
    run.stdout.close()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_chip_is_told_in_a_line(tmp_path, workers):
    dataset = opened(built_pairs(tmp_path))
    dataset.files(0)[0].write_bytes(b"no image")
    with pytest.raises(PairsError, match="cannot be read") as caught:
        list(batches(dataset, Order(len(dataset), 2), 0, 3, workers=workers))
    assert "\n" not in str(caught.value)
    # The error holds its frames; the workers have gone all the same, or the process would never end.
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False)])
def test_batches_for_a_gpu_are_pinned(folder, monkeypatch, device, pinned):
    asked = {}
    monkeypatch.setattr(
        "sar2eo.datasets.loading.DataLoader", lambda *_, **options: asked.update(options) or []
    )
    here = SimpleNamespace(device=torch.device(device), process_index=0, num_processes=1)
    settings = TrainSettings(batch=2)
    list(training_batches(opened(folder), settings, here)(0, 2))
    assert asked["pin_memory"] is pinned


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(PairsError, match="set a crop"):
        collate([{"sar": torch.zeros(3, 2, 2)}, {"sar": torch.zeros(3, 2, 3)}])


def test_description_and_fingerprint(folder, tmp_path):
    dataset = opened(folder, "test")
    assert dataset.describe() == ("3 test pairs of 64x64 pixels from 1 SAR scenes (VV, dn), built by sar2eo")
    assert dataset.fingerprint() == opened(folder, "test").fingerprint()
    assert dataset.fingerprint() != opened(folder, "val").fingerprint()
    other = opened(built_pairs(tmp_path, holes=False), "test")
    assert other.fingerprint() != dataset.fingerprint()
    (tmp_path / "chips" / "pair-0010_eo.tif").unlink()
    with pytest.raises(PairsError, match=r"pair-0010_eo\.tif: cannot be read"):
        other.fingerprint()
    with pytest.raises(PairsError, match=r"pair-0010_eo\.tif does not exist, like 1 of 6 chips of test"):
        opened(tmp_path, "test")


def test_folders_that_are_not_pairs_are_refused(folder, tmp_path):
    with pytest.raises(PairsError, match="not a folder of sar2eo build-pairs"):
        opened(tmp_path)
    (tmp_path / "pairs.parquet").write_text("no")
    with pytest.raises(PairsError, match="is not an index of pairs"):
        opened(tmp_path)
    with pytest.raises(SettingsError, match="split='all'"):
        opened(folder, "all")
    built_pairs(tmp_path, counts={"train": 2, "test": 1})
    with pytest.raises(PairsError, match="no val pairs, but 2 train, 1 test"):
        opened(tmp_path, "val")
    changed_index(tmp_path, scaling=[[1.0, 2.0]] * 3)
    with pytest.raises(PairsError, match="one positive amplitude"):
        opened(tmp_path)
    geopandas.read_parquet(tmp_path / "pairs.parquet").drop(columns="scaling").to_parquet(
        tmp_path / "pairs.parquet"
    )
    with pytest.raises(PairsError, match="is not an index of pairs"):
        opened(tmp_path)


def test_broken_chips_are_named(tmp_path):
    built_pairs(tmp_path, counts={"train": 3}, holes=False)
    chips = tmp_path / "chips"
    dataset = opened(tmp_path)
    (chips / "pair-0000_sar.tif").unlink()
    (chips / "pair-0002_eo.tif").replace(chips / "pair-0001_sar.tif")
    with pytest.raises(PairsError, match=r"pair-0000_sar\.tif: cannot be read"):
        dataset[0]
    with pytest.raises(PairsError, match="pair-0001: SAR of shape"):
        dataset[1]
    small = built_pairs(tmp_path / "small", counts={"train": 3}, size=32, holes=False)
    built_pairs(tmp_path, counts={"train": 3}, holes=False)
    for kind in ("sar", "eo"):
        Path(small / "chips" / f"pair-0001_{kind}.tif").replace(chips / f"pair-0001_{kind}.tif")
    with pytest.raises(PairsError, match="pair-0001: 32x32 pixels, smaller"):
        opened(tmp_path)[1]


def test_strangers_are_of_other_places_from_half_of_the_pairs_further_on(tmp_path):
    built_pairs(tmp_path, counts={"train": 6}, holes=False)
    index = tmp_path / "pairs.parquet"
    table = geopandas.read_parquet(index).sort_values("id")
    table["block"] = ["a", "b", "c", "a", "b", "b"]
    table.to_parquet(index)
    pairs = opened(tmp_path)
    assert pairs.places == ("a", "b", "c", "a", "b", "b")
    assert pairs.strangers(0) == [4, 5, 1, 2]
    assert pairs.strangers(2) == [5, 0, 1, 3, 4]
    assert pairs.has_strangers
    table["block"] = "a"
    table.to_parquet(index)
    assert opened(tmp_path).strangers(1) == [4, 5, 0, 2, 3]
    # Of one block, the same ground on another date is no stranger, in whatever CRS.
    place = list(table["transform"].iloc[1])
    table["transform"] = [place if i in (1, 4) else list(value) for i, value in enumerate(table["transform"])]
    half = [*place[:2], place[2] + 10 * 40, *place[3:]]
    table["transform"] = [half if i == 5 else list(value) for i, value in enumerate(table["transform"])]
    table.to_parquet(index)
    pairs = opened(tmp_path)
    assert pairs.strangers(1) == [0, 2, 3]
    assert pairs.overlapping(1).nonzero()[0].tolist() == [1, 4, 5]
    assert pairs.has_strangers
    # Nor is it across the border of a block, where chips overlap.
    table["block"] = ["a", "b", "c", "a", "d", "e"]
    table.to_parquet(index)
    assert opened(tmp_path).strangers(1) == [0, 2, 3]
    table["transform"] = [place] * 6
    table.to_parquet(index)
    assert not opened(tmp_path).has_strangers
    table["block"] = "a"
    table["transform"] = [place] * 6
    table.to_parquet(index)
    assert not opened(tmp_path).has_strangers


def test_a_model_sees_its_own_channels(tmp_path):
    plain = opened(built_pairs(tmp_path, polarisations=("VH", "VV"), holes=False))
    cross = plain[1]["sar"][1]
    seen = plain.with_channels_of(TranslatorCard(name="of VH", polarisations=("VH",)))[1]["sar"]
    assert all(torch.equal(channel, cross) for channel in seen)
    unchanged = plain.with_channels_of(TranslatorCard(name="of HH", polarisations=("HH",)))
    assert torch.equal(unchanged[1]["sar"], plain[1]["sar"])


def test_validation_pairs_are_seen_as_the_training_pairs_are(tmp_path):
    both = built_pairs(tmp_path / "both", polarisations=("VH", "VV"), holes=False)
    one = opened(built_pairs(tmp_path / "one", polarisations=("VV",), holes=False))
    held_out = open_held_out(DataSettings(pairs=str(both)), Augmentation(centre=True), one)
    assert held_out.channels == one.channels == (("VV",),) * 3
    np.testing.assert_array_equal(held_out[0]["sar"][0], held_out[0]["sar"][2])
    two = opened(both)
    with pytest.warns(TrainingWarning, match="its pairs have VV, training has VH, VV"):
        assert (
            open_held_out(DataSettings(pairs=str(tmp_path / "one")), Augmentation(centre=True), two) is None
        )
