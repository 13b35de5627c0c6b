"""QXS-SAROPT, SAR2Opt and SpaceNet 6 in the folders that they come in.

QXS-SAROPT: https://arxiv.org/abs/2103.08259; SAR2Opt: https://ieeexplore.ieee.org/document/9779739;
SpaceNet 6: https://arxiv.org/abs/2004.06500.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from sar2eo.datasets.augmentation import Augmentation
from sar2eo.datasets.loading import Purpose, permutation
from sar2eo.datasets.pairs import Pair, PairsDataset, picture, raster
from sar2eo.errors import PairsError
from sar2eo.geo.chip_lattice import corners_lonlat
from sar2eo.pairs.splits import assign
from sar2eo.settings import PairsSettings

__all__ = [
    "PUBLISHED",
    "PublishedPairs",
    "QxsSaropt",
    "Sar2Opt",
    "SpaceNet6",
    "drawn_split",
    "hold_out",
    "placed_split",
    "published_split",
]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_BYTE = 255.0  # the brightest of an 8-bit picture


class PublishedPairs(PairsDataset):
    """A published data set.

    Parameters
    ----------
    root : Path
        Its folder.
    split : {"train", "val", "test"}
    split_by : {"release", "place"}
    augmentation : Augmentation, optional
        By default the centre: 512 pixels, or less where images are smaller.

    Raises
    ------
    PairsError
        If the folder lacks images or one of a pair, or cannot be split so.
    """

    title: ClassVar[str]
    band_names: ClassVar[tuple[str, ...]]
    pixel_m: ClassVar[float]
    brightest: ClassVar[Literal["p99"] | float] = "p99"

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        split_by: Literal["release", "place"] = "release",
        augmentation: Augmentation | None = None,
    ) -> None:
        self.root, self.split = root, split
        names = self._listed()
        self.split_note, lists = self._split(names, split_by)
        self.names = tuple(lists[split])
        if not self.names:
            counts = ", ".join(f"{len(listed)} {name}" for name, listed in lists.items())
            raise PairsError(f"{root} has no {split} pairs, but {counts}")
        # Images are of one size, so one tells; a smaller one is refused when it is read.
        first = self._open(self.names[0])
        super().__init__(
            [Path(name).stem for name in self.names],
            size=(first.eo.shape[1], first.eo.shape[2]),
            polarisations=self.band_names,
            quantity="dn",
            gsd_m=self.pixel_m,
            scaling=self.brightest,
            augmentation=augmentation or Augmentation(crop=512, centre=True),
        )

    @abstractmethod
    def _folders(self) -> list[tuple[str, str]]:
        """Return folders of EO and SAR images, relative to the root."""

    @abstractmethod
    def _open(self, name: str) -> Pair:
        """Read the pair of an EO image."""

    def sar_name(self, eo_name: str) -> str:
        """Return the SAR image of an EO image, both relative to the root."""
        for eo, sar in self._folders():
            if eo_name.startswith(f"{eo}/"):
                return sar + eo_name[len(eo) :]
        raise KeyError(eo_name)

    def read(self, index: int) -> Pair:
        """Read a pair; see `PairsDataset.read`."""
        return self._open(self.names[index])

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files of the SAR and the EO image."""
        name = self.names[index]
        return self.root / self.sar_name(name), self.root / name

    def describe(self) -> str:
        """Say which data set, how many pairs, and how they were chosen."""
        return f"{self.title}: {len(self)} {self.split} pairs, {self.split_note}"

    @property
    def places(self) -> tuple[str, ...]:
        """The scenes that images were cut from, where their names tell; else each is of its own."""
        return tuple(map(self._group, self.names))

    def _group(self, name: str) -> str:
        """Return what an image may share pixels with."""
        return name

    def _listed(self) -> list[str]:
        """List EO images, each of which must have a SAR image."""
        names: list[str] = []
        for eo, sar in self._folders():
            absent = [folder for folder in (eo, sar) if not (self.root / folder).is_dir()]
            if absent:
                raise PairsError(f"{self.root} has no {absent[0]}: not the folder of {self.title}")
            there = {f"{sar}/{path.name}" for path in (self.root / sar).iterdir()}
            inside = [path.name for path in (self.root / eo).iterdir() if path.suffix.lower() in _SUFFIXES]
            found = sorted(f"{eo}/{name}" for name in inside)
            alone = [name for name in found if self.sar_name(name) not in there]
            if alone:
                raise PairsError(
                    f"{self.root}: {len(alone)} EO images have no SAR image, {alone[0]} for one: is the "
                    "folder complete?"
                )
            names += found
        if not names:
            raise PairsError(f"{self.root} has no images in {self._folders()[0][0]}")
        return names

    def _split(self, names: list[str], split_by: str) -> tuple[str, dict[str, list[str]]]:
        """Return how images are split, in words, and the images of each split."""
        if split_by == "place":
            raise PairsError(
                f"{self.title} has no georeference, so it cannot be split by place: choose split_by=release"
            )
        lists = published_split(self.root, names)
        note = "by the lists in its folder" if lists else "drawn with seed 2025 from the sorted names"
        lists = lists or drawn_split(names)
        held = hold_out(lists["train"], self._group)
        return f"{note}, validation from the training part", held | {"test": lists["test"]}


class QxsSaropt(PublishedPairs):
    """QXS-SAROPT: 20,000 pairs of 256 pixels, Gaofen-3 spotlight, and Google Earth.

    Patches of one scene are split at random, so those for testing have neighbours among those for training.
    """

    title = "QXS-SAROPT"
    band_names = ("HH",)  # One polarisation, of which nothing is published.
    pixel_m = 1.0
    brightest = _BYTE

    def _folders(self) -> list[tuple[str, str]]:
        return [("opt_256_oc_0.2", "sar_256_oc_0.2")]

    def _open(self, name: str) -> Pair:
        return _pictures(self.root / self.sar_name(name), self.root / name)


class Sar2Opt(PublishedPairs):
    """SAR2Opt: 2077 pairs of 600 pixels, TerraSAR-X, and Google Earth; A is SAR, B is EO.

    Files are named ``scene_row_column``, in steps of 240 pixels. The published parts cut each scene at some
    row, so tiles on both sides of it share ground; validation takes whole scenes of the training part.
    """

    title = "SAR2Opt"
    band_names = ("HH",)  # One polarisation, of which nothing is published.
    pixel_m = 1.0
    brightest = _BYTE

    def _folders(self) -> list[tuple[str, str]]:
        return [("trainB", "trainA"), ("testB", "testA")]

    def _open(self, name: str) -> Pair:
        return _pictures(self.root / self.sar_name(name), self.root / name)

    def _group(self, name: str) -> str:
        tile = re.fullmatch(r"(\d+)_\d+_\d+", Path(name).stem)
        return tile[1] if tile else name

    def _split(self, names: list[str], split_by: str) -> tuple[str, dict[str, list[str]]]:
        if split_by == "place":
            return super()._split(names, split_by)
        parts = {part: [name for name in names if name.startswith(f"{part}B/")] for part in ("train", "test")}
        held = hold_out(parts["train"], self._group)
        return "as published, validation from the training part", held | {"test": parts["test"]}


class SpaceNet6(PublishedPairs):
    """SpaceNet 6: 3401 pairs of 900 pixels over Rotterdam, Capella with four polarisations, WorldView-2.

    As in the release, SAR is stretched for each image and polarisation from the 1st to the 99th percentile,
    here of the valid pixels; those that are 0 in all polarisations are not. Strips overlap, so images that
    are split at random share ground; `split_by` "place" keeps a distance.
    """

    title = "SpaceNet 6"
    band_names = ("HH", "HV", "VH", "VV")
    pixel_m = 0.5

    def _folders(self) -> list[tuple[str, str]]:
        area = "train/AOI_11_Rotterdam"
        return [(f"{area}/PS-RGB", f"{area}/SAR-Intensity")]

    def sar_name(self, eo_name: str) -> str:
        """Return the SAR image of an EO image, both relative to the root."""
        return eo_name.replace("PS-RGB", "SAR-Intensity")

    def _open(self, name: str) -> Pair:
        sar_path, eo_path = self.root / self.sar_name(name), self.root / name
        (sar, sar_valid), (eo, eo_valid) = raster(sar_path), raster(eo_path)
        if len(sar) != 4 or eo.shape != (3, *sar.shape[1:]) or eo.dtype != np.uint8:
            raise PairsError(
                f"{name}: SAR of shape {sar.shape} and EO of shape {eo.shape} and {eo.dtype}: must be of one "
                "size, with 4 and 3 bands, EO uint8"
            )
        sar_valid &= (sar != 0).any(axis=0)
        if name not in self._limits:
            self._limits[name] = _stretch(sar, sar_valid)
        return Pair(sar, eo, sar_valid & eo_valid, *self._limits[name])

    @cached_property
    def _limits(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Percentiles by image: they take far longer than reading it."""
        return {}

    def describe(self) -> str:
        """Say which data set, how many pairs, how they were chosen, and how SAR is scaled."""
        return f"{super().describe()}, SAR stretched by the percentiles of each image"

    def _split(self, names: list[str], split_by: str) -> tuple[str, dict[str, list[str]]]:
        if split_by == "release":
            return super()._split(names, split_by)
        lists = placed_split({name: self.root / self.sar_name(name) for name in names})
        return "split by place in blocks of 1500 m, training 50 m away from all others", lists


PUBLISHED: dict[str, type[PublishedPairs]] = {"qxs": QxsSaropt, "sar2opt": Sar2Opt, "spacenet6": SpaceNet6}
"""By the names of `sar2eo.settings.training.Dataset`."""


def _stretch(
    sar: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values of each band that become -1 and 1."""
    if not valid.any():
        return (0.0,) * len(sar), (1.0,) * len(sar)
    limits = [np.percentile(band[valid], (1, 99), overwrite_input=True).tolist() for band in sar]
    # As in the release: a constant image becomes black, not an error.
    return tuple(low for low, _ in limits), tuple(max(high, low + 2**-10) for low, high in limits)


def _pictures(sar_path: Path, eo_path: Path) -> Pair:
    """Read a pair of 8-bit pictures; 255 is the brightest, and every pixel is valid."""
    sar, eo = picture(sar_path, "L"), picture(eo_path, "RGB")
    if sar.shape[1:] != eo.shape[1:]:
        raise PairsError(
            f"{eo_path}: {eo.shape[1:]} pixels, and its SAR image {sar.shape[1:]}: must be the same"
        )
    return Pair(sar, eo, np.ones(sar.shape[1:], bool), low=(0.0,), high=(_BYTE,))


SEED = 2025
_TEST = 1 - 80 / 100  # In floating point a little less than a fifth: 3999 of 20,000, as in the release.
_HELD_OUT = 0.05
# Tiles of SpaceNet 6 are 450 m wide, and cover some 120 square kilometres.
_PLACES = PairsSettings(block=1500.0, val=0.1, test=0.2, buffer=50.0, seed=SEED)

Split = dict[str, list[str]]


def drawn_split(names: Sequence[str]) -> Split:
    """Draw test images as the release does, from sorted names; the rest is for training."""
    ordered = sorted(names)
    test = set(random.Random(SEED).sample(ordered, int(len(ordered) * _TEST)))
    return {"train": [name for name in ordered if name not in test], "test": sorted(test)}


def published_split(root: Path, names: Sequence[str]) -> Split | None:
    """Read ``train_eo_list*.txt`` and ``test_eo_list*.txt``, as the release writes them, from a folder.

    Parameters
    ----------
    root : Path
    names : sequence of str
        EO images that are there, relative to `root`.

    Returns
    -------
    dict of str to list of str, or None
        None: there are no such files.

    Raises
    ------
    PairsError
        If there is one without the other, more than one of a kind, or they name images that are not
        there, or the same image.
    """
    found = {split: sorted(root.glob(f"{split}_eo_list*.txt")) for split in ("train", "test")}
    if not any(found.values()):
        return None
    if any(len(paths) != 1 for paths in found.values()):
        raise PairsError(
            f"{root}: has {', '.join(path.name for paths in found.values() for path in paths)}: must be one "
            "train_eo_list*.txt and one test_eo_list*.txt, or neither"
        )
    split = {name: paths[0].read_text(encoding="utf-8").split() for name, paths in found.items()}
    both = set(split["train"]) & set(split["test"])
    if both:
        raise PairsError(f"{root}: its lists share {len(both)} images, {min(both)} for one")
    absent = {*split["train"], *split["test"]} - set(names)
    if absent:
        raise PairsError(
            f"{root}: its lists name {len(absent)} images that are not there, {min(absent)} for one: is the "
            "folder complete?"
        )
    return {name: sorted(listed) for name, listed in split.items()}


def hold_out(train: Sequence[str], group: Callable[[str], str]) -> Split:
    """Take a twentieth of training images for validation, whole groups, always the same.

    No published list has a validation part. Groups are images that overlap.

    Parameters
    ----------
    train : sequence of str
    group : callable
        Name of an image to that of its group.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(train):
        members.setdefault(group(name), []).append(name)
    groups = list(members)
    order = [groups[i] for i in permutation(SEED, Purpose.SPLIT, 0, 0, len(groups))]
    room, held = int(len(train) * _HELD_OUT), set[str]()
    for name in order:
        if len(members[name]) <= room:
            held.add(name)
            room -= len(members[name])
    if not held and len(groups) > 1:
        held.add(min(order, key=lambda name: len(members[name])))
    return {
        "train": [name for name in sorted(train) if group(name) not in held],
        "val": [name for name in sorted(train) if group(name) in held],
    }


def placed_split(paths: dict[str, Path]) -> Split:
    """Split georeferenced images by place: blocks on the ground, with a distance between splits.

    Blocks are of 1500 m; a training image within 50 m of one of another split belongs to none.

    Parameters
    ----------
    paths : dict of str to Path
        Raster of each name.

    Raises
    ------
    PairsError
        If an image has no georeference, or is not north-up.
    """
    names = sorted(paths)
    corners = np.concatenate([_corners(paths[name]) for name in names])
    found = assign(corners, _PLACES)
    split: Split = {"train": [], "val": [], "test": []}
    for name, where, kept in zip(names, found.split, found.kept, strict=True):
        if kept:
            split[where].append(name)
    return split


def _corners(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    import rasterio

    with rasterio.open(path) as file:
        crs, transform, shape = file.crs, file.transform, file.shape
    if crs is None or transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise PairsError(f"{path} has no north-up georeference: choose split_by=release")
    return corners_lonlat(str(crs), np.array([transform[:6]]), shape)
