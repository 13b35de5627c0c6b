"""Settings of the study of the variance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from sar2eo.settings.schema import Bounds, Flag, Names, Settings
from sar2eo.settings.vocabulary import (
    MODEL,
    OUTPUT,
    CardSampler,
    CardSteps,
    Count,
    Device,
    Dtype,
    Natural,
    Seed,
    Threads,
)

__all__ = ["ConfidenceRecipe", "ConfidenceSettings"]


@dataclass(frozen=True, kw_only=True)
class ConfidenceSettings(Settings):
    """How the variance is taken."""

    group = "Variance"

    timesteps: Annotated[
        tuple[Annotated[int, Bounds(0, 999)], ...],
        "Noise levels of the noised truth; the card's is always added.",
    ] = (250, 500, 750)
    steps: CardSteps = None
    sampler: CardSampler = None
    tile: Annotated[Count, "Side of a tile in pixels."] = 256
    overlap: Annotated[Natural, "Overlap of tiles in pixels."] = 64
    seed: Annotated[Seed, "Seed of the noise and of the bootstrap."] = 2025
    device: Device = "auto"
    dtype: Dtype = "auto"
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class ConfidenceRecipe(Settings):
    """Test a model's variance: the table ``[confidence]`` of a TOML recipe."""

    group = "Scenes"

    model: Annotated[str, "Checkpoint.", Flag(metavar="DIR|HUB_ID"), MODEL]
    out: Annotated[str, "Folder of the report; of a pair the picture.", Flag(metavar="DIR|FILE.png"), OUTPUT]
    scenes: Annotated[tuple[str, ...], "Folders made by simulate.", Flag(metavar="DIR...")] = ()
    pair: Annotated[tuple[str, ...], "Real scenes instead, for a picture.", Flag(metavar="SAR EO...")] = ()
    window: Annotated[
        tuple[int, ...] | None, "The part of a pair to show.", Names("ROW,COL,HEIGHT,WIDTH")
    ] = None
    settings: ConfidenceSettings = field(default_factory=ConfidenceSettings)
    overwrite: Annotated[bool, "Replace an existing report or picture.", OUTPUT] = False

    def _check(self) -> None:
        if bool(self.scenes) == bool(self.pair):
            self.refuse("give either scenes (folders of simulate), or a pair of SAR and EO files")
        if self.pair and len(self.pair) != 2:
            self.refuse("{pair}: must be two files, SAR and EO")
        if (self.window is None) != (not self.pair):
            self.refuse("{window}: goes with a pair, and only then")
