"""Pixels, figures and weights are what they were when ``pixels_unchanged.json`` was written.

The cases use the command line and what `sar2eo` exports, and nothing else of the package, so that modules may
move and private names may change. Held are pixels, figures, columns and weights. Not held are the bytes of
files, tags, versions, times, paths and fingerprints.

How each part is compared:

* what is whole numbers from end to end (``everywhere``) must be the same to the bit on any machine;
* the rest went through torch, BLAS, an FFT or a library's sines and logarithms, whose last bits are those of
  the processor. It must be near what it was: the shape, mean, deviation, means of blocks, and values at fixed
  places are kept for that. That is the check on any machine;
* and the rest must be the same to the bit where processor and libraries are those it was written with.
  Elsewhere this check is skipped, and the reason says what differs.

After a change that is meant to change outputs, and that `CHANGELOG.md` tells, write the file anew, and look
at what it says has changed::

    python tests/test_pixels_unchanged.py --write [CASE...]

Never write it to get a test to pass. Without names all is written anew, and the environment with it; with
names only these cases are, which asks for the environment that the others were written in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

import sar2eo
from sar2eo.cli import cli

HELD = Path(__file__).with_name("pixels_unchanged.json")

SAMPLES = 200  # values at fixed places
BINS = 64  # of a vector; 8 x 8 of an image

CPU = ("--device", "cpu", "--threads", 1)
FLOAT32 = (*CPU, "--dtype", "float32")


# What is compared, and how


@dataclass(frozen=True)
class Near:
    """How far apart values may be: ``atol + rtol * abs(value)``, and for a share of them further."""

    atol: float
    rtol: float = 0.0
    share: float = 0.0

    def apart(self, new: np.ndarray, old: np.ndarray) -> bool:
        far = ~(np.abs(new - old) <= self.atol + self.rtol * np.abs(old))
        far &= ~(np.isnan(new) & np.isnan(old))
        return bool(far.sum() > self.share * far.size)


FIGURES = Near(atol=1e-3, rtol=1e-3)


@dataclass(frozen=True)
class Part:
    """One output: an array, or figures by name."""

    value: Any
    everywhere: bool = False
    near: Near | None = None
    """Of an array's values; by default one level, or a thousandth of the value and of the deviation."""
    means: Near | None = None
    """Of means over blocks; by default a quarter of a level, or as the values."""


def digest(part: Part) -> dict[str, Any]:
    """What is kept of a part, as JSON."""
    if isinstance(part.value, dict | list):
        return {"exact": sha256(json.dumps(part.value, sort_keys=True)), "figures": rounded(part.value)}
    array = np.ascontiguousarray(part.value)
    wide = array.astype(np.float64)
    known = wide[~np.isnan(wide)]
    kept = {
        "exact": sha256(str((array.shape, array.dtype.name)), canonical(array)),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "known": int(known.size),
        "mean": number(known.mean()) if known.size else None,
        "std": number(known.std()) if known.size else None,
    }
    if part.everywhere:
        return kept
    flat = wide.ravel()
    at = np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int)
    return kept | {
        "blocks": [number(mean) for mean in block_means(wide)],
        "samples": [number(each) for each in flat[at]],
    }


def sha256(*contents: str | bytes) -> str:
    made = hashlib.sha256()
    for content in contents:
        made.update(content.encode() if isinstance(content, str) else content)
    return made.hexdigest()[:32]


def canonical(array: np.ndarray) -> bytes:
    """Bytes that are the same for the same values: little-endian, one kind of NaN."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def block_means(array: np.ndarray) -> np.ndarray:
    """Means over 8 x 8 blocks of each image, or over runs of a vector; NaN where nothing is known."""
    if array.ndim < 2:
        blocks = np.array_split(array.ravel(), min(BINS, array.size) or 1)
    else:
        side = math.isqrt(BINS)
        images = array.reshape(-1, *array.shape[-2:])
        rows, cols = (min(side, size) for size in images.shape[1:])
        blocks = [
            block
            for image in images
            for strip in np.array_split(image, rows)
            for block in np.array_split(strip, cols, axis=1)
        ]
    known = [block[~np.isnan(block)] for block in blocks]
    return np.array([each.mean() if each.size else np.nan for each in known])


def number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == round(value) else float(f"{value:.6g}")


def rounded(value: Any) -> Any:
    """Figures as they are kept; a float stays one, so that it is not compared as a count."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value


def differences(part: Part, held: Mapping[str, Any]) -> Iterator[str]:
    """Say what differs from what is held, as far as this part can be compared on any machine."""
    new = digest(part)
    if part.everywhere:
        if new["exact"] != held["exact"]:
            what = [name for name in new if new[name] != held.get(name)]
            yield f"not the same to the bit: {', '.join(what)}"
        return
    if "figures" in held:
        yield from figures_apart(part.near or FIGURES, new.get("figures"), held["figures"])
        return
    for name in ("shape", "dtype", "known"):
        if new.get(name) != held[name]:
            yield f"{name} {new.get(name)}, was {held[name]}"
            return
    whole = held["dtype"] != "bool" and np.issubdtype(held["dtype"], np.integer)
    deviation = held["std"] or 0.0
    values = part.near or (Near(1.0) if whole else Near(1e-3 * deviation, 1e-3))
    means = part.means or (Near(0.25) if whole else Near(values.atol, max(values.rtol, 1e-3)))
    for name, near in (("mean", means), ("std", means), ("blocks", means), ("samples", values)):
        now, then = (np.atleast_1d(np.array(each[name], dtype=np.float64)) for each in (new, held))
        if near.apart(now, then):
            yield f"{name} differ by up to {np.nanmax(np.abs(now - then)):.3g}, {near}"


def figures_apart(near: Near, new: Any, old: Any, name: str = "") -> Iterator[str]:
    """Compare nested figures: fractions nearly, all else exactly."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from figures_apart(near, new[key], old[key], f"{name}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(new, old, strict=True)):
            yield from figures_apart(near, a, b, f"{name}/{place}")
    elif isinstance(old, float) and isinstance(new, float):
        if near.apart(np.array(new), np.array(old)):
            yield f"{name} {new}, was {old}"
    elif new != old:
        yield f"{name} {new}, was {old}"


# Where it is computed


def environment() -> dict[str, Any]:
    """What the last bits depend on."""
    import torch

    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    said: dict[str, str] = {}
    for line in about.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        said[name.strip()] = value.strip()
    flags = sorted(flag for flag in said.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    numpy_has = np.show_config(mode="dicts")["SIMD Extensions"]
    return {
        "processor": said.get("model name") or platform.processor() or platform.machine(),
        "family, model": [said.get("cpu family"), said.get("model")],
        "amx": any(flag.startswith("amx") for flag in flags),
        "instructions": " ".join(flags),
        "torch": torch.__version__,
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "numpy uses": " ".join(sorted(numpy_has.get("found", []))),
        "gdal": rasterio.__gdal_version__,
        **{name: version(name) for name in ("numpy", "scipy", "scikit-image", "diffusers")},
    }


def other_environment(held: Mapping[str, Any]) -> list[str]:
    now = json.loads(json.dumps(environment()))
    names = sorted(now.keys() | held.keys())
    return [
        f"{name} {now.get(name)}, was {held.get(name)}" for name in names if now.get(name) != held.get(name)
    ]


# Inputs


def run(*arguments: object) -> None:
    """Run a command of the command line, in this process."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--debug"], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def words(flags: str) -> list[str]:
    return flags.split()


def hashed(rows: int, cols: int, seed: int) -> np.ndarray:
    """Whole numbers of 0 to 4095 that look like chance."""
    row, col = np.indices((rows, cols), dtype=np.uint64)
    number = row * np.uint64(73_856_093) ^ col * np.uint64(19_349_663) ^ np.uint64(seed * 83_492_791)
    for shift in (13, 7, 17):
        number = (number ^ number >> np.uint64(shift)) * np.uint64(2_654_435_761) % np.uint64(2**32)
    return (number >> np.uint64(20)).astype(np.int64)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Sums over squares, twice; the result is smaller by 2 * width."""
    for _ in range(2):
        for axis in (0, 1):
            sums = np.cumsum(values, axis=axis)
            values = np.take(sums, range(width, sums.shape[axis]), axis) - np.take(
                sums, range(sums.shape[axis] - width), axis
            )
    return values


def ramp(rows: int, cols: int, *, bands: int = 1, top: int = 4000) -> np.ndarray:
    """Amplitude with structure and something like speckle: (band, row, col)."""
    band, row, col = np.indices((bands, rows, cols), dtype=np.int64)
    level = 200 + abs((row * 7 + band * 311) % 1400 - 700) + abs((col * 5 + row) % 1000 - 500)
    speckle = np.stack([hashed(rows, cols, seed) for seed in range(bands)])
    return 1 + level * (1024 + speckle) // 2048 % top


# Water, forest, two kinds of field, town.
AMPLITUDE = np.array([20, 110, 60, 65, 200])
COLOUR = np.array([[12, 38, 89], [20, 71, 25], [178, 153, 90], [128, 166, 63], [166, 158, 158]])
SHIFT = (3, -2)


def landscape(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw what a SAR and an optical scene see of a place, the SAR off by `SHIFT`: bytes (band, row, col).

    `sar2eo simulate` is not used for what goes on into a model: its last bits are those of the processor,
    and now and then one of them decides what lies at a place.
    """
    side, width = size + 32, 14
    fields = [smooth(hashed(side + 2 * width, side + 2 * width, 100 * seed + n), width) for n in range(5)]
    cover = np.argmax(fields, axis=0)
    row, col = np.indices((side, side))
    cover[(row * 3 + col) % 211 < 9] = 4
    looks = sum(hashed(side, side, 100 * seed + n) for n in (11, 12, 13, 14))
    sar = np.clip(AMPLITUDE[cover] * looks // (4 * 2048), 1, 255)
    shade = 900 + smooth(hashed(side + 6, side + 6, 100 * seed + 21), 3) // 1600
    eo = np.clip(COLOUR.T[:, cover] * shade // 1024, 0, 255)
    down, right = SHIFT
    sar, eo = sar[16 - down : 16 - down + size, 16 - right : 16 - right + size], eo[:, 16:-16, 16:-16]
    row, col = np.indices((size, size))
    sar[(row + col // 4 < 30) | (row - col // 5 > size - 40)] = 0
    return sar[None], eo


def write_scene(path: Path, values: np.ndarray, *, names: Iterable[str], **profile: Any) -> Path:
    count, height, width = values.shape
    settings = {
        "crs": "EPSG:32611",
        "transform": Affine(10, 0, 408_800, 0, -10, 3_760_000),
        "dtype": "uint16",
        "nodata": 0,
    }
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, **settings | profile
    ) as file:
        file.write(values.astype(file.dtypes[0]))
        for place, name in enumerate(names, start=1):
            file.set_band_description(place, name)
        file.update_tags(ACQUISITION_DATETIME="2024:05:06 07:08:09")
    return path


@dataclass
class Workshop:
    """Makes inputs and outputs in a folder, each once."""

    folder: Path
    made: dict[str, Path] = field(default_factory=dict)
    results: dict[str, dict[str, Part]] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        if name not in self.made:
            make(self.folder / name)
            self.made[name] = self.folder / name
        return self.made[name]

    def out(self, name: str) -> Path:
        """Return a new place for outputs."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def result(self, case: str) -> dict[str, Part]:
        import torch

        if case not in self.results:
            torch.set_num_threads(1)  # some cases leave another number
            self.results[case] = CASES[case].make(self)
        return self.results[case]

    def holed(self) -> Path:
        """Give a scene of whole numbers with holes, one of them a whole window."""
        values = ramp(301, 422)
        values[:, 96:290, 200:402] = 0
        values[:, 20:23] = 0
        values[:, :, 77] = 0
        return self.once("holed.tif", lambda path: write_scene(path, values, names=["VV"]))

    def scenes(self, size: int = 640, seed: int = 3) -> Path:
        """Give a folder of ``sar.tif`` and ``eo.tif`` of one place."""

        def write(folder: Path) -> None:
            folder.mkdir()
            sar, eo = landscape(size, seed)
            placed = {"transform": Affine(10, 0, 408_800 + 50_000 * (seed - 3), 0, -10, 3_760_000)}
            write_scene(folder / "sar.tif", sar, names=["VH"], dtype="uint8", **placed)
            names = ["red", "green", "blue"]
            write_scene(folder / "eo.tif", eo, names=names, dtype="uint8", nodata=None, **placed)

        return self.once(f"scenes-{size}-{seed}", write)

    def pairs(self) -> Path:
        """Give pairs to train and judge on: two, two to validate and four to test, of two places."""
        scenes = self.scenes(), self.scenes(512, seed=4)
        flags = words("--size 128 --stride 128 --block 1000 --buffer 20 --val 0.2 --test 0.3 --seed 3")
        given = [
            word for kind in ("sar", "eo") for word in (f"--{kind}", *(s / f"{kind}.tif" for s in scenes))
        ]
        return self.once("pairs", lambda out: run("build-pairs", *given, "--out", out, *flags))

    def untrained(self) -> Path:
        flags = words("--size tiny --pol VH --prediction-type v_prediction --spacing trailing --steps 2")
        return self.once("untrained", lambda out: run("model", "init", "--out", out, *flags))


# Reading outputs


def pixels(path: Path, *, everywhere: bool = False, mask_everywhere: bool = True) -> dict[str, Part]:
    """Values, mask and overviews of a raster, and where it lies.

    Masks follow the nodata of the scene, which no arithmetic touches, unless something was warped.
    """
    parts = {}
    with rasterio.open(path) as file:
        levels = [None, *range(len(file.overviews(1)))]
        placed = {"crs": str(file.crs), "transform": list(file.transform)[:6], "overviews": file.overviews(1)}
    for level in levels:
        name = path.stem + ("" if level is None else f" overview {level}")
        with rasterio.open(path, **({} if level is None else {"overview_level": level})) as file:
            parts[name] = Part(file.read(), everywhere)
            parts[f"{name} mask"] = Part(file.dataset_mask(), mask_everywhere)
    return parts | {f"{path.stem} place": Part(placed, everywhere)}


def dataset(translated: Any, *, everywhere: bool = False) -> dict[str, Part]:
    computed = translated.compute()
    return {
        str(name): Part(values.values, everywhere or name == "valid") for name, values in computed.items()
    }


def index_columns(folder: Path) -> dict[str, Part]:
    """Columns of an index, rows by id, without paths."""
    rows = sorted(pq.read_table(folder / "pairs.parquet").to_pylist(), key=lambda row: row["id"])
    outlines = np.concatenate([shapely.get_coordinates(shapely.from_wkb(row["geometry"])) for row in rows])
    columns: dict[str, Any] = {}
    for name in rows[0].keys() - {"geometry", "transform", "sar_href", "eo_href"}:
        values = [row[name].isoformat() if "datetime" in name else row[name] for row in rows]
        columns[name] = {"all": values[0]} if values.count(values[0]) == len(values) else values
    audit = json.loads((folder / "audit.json").read_text())
    return {
        "index": Part(dict(sorted(columns.items()))),
        "transforms": Part(np.array([row["transform"] for row in rows]), near=Near(1e-6)),
        "outlines": Part(outlines, near=Near(1e-6)),
        "audit": Part(audit),
    }


def chips(folder: Path, *, everywhere: bool = False) -> dict[str, Part]:
    parts = {}
    for kind in ("sar", "eo"):
        paths = sorted((folder / "chips").glob(f"*_{kind}.tif"))
        read = []
        for path in paths:
            with rasterio.open(path) as file:
                read.append(np.concatenate([file.read(), file.dataset_mask()[None]]))
        # One image of all chips, side by side, so that blocks of it are kept and not of each.
        parts[f"{kind} chips"] = Part(np.concatenate(read, axis=-1), everywhere)
    return parts


def weights(folder: Path, *, lr: float) -> dict[str, Part]:
    """All tensors of a folder's one file of weights, in order of their names."""
    (path,) = folder.glob("*.safetensors")
    tensors = dict(sorted(load_file(path).items()))
    shapes = json.dumps({name: [str(each.dtype), list(each.shape)] for name, each in tensors.items()})
    return {
        f"{folder.name} names": Part(np.frombuffer(shapes.encode(), np.uint8), everywhere=True),
        # AdamW's first steps are as long as the rate whatever the gradient is, so where that is next to
        # nothing its last bits decide the direction.
        f"{folder.name} weights": Part(
            np.concatenate([each.ravel() for each in tensors.values()]), near=Near(0.1 * lr, 1e-3, share=0.03)
        ),
    }


def learnt(folder: Path) -> dict[str, Part]:
    """Figures of the training steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["part"] == "train"]
    timeless = [
        {name: value for name, value in line.items() if "second" not in name and name != "time"}
        for line in steps
    ]
    return {"steps": Part({"train": timeless}, near=Near(1e-3, 1e-2))}


def without(value: Any, *names: str) -> Any:
    """Leave out what is about time, place and versions, at any depth."""
    if isinstance(value, dict):
        return {name: without(each, *names) for name, each in value.items() if name not in names}
    if isinstance(value, list):
        return [without(each, *names) for each in value]
    return value


# Cases


@dataclass(frozen=True)
class Case:
    make: Callable[[Workshop], dict[str, Part]]
    slow: bool


CASES: dict[str, Case] = {}


def case(name: str, *, slow: bool = False) -> Callable[[Callable[[Workshop], dict[str, Part]]], Any]:
    def keep(make: Callable[[Workshop], dict[str, Part]]) -> Callable[[Workshop], dict[str, Part]]:
        CASES[name] = Case(make, slow)
        return make

    return keep


@case("simulate")
def simulate(shop: Workshop, seed: int = 3) -> dict[str, Part]:
    """Give what the simulator makes: single places differ from processor to processor."""
    out = shop.out("simulate")
    run("simulate", "--out", out, "--size", 320, "--seed", seed, "--shift", "2.5,-3")
    return {
        name: replace(part, near=Near(1.0, share=0.15), means=Near(1.0, 0.01, share=0.3))
        for kind in ("sar", "eo", "truth")
        for name, part in pixels(out / f"{kind}.tif", mask_everywhere=False).items()
    }


def identity(shop: Workshop, scene: Path, *flags: object, also: Iterable[str] = ()) -> dict[str, Part]:
    out = shop.out("identity")
    more = [word for name in also for word in (f"--{name}", out / f"{name}.png")]
    given = ("--model", "identity", "--threads", 1, *flags, *more)
    run("translate", scene, "--out", out / "eo.tif", *given)
    parts = pixels(out / "eo.tif", everywhere=True)
    for name in also:
        with Image.open(out / f"{name}.png") as picture:
            parts[name] = Part(np.moveaxis(np.asarray(picture), -1, 0))
    return parts


@case("translate-identity-holes")
def identity_holes(shop: Workshop, *flags: object) -> dict[str, Part]:
    return identity(shop, shop.holed(), "--tile", 128, "--overlap", 32, *flags, also=["quicklook"])


@case("translate-identity-overviews")
def identity_overviews(shop: Workshop) -> dict[str, Part]:
    values = ramp(530, 1301)
    values[:, 100:400, 600:] = 0
    return identity(
        shop, shop.once("wide.tif", lambda path: write_scene(path, values, names=["VH"], tiled=True))
    )


@case("translate-identity-small")
def identity_small(shop: Workshop) -> dict[str, Part]:
    """Give a scene that is smaller than a window, of bytes."""
    values = ramp(37, 50, top=255)
    return identity(
        shop, shop.once("small.tif", lambda path: write_scene(path, values, names=["VH"], dtype="uint8"))
    )


@case("translate-identity-polarisations")
def identity_polarisations(shop: Workshop) -> dict[str, Part]:
    values = ramp(200, 150, bands=2)
    values[0, 50:90, 60:] = 0
    values[1, 70:120, 20:80] = 0
    scene = shop.once("two.tif", lambda path: write_scene(path, values, names=["VV", "VH"]))
    return identity(shop, scene, "--tile", 96, "--overlap", 16, "--scaling-from", 900)


@case("translate-identity-decibels")
def identity_decibels(shop: Workshop) -> dict[str, Part]:
    values = ramp(120, 130).astype(np.float32) / 100 - 30
    values[:, 30:40, 50:] = np.nan
    scene = shop.once(
        "db.tif",
        lambda path: write_scene(path, values, names=["VH"], dtype="float32", nodata=np.nan),
    )
    parts = identity(shop, scene, "--tile", 64, "--overlap", 16, "--quantity", "db")
    return {
        name: Part(part.value, everywhere=part.everywhere and name != "eo") for name, part in parts.items()
    }


@case("translate-identity-window")
def identity_window(shop: Workshop) -> dict[str, Part]:
    return identity(shop, shop.holed(), "--tile", 128, "--overlap", 32, "--window", "33,50,190,301")


@case("translate-identity-bbox")
def identity_bbox(shop: Workshop) -> dict[str, Part]:
    box = ("--bbox", "409805,3758003,412307,3759509", "--bbox-crs", "EPSG:32611")
    return identity(shop, shop.holed(), "--tile", 128, "--overlap", 32, *box)


@case("translate-identity-warped")
def identity_warped(shop: Workshop) -> dict[str, Part]:
    """Give a geographic grid, which is warped."""
    placed = {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, -117.0, 0, -1e-4, 36.0)}
    scene = shop.once("degrees.tif", lambda path: write_scene(path, ramp(150, 160), names=["VH"], **placed))
    parts = identity(shop, scene, "--tile", 64, "--overlap", 16)
    return {name: Part(part.value) for name, part in parts.items()}


@case("translate-identity-slice-in-python")
def identity_slice(shop: Workshop) -> dict[str, Part]:
    scene = sar2eo.open_scene(shop.holed())
    part = scene.isel(y=slice(61, 250), x=slice(130, 333))
    parts = dataset(
        sar2eo.translate(part, model="identity", tile=128, overlap=32, threads=1, block=(64, 96)),
        everywhere=True,
    )
    result = sar2eo.translate(scene, model="identity", tile=96, overlap=16, threads=1)
    out = shop.out("slice")
    sar2eo.write_cog(result.isel(y=slice(61, 250), x=slice(130, 333)), out / "written.tif")
    return parts | pixels(out / "written.tif", everywhere=True)


def bundled(shop: Workshop, *flags: object, also: Iterable[str] = ()) -> dict[str, Part]:
    """Translate with the model of the package: two steps, windows of 128."""
    out = shop.out("bundled")
    more = [word for name in also for word in (f"--{name}", out / f"{name}.tif")]
    given = ("--tile", 128, "--overlap", 32, "--steps", 2, *FLOAT32, *flags, *more)
    run("translate", shop.scenes() / "sar.tif", "--out", out / "eo.tif", *given)
    parts = pixels(out / "eo.tif")
    for name in also:
        parts |= pixels(out / f"{name}.tif")
    return parts


@case("translate-bundled")
def bundled_window(shop: Workshop, *flags: object) -> dict[str, Part]:
    return bundled(shop, "--window", "330,200,130,150", *flags, also=["confidence"])


@case("translate-bundled-samples")
def bundled_samples(shop: Workshop) -> dict[str, Part]:
    return bundled(
        shop, "--window", "200,300,64,60", "--samples", 2, "--batch", 2, also=["spread", "confidence"]
    )


@case("translate-bundled-whole", slow=True)
def bundled_whole(shop: Workshop) -> dict[str, Part]:
    return bundled(shop, "--sampler", "ddim", "--batch", 4)


@case("translate-bundled-slice-in-python")
def bundled_slice(shop: Workshop) -> dict[str, Part]:
    scene = sar2eo.open_scene(shop.scenes() / "sar.tif").isel(y=slice(400, 470), x=slice(330, 390))
    options = {"tile": 128, "overlap": 32, "steps": 2, "seed": 7, "device": "cpu", "dtype": "float32"}
    return dataset(sar2eo.translate(scene, threads=1, batch=1, **options))


@case("translate-untrained")
def untrained(shop: Workshop) -> dict[str, Part]:
    """Give a checkpoint of ``model init``, whose weights are drawn."""
    out = shop.out("untrained")
    given = ("--tile", 64, "--overlap", 16, "--window", "300,300,100,130", "--model", shop.untrained())
    run("translate", shop.scenes() / "sar.tif", "--out", out / "eo.tif", *given, *FLOAT32)
    return pixels(out / "eo.tif")


@case("build-pairs")
def build_pairs(shop: Workshop) -> dict[str, Part]:
    """Give pairs of whole numbers, which nothing resamples."""
    sar = ramp(400, 500)
    sar[:, 100:150, 200:260] = 0
    eo = np.concatenate([ramp(420, 510) % 256, ramp(420, 510, bands=2) // 8 % 256])
    sar_file = shop.once("pairs-sar.tif", lambda path: write_scene(path, sar, names=["VV"]))
    eo_file = shop.once(
        "pairs-eo.tif",
        lambda path: write_scene(path, eo, names=["red", "green", "blue"], dtype="uint8", nodata=None),
    )
    out = shop.out("pairs") / "pairs"
    flags = words("--size 32 --stride 64 --block 1000 --buffer 100 --val 0.2 --test 0.3 --min-valid 0.9")
    run("build-pairs", "--sar", sar_file, "--eo", eo_file, "--out", out, *flags)
    return index_columns(out) | chips(out, everywhere=True)


@case("build-pairs-resampled")
def build_pairs_resampled(shop: Workshop) -> dict[str, Part]:
    scenes, out = shop.scenes(), shop.out("pairs") / "pairs"
    flags = "--size 64 --stride 96 --resolution 15 --block 1000 --buffer 20 --val 0.2 --test 0.3 --seed 3"
    given = ("--sar", scenes / "sar.tif", "--eo", scenes / "eo.tif", "--out", out)
    run("build-pairs", *given, *flags.split())
    return index_columns(out) | chips(out)


@case("build-pairs-aligned", slow=True)
def build_pairs_aligned(shop: Workshop) -> dict[str, Part]:
    scenes, out = shop.scenes(1536), shop.out("pairs") / "pairs"
    flags = words("--size 128 --stride 128 --block 4000 --buffer 200 --align shift --min-valid 0.9")
    run("build-pairs", "--sar", scenes / "sar.tif", "--eo", scenes / "eo.tif", "--out", out, *flags)
    return index_columns(out) | chips(out)


def template(shop: Workshop) -> tuple[Path, Path]:
    """Cut a search image and a template that lies in it."""

    def cut(source: str, rows: slice, cols: slice) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            with rasterio.open(shop.scenes() / source) as file:
                values = file.read()[:, rows, cols]
                transform = file.transform @ Affine.translation(cols.start, rows.start)
                names = file.descriptions
            write_scene(path, values, names=names, dtype="uint8", transform=transform, nodata=None)

        return write

    search = shop.once("search.tif", cut("sar.tif", slice(190, 446), slice(190, 446)))
    return search, shop.once("template.tif", cut("eo.tif", slice(260, 388), slice(240, 368)))


def match(shop: Workshop, *flags: object) -> dict[str, Part]:
    search, found = template(shop)
    out = shop.out("match") / "match"
    run("match", "--search", search, "--template", found, "--out", out, *CPU, *flags)
    told = json.loads((out / "match.json").read_text())
    names = ("matched", "shift", "score", "threshold", "ratio", "ratio_threshold", "expected", "displacement")
    return {"match": Part({name: told[name] for name in names if name in told})}


@case("match-classical")
def match_classical(shop: Workshop) -> dict[str, Part]:
    return {method: match(shop, "--method", method)["match"] for method in ("structure", "phase", "ncc")}


@contextmanager
def one_core() -> Iterator[None]:
    """Let this process have one core, for what takes as many threads as it has cores and has no setting."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@case("match-dcdm")
def match_dcdm(shop: Workshop, seed: int = 2025) -> dict[str, Part]:
    search, found = template(shop)
    with rasterio.open(search) as sar, rasterio.open(found) as eo:
        amplitude, image = sar.read(1).astype(np.float32), np.moveaxis(eo.read(), 0, -1)
    with one_core():
        outcome = sar2eo.match_dcdm(image, amplitude, model="bundled", steps=2, seed=seed)
    figures = {"matched": outcome.matched, "shift": outcome.shift, "score": outcome.score}
    return {
        "match": Part(json.loads(json.dumps(figures))),
        "command": match(shop, "--method", "dcdm", "--steps", 2, "--seed", seed)["match"],
        "surface": Part(outcome.surface),
        "translated": Part(np.moveaxis(outcome.translated, -1, 0)),
        "attention": Part(outcome.after.reshape(outcome.after.shape[0] * outcome.after.shape[1], -1)),
    }


def coregister(shop: Workshop, *flags: object, reference: str, moving: str) -> dict[str, Part]:
    scenes, out = shop.scenes(), shop.out("coregister")
    given = ("--reference", scenes / f"{reference}.tif", "--moving", scenes / f"{moving}.tif")
    run("coregister", *given, "--out", out / "moved.tif", "--report", out / "report.json", *CPU, *flags)
    report = json.loads((out / "report.json").read_text())
    names = ("grid", "matching", "ties", "accepted", "refusal", "transform", "pixel_m", "quality")
    keys = ("row", "col", "shift_rows", "shift_cols", "score", "residual_rows", "residual_cols")
    points = np.array([[point[key] for key in keys] for point in report["points"]], dtype=np.float64)
    used = np.array([[point["accepted"], point["inlier"]] for point in report["points"]])
    return pixels(out / "moved.tif", mask_everywhere=False) | {
        "report": Part({name: report[name] for name in names}),
        "points": Part(points, near=Near(1e-3, 1e-3)),
        "points used": Part(used),
    }


@case("coregister-sar-to-eo")
def coregister_sar(shop: Workshop) -> dict[str, Part]:
    return coregister(shop, "--grid", 64, "--transform", "shift", reference="eo", moving="sar")


@case("coregister-eo-to-sar")
def coregister_eo(shop: Workshop) -> dict[str, Part]:
    return coregister(shop, "--grid", 96, "--transform", "affine", reference="sar", moving="eo")


@case("coregister-local", slow=True)
def coregister_local(shop: Workshop) -> dict[str, Part]:
    return coregister(shop, "--grid", 48, reference="eo", moving="sar")


@case("evaluate")
def evaluate(shop: Workshop) -> dict[str, Part]:
    out = shop.out("evaluate") / "report"
    given = ("--model", "bundled", "--pairs", shop.pairs(), "--out", out)
    run("evaluate", *given, "--steps", 2, "--samples", 2, "--upper-bound", *FLOAT32)
    report = json.loads((out / "metrics.json").read_text())
    names = ("methods", "shuffle", "calibration", "sweep", "left_out", "pairs")
    return {name: Part(without(report[name], "seconds_per_image", "scenes", "scene")) for name in names}


@case("evaluate-matcher")
def evaluate_matcher(shop: Workshop) -> dict[str, Part]:
    out = shop.out("evaluate-matcher") / "report"
    given = ("--model", "bundled", "--pairs", shop.pairs(), "--out", out)
    run("evaluate-matcher", *given, "--search", 128, "--steps", 2, "--noise", "0,5", *CPU)
    report = json.loads((out / "matches.json").read_text())
    return {
        name: Part(without(report[name], "seconds", "scenes")) for name in ("methods", "steps", "comparison")
    }


TWO_STEPS = words("--steps 2 --batch 2 --warmup 1 --ema 0.5 --validate-every 0 --save-every 0 --lr 2e-3")
LR = 2e-3  # of TWO_STEPS


@case("train")
def train(shop: Workshop, *flags: object) -> dict[str, Part]:
    out = shop.out("train") / "run"
    given = ("--pairs", shop.pairs(), "--base", shop.untrained(), "--out", out, "--crop", 64)
    run("train", *given, *TWO_STEPS, *FLOAT32, *flags)
    return learnt(out) | weights(out / "final" / "unet", lr=LR)


@case("train-vae")
def train_vae(shop: Workshop, *flags: object) -> dict[str, Part]:
    out = shop.out("train-vae") / "run"
    shape = words("--latent-channels 4 --widths 16,32,32,32 --crop 64 --texture 0.1 --adversarial 0.1")
    given = ("--pairs", shop.pairs(), "--out", out, *shape, "--adversarial-from", 0.5)
    run("train-vae", *given, *TWO_STEPS, *FLOAT32, *flags)
    return learnt(out) | weights(out / "final" / "vae", lr=LR)


@case("train-matcher")
def train_matcher(shop: Workshop, *flags: object) -> dict[str, Part]:
    out = shop.out("train-matcher") / "run"
    shape = words("--crop 128 --template 64 --widths 32,64 --trials 4")
    run("train-matcher", "--pairs", shop.pairs(), "--out", out, *shape, *TWO_STEPS, *CPU, *flags)
    return learnt(out) | weights(out / "final" / "denoiser", lr=LR)


# Tests


@pytest.fixture(scope="module")
def held() -> dict[str, Any]:
    return json.loads(HELD.read_text())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("unchanged"))


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Give torch one thread: the last bits depend on how many there are."""


def all_differences(parts: Mapping[str, Part], held: Mapping[str, Any]) -> list[str]:
    if parts.keys() != held.keys():
        return [f"parts {sorted(parts)}, were {sorted(held)}"]
    return [f"{name}: {told}" for name, part in parts.items() for told in differences(part, held[name])]


def not_to_the_bit(parts: Mapping[str, Part], held: Mapping[str, Any]) -> list[str]:
    if parts.keys() != held.keys():
        return [f"parts {sorted(parts)}, were {sorted(held)}"]
    return [name for name, part in parts.items() if digest(part)["exact"] != held[name]["exact"]]


def named(names: Iterable[str], slow: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else [], id=name) for name in names]


EACH = named(CASES, slow=[name for name in CASES if CASES[name].slow])


@pytest.mark.parametrize("name", EACH)
def test_on_any_machine_it_is_the_same_or_near(name: str, shop: Workshop, held: dict[str, Any]) -> None:
    """To the bit where only whole numbers are at work; the rest nearly."""
    told = all_differences(shop.result(name), held["cases"][name])
    assert not told, "\n".join(told)


@pytest.mark.parametrize("name", EACH)
def test_on_the_same_machine_it_is_the_same_to_the_bit(
    name: str, shop: Workshop, held: dict[str, Any]
) -> None:
    other = other_environment(held["environment"])
    if other:
        pytest.skip(f"not compared to the bit: {'; '.join(other)}")
    told = not_to_the_bit(shop.result(name), held["cases"][name])
    assert not told, f"not the same to the bit: {', '.join(told)}"


def test_nothing_is_held_that_no_case_makes(held: dict[str, Any]) -> None:
    assert held["cases"].keys() == CASES.keys()


CHANGES: dict[str, Callable[[Workshop], dict[str, Part]]] = {
    "simulate": lambda shop: simulate(shop, seed=4),
    "translate-identity-holes": lambda shop: identity_holes(shop, "--scaling-from", 1390),
    "translate-bundled": lambda shop: bundled_window(shop, "--seed", 2026),
    "match-dcdm": lambda shop: match_dcdm(shop, seed=2026),
    "train": lambda shop: train(shop, "--seed", 2026),
    "train-vae": lambda shop: train_vae(shop, "--seed", 2026),
    "train-matcher": lambda shop: train_matcher(shop, "--seed", 2026),
}


@pytest.mark.parametrize("name", named(CHANGES, slow=["train-vae", "train-matcher"]))
def test_control_a_change_is_seen_on_any_machine(name: str, shop: Workshop, held: dict[str, Any]) -> None:
    """What the tolerances let pass is less than another seed or scaling changes."""
    parts, before = CHANGES[name](shop), held["cases"][name]
    assert all_differences(parts, before)
    learnt_otherwise = [part for part in parts if part.endswith("weights")]
    assert all(list(differences(parts[part], before[part])) for part in learnt_otherwise)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_control_one_bit_is_seen_and_tolerated_and_much_is_not(kind: str) -> None:
    values = hashed(40, 50, seed=1).astype(kind)
    values[3, 4] = 77
    before = digest(Part(values))
    values.view(np.uint8)[3, 4 * values.itemsize] ^= 1
    assert not_to_the_bit({"a": Part(values)}, {"a": before}) == ["a"]
    assert not list(differences(Part(values), before))
    assert list(differences(Part(values, everywhere=True), before))
    assert list(differences(Part(values + values.dtype.type(100)), before))
    assert list(differences(Part(values[::-1]), before))
    assert list(differences(Part(values.astype("float64")), before))


# Writing


def write(names: list[str]) -> None:
    """Write what today's code makes, and say what it changes."""
    before = json.loads(HELD.read_text()) if HELD.exists() else {"environment": {}, "cases": {}}
    if names and (other := other_environment(before["environment"])):
        raise SystemExit(f"the other cases were written elsewhere, write all: {'; '.join(other)}")
    names = [name for name in CASES if not names or name in names or name not in before["cases"]]
    cases = {name: before["cases"][name] for name in CASES if name not in names}
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        for name in names:
            parts = shop.result(name)
            cases[name] = {part: digest(each) for part, each in parts.items()}
            old = before["cases"].get(name)
            far = ["new"] if old is None else all_differences(parts, old)
            bits = [] if old is None else not_to_the_bit(parts, old)
            print(f"{name}: {'; '.join(far or (bits and [f'last bits of {bits}']) or ['as before'])}")  # noqa: T201
    lines = [f' "environment": {json.dumps(environment())},', ' "cases": {']
    for name in CASES:
        inner = [f"   {json.dumps(part)}: {json.dumps(each)}" for part, each in cases[name].items()]
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(inner) + "\n  },")
    lines[-1] = lines[-1].removesuffix(",")
    HELD.write_text("\n".join(["{", *lines, " }", "}", ""]))


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"] or not set(sys.argv[2:]) <= CASES.keys():
        raise SystemExit(f"python {sys.argv[0]} --write [CASE...], of {', '.join(CASES)}")
    write(sys.argv[2:])
