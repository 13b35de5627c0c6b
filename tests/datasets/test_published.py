"""QXS-SAROPT, SAR2Opt and SpaceNet 6: layouts, scaling, splits."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from support.dataset_fixtures import qxs, sar2opt, spacenet6

from sar2eo.datasets import Augmentation, open_dataset
from sar2eo.datasets.published import PUBLISHED, draw_split, hold_out_validation
from sar2eo.errors import PairsError
from sar2eo.settings import DataSettings

MAKERS = {"qxs": qxs, "sar2opt": sar2opt, "spacenet6": spacenet6}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def opened(name, root, split="train", split_by="release", augmentation=None):
    settings = DataSettings(dataset=name, root=str(root), split_by=split_by)
    return open_dataset(settings, split, augmentation=augmentation)


@pytest.mark.parametrize("name", MAKERS)
def test_splits_are_disjoint_and_whole(roots, name):
    ids = {split: opened(name, roots[name], split).ids for split in SPLITS}
    assert all(ids.values())
    together = [each for split in SPLITS for each in ids[split]]
    count = {"qxs": 12, "sar2opt": 18, "spacenet6": 10}[name]
    assert len(together) == len(set(together)) == count
    assert "validation from the training part" in opened(name, roots[name]).describe()


def test_a_fifth_is_drawn_as_the_release_draws_it():
    names = [f"opt_256_oc_0.2/{number}.png" for number in range(1, 20_001)]
    split = draw_split(reversed(names))
    assert (len(split["train"]), len(split["test"])) == (16_001, 3999)  # as the published lists
    random.seed(2025)
    assert split["test"] == sorted(random.sample(sorted(names), 3999))
    assert sorted(split["train"] + split["test"]) == sorted(names)


def test_published_lists_come_first(tmp_path):
    root = qxs(tmp_path, count=6)
    (root / "train_eo_list_080.txt").write_text("".join(f"opt_256_oc_0.2/{i}.png\n" for i in (1, 2, 5)))
    (root / "test_eo_list_080.txt").write_text("".join(f"opt_256_oc_0.2/{i}.png\n" for i in (3, 4)))
    ids = {split: opened("qxs", root, split).ids for split in SPLITS}
    assert ids["test"] == ("3", "4")
    assert len(ids["val"]) == 1
    assert sorted(ids["train"] + ids["val"]) == ["1", "2", "5"]
    assert "by the lists in its folder" in opened("qxs", root).describe()
    (root / "train_eo_list_080.txt").write_text("opt_256_oc_0.2/3.png\n")
    with pytest.raises(PairsError, match=r"share 1 images, such as opt_256_oc_0\.2/3\.png"):
        opened("qxs", root)
    (root / "train_eo_list_080.txt").write_text("opt_256_oc_0.2/9.png\n")
    with pytest.raises(PairsError, match=r"9\.png: is the folder complete"):
        opened("qxs", root)
    (root / "train_eo_list_080.txt").unlink()
    with pytest.raises(PairsError, match=r"one train_eo_list.*and one test_eo_list"):
        opened("qxs", root)


def test_held_out_groups_stay_together():
    counts = {"a": 3, "b": 60, "c": 4, "d": 33}
    names = [f"{scene}_{tile}" for scene, count in counts.items() for tile in range(count)]
    split = hold_out_validation(names, lambda name: name[0])
    assert sorted(split["train"] + split["val"]) == sorted(names)
    held = {name[0] for name in split["val"]}
    assert not held & {name[0] for name in split["train"]}
    assert 1 <= len(split["val"]) <= 5
    assert hold_out_validation(names[:1], str) == {"train": ["a_0"], "val": []}
    assert len(hold_out_validation(names, str)["val"]) == 5
    # All groups are larger than a twentieth: the smallest.
    assert {name[0] for name in hold_out_validation(names[3:], lambda name: name[0])["val"]} == {"c"}


def test_qxs_sample(roots):
    dataset = opened("qxs", roots["qxs"])
    assert (dataset.gsd_m, dataset.quantity, dataset.calibration) == (1.0, "dn", "none")
    sample = dataset[0]
    for name, folder in (("sar", "sar_256_oc_0.2"), ("eo", "opt_256_oc_0.2")):
        pixels = np.asarray(Image.open(roots["qxs"] / folder / f"{sample['id']}.png"))
        np.testing.assert_allclose(sample[name], np.moveaxis(pixels, -1, 0) / 127.5 - 1, atol=1e-6)
    assert (sample["valid"] == 1).all()


def test_sar2opt_a_is_sar_and_whole_scenes_validate(roots):
    root = roots["sar2opt"]
    test = opened("sar2opt", root, "test")
    assert test.ids == tuple(sorted(path.stem for path in (root / "testB").iterdir()))
    pixels = np.asarray(Image.open(root / "testA" / f"{test.ids[0]}.jpg"))
    np.testing.assert_allclose(test[0]["sar"][0], pixels / 127.5 - 1, atol=1e-6)
    scenes = {split: {name.split("_")[0] for name in opened("sar2opt", root, split).ids} for split in SPLITS}
    assert len(scenes["val"]) == 1
    assert not scenes["val"] & scenes["train"]
    # Tiles of one scene overlap, so only those of another show other ground.
    train = opened("sar2opt", root, "train")
    assert set(train.places) == scenes["train"]
    for other in train.strangers(0):
        assert train.ids[other].split("_")[0] != train.ids[0].split("_")[0]


def test_spacenet_sample_is_stretched_as_in_the_release(roots):
    dataset = opened("spacenet6", roots["spacenet6"])
    sample = dataset[0]
    sar_path, eo_path = dataset.files(0)
    with rasterio.open(sar_path) as file:
        raw = file.read()
    with rasterio.open(eo_path) as file:
        np.testing.assert_allclose(sample["eo"][:, :, 6:], file.read()[:, :, 6:] / 127.5 - 1, atol=1e-6)
    # An oracle without nodata, which is cut off.
    inside = raw[:, :, 6:].astype(np.float64)
    low, high = np.percentile(inside, (1, 99), axis=(1, 2))[..., None, None]
    stretched = (np.clip(inside, low, high) - low) / (high - low) * 2 - 1
    expected = np.stack([stretched[0], (stretched[1] + stretched[2]) / 2, stretched[3]])
    np.testing.assert_allclose(sample["sar"][:, :, 6:], expected, atol=2e-5)
    dataset._cache.pairs.clear()
    assert torch.equal(dataset[0]["sar"], sample["sar"])  # read again
    assert (sample["valid"][0, :, :6] == 0).all()
    assert (sample["valid"][0, :, 6:] == 1).all()
    assert dataset.polarisations == ("HH", "HV", "VH", "VV")
    assert dataset.gsd_m == 0.5
    assert "stretched" in dataset.describe()


def test_spacenet_tiles_that_are_empty_or_constant(tmp_path):
    root = spacenet6(tmp_path, count=3, nodata_columns=48)
    empty = opened("spacenet6", root)[0]
    assert not empty["valid"].any()
    assert (empty["sar"] == -1).all()
    for path in (root / "train" / "AOI_11_Rotterdam" / "SAR-Intensity").iterdir():
        with rasterio.open(path, "r+") as file:
            file.write(np.full((4, 48, 48), 7, np.float32))
    constant = opened("spacenet6", root)[0]
    assert constant["valid"].all()
    assert (constant["sar"] == -1).all()


def test_published_figures_are_of_the_centre(tmp_path):
    """Without augmentation: the central 512 pixels of larger images, and smaller ones whole."""
    root = sar2opt(tmp_path, scenes=(1,), size=600)
    test = opened("sar2opt", root, "test")
    assert test.shape == (512, 512)
    pixels = np.asarray(Image.open(root / "testA" / f"{test.ids[0]}.jpg"))[44:556, 44:556]
    np.testing.assert_allclose(test[0]["sar"][2], pixels / 127.5 - 1, atol=1e-6)


def test_crops_of_published_images(roots):
    crop = Augmentation(crop=16, flips=True, turns=True)
    for name, root in roots.items():
        assert opened(name, root, augmentation=crop)[0]["eo"].shape == (3, 16, 16)


def test_split_by_place_keeps_a_distance(tmp_path):
    """Tiles of 24 m side by side: some at the edge of a block belong to no split."""
    root = spacenet6(tmp_path, count=240, size=16, spacing=24.0)
    ids = {split: opened("spacenet6", root, split, "place").ids for split in ("train", "test")}
    numbers = {split: np.array([int(re.search(r"\d+$", name)[0]) for name in ids[split]]) for split in ids}
    # A tile is 8 m wide, so the gap between two is 8 m less than the distance of their corners.
    gaps = np.abs(numbers["train"][:, None] - numbers["test"][None]) * 24.0 - 8
    assert gaps.min() >= 50
    assert gaps.min() < 50 + 2 * 24
    assert "blocks of 1500 m" in opened("spacenet6", root, "test", "place").describe()


@pytest.mark.parametrize("name", ["qxs", "sar2opt"])
def test_without_georeference_there_is_no_place(roots, name):
    with pytest.raises(PairsError, match="no georeference, so it cannot be split by place"):
        opened(name, roots[name], split_by="place")


def test_spacenet_without_georeference(tmp_path):
    root = spacenet6(tmp_path, count=2)
    for path in (root / "train" / "AOI_11_Rotterdam" / "SAR-Intensity").iterdir():
        with rasterio.open(path, "r+") as file:
            file.transform = rasterio.Affine(0.5, 0.1, 0, 0.1, -0.5, 0)
    with pytest.raises(PairsError, match="no north-up georeference: choose split_by=release"):
        opened("spacenet6", root, split_by="place")


@pytest.mark.parametrize("name", MAKERS)
def test_incomplete_folders_are_refused(tmp_path, name):
    with pytest.raises(PairsError, match="not the folder of"):
        opened(name, tmp_path)
    root = MAKERS[name](tmp_path)
    sar = Path(opened(name, root).files(0)[0])
    sar.write_bytes(b"no image")
    with pytest.raises(PairsError, match=f"{re.escape(sar.name)}: cannot be read"):
        opened(name, root)[0]
    sar.unlink()
    with pytest.raises(PairsError, match="1 EO images have no SAR image"):
        opened(name, root)


def test_pairs_of_different_size_are_refused(tmp_path):
    root = qxs(tmp_path)
    Image.new("L", (8, 8)).save(root / "sar_256_oc_0.2" / "3.png")
    with pytest.raises(PairsError, match="must be the same"):
        [sample for split in SPLITS for sample in opened("qxs", root, split)]


def test_every_named_data_set_can_be_opened():
    from typing import get_args

    from sar2eo.settings.vocabulary import Dataset

    assert set(PUBLISHED) == set(get_args(Dataset)) == set(MAKERS)


@pytest.mark.parametrize(("name", "scaling"), [("qxs", 255.0), ("sar2opt", 255.0), ("spacenet6", "p99")])
def test_what_becomes_one_is_told_for_cards(roots, name, scaling):
    assert opened(name, roots[name]).scaling == scaling
