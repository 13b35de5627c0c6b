"""Settings of `sar2eo.evaluate_matcher` and of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.errors import SettingsError
from sar2eo.recipe.evaluating import Split
from sar2eo.recipe.training import DataSettings

__all__ = ["MatchEvaluationRecipe", "MatchEvaluationSettings"]

Classical = Literal["structure", "phase", "ncc"]


@dataclass(frozen=True, kw_only=True)
class MatchEvaluationSettings:
    """How matches are judged.

    Parameters
    ----------
    split : {"train", "val", "test"}
    against : tuple of str
        Methods that are not learned, in the same table.
    search : int or None
        Side of the search images in pixels, the templates' is half of it; None: as the matcher was trained.
    offsets : int
        Templates from each pair.
    noise : tuple of float
        Variances of Gaussian noise on templates of 0 to 1, in percent (supplement, Fig. 4).
    steps : int or None
        Of sampling; None: as the card says.
    sweep_steps : tuple of int
        Numbers of steps to compare.
    limit : int or None
        Pairs at most, spread evenly over the split.
    resamples : int
        Draws of the bootstrap over places.
    seed : int
    device : str
    threads : int or None
    """

    split: Split = "test"
    against: tuple[Classical, ...] = ("structure", "phase", "ncc")
    search: int | None = None
    offsets: int = 1
    noise: tuple[float, ...] = (0.0,)
    steps: int | None = None
    sweep_steps: tuple[int, ...] = ()
    limit: int | None = None
    resamples: int = 2000
    seed: int = 2025
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("offsets", "resamples"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("limit", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingsError(f"{name}={value}: must be at least 1")
        if not self.noise or min(self.noise) < 0:
            raise SettingsError(f"noise={self.noise}: must be variances in percent, 0 or more")
        if self.noise[0] != 0:
            raise SettingsError(f"noise={self.noise}: must begin with 0, of which most figures are")
        if any(not 1 <= steps <= 1000 for steps in self.sweep_steps):
            raise SettingsError(f"sweep_steps={self.sweep_steps}: must be 1 to 1000")
        if self.search is not None and (self.search < 64 or self.search % 64):
            raise SettingsError(f"search={self.search}: must be a multiple of 64 pixels")


@dataclass(frozen=True, kw_only=True)
class MatchEvaluationRecipe:
    """An evaluation of a matcher: the table ``[evaluate-matcher]`` of a TOML recipe.

    Parameters
    ----------
    model : str
        Folder of a matcher.
    data
        The table ``[evaluate-matcher.data]``.
    out : str
        Folder of the report.
    settings
        The table ``[evaluate-matcher.settings]``.
    overwrite : bool
        Replace an existing report.
    """

    model: str
    data: DataSettings
    out: str
    settings: MatchEvaluationSettings = field(default_factory=MatchEvaluationSettings)
    overwrite: bool = False
