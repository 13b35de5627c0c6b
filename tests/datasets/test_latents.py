"""Cached latents: what is encoded, that it agrees with encoding samples, and that work is kept."""

import json

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.dataset_fixtures import built_pairs
from torch import nn

from sar2eo.datasets import Augmentation, CachedLatents, Order, batches, build_latent_cache, open_dataset
from sar2eo.errors import OutputError, PairsError, SettingsError
from sar2eo.model.network import pool_validity
from sar2eo.settings import DataSettings

FACTOR = 8
CROPS = 3


def encoder(seed=1):
    """A convolution that sees its neighbours and is no mirror image of itself, as a VAE."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 4, FACTOR, stride=FACTOR))
    return torch.no_grad()(net.requires_grad_(False).forward)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Images are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = built_pairs(tmp_path_factory.mktemp("pairs"), size=40, counts={"train": 5})
    return open_dataset(DataSettings(pairs=str(folder)), "train")


def build(train, folder, encode=None, **changes):
    settings = {
        "crops": CROPS,
        "crop": 24,
        "factor": FACTOR,
        "seed": 7,
        "gain": 0.2,
        "model_sha256": "abc",
        "batch": 12,
    }
    return build_latent_cache(train, encode or encoder(), folder, **settings | changes)


@pytest.fixture(scope="module")
def cache(train, tmp_path_factory):
    return build(train, tmp_path_factory.mktemp("latents") / "cache")


def test_cached_latents_equal_those_of_uncached_samples(train, cache):
    fixed = Augmentation(crop=24, flips=True, turns=True, seed=7, fixed=CROPS, align=FACTOR, gain=0.2)
    uncached, encode = train.with_augmentation(fixed), encoder()
    seen = set()
    for epoch in range(12):
        for index in range(len(train)):
            pixels, latents = uncached.sample(index, epoch), cache.sample(index, epoch)
            for name in ("sar", "eo"):
                torch.testing.assert_close(
                    latents[f"{name}_latents"], encode(pixels[name][None])[0], rtol=0, atol=1e-6
                )
            expected = pool_validity(pixels["valid"][None], FACTOR)[0]
            torch.testing.assert_close(latents["valid_latents"], expected, rtol=0, atol=0)
            assert (latents["id"], latents["index"]) == (pixels["id"], pixels["index"])
            seen.add(fixed.place(epoch, index, (40, 40)).variant)
    assert len(seen) > CROPS * 4  # many crops and orientations were compared


def test_flipping_latents_would_not_do(train, cache):
    images = list(train.with_augmentation(cache.augmentation).fixed_samples(1))[:5:4]
    straight, mirrored = (encoder()(sample["eo"][None]) for sample in images)
    assert (straight.flip(-1) - mirrored).abs().max() > 0.05


def test_batches_of_latents_look_like_batches_of_pairs(cache):
    (batch,) = batches(cache, Order(len(cache), 4, seed=3), 2, 3)
    assert batch["sar_latents"].shape == batch["eo_latents"].shape == (4, 4, 3, 3)
    assert batch["valid_latents"].shape == (4, 1, 3, 3)
    assert set(batch["valid_latents"].unique().tolist()) <= {0.0, 1.0}
    assert len(batch["id"]) == 4


def test_latents_by_index_are_of_epoch_0(cache):
    torch.testing.assert_close(cache[1]["eo_latents"], cache.sample(1, 0)["eo_latents"])
    assert cache[-1]["index"] == len(cache) - 1
    with pytest.raises(IndexError, match="there are 5"):
        cache[5]


def test_validity_is_of_the_worst_pixel():
    valid = torch.ones(1, 1, 16, 24)
    valid[0, 0, 3, 9] = 0
    assert pool_validity(valid, 8)[0, 0].tolist() == [[1, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(("calls", "finished"), [(5, 0), (10, 1)])
def test_an_interrupted_build_goes_on(train, tmp_path, monkeypatch, calls, finished):
    # Two images, 2 x 24 crops, a shard, which is 8 calls of the encoder.
    monkeypatch.setattr("sar2eo.datasets.latents._SHARD_BYTES", 2 * 2 * 24 * 9 * 32)
    left = iter(range(calls))

    def stops(images):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encoder()(images)

    with pytest.raises(KeyboardInterrupt):
        build(train, tmp_path / "cut", stops)
    with pytest.raises(PairsError, match="lacks latents-0000"):
        CachedLatents(tmp_path / "cut")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.safetensors")}
    assert len(done) == finished
    assert build(train, tmp_path / "cut").per_shard == 2
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    build(train, tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_sha256": "other"}, "another model"),
        ({"seed": 8}, "another seed"),
        ({"crops": 2}, "another crops"),
        ({"gain": 0.0}, "another gain"),
        ({"dtype": torch.bfloat16}, "another dtype"),
    ],
)
def test_latents_of_other_settings_are_refused(train, cache, change, named):
    with pytest.raises(PairsError, match=named):
        build(train, cache.folder, **change)


def test_latents_of_other_pairs_are_refused(cache, tmp_path):
    other = built_pairs(tmp_path, size=40, counts={"train": 5}, holes=False)
    with pytest.raises(PairsError, match="another data"):
        build(open_dataset(DataSettings(pairs=str(other)), "train"), cache.folder)


def test_crops_that_are_no_multiple_of_the_factor_are_refused(train, tmp_path):
    with pytest.raises(SettingsError, match=r"multiple of 8, .* 24 is"):
        build(train, tmp_path / "latents", crop=30)
    assert not (tmp_path / "latents").exists()


def test_small_images_have_one_crop(train, tmp_path):
    cache = build(train, tmp_path / "latents", crop=None)
    shard = load_file(tmp_path / "latents" / "latents-00000.safetensors")
    assert shard["eo"].shape == (5 * 8, 4, 5, 5)
    assert cache[0]["eo_latents"].shape == (4, 5, 5)


def test_half_precision_on_disk(train, tmp_path):
    half = build(train, tmp_path / "latents", dtype=torch.bfloat16)
    assert half[0]["sar_latents"].dtype == torch.bfloat16
    assert half[0]["valid_latents"].dtype == torch.float32


def test_a_broken_cache_is_an_error(train, tmp_path):
    cache = build(train, tmp_path / "latents")
    shard = tmp_path / "latents" / "latents-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(PairsError, match=r"latents-00000\.safetensors cannot be read"):
        cache[0]
    manifest = tmp_path / "latents" / "latents.json"
    for text in ("{", json.dumps({"ids": []}), "[]"):
        manifest.write_text(text)
        with pytest.raises(PairsError, match=r"latents\.json"):
            CachedLatents(tmp_path / "latents")
    manifest.unlink()
    with pytest.raises(PairsError, match="not a cache"):
        CachedLatents(tmp_path / "latents")


def test_a_full_disk_leaves_no_shard(train, tmp_path, monkeypatch):
    def full(path, data):
        if path.suffix == ".safetensors":
            raise OutputError("no space")
        path.write_bytes(data)

    monkeypatch.setattr("sar2eo.datasets.latents.write_file", full)
    with pytest.raises(OutputError):
        build(train, tmp_path / "latents")
    assert not list((tmp_path / "latents").glob("*.safetensors"))


def test_memory_stays_flat(tmp_path):
    """Going through 80 MB of latents must not hold them."""
    folder = built_pairs(tmp_path / "pairs", size=64, counts={"train": 20}, holes=False)
    train = open_dataset(DataSettings(pairs=str(folder)), "train")
    wide = torch.zeros(1, 1024, 8, 8)

    def encode(images):
        return wide.expand(len(images), -1, -1, -1)

    cache = build(train, tmp_path / "latents", encode, crop=64)
    assert sum(path.stat().st_size for path in (tmp_path / "latents").iterdir()) > 80e6
    memory = psutil.Process().memory_info
    before, most = memory().rss, 0
    for index in [index for _ in range(3) for index in range(20)]:
        assert cache.sample(index, index)["eo_latents"].sum() == 0
        most = max(most, memory().rss)
    assert most - before < 20e6
