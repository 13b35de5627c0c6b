"""Settings of `sar2eo.evaluation.discrepancies` and of the command ``confidence``."""

from __future__ import annotations

from dataclasses import dataclass, field

from sar2eo.card import Sampler
from sar2eo.errors import SettingsError

__all__ = ["ConfidenceRecipe", "ConfidenceSettings"]

_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class ConfidenceSettings:
    """How the variance is taken.

    Parameters
    ----------
    timesteps : tuple of int
        Noise levels of the teacher-forced variance; the card's timestep of confidence is always added.
    steps, sampler
        Of the sampled variance; None: as the model's card says.
    tile, overlap : int
        Window size and overlap in pixels, multiples of the model's factor.
    seed : int
        Of the noise and of the bootstrap.
    device, dtype : str
    threads : int or None
    """

    timesteps: tuple[int, ...] = (250, 500, 750)
    steps: int | None = None
    sampler: Sampler | None = None
    tile: int = 256
    overlap: int = 64
    seed: int = 2025
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not all(0 <= timestep < _TIMESTEPS for timestep in self.timesteps):
            raise SettingsError(f"timesteps={self.timesteps}: must be 0 to {_TIMESTEPS - 1}")


@dataclass(frozen=True, kw_only=True)
class ConfidenceRecipe:
    """A test of a model's variance: the table ``[confidence]`` of a TOML recipe.

    Parameters
    ----------
    model : str
        Checkpoint folder or hub id.
    out : str
        Folder of the report; with a pair the picture, a PNG.
    scenes : tuple of str
        Folders of ``sar2eo simulate``; or
    pair : tuple of str
        files of a SAR and an EO scene on one grid, of which there is no truth, and
    window : tuple of int or None
        the part of them to be shown: row, column, height, width.
    settings
        The table ``[confidence.settings]``.
    overwrite : bool
        Replace an existing report or picture.
    """

    model: str
    out: str
    scenes: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    window: tuple[int, ...] | None = None
    settings: ConfidenceSettings = field(default_factory=ConfidenceSettings)
    overwrite: bool = False

    def __post_init__(self) -> None:
        if bool(self.scenes) == bool(self.pair):
            raise SettingsError("give either scenes (folders of simulate), or a pair of SAR and EO files")
        if self.pair and len(self.pair) != 2:
            raise SettingsError(f"pair={', '.join(self.pair)}: must be two files, SAR and EO")
        if (self.window is None) != (not self.pair) or (self.window and len(self.window) != 4):
            raise SettingsError(
                f"window={self.window}: must be four numbers, ROW,COL,HEIGHT,WIDTH, with a pair and only then"
            )
