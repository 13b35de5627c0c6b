"""Broken, tampered and hostile checkpoints and recipes, made by code, each with what is to come of it.

`CHECKPOINTS`: a name, what is done to a sound folder, and the verdict on ``sar2eo model info`` and on
``sar2eo translate --model``. `RECIPES`: a name, the content of a file, and the verdict on ``sar2eo run``.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file
from support.bad_inputs import Refused

__all__ = ["CHECKPOINTS", "RECIPES", "Breakage", "Recipe"]

CARD = "sar2eo.json"
SCHEDULE = "scheduler/scheduler_config.json"
UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
CONFIGS = "unet/config.json", "vae/config.json"


@dataclass(frozen=True)
class Breakage:
    """One case: what is done to a checkpoint, and what the commands say; None: they take it."""

    name: str
    change: Callable[[Path], Any]
    info: Refused | None
    translate: Refused | None


@dataclass(frozen=True)
class Recipe:
    """One case: the content of a TOML file, and what ``run`` says."""

    name: str
    content: bytes | str
    verdict: Refused


def broken(name: str, change: Callable[[Path], Any], words: str, code: int = 1) -> Breakage:
    """A case that both commands refuse alike."""
    return Breakage(name, change, Refused(words, code), Refused(words, code))


def late(name: str, change: Callable[[Path], Any], words: str) -> Breakage:
    """A case that is seen where weights are read."""
    return Breakage(name, change, None, Refused(words))


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def edited(file: str, /, **changes: Any) -> Callable[[Path], Any]:
    """Other fields in a JSON file; Ellipsis takes one out."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))

    return change


def bytes_of(name: str, change: Callable[[bytearray], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        change(data)
        (folder / name).write_bytes(data)

    return apply


def flipped(at: int) -> Callable[[bytearray], Any]:
    def change(data: bytearray) -> None:
        data[at] ^= 0x10

    return change


def first_value(name: str, value: float) -> Callable[[Path], Any]:
    """One weight of the first tensor."""

    def change(folder: Path) -> None:
        tensors = {key: tensor.copy() for key, tensor in load((folder / name).read_bytes()).items()}
        tensors[min(tensors)].flat[0] = value
        save_file(tensors, folder / name)

    return change


def as_type(name: str, dtype: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        tensors = load((folder / name).read_bytes())
        save_file({key: tensor.astype(dtype) for key, tensor in tensors.items()}, folder / name)

    return change


def replaced(make: Callable[[Path], Any], name: str = "") -> Callable[[Path], Any]:
    """Something else under the name of a file, or of the folder."""

    def change(folder: Path) -> None:
        place = folder / name if name else folder
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        make(place)

    return change


def loop(place: Path) -> None:
    place.symlink_to(place.name)


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


CHECKPOINTS = [
    # Folders
    broken("no folder", shutil.rmtree, "no such folder"),
    broken("an empty folder", replaced(Path.mkdir), "not a sar2eo checkpoint"),
    broken("a file", replaced(Path.touch), "no such folder|is a file"),
    broken("a link to itself", replaced(loop), "no such folder"),
    broken("no card", without(CARD), "not a sar2eo checkpoint"),
    broken("no weights", without(UNET), "safetensors is missing"),
    broken("no configuration", without("vae/config.json"), "config.json is missing"),
    broken("no schedule", without(SCHEDULE), "scheduler_config.json is missing"),
    broken("a pipe for a card", replaced(os.mkfifo, CARD), "not a sar2eo checkpoint"),
    broken("a pipe for weights", replaced(os.mkfifo, UNET), "safetensors is missing"),
    broken("a folder for weights", replaced(Path.mkdir, UNET), "safetensors is missing"),
    # Weights
    broken("a pickle", written(UNET, pickle.dumps({"conv_in.weight": [0.0]})), "is a pickle"),
    broken("a pickle in a zip", written(VAE, b"PK\x03\x04" + bytes(40)), "is a pickle"),
    broken("no bytes", written(UNET, b""), "not a whole safetensors file"),
    broken(
        "a header of exabytes",
        bytes_of(UNET, lambda d: d.__setitem__(slice(0, 8), b"\xff" * 7 + b"\x3f")),
        "not a whole safetensors file",
    ),
    broken(
        "a flipped bit of the header's length", bytes_of(UNET, flipped(1)), "not a whole safetensors file"
    ),
    broken(
        "a flipped bit of the header", bytes_of(VAE, flipped(40)), "not a whole|lacks|unexpected|has shape"
    ),
    broken(
        "weights cut short",
        bytes_of(UNET, lambda d: d.__delitem__(slice(-10, None))),
        "not a whole safetensors file",
    ),
    broken(
        "more bytes than the header says",
        bytes_of(UNET, lambda d: d.extend(bytes(10))),
        "not a whole safetensors file",
    ),
    broken(
        "a tensor of terabytes",
        written(
            UNET,
            header(
                '{"conv_in.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
            ),
        ),
        "not a whole safetensors file",
    ),
    broken("a header that is no JSON", written(UNET, header("{nothing}")), "not a whole safetensors file"),
    broken("weights of nothing", written(UNET, header("{}")), "lacks"),
    broken("whole numbers for weights", as_type(VAE, "int32"), "I32"),
    late("a weight that is NaN", first_value(UNET, np.nan), "not finite"),
    late("a weight that is infinite", first_value(VAE, np.inf), "not finite"),
    # Configurations
    broken("no JSON", written("unet/config.json", b"{"), "cannot be read"),
    broken("JSON without end", written("unet/config.json", b"[" * 100_000), "cannot be read"),
    broken("no text", written("vae/config.json", b"\xff\xfe\x00"), "cannot be read"),
    broken("a JSON list", written("vae/config.json", b"[]"), "must hold a JSON object"),
    broken("channels in words", edited("unet/config.json", in_channels="eight"), "makes no network"),
    broken(
        "blocks that are a number",
        edited("unet/config.json", down_block_types=5),
        "config.json|makes no network",
    ),
    broken(
        "blocks that are missing",
        edited("unet/config.json", block_out_channels=...),
        "makes no network|has shape|lacks",
    ),
    broken(
        "a thousand million layers", edited("unet/config.json", layers_per_block=10**9), "layers_per_block"
    ),
    broken(
        "a list of a million blocks",
        edited("unet/config.json", block_out_channels=[8] * 10**6),
        "block_out_channels",
    ),
    broken(
        "channels beyond memory",
        edited("vae/config.json", block_out_channels=[10**9, 10**9]),
        "block_out_channels|has shape|makes no network",
    ),
    broken("a scaling factor in words", edited("vae/config.json", scaling_factor="large"), "scaling_factor"),
    broken("a scaling factor of NaN", edited("vae/config.json", scaling_factor=np.nan), "scaling_factor"),
    broken("a scaling factor of zero", edited("vae/config.json", scaling_factor=0), "scaling_factor"),
    broken(
        "latent channels that are true", edited("vae/config.json", latent_channels=True), "latent_channels"
    ),
    broken("a schedule of two steps", edited(SCHEDULE, num_train_timesteps=2), "num_train_timesteps"),
    broken("a schedule of NaN", edited(SCHEDULE, beta_start=np.nan), "schedule|beta"),
    broken("a schedule in words", edited(SCHEDULE, beta_end="much"), "schedule|beta"),
    broken("a schedule of another kind", edited(SCHEDULE, prediction_type="sample"), "prediction_type"),
    # Cards
    broken("a card of another field", edited(CARD, colour="red"), "unknown or missing fields colour"),
    broken("a card without a field", edited(CARD, quantity=...), "unknown or missing fields quantity"),
    broken("a card that is a list", written(CARD, b"[1]"), "must be a JSON object"),
    broken("a card that is no JSON", written(CARD, b"name: x"), "cannot be read"),
    broken("a card without end", written(CARD, b'{"a":' * 100_000), "cannot be read"),
    broken("a card with a number for a name", edited(CARD, name=5), "name=5"),
    broken("a card with a name of several lines", edited(CARD, name="a\nb"), "name="),
    broken("a card with half a step", edited(CARD, steps=2.5), "steps=2.5"),
    broken("a card with true steps", edited(CARD, steps=True), "steps=True"),
    broken("a card with a temperature of 0", edited(CARD, temperature=0), "temperature=0"),
    broken("a card with a ground sample distance of NaN", edited(CARD, gsd_m=np.nan), "gsd_m=nan"),
    broken("a card with an infinite ground sample distance", edited(CARD, gsd_m=np.inf), "gsd_m=inf"),
    broken("a card with an infinite scaling", edited(CARD, scaling=np.inf), "scaling=inf"),
    broken("a card with a polarisation for a list", edited(CARD, polarisations="VV"), "'VV' is not a list"),
    broken(
        "a card with a polarisation twice",
        edited(CARD, polarisations=["VV", "VV"], channels=[["VV"]] * 3),
        "polarisations",
    ),
    broken("a card with channels in lists of lists", edited(CARD, channels=[[["VV"]]] * 3), "wrong type"),
    broken("a card with channels of nothing", edited(CARD, channels=[[], [], []]), "channels"),
    broken("a card with figures in a list", edited(CARD, metrics=[1, 2]), "metrics"),
    broken("a card with figures in words", edited(CARD, metrics={"psnr": "high"}), "metrics"),
    broken("a card with data that is a list", edited(CARD, training_data=["a"]), "training_data"),
    broken("a card with an unknown quantity", edited(CARD, quantity="power"), "quantity='power'"),
]


def translate_table(text: str = "", **values: Any) -> str:
    """A sound recipe of one scene, with other values, and more text."""
    table = {"scenes": ["vv.tif"], "out": "../out/eo.tif", "model": "identity", **values}
    return "[translate]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()) + text


def slip(name: str, content: bytes | str, words: str, code: int = 2) -> Recipe:
    return Recipe(name, content, Refused(words, code))


RECIPES = [
    slip("no bytes", b"", "the recipe is empty"),
    slip("no text", b"\xff\xfe\x00\x01", "not a readable TOML recipe"),
    slip("no TOML", "translate: {scenes: [a.tif]}", "not a readable TOML recipe"),
    slip("lists without end", "a = " + "[" * 100_000, "not a readable TOML recipe"),
    slip("megabytes", "# " + "a" * (1 << 21), "not a recipe"),
    slip("a table twice", translate_table("[translate]\n"), "not a readable TOML recipe"),
    slip("no command's table", "[translation]\n", "not a stage"),
    slip("a value for a table", "translate = 5\n", "must be a table"),
    slip("a list of values for a table", "translate = [5]\n", "must be a table"),
    slip("no scenes", translate_table(scenes=[]), "no scene"),
    slip("scenes in one text", translate_table(scenes="vv.tif"), "scenes='vv.tif'"),
    slip("scenes that are numbers", translate_table(scenes=[5]), r"scenes=\[5\]"),
    slip("a number for an output", translate_table(out=5), "out=5"),
    slip("an unknown key", translate_table(modle="a"), "unknown modle"),
    slip("text for a number", translate_table('[translate.settings]\ntile = "512"\n'), "tile='512'"),
    slip("half a pixel", translate_table("[translate.settings]\ntile = 512.5\n"), "tile=512.5"),
    slip("truth for a number", translate_table("[translate.settings]\nsamples = true\n"), "samples=true"),
    slip("a day for a text", translate_table("[translate.scene]\ndatetime = 2024-05-06\n"), "datetime="),
    slip(
        "a number that no float holds",
        translate_table(f"[translate.scene]\nnodata = 1{'0' * 400}\n"),
        "nodata=1",
    ),
    slip("a resolution of NaN", translate_table("[translate.scene]\nresolution = nan\n"), "resolution=nan"),
    slip("bounds of NaN", translate_table("[translate.region]\nbbox = [nan, nan, nan, nan]\n"), "bounds"),
    slip(
        "bounds of infinity", translate_table("[translate.region]\nbbox = [-inf, -inf, inf, inf]\n"), "bounds"
    ),
    slip("bounds of three", translate_table("[translate.region]\nbbox = [1, 2, 3]\n"), "four numbers"),
    slip(
        "a window of nothing",
        translate_table("[translate.region]\nwindow = [0, 0, 0, 0]\n"),
        "window=.*inside of the scene",
    ),
    slip(
        "a window beyond numbers",
        translate_table(f"[translate.region]\nwindow = [0, 0, {10**30}, 1]\n"),
        "window=.*inside of the scene",
    ),
    slip("a scaling of NaN", translate_table("[translate.settings]\nscaling = [nan]\n"), "scaling="),
    slip("a negative scaling", translate_table("[translate.settings]\nscaling = [-1]\n"), "scaling="),
    slip("a tile of nothing", translate_table("[translate.settings]\ntile = 0\noverlap = 0\n"), "tile=0"),
    slip("a tile beyond memory", translate_table(f"[translate.settings]\ntile = {2**40}\n"), "tile="),
    slip("a batch of nothing", translate_table("[translate.settings]\nbatch = 0\n"), "batch=0"),
    slip("a batch beyond memory", translate_table(f"[translate.settings]\nbatch = {2**40}\n"), "batch="),
    slip("no samples", translate_table("[translate.settings]\nsamples = 0\n"), "samples=0"),
    slip("a negative seed", translate_table("[translate.settings]\nseed = -1\n"), "seed=-1"),
    slip("a seed of many digits", translate_table(f"[translate.settings]\nseed = {2**70}\n"), "seed="),
    slip(
        "a sampler of another kind",
        translate_table('[translate.settings]\nsampler = "euler"\n'),
        "sampler='euler'",
    ),
]
