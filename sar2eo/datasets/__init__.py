"""Torch data sets of paired SAR and EO images, with one interface."""

from __future__ import annotations

from pathlib import Path

from sar2eo.datasets.augmentation import Augmentation
from sar2eo.datasets.built import BuiltPairs
from sar2eo.datasets.latents import CachedLatents, build_latent_cache
from sar2eo.datasets.loading import Batch, Order, batches, collate
from sar2eo.datasets.pairs import PairsDataset
from sar2eo.datasets.published import PUBLISHED
from sar2eo.errors import SettingsError
from sar2eo.geo.splits import SPLITS
from sar2eo.settings import DataSettings


def open_dataset(data: DataSettings, split: str, *, augmentation: Augmentation | None = None) -> PairsDataset:
    """Open one split ("train", "val" or "test") of built pairs, or of a published data set.

    By default nothing is augmented: whole chips; the central 512 pixels of SAR2Opt and SpaceNet 6, as in
    published figures. Raises `PairsError` if the folder holds no such data set, or the split is empty.
    """
    if split not in SPLITS:
        raise SettingsError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if data.pairs is not None:
        return BuiltPairs(Path(data.pairs), split, augmentation=augmentation)
    kind, root = PUBLISHED[str(data.dataset)], Path(str(data.root))
    return kind(root, split, split_by=data.split_by, augmentation=augmentation)
