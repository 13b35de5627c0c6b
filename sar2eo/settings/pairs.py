"""Settings of `sar2eo.build_pairs` and of the command ``build-pairs``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.errors import SettingsError
from sar2eo.settings.translation import SceneSettings

__all__ = ["Align", "PairsRecipe", "PairsSettings"]

Align = Literal["off", "score", "shift"]
"""Leave the registration alone, record how well it holds, or correct it."""


@dataclass(frozen=True, kw_only=True)
class PairsSettings:
    """How scenes are cut into paired chips, and where each chip belongs.

    Parameters
    ----------
    size, stride : int
        Side of a chip and distance of the lattice's cells, in pixels.
    max_days : float
        Largest gap between the acquisitions, in days; scenes without a time are refused unless it is
        infinite.
    min_valid : float
        Smallest share of pixels valid in both images.
    max_cloud : float
        Largest share of cloud, where the EO scene tells.
    resolution : "native" or float
        Pixel size of chips in metres; native: the SAR scene's own.
    eo_range : tuple of float
        Reflectance, in the scene's own digital numbers, that becomes 0 and 255; RGB bytes stay as they are.
    align : {"off", "score", "shift"}
    split : {"place"}
    block : float
        Side in metres of the cells of place that go to one split as a whole.
    val, test : float
        Share of blocks.
    buffer : float
        Smallest distance in metres of a training chip from all others.
    seed : int
        Of the split.
    """

    size: int = 256
    stride: int = 256
    max_days: float = 30.0
    min_valid: float = 0.99
    max_cloud: float = 0.1
    resolution: Literal["native"] | float = "native"
    eo_range: tuple[float, ...] = (0.0, 3000.0)
    align: Align = "off"
    split: Literal["place"] = "place"
    block: float = 20000.0
    val: float = 0.1
    test: float = 0.2
    buffer: float = 500.0
    seed: int = 2025

    def __post_init__(self) -> None:
        if self.size < 16 or self.stride < 1:
            raise SettingsError(f"size={self.size}, stride={self.stride}: must be at least 16 and 1 pixels")
        for name in ("min_valid", "max_cloud", "val", "test"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name}={getattr(self, name):g}: must be a share from 0 to 1")
        if self.val + self.test >= 1:
            raise SettingsError(f"val={self.val:g}, test={self.test:g}: nothing is left to train on")
        if len(self.eo_range) != 2 or self.eo_range[0] >= self.eo_range[1]:
            raise SettingsError(f"eo_range={self.eo_range}: must be LOW,HIGH with LOW below HIGH")
        if not (self.max_days >= 0 and self.block > 0 and self.buffer >= 0):
            raise SettingsError(
                f"max_days={self.max_days:g}, block={self.block:g}, buffer={self.buffer:g}: must not be "
                "negative, and block not 0"
            )
        if self.resolution != "native" and self.resolution <= 0:
            raise SettingsError(f"resolution={self.resolution:g}: must be native, or metres above 0")


@dataclass(frozen=True, kw_only=True)
class PairsRecipe:
    """Pairs from scenes: the table ``[build-pairs]`` of a TOML recipe.

    Parameters
    ----------
    sar, eo : tuple of str
        Files, folders, globs, STAC items or item collections, footprint tables.
    out : str
        Folder.
    scene, settings
        The tables ``[build-pairs.scene]``, how SAR is opened, and ``[build-pairs.settings]``.
    matcher : str or None
        Folder of a trained matcher to align with; None: structure is matched.
    overwrite : bool
        Replace pairs of other settings.
    report : str or None
        JSON file of what was done.
    """

    sar: tuple[str, ...]
    eo: tuple[str, ...]
    out: str
    scene: SceneSettings = field(default_factory=SceneSettings)
    settings: PairsSettings = field(default_factory=PairsSettings)
    matcher: str | None = None
    overwrite: bool = False
    report: str | None = None
