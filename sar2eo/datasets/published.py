"""Readers of QXS-SAROPT, SAR2Opt and SpaceNet 6, in the folder layouts they are published in.

QXS-SAROPT: https://arxiv.org/abs/2103.08259; SAR2Opt: https://ieeexplore.ieee.org/document/9779739;
SpaceNet 6: https://arxiv.org/abs/2004.06500.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from sar2eo.datasets.augmentation import Augmentation
from sar2eo.datasets.loading import Purpose, permutation
from sar2eo.datasets.pairs import Pair, PairsDataset, read_picture, read_raster
from sar2eo.errors import PairsError
from sar2eo.geo.chip_lattice import corners_lonlat
from sar2eo.geo.splits import assign
from sar2eo.settings import PairsSettings

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_BYTE = 255.0  # largest value of an 8-bit picture
_SEED = 2025
_TEST = 1 - 80 / 100  # In floating point a little less than a fifth: 3999 of 20,000, as in the release.
_HELD_OUT = 0.05
# Tiles of SpaceNet 6 are 450 m wide, and cover some 120 square kilometres.
_PLACES = PairsSettings(block=1500.0, val=0.1, test=0.2, buffer=50.0, seed=_SEED)

Split = dict[str, list[str]]


class PublishedPairs(PairsDataset):
    """One split of a published data set, of 8-bit pictures without georeference unless a subclass differs.

    With `split_by` "release" parts are as published, with validation from the training part; with "place", in
    blocks on the ground. Without an `augmentation`, samples are the central 512 pixels, or less where images
    are smaller.

    Raises `PairsError` if the folder is incomplete, or cannot be split that way.
    """

    title: ClassVar[str]
    folders: ClassVar[tuple[tuple[str, str], ...]]
    """Folders of EO and of SAR images, relative to the root."""
    # A single polarisation, which the publications do not name.
    band_names: ClassVar[tuple[str, ...]] = ("HH",)
    pixel_m: ClassVar[float] = 1.0
    brightest: ClassVar[Literal["p99"] | float] = _BYTE

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        split_by: Literal["release", "place"] = "release",
        augmentation: Augmentation | None = None,
    ) -> None:
        self.root, self.split = root, split
        self.split_note, lists = self._split(self._list_images(), split_by)
        self.names = tuple(lists[split])
        if not self.names:
            counts = ", ".join(f"{len(listed)} {name}" for name, listed in lists.items())
            raise PairsError(f"{root} has no {split} pairs, but {counts}")
        # All images have the size of the first; `_pair` refuses smaller ones.
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

    def sar_name(self, eo_name: str) -> str:
        """Return the SAR image of an EO image, both relative to the root."""
        folder, name = eo_name.rsplit("/", 1)
        return f"{dict(self.folders)[folder]}/{name}"

    def read(self, index: int) -> Pair:
        """Read a pair; see `PairsDataset.read`."""
        return self._open(self.names[index])

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files of the SAR and the EO image."""
        name = self.names[index]
        return self.root / self.sar_name(name), self.root / name

    def describe(self) -> str:
        """Describe the data set: its name, number of pairs, and how they were split."""
        return f"{self.title}: {len(self)} {self.split} pairs, {self.split_note}"

    @property
    def places(self) -> tuple[str, ...]:
        """The scene of each image, where file names tell it; otherwise each image is its own place."""
        return tuple(map(self._scene, self.names))

    def _scene(self, name: str) -> str:
        """Return the scene of an image; images of one scene may overlap."""
        return name

    def _open(self, name: str) -> Pair:
        """Read the pair of an EO image."""
        path = self.root / name
        sar, eo = read_picture(self.root / self.sar_name(name), "L"), read_picture(path, "RGB")
        if sar.shape[1:] != eo.shape[1:]:
            raise PairsError(
                f"{path}: {eo.shape[1:]} pixels, and its SAR image {sar.shape[1:]}: must be the same"
            )
        return Pair(sar, eo, np.ones(sar.shape[1:], bool), low=(0.0,), high=(_BYTE,))

    def _list_images(self) -> list[str]:
        """List EO images, each of which must have a SAR image."""
        names: list[str] = []
        for eo, sar in self.folders:
            absent = [folder for folder in (eo, sar) if not (self.root / folder).is_dir()]
            if absent:
                raise PairsError(f"{self.root} has no {absent[0]}: not the folder of {self.title}")
            sar_names = {f"{sar}/{path.name}" for path in (self.root / sar).iterdir()}
            images = [path.name for path in (self.root / eo).iterdir() if path.suffix.lower() in _SUFFIXES]
            found = sorted(f"{eo}/{name}" for name in images)
            alone = [name for name in found if self.sar_name(name) not in sar_names]
            if alone:
                raise PairsError(
                    f"{self.root}: {len(alone)} EO images have no SAR image, such as {alone[0]}: is the "
                    "folder complete?"
                )
            names += found
        if not names:
            raise PairsError(f"{self.root} has no images in {self.folders[0][0]}")
        return names

    def _split(self, names: list[str], split_by: str) -> tuple[str, Split]:
        """Return a description of the split, and the images of each part."""
        if split_by == "place":
            raise PairsError(
                f"{self.title} has no georeference, so it cannot be split by place: choose split_by=release"
            )
        lists = read_split(self.root, names)
        note = "by the lists in its folder" if lists else "drawn with seed 2025 from the sorted names"
        lists = lists or draw_split(names)
        return f"{note}, validation from the training part", {
            **hold_out_validation(lists["train"], self._scene),
            "test": lists["test"],
        }


class QxsSaropt(PublishedPairs):
    """QXS-SAROPT: 20,000 pairs of 256 pixels, Gaofen-3 spotlight, and Google Earth.

    Patches of one scene are split at random, so test patches have neighbours among the training patches.
    """

    title = "QXS-SAROPT"
    folders = (("opt_256_oc_0.2", "sar_256_oc_0.2"),)


class Sar2Opt(PublishedPairs):
    """SAR2Opt: 2077 pairs of 600 pixels, TerraSAR-X, and Google Earth; A is SAR, B is EO.

    Files are named ``scene_row_column``, in steps of 240 pixels. The published parts cut each scene at some
    row, so tiles on both sides of the cut overlap; validation takes whole scenes of the training part.
    """

    title = "SAR2Opt"
    folders = (("trainB", "trainA"), ("testB", "testA"))

    def _scene(self, name: str) -> str:
        tile = re.fullmatch(r"(\d+)_\d+_\d+", Path(name).stem)
        return tile[1] if tile else name

    def _split(self, names: list[str], split_by: str) -> tuple[str, Split]:
        if split_by == "place":
            return super()._split(names, split_by)
        parts = {part: [name for name in names if name.startswith(f"{part}B/")] for part in ("train", "test")}
        held = hold_out_validation(parts["train"], self._scene)
        return "as published, validation from the training part", held | {"test": parts["test"]}


class SpaceNet6(PublishedPairs):
    """SpaceNet 6: 3401 pairs of 900 pixels over Rotterdam, Capella with four polarisations, WorldView-2.

    As in the release, SAR is stretched for each image and polarisation from the 1st to the 99th percentile,
    here of the valid pixels; pixels that are 0 in all polarisations are not valid. Strips overlap, so a
    random split puts the same ground into several parts; `split_by` "place" keeps a distance between them.
    """

    title = "SpaceNet 6"
    folders = (("train/AOI_11_Rotterdam/PS-RGB", "train/AOI_11_Rotterdam/SAR-Intensity"),)
    band_names = ("HH", "HV", "VH", "VV")
    pixel_m = 0.5
    brightest = "p99"

    def sar_name(self, eo_name: str) -> str:
        """Return the SAR image of an EO image, both relative to the root."""
        return eo_name.replace("PS-RGB", "SAR-Intensity")

    def _open(self, name: str) -> Pair:
        sar_path, eo_path = self.root / self.sar_name(name), self.root / name
        (sar, sar_valid), (eo, eo_valid) = read_raster(sar_path), read_raster(eo_path)
        if len(sar) != 4 or eo.shape != (3, *sar.shape[1:]) or eo.dtype != np.uint8:
            raise PairsError(
                f"{name}: SAR of shape {sar.shape} and EO of shape {eo.shape} and {eo.dtype}: must be of one "
                "size, with 4 and 3 bands, EO uint8"
            )
        sar_valid &= (sar != 0).any(axis=0)
        if name not in self._limits:
            self._limits[name] = _compute_stretch(sar, sar_valid)
        return Pair(sar, eo, sar_valid & eo_valid, *self._limits[name])

    @cached_property
    def _limits(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Percentiles by image: computing them takes far longer than reading the image."""
        return {}

    def describe(self) -> str:
        """Describe the data set: its name, number of pairs, split, and SAR scaling."""
        return f"{super().describe()}, SAR stretched by the percentiles of each image"

    def _split(self, names: list[str], split_by: str) -> tuple[str, Split]:
        if split_by == "release":
            return super()._split(names, split_by)
        corners = np.concatenate([_corners(self.root / self.sar_name(name)) for name in names])
        found = assign(corners, _PLACES)
        lists: Split = {"train": [], "val": [], "test": []}
        for name, part, kept in zip(names, found.split, found.kept, strict=True):
            if kept:
                lists[part].append(name)
        return "split by place in blocks of 1500 m, training 50 m away from all others", lists


PUBLISHED: dict[str, type[PublishedPairs]] = {"qxs": QxsSaropt, "sar2opt": Sar2Opt, "spacenet6": SpaceNet6}
"""Readers by the names of `sar2eo.settings.training.Dataset`."""


def _compute_stretch(
    sar: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values of each band that become -1 and 1."""
    if not valid.any():
        return (0.0,) * len(sar), (1.0,) * len(sar)
    limits = [np.percentile(band[valid], (1, 99), overwrite_input=True).tolist() for band in sar]
    # As in the release: a constant image becomes black, not an error.
    return tuple(low for low, _ in limits), tuple(max(high, low + 2**-10) for low, high in limits)


def _corners(path: Path) -> npt.NDArray[np.float64]:
    """Return the corners of a north-up raster in degrees, with a leading axis of one."""
    import rasterio

    with rasterio.open(path) as file:
        crs, transform, shape = file.crs, file.transform, file.shape
    if crs is None or transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise PairsError(f"{path} has no north-up georeference: choose split_by=release")
    return corners_lonlat(str(crs), np.array([transform[:6]]), shape)


def draw_split(names: Sequence[str]) -> Split:
    """Draw a fifth of the sorted names for testing, as the release does; the rest is for training."""
    ordered = sorted(names)
    test = set(random.Random(_SEED).sample(ordered, int(len(ordered) * _TEST)))
    return {"train": [name for name in ordered if name not in test], "test": sorted(test)}


def read_split(root: Path, names: Sequence[str]) -> Split | None:
    """Read the split lists that the authors' release writes: ``train_eo_list*.txt``, ``test_eo_list*.txt``.

    `names` are the EO images in the folder, relative to it. None if there are no lists; `PairsError` if one
    is missing, or they name absent images or share some.
    """
    found = {part: sorted(root.glob(f"{part}_eo_list*.txt")) for part in ("train", "test")}
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
        raise PairsError(f"{root}: its lists share {len(both)} images, such as {min(both)}")
    absent = {*split["train"], *split["test"]} - set(names)
    if absent:
        raise PairsError(
            f"{root}: its lists name {len(absent)} images that do not exist, such as {min(absent)}: is the "
            "folder complete?"
        )
    return {name: sorted(listed) for name, listed in split.items()}


def hold_out_validation(train: Sequence[str], scene: Callable[[str], str]) -> Split:
    """Split a twentieth of the training images off for validation, whole scenes, always the same.

    No published list has a validation part. Images of one `scene`, which it tells by the name, may overlap.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(train):
        members.setdefault(scene(name), []).append(name)
    scenes = list(members)
    order = [scenes[i] for i in permutation(_SEED, Purpose.SPLIT, 0, 0, len(scenes))]
    room, held = int(len(train) * _HELD_OUT), set[str]()
    for name in order:
        if len(members[name]) <= room:
            held.add(name)
            room -= len(members[name])
    if not held and len(scenes) > 1:
        held.add(min(order, key=lambda name: len(members[name])))
    return {
        "train": [name for name in sorted(train) if scene(name) not in held],
        "val": [name for name in sorted(train) if scene(name) in held],
    }
