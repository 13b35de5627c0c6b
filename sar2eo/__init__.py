"""Translate georeferenced SAR scenes into EO images by a confidence-guided latent diffusion model.

::

    import sar2eo

    scene = sar2eo.open_scene("scene.tif")                      # lazy DataArray (band, y, x)
    eo = sar2eo.translate(scene, model="checkpoint/", steps=10)  # lazy Dataset
    sar2eo.write_cog(eo, "eo.tif")

Names are imported on first use, so that ``import sar2eo`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sar2eo._version import __version__

if TYPE_CHECKING:
    from sar2eo.coregistration.registration import coregister as coregister
    from sar2eo.evaluation.matchers import evaluate_matcher as evaluate_matcher
    from sar2eo.evaluation.translators import evaluate as evaluate
    from sar2eo.geo.grid import Grid as Grid
    from sar2eo.matching.dcdm.matcher import match_dcdm as match_dcdm
    from sar2eo.pairs.builder import build_pairs as build_pairs
    from sar2eo.scenes import describe_scene as describe_scene
    from sar2eo.scenes import open_scene as open_scene
    from sar2eo.settings import TranslateSettings as TranslateSettings
    from sar2eo.training.matcher_run import train_matcher as train_matcher
    from sar2eo.training.unet_run import train as train
    from sar2eo.training.vae_run import train_vae as train_vae
    from sar2eo.translation.dataset import translate as translate
    from sar2eo.translation.writer import write_cog as write_cog

_HOMES = {
    "Grid": "geo.grid",
    "TranslateSettings": "settings",
    "build_pairs": "pairs.builder",
    "coregister": "coregistration.registration",
    "describe_scene": "scenes",
    "evaluate": "evaluation.translators",
    "evaluate_matcher": "evaluation.matchers",
    "match_dcdm": "matching.dcdm.matcher",
    "open_scene": "scenes",
    "train": "training.unet_run",
    "train_matcher": "training.matcher_run",
    "train_vae": "training.vae_run",
    "translate": "translation.dataset",
    "write_cog": "translation.writer",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sar2eo' has no attribute {name!r}")
    # Registers the accessor, which whoever holds a scene may want.
    importlib.import_module("sar2eo.accessor")
    return getattr(importlib.import_module(f"sar2eo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
