"""Pairs as a training loop gets them: from files, from memory, as cached latents."""

import itertools

import rasterio
import torch
from measuring import Baseline
from support.dataset_fixtures import built_pairs

from sar2eo.datasets import Augmentation, build_latent_cache, open_dataset
from sar2eo.datasets.pairs import _PairCache
from sar2eo.model.network import create_vae
from sar2eo.settings import DataSettings

PAIRS, ENCODED, SIDE = 64, 4, 256


def opened(folder, pairs):
    settings = DataSettings(pairs=str(built_pairs(folder, counts={"train": pairs}, size=SIDE)))
    return open_dataset(settings, "train", augmentation=Augmentation(crop=SIDE, flips=True, turns=True))


def milliseconds(pairs):
    def note(median, against):
        return f"{median / pairs * 1e3:.2f} ms against {against / pairs * 1e3:.2f} ms a pair"

    return note


def test_samples(compare, tmp_path):
    held = opened(tmp_path, PAIRS)
    dataset = held.with_augmentation(held.augmentation)
    dataset._cache = _PairCache(limit=0)
    everything = range(PAIRS)
    assert all(held[i]["sar"].shape == (3, SIDE, SIDE) for i in everything)

    def read_files():
        for path in itertools.chain.from_iterable(map(dataset.files, everything)):
            with rasterio.open(path) as file:
                file.read(), file.dataset_mask()

    compare(
        f"{PAIRS} samples of {SIDE} pixels",
        lambda: [dataset[i] for i in everything],
        [
            Baseline("rasterio alone reads their chips", read_files, goal=2, note=milliseconds(PAIRS)),
            Baseline("held in memory", lambda: [held[i] for i in everything], note=milliseconds(PAIRS)),
        ],
        rounds=5,
        warmups=1,
    )


def test_latents(compare, tmp_path):
    dataset = opened(tmp_path / "pairs", ENCODED)
    torch.manual_seed(1)
    vae = create_vae("small").eval().requires_grad_(False)

    def encode(images):
        return vae.encode(images).latent_dist.mean

    settings = {"crops": 1, "crop": SIDE, "factor": 8, "seed": 1, "model_sha256": ""}
    cache = build_latent_cache(dataset, encode, tmp_path / "latents", **settings)
    assert cache[0]["eo_latents"].shape[1:] == (SIDE // 8, SIDE // 8)

    def encode_all():
        for i in range(ENCODED):
            encode(torch.stack([dataset[i]["sar"], dataset[i]["eo"]]))

    compare(
        f"{ENCODED} pairs of cached latents",
        lambda: [cache[i] for i in range(ENCODED)],
        [Baseline("encoded by a small VAE", encode_all, goal=0.1, note=milliseconds(ENCODED))],
        rounds=3,
    )
