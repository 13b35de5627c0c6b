"""Settings of `sar2eo.evaluate` and of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.errors import SettingsError
from sar2eo.model.card import Sampler
from sar2eo.settings.training import DataSettings

__all__ = [
    "EvaluateRecipe",
    "EvaluateSettings",
    "MatchEvaluationRecipe",
    "MatchEvaluationSettings",
    "Metric",
    "Protocol",
    "Split",
]

Metric = Literal["psnr", "ssim", "scc", "lpips", "fid"]
"""Those of C-DiffSET, section 4.2."""

Protocol = Literal["usual", "release"]
"""How [-1, 1] becomes [0, 1]: ``(x + 1) / 2``, or as in the authors' release ``x + 0.5``, clipped."""

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured, and how images are sampled.

    Parameters
    ----------
    split : {"train", "val", "test"}
    metrics : tuple of str
        Of psnr, ssim, scc, lpips, fid; the last two need networks of their own.
    protocol : {"usual", "release"}
    steps, sampler
        None: as the model's card says.
    samples : int
        Draws whose mean is judged, beside the single ones.
    sweep_steps : tuple of int
        Numbers of steps to compare.
    upper_bound : bool
        Judge the VAE's own reconstruction of the truth too (C-DiffSET, Table 4).
    against : tuple of str
        Further models, or baselines of mean-colour, sar-grey.
    lpips_weights, fid_weights : str or None
        Local files of those networks.
    limit : int or None
        Pairs at most, spread evenly over the split.
    seed : int
    device, dtype : str
    threads, batch : int or None
        None: all cores; as many images at a time as the device's memory holds.
    """

    split: Split = "test"
    metrics: tuple[Metric, ...] = ("psnr", "ssim", "scc")
    protocol: Protocol = "usual"
    steps: int | None = None
    sampler: Sampler | None = None
    samples: int = 1
    sweep_steps: tuple[int, ...] = ()
    upper_bound: bool = False
    against: tuple[str, ...] = ("mean-colour", "sar-grey")
    lpips_weights: str | None = None
    fid_weights: str | None = None
    limit: int | None = None
    seed: int = 2025
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.limit is not None and self.limit < 1):
            raise SettingsError(f"samples={self.samples}, limit={self.limit}: must be at least 1")
        if not self.metrics:
            raise SettingsError("metrics: must name at least one of psnr, ssim, scc, lpips, fid")


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """An evaluation: the table ``[evaluate]`` of a TOML recipe.

    Parameters
    ----------
    model : str
        Checkpoint folder or hub id.
    data
        The table ``[evaluate.data]``.
    out : str
        Folder of the report.
    settings
        The table ``[evaluate.settings]``.
    overwrite : bool
        Replace an existing report.
    """

    model: str
    data: DataSettings
    out: str
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)
    overwrite: bool = False


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
