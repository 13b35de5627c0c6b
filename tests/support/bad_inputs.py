"""Odd, broken and hostile scenes, made by code, each with what is to come of it.

One table, `SCENES`: a name, what makes the input in a folder, and the verdict on ``sar2eo info`` and on
``sar2eo translate --model identity``. Pixels are whole amplitudes from 1 to 255 and the scale is 255, so
that the right answer of the identity model is the pixels themselves.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine
from support.scene_fixtures import NORTH_UP, UTM, curved_control, write_raster, write_safe

__all__ = ["SCENES", "Made", "Refused", "Scene"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    """An input in a folder.

    Parameters
    ----------
    source : str
        As it is named on the command line, from within the folder.
    levels : ndarray, shape (row, col) or (3, row, col), or None
        What the identity model makes of it, NaN where nothing is valid; None: see `check`.
    transform, crs
        Of the result.
    check : callable, optional
        Looks at the result where it cannot be told pixel by pixel.
    """

    source: str
    levels: Floats | None = None
    transform: Affine | None = NORTH_UP
    crs: str | None = UTM
    check: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Refused:
    """One line with these words, and this exit code.

    Parameters
    ----------
    words : str
        A regular expression.
    code : int
        1: the input; 2: what was asked for.
    """

    words: str
    code: int = 1


@dataclass(frozen=True)
class Scene:
    """One case.

    Parameters
    ----------
    name : str
    make : callable
        Writes into a folder.
    info, translate : Refused or None
        None: the right answer.
    flags : sequence of str
        Of both commands.
    scaled : bool
        By 255; otherwise by the scene itself.
    apart : bool
        In a process of its own, with little memory: without a defence it hangs or takes all memory.
    """

    name: str
    make: Callable[[Path], Made]
    info: Refused | None = None
    translate: Refused | None = None
    flags: Sequence[str] = ()
    scaled: bool = True
    apart: bool = False


def refused(
    name: str,
    make: Callable[[Path], Made],
    words: str,
    code: int = 1,
    *,
    flags: Sequence[str] = (),
    apart: bool = False,
) -> Scene:
    """A case that both commands refuse alike."""
    verdict = Refused(words, code)
    return Scene(name, make, verdict, verdict, flags, apart=apart)


def late(
    name: str, make: Callable[[Path], Made], words: str, flags: Sequence[str] = (), *, scaled: bool = True
) -> Scene:
    """A case whose header is in order: what is wrong is seen where pixels are read."""
    return Scene(name, make, None, Refused(words), flags, scaled)


# Pixels --------------------------------------------------------------------------------------------


def pixels(rows: int = 20, cols: int = 30, seed: int = 1) -> npt.NDArray[np.uint8]:
    """Whole amplitudes, 1 to 255, shape (rows, cols)."""
    return np.random.default_rng(seed).integers(1, 256, (rows, cols)).astype(np.uint8)


def tiff(values: Any = None, name: str = "vv.tif", levels: Any = None, **how: Any) -> Callable[[Path], Made]:
    """A maker of a GeoTIFF; `levels` where the result is not its values."""
    stored = pixels() if values is None else np.asarray(values)
    expected = np.asarray(stored if levels is None else levels, np.float32)

    def make(folder: Path) -> Made:
        write_raster(folder / name, stored, **how)
        return Made(name, expected)

    return make


def placed(
    transform: Affine | None, crs: str | None = UTM, levels: Any = None, check: Any = None
) -> Callable[[Path], Made]:
    """A maker of a GeoTIFF somewhere; the result is there as well, or is looked at by `check`."""

    def make(folder: Path) -> Made:
        write_raster(folder / "vv.tif", pixels(), crs=crs, transform=transform)
        expected = None if check else np.asarray(pixels() if levels is None else levels, np.float32)
        return Made("vv.tif", expected, NORTH_UP if levels is not None else transform, crs, check)

    return make


def at(rows: slice, cols: slice, value: float, dtype: str = "float32") -> npt.NDArray[Any]:
    """Pixels with one value in a part."""
    values = pixels().astype(dtype)
    values[rows, cols] = value
    return values


def holed(value: float, dtype: str = "float32") -> npt.NDArray[Any]:
    """Pixels with one value in a hole."""
    return at(slice(3, 9), slice(4, 20), value, dtype)


HOLE = holed(np.nan)
EMPTY = np.full((20, 30), np.nan)
ONE = np.where(np.indices((20, 30)).sum(0) == 0, 77.0, np.nan)
NOTHING = Made("vv.tif", None)


# Files ---------------------------------------------------------------------------------------------


def content(data: bytes, name: str = "vv.tif") -> Callable[[Path], Made]:
    """A maker of a file."""

    def make(folder: Path) -> Made:
        (folder / name).write_bytes(data)
        return Made(name)

    return make


def changed(change: Callable[[bytes], bytes], **how: Any) -> Callable[[Path], Made]:
    """A maker of a GeoTIFF whose bytes are changed."""

    def make(folder: Path) -> Made:
        path = write_raster(folder / "vv.tif", pixels(200, 300), **how)
        path.write_bytes(change(path.read_bytes()))
        return Made("vv.tif")

    return make


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def flipped(*places: int) -> Callable[[bytes], bytes]:
    """Flip a bit in some bytes; negative places count from the end."""

    def change(data: bytes) -> bytes:
        found = bytearray(data)
        for place in places:
            found[place] ^= 0x10
        return bytes(found)

    return change


def with_tag(tag: int, value: int, kind: int = 4) -> Callable[[bytes], bytes]:
    """Write another value into a tag of the first directory (TIFF 6.0, section 2)."""

    def change(data: bytes) -> bytes:
        found = bytearray(data)
        (start,) = struct.unpack_from("<I", found, 4)
        (count,) = struct.unpack_from("<H", found, start)
        for i in range(count):
            entry = start + 2 + 12 * i
            if struct.unpack_from("<H", found, entry)[0] == tag:
                struct.pack_into("<HHII", found, entry, tag, kind, 1, value)
        return bytes(found)

    return change


def sparse(rows: int, cols: int, block: int = 16_384) -> Callable[[Path], Made]:
    """A maker of a TIFF whose blocks are all left out, which takes no more than their index."""

    def make(folder: Path) -> Made:
        size = {"width": cols, "height": rows, "count": 1, "dtype": "uint8", "nodata": 0}
        layout = {"tiled": True, "blockxsize": block, "blockysize": block, "SPARSE_OK": True, "BIGTIFF": True}
        with rasterio.open(folder / "vv.tif", "w", "GTiff", crs=UTM, transform=NORTH_UP, **size, **layout):
            pass
        return Made("vv.tif")

    return make


def vrt(
    size: tuple[int, int], band: str = "", name: str = "vv.vrt", bands: int = 1
) -> Callable[[Path], Made]:
    """A maker of a GDAL virtual raster: a few lines of XML that claim anything."""
    inner = (
        f'<VRTRasterBand dataType="Byte" band="1"><Description>VV</Description>{band}</VRTRasterBand>' * bands
    )
    place = f"<SRS>{UTM}</SRS><GeoTransform>500000,10,0,5000000,0,-10</GeoTransform>"
    text = f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}">{place}{inner}</VRTDataset>'
    return content(text.encode(), name)


def source_of(file: str) -> str:
    return f"<SimpleSource><SourceFilename>{file}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"


def picture(driver: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        with rasterio.MemoryFile() as memory:
            with memory.open(driver=driver, width=30, height=20, count=1, dtype="uint8") as target:
                target.write(pixels()[None])
            (folder / "vv.tif").write_bytes(memory.read())
        return Made("vv.tif")

    return make


# Names and places ----------------------------------------------------------------------------------


def named(name: str, source: str | None = None) -> Callable[[Path], Made]:
    """A maker of a sound scene under a name."""

    def make(folder: Path) -> Made:
        (folder / name).parent.mkdir(exist_ok=True)
        write_raster(folder / "plain.tif", pixels(), names=("VV",))
        (folder / "plain.tif").rename(folder / name)
        return Made(source or name, pixels().astype(np.float32))

    return make


def linked(target: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        write_raster(folder / "scene.tif", pixels())
        (folder / "folder").mkdir()
        (folder / "vv.tif").symlink_to(target)
        return Made("vv.tif", pixels().astype(np.float32))

    return make


def fifo(folder: Path) -> Made:
    os.mkfifo(folder / "vv.tif")
    return Made("vv.tif")


def unix_socket(folder: Path) -> Made:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("vv.tif")
    return Made("vv.tif")


def nowhere(source: str) -> Callable[[Path], Made]:
    return lambda _: Made(source)


def folder_of_files(name: str, *files: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(b"")
        (folder / name).mkdir(exist_ok=True)
        return Made(name)

    return make


# Places on Earth -----------------------------------------------------------------------------------

DEGREES = "EPSG:4326"


def crosses_the_antimeridian(raster: Any) -> None:
    from pyproj import Transformer

    left, bottom, right, top = raster.bounds
    lon, _ = Transformer.from_crs(raster.crs, DEGREES, always_xy=True).transform([left, right], [bottom, top])
    assert lon[0] > 179
    assert lon[1] < -179
    assert (raster.read_masks(1) > 0).mean() > 0.5
    assert set(np.unique(raster.read(1))) <= {0, *range(1, 256)}


def somewhere(raster: Any) -> None:
    assert (raster.read_masks(1) > 0).mean() > 0.5


def near_a_pole(raster: Any) -> None:
    assert raster.crs.to_epsg() in (32661, 32761)
    assert (raster.read_masks(1) > 0).any()


def with_control(points: Sequence[tuple[float, ...]], check: Any = None) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        write_raster(folder / "vv.tif", pixels(), crs=None, transform=None, gcps=points)
        return Made("vv.tif", check=check)

    return make


# Products and catalogues ---------------------------------------------------------------------------


def item(asset: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A STAC item with one asset, changed."""
    sound = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "a",
        "geometry": None,
        "properties": {"datetime": "2024-05-06T07:08:09Z"},
        "links": [],
        "assets": {"vv": {"href": "./scene.tif", "type": "image/tiff", **(asset or {})}},
    }
    return sound | changes


def catalogue(what: Any, name: str = "item.json") -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        write_raster(folder / "scene.tif", pixels())
        (folder / name.partition("#")[0]).write_text(what if isinstance(what, str) else json.dumps(what))
        return Made(name, pixels().astype(np.float32))

    return make


def product(change: Callable[[Path], Any], check: Any = None) -> Callable[[Path], Made]:
    """A maker of a Sentinel-1 product of which something is changed."""

    def make(folder: Path) -> Made:
        safe, _ = write_safe(folder, polarisations=("VV",))
        change(safe)
        return Made(safe.name, check=check)

    return make


def edited(pattern: str, old: str, new: str) -> Callable[[Path], Any]:
    def change(safe: Path) -> None:
        (path,) = safe.glob(pattern)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def two_files(second: dict[str, Any], source: str = "VV=a.tif,VH=b.tif") -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        write_raster(folder / "a.tif", pixels())
        write_raster(folder / "b.tif", **{"values": pixels(seed=2), **second})
        return Made(source)

    return make


RASTER = "GDAL cannot open it as a raster"

SCENES: list[Scene] = [
    # Broken files
    refused("no bytes", content(b""), RASTER),
    refused("text", content(b"Sentinel-1, VV\n"), RASTER),
    refused("a web page", content(b"<!DOCTYPE html><html><body>404</body></html>"), RASTER),
    refused("cut in the header", changed(lambda data: data[:6]), RASTER),
    refused("cut in the directory", changed(lambda data: data[:40]), RASTER),
    refused("cut in compressed pixels", changed(cut(0.6), compress="deflate"), "damaged"),
    refused("cut in plain pixels", changed(cut(0.6)), "damaged"),
    refused("a flipped bit of the magic number", changed(flipped(0)), RASTER),
    refused("a flipped bit of the first offset", changed(flipped(6)), RASTER),
    refused("a flipped bit of compressed pixels", changed(flipped(-3000), compress="deflate"), "damaged"),
    refused("a band count of zero", changed(with_tag(277, 0, 3)), "no pixels|GDAL cannot open"),
    refused("a width of zero", changed(with_tag(256, 0)), RASTER),
    refused("a width of two thousand million", changed(with_tag(256, 2**31 - 1)), "pixels", apart=True),
    refused("a height of two thousand million", changed(with_tag(257, 2**31 - 1)), "pixels", apart=True),
    refused(
        "tiles of a thousand million columns",
        changed(with_tag(322, 2**30), tiled=True, blockxsize=128, blockysize=128),
        "GDAL cannot|block",
        apart=True,
    ),
    refused("one tile of gigabytes", sparse(30, 30, 49_152), "blocks of 49152 x 49152", apart=True),
    refused("terabytes without a block", sparse(2_000_000, 2_000_000), "2000000 x 2000000", apart=True),
    refused("terabytes in a few lines", vrt((2**31 - 1, 2**31 - 1)), "2147483647", apart=True),
    refused("no bands", vrt((20, 30), bands=0), "no pixels|GDAL cannot open"),
    refused("no columns", vrt((20, 0)), "no pixels|GDAL cannot open"),
    refused("a virtual raster of a missing file", vrt((20, 30), source_of("missing.tif")), "damaged"),
    refused("a virtual raster of itself", vrt((20, 30), source_of("vv.vrt")), "damaged"),
    refused("a picture in PNG", picture("PNG"), "neither a CRS"),
    refused("a picture in JPEG", picture("JPEG"), "neither a CRS"),
    # Values
    late(
        "NaN everywhere",
        tiff(EMPTY.astype("float32")),
        "no valid pixel",
        ("--quantity", "amplitude"),
        scaled=False,
    ),
    late(
        "infinity everywhere",
        tiff(EMPTY.astype("float32") + np.inf),
        "no valid pixel",
        ("--quantity", "amplitude"),
        scaled=False,
    ),
    late(
        "all nodata", tiff(at(slice(None), slice(None), 0, "uint8"), nodata=0), "no valid pixel", scaled=False
    ),
    Scene(
        "all nodata, and a scale from elsewhere", tiff(np.zeros((20, 30), "uint8"), nodata=0, levels=EMPTY)
    ),
    refused(
        "NaN everywhere, of which quantity",
        tiff(EMPTY.astype("float32")),
        "no valid pixel found to determine the quantity",
    ),
    Scene(
        "NaN, infinity and what float32 cannot hold, here and there",
        tiff(holed(1e300, "float64"), levels=HOLE),
        flags=("--quantity", "dn"),
    ),
    Scene("minus infinity here and there", tiff(holed(-np.inf), levels=HOLE), flags=("--quantity", "dn")),
    Scene(
        "one valid pixel",
        tiff(np.nan_to_num(ONE).astype("uint8"), nodata=0, levels=np.where(ONE > 0, 255, np.nan)),
        scaled=False,
    ),
    Scene(
        "one value everywhere",
        tiff(np.full((20, 30), 40, "uint8"), levels=np.full((20, 30), 255)),
        scaled=False,
    ),
    late(
        "zero everywhere, which is not nodata",
        tiff(np.zeros((20, 30), "uint8")),
        "cannot be scaled",
        scaled=False,
    ),
    refused(
        "negative amplitudes everywhere",
        tiff(-pixels().astype("float32")),
        "do not look like amplitude",
        flags=("--quantity", "amplitude"),
    ),
    Scene(
        "negative amplitudes here and there",
        tiff(holed(-7), levels=holed(0)),
        flags=("--quantity", "amplitude"),
    ),
    Scene(
        "nodata within the range of values",
        tiff(nodata=100, levels=np.where(pixels() == 100, np.nan, pixels())),
    ),
    Scene("nodata that the type cannot hold", tiff(), flags=("--nodata", "-9999")),
    Scene("nodata that is NaN, of whole numbers", tiff(), flags=("--nodata", "nan")),
    late("a scale of zero", tiff(scale=0.0), "cannot be scaled", ("--quantity", "amplitude"), scaled=False),
    late("a scale of NaN", tiff(scale=np.nan), "no valid pixel", ("--quantity", "amplitude"), scaled=False),
    Scene(
        "complex whole numbers", tiff(pixels().astype("complex64"), dtype="complex_int16", levels=pixels())
    ),
    Scene("signed bytes", tiff((pixels() // 2).astype("int8"))),
    Scene("whole numbers of 64 bits", tiff(holed(2**62, "int64"), levels=holed(255))),
    refused("seven bands", tiff(np.stack([pixels()] * 7)), "7 bands"),
    Scene("four bands", tiff(np.stack([pixels()] * 4), levels=pixels()), flags=("--pol", "HH,HV,VH,VV")),
    # Shapes
    Scene("one pixel", tiff([[200]])),
    Scene("one row", tiff(pixels(1, 601))),
    Scene("one column", tiff(pixels(601, 1))),
    Scene("sizes that are multiples of nothing", tiff(pixels(521, 131), compress="lzw")),
    Scene("blocks larger than the scene", tiff(pixels(3, 5), tiled=True, blockxsize=512, blockysize=512)),
    # Places
    refused("no CRS", placed(NORTH_UP, None), "neither a CRS"),
    refused("no transform", placed(None), "neither a CRS"),
    Scene("no CRS, and taken all the same", placed(None, None), flags=("--allow-ungeoreferenced",)),
    refused("metres called degrees", placed(NORTH_UP, DEGREES), "no longitude and latitude"),
    refused(
        "a place beyond the CRS",
        placed(Affine(10, 0, 1e12, 0, -10, 1e12)),
        "no longitude and latitude|does not fit",
    ),
    refused("a transform of NaN", placed(Affine(10, 0, np.nan, 0, -10, 5e6)), "geotransform"),
    refused("an infinite transform", placed(Affine(10, 0, np.inf, 0, -10, 5e6)), "geotransform"),
    refused("pixels without height", placed(Affine(10, 0, 5e5, 0, 0, 5e6)), "geotransform"),
    refused("pixels on a line", placed(Affine(10, 10, 5e5, 10, 10, 5e6)), "geotransform"),
    refused("the Moon", placed(NORTH_UP, "IAU_2015:30110"), "no longitude and latitude on Earth"),
    refused("a local plane", placed(NORTH_UP, 'LOCAL_CS["a site",UNIT["metre",1]]'), "no map of the Earth"),
    refused("a geocentric CRS", placed(NORTH_UP, "EPSG:4978"), "no map of the Earth"),
    Scene("a south-up grid", placed(Affine(10, 0, 5e5, 0, 10, 5e6 - 200), levels=pixels()[::-1])),
    Scene("columns that run west", placed(Affine(-10, 0, 5e5 + 300, 0, -10, 5e6), levels=pixels()[:, ::-1])),
    Scene(
        "a grid across the antimeridian",
        placed(Affine(1e-3, 0, 179.985, 0, -1e-3, 10), DEGREES, check=crosses_the_antimeridian),
    ),
    Scene(
        "the antimeridian in longitudes to 360",
        placed(Affine(1e-3, 0, -180.015, 0, -1e-3, 10), DEGREES, check=crosses_the_antimeridian),
    ),
    Scene(
        "control points across the antimeridian",
        with_control(curved_control(20, 30, lon=179.999), check=crosses_the_antimeridian),
    ),
    Scene(
        "the north pole, in its corner", placed(Affine(0.1, 0, 10, 0, -0.1, 90), DEGREES, check=near_a_pole)
    ),
    Scene("the south pole, in the middle", placed(Affine(10, 0, -150, 0, -10, 100), "EPSG:3031")),
    refused(
        "latitudes past the pole",
        placed(Affine(1, 0, 0, 0, -1, 110), DEGREES),
        "longitude and latitude|does not fit",
    ),
    refused("three control points", with_control(curved_control(20, 30)[:3]), "3 ground control points"),
    refused("control points on a line", with_control(curved_control(20, 30)[:7]), "on one line"),
    refused(
        "control points at one place",
        with_control([(r, c, 12.0, 45.0) for r, c, _, _ in curved_control(20, 30)]),
        "control points",
    ),
    refused(
        "control points of NaN",
        with_control([(r, c, np.nan, y) for r, c, _, y in curved_control(20, 30)]),
        "no longitude and latitude",
    ),
    refused(
        "control points off the globe",
        with_control([(r, c, x, y + 90) for r, c, x, y in curved_control(20, 30)]),
        "longitude and latitude|control points",
    ),
    # Names
    Scene("a name with spaces", named(" a b .tif")),
    Scene("a name with quotes", named('it\'s "vv".tif')),
    Scene("a name in unicode", named("сцена 場景 é.tif")),
    refused("a name that is no unicode", named("vv-\udcff.tif"), "not valid UTF-8"),
    Scene("a leading dash", named("-vv.tif"), flags=("--",)),
    Scene("a name with a line break", named("a\nb.tif")),
    Scene("a name with #, ?, % and &", named("a#b?c=d%20e&f.tif")),
    Scene("a name with equals sign and comma", named("a,VH=b.tif")),
    Scene("a name with a colon", named("a:b.tif")),
    Scene("a name in capitals", named("VV.TIF")),
    Scene("the longest name", named("v" * 246 + ".tif")),
    refused("a name that is too long", nowhere("v" * 300 + ".tif"), "cannot be looked up"),
    refused("an empty name", nowhere(""), "is empty|a folder"),
    refused("a name of a format", nowhere("NETCDF:missing.nc:vv"), RASTER),
    refused("standard input", nowhere("/vsistdin/"), "not from standard input", apart=True),
    refused("a port where nobody answers", nowhere("http://127.0.0.1:9/vv.tif"), "cannot be reached"),
    # Links and what is no file
    Scene("a link", linked("scene.tif")),
    refused("a dangling link", linked("missing.tif"), "no such file"),
    refused("a link to itself", linked("vv.tif"), "cannot be looked up"),
    refused("a link to a folder", linked("folder"), "a folder"),
    refused("a folder", folder_of_files("vv.tif", "scene.tif"), r"vv\.tif/scene\.tif: " + RASTER),
    refused("a pipe", fifo, "neither a file nor a folder", apart=True),
    refused("a socket", unix_socket, "neither a file nor a folder"),
    refused("endless zeros", nowhere("/dev/zero"), "neither a file nor a folder", apart=True),
    # Products and catalogues
    refused("an empty product", folder_of_files("a.SAFE", "manifest.safe"), "no measurement"),
    refused(
        "a product without its annotation",
        folder_of_files("a.SAFE", "measurement/s1b-iw-grd-vv.tiff"),
        "is missing",
    ),
    refused(
        "an annotation that is cut short",
        product(edited("annotation/*.xml", "</product>", "")),
        "not readable XML",
    ),
    Scene("a product of no day", product(edited("annotation/*.xml", "2019-03-04T", "yesterday "), somewhere)),
    refused(
        "control points in words",
        product(edited("annotation/*.xml", "<line>0.0<", "<line>first<")),
        "text in place of a number",
    ),
    refused("a zip that is none", content(b"PK\x03\x04 nothing more", "a.zip"), "not a zip archive"),
    refused("no JSON", catalogue("{"), "not a STAC item"),
    refused("endless JSON", catalogue("[" * 100_000), "not a STAC item"),
    refused("a JSON list", catalogue([]), "not a STAC item"),
    refused(
        "no item of this name",
        catalogue({"type": "FeatureCollection", "features": [item()]}, "items.json#b"),
        "no item of this name",
    ),
    refused("an item without assets", catalogue(item(assets={})), "no SAR asset"),
    refused(
        "an asset that is missing",
        catalogue(item({"href": "./missing.tif"})),
        "no such file|GDAL cannot open",
    ),
    refused("an asset that is the item", catalogue(item({"href": "./item.json"})), RASTER),
    refused("assets in a list", catalogue(item(assets=[])), "not a STAC item"),
    refused("an href that is a number", catalogue(item({"href": 5})), "STAC"),
    refused(
        "polarisations that are a number", catalogue(item({"sar:polarizations": 5})), "is of the wrong type"
    ),
    refused(
        "a nodata value in words",
        catalogue(item({"raster:bands": [{"nodata": "none"}]})),
        "is of the wrong type",
    ),
    refused(
        "a platform that is a number",
        catalogue(item(properties={"datetime": "2024-05-06T07:08:09Z", "platform": 5})),
        "is of the wrong type",
    ),
    refused("two files of other sizes", two_files({"values": pixels(20, 31)}), "not on one grid"),
    refused("one file of two missing", two_files({}, "VV=a.tif,VH=c.tif"), "GDAL cannot open|no such file"),
    refused("a polarisation without a file", two_files({}, "VV=a.tif,VH="), "VH= names no file"),
]
