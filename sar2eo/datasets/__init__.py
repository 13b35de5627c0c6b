"""Torch data sets of paired SAR and EO images, one face for all."""

from __future__ import annotations

from pathlib import Path

from sar2eo.datasets.augmentation import Augmentation
from sar2eo.datasets.built import BuiltPairs
from sar2eo.datasets.latents import CachedLatents, build_latent_cache
from sar2eo.datasets.loading import Batch, Order, batches, collate
from sar2eo.datasets.pairs import PairsDataset
from sar2eo.datasets.published import PUBLISHED
from sar2eo.errors import SettingsError
from sar2eo.settings import DataSettings

__all__ = [
    "SPLITS",
    "Augmentation",
    "Batch",
    "CachedLatents",
    "Order",
    "PairsDataset",
    "batches",
    "build_latent_cache",
    "collate",
    "open_dataset",
]

SPLITS = ("train", "val", "test")


def open_dataset(data: DataSettings, split: str, *, augmentation: Augmentation | None = None) -> PairsDataset:
    """Open one split of built pairs, or of a published data set.

    Parameters
    ----------
    data : DataSettings
    split : {"train", "val", "test"}
    augmentation : Augmentation, optional
        None: nothing is random. Chips are whole; of SAR2Opt and SpaceNet 6 it is the central 512 pixels,
        which the published figures are of.

    Raises
    ------
    SettingsError
        For another split.
    PairsError
        If the folder is not what it should be, or the split is empty.
    """
    if split not in SPLITS:
        raise SettingsError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if data.pairs is not None:
        return BuiltPairs(Path(data.pairs), split, augmentation=augmentation)
    kind, root = PUBLISHED[str(data.dataset)], Path(str(data.root))
    return kind(root, split, split_by=data.split_by, augmentation=augmentation)
