"""Which images of a published data set belong to which split.

The release of C-DiffSET draws a fifth of QXS-SAROPT and of SpaceNet 6 for testing by Python's
``random.sample`` under seed 2025, from the images in the order in which its file system listed them
(https://github.com/KAIST-VICLab/C-DiffSET, data/data_split.py). That order belongs to one disk, so the list
cannot be drawn again elsewhere: those published for QXS-SAROPT
(https://github.com/KAIST-VICLab/ReFlowSET, splits) agree with no order of the names. So lists are read
where they lie in the data set's folder, and else drawn in the same way from the sorted names: as many
images, as random, but others. SAR2Opt is published in two parts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sar2eo.datasets.draws import Purpose, permutation
from sar2eo.errors import PairsError
from sar2eo.pairs.cells import corners_lonlat
from sar2eo.pairs.splits import assign
from sar2eo.recipe import PairsSettings

__all__ = ["drawn_split", "hold_out", "placed_split", "published_split"]

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
