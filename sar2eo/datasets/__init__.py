"""Torch data sets of paired SAR and EO images, one face for all."""

from sar2eo.datasets.augmentation import Augmentation
from sar2eo.datasets.latents import CachedLatents, build_latent_cache
from sar2eo.datasets.loading import Batch, Order, batches, collate
from sar2eo.datasets.pairs import PairsDataset
from sar2eo.datasets.registry import open_dataset

__all__ = [
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
