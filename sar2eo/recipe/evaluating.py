"""Settings of `sar2eo.evaluate` and of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.card import Sampler
from sar2eo.errors import SettingsError
from sar2eo.recipe.training import DataSettings

__all__ = ["EvaluateRecipe", "EvaluateSettings", "Metric", "Protocol", "Split"]

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
