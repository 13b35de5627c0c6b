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
    from sar2eo.evaluation.matches import evaluate_matcher
    from sar2eo.evaluation.running import evaluate
    from sar2eo.grid import Grid
    from sar2eo.inference import translate
    from sar2eo.matching.coregistration.running import coregister
    from sar2eo.matching.dcdm.matcher import match_dcdm
    from sar2eo.pairing import build_pairs
    from sar2eo.recipe import TranslateSettings
    from sar2eo.scene import describe_scene, open_scene
    from sar2eo.training.fine_tuning import train
    from sar2eo.training.matcher_run import train_matcher
    from sar2eo.training.vae_run import train_vae
    from sar2eo.writing import write_cog

__all__ = [
    "Grid",
    "TranslateSettings",
    "__version__",
    "build_pairs",
    "coregister",
    "describe_scene",
    "evaluate",
    "evaluate_matcher",
    "match_dcdm",
    "open_scene",
    "train",
    "train_matcher",
    "train_vae",
    "translate",
    "write_cog",
]

_HOMES = {
    "Grid": "grid",
    "TranslateSettings": "recipe",
    "build_pairs": "pairing",
    "coregister": "matching.coregistration.running",
    "describe_scene": "scene",
    "evaluate": "evaluation.running",
    "evaluate_matcher": "evaluation.matches",
    "match_dcdm": "matching.dcdm.matcher",
    "open_scene": "scene",
    "train": "training.fine_tuning",
    "train_matcher": "training.matcher_run",
    "train_vae": "training.vae_run",
    "translate": "inference",
    "write_cog": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sar2eo' has no attribute {name!r}")
    # Whoever holds a scene may want the accessor on it.
    importlib.import_module("sar2eo.accessor")
    return getattr(importlib.import_module(f"sar2eo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
