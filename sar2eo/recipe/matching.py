"""Settings of `sar2eo.train_matcher` and of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass, field

from sar2eo.errors import SettingsError
from sar2eo.recipe.training import DataSettings, LoopSettings

__all__ = ["MatcherRecipe", "MatcherSettings"]

_MULTIPLE = 32  # pixels: regions of 4 x 4 latents of 8 x 8 pixels


@dataclass(frozen=True, kw_only=True)
class MatcherSettings(LoopSettings):
    """How a matcher is trained; further fields are those of `LoopSettings`, where crop is the search's side.

    Parameters
    ----------
    template : int
        Side of the templates in pixels.
    widths : tuple of int
        Channels of the denoiser at strides 8 and 16; (64, 128) makes a small one.
    top_regions : int
        Regions of the search that a region of the template attends to at stride 8.
    dense : bool
        Attend to all regions instead, without gates: an ablation.
    uncalibrated : bool
        Leave the attention calibration block out: an ablation.
    ssim, position, similarity : float
        Weights of 1 - SSIM of latents, of the attention's position term, and of the cross-entropy on the
        similarity map, beside the squared error, whose weight is 1.
    truth : float
        Share of the templates that are noised from the truth, as in the supplement's Eq. 2; the others begin
        with pure noise or with the network's own translation, as in sampling.
    negatives : float
        Share of a batch that is shown again with the search image of another place.
    false_accepts : float
        Share of wrong matches that may be accepted, from which the threshold follows.
    trials : int
        Matches of either kind, right and wrong search image, that the threshold is measured on.
    """

    template: int = 128
    widths: tuple[int, ...] = (128, 256)
    top_regions: int = 16
    dense: bool = False
    uncalibrated: bool = False
    ssim: float = 0.2
    position: float = 0.1
    similarity: float = 0.25
    truth: float = 0.25
    negatives: float = 0.25
    false_accepts: float = 0.005
    trials: int = 1000
    steps: int = 10_000
    batch: int = 16
    lr: float = 5e-4
    crop: int = 256
    ema: float = 0.998

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template % _MULTIPLE or self.crop % _MULTIPLE or not 0 < self.template < self.crop:
            raise SettingsError(
                f"template={self.template}, crop={self.crop}: must be multiples of {_MULTIPLE} pixels, the "
                "template smaller than the crop, which is what it is searched in"
            )
        if len(self.widths) != 2 or any(width < 16 or width % 16 for width in self.widths):
            raise SettingsError(f"widths={self.widths}: must be two positive multiples of 16")
        if self.top_regions < 1 or self.trials < 1:
            raise SettingsError(f"top_regions={self.top_regions}, trials={self.trials}: must be at least 1")
        for name in ("ssim", "position", "similarity"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name):g}: must not be negative")
        for name in ("truth", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name}={getattr(self, name):g}: must be a share from 0 to 1")
        if not 0 < self.false_accepts < 1:
            raise SettingsError(f"false_accepts={self.false_accepts:g}: must be a share above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class MatcherRecipe:
    """Training of a matcher: the table ``[train-matcher]`` of a TOML recipe.

    Parameters
    ----------
    data
        The table ``[train-matcher.data]``.
    out : str
        Run folder; the same command goes on in it.
    vae : str
        Folder with a trained VAE in ``vae/`` (of `sar2eo.train_vae`, or a checkpoint), or "bundled".
    base : str or None
        A matcher to go on from (a folder, a hub id, or "bundled"), with its own architecture and VAE; `vae`
        and the settings of the architecture are not looked at then.
    settings
        The table ``[train-matcher.settings]``.
    """

    data: DataSettings
    out: str
    vae: str = "bundled"
    base: str | None = None
    settings: MatcherSettings = field(default_factory=MatcherSettings)
