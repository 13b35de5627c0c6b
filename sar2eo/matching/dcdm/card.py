"""The matcher's card, ``sar2eo-matcher.json``: what its weights mean, and when it says "cannot match"."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sar2eo.card import read_card
from sar2eo.durable import write_atomically
from sar2eo.errors import CheckpointError
from sar2eo.radiometry import CALIBRATIONS, POLARISATIONS, QUANTITIES, Channels, default_channels

__all__ = ["MATCHER_CARD_NAME", "MatcherCard"]

MATCHER_CARD_NAME = "sar2eo-matcher.json"


@dataclass(frozen=True, kw_only=True)
class MatcherCard:
    """What a matcher was trained on, and how its answers are to be taken.

    Parameters
    ----------
    name : str
    quantity, calibration : str
        Of the SAR it was trained on (see `sar2eo.radiometry`).
    polarisations : tuple of str
        Those it wants.
    channels : tuple of tuple of str
        Three input channels, each the mean of the named polarisations; by default as
        `sar2eo.radiometry.default_channels` says.
    gsd_m : float or None
        Ground sample distance in true ground metres; None: not known.
    scaling : {"p99"} or float
        "p99": amplitude divided by the scene's 99th percentile; a number: by that amplitude.
    template_px, search_px : int
        Sides that it was trained with.
    steps : int
        Of sampling; the supplement's 5 (section 2.2).
    pixel_weight : float
        Of the correlation of decoded pixels, against 1 for that of latent features.
    threshold : float or None
        Score below which it cannot match; None: not yet calibrated.
    false_accepts : float or None
        Share of wrong matches above the threshold at the most, as measured for it.
    vae_sha256 : str
        Of the frozen VAE's values (see `sar2eo.matching.dcdm.checkpoint.values_sha256`).
    training_data, licence : str
        Free text.
    metrics : dict of str to float
        Measured figures.
    """

    name: str
    quantity: str = "amplitude"
    calibration: str = "none"
    polarisations: tuple[str, ...] = ("VV",)
    channels: Channels = ()
    gsd_m: float | None = None
    scaling: Literal["p99"] | float = "p99"
    template_px: int = 128
    search_px: int = 256
    steps: int = 5
    pixel_weight: float = 1.0
    threshold: float | None = None
    false_accepts: float | None = None
    vae_sha256: str = ""
    training_data: str = "none"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.polarisations or not set(self.polarisations) <= set(POLARISATIONS):
            raise _wrong("polarisations", self.polarisations, f"of {', '.join(POLARISATIONS)}")
        if not self.channels:
            object.__setattr__(self, "channels", default_channels(self.polarisations))
        for name, allowed in {"quantity": QUANTITIES, "calibration": CALIBRATIONS}.items():
            if getattr(self, name) not in allowed:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(allowed)}")
        used = {name for names in self.channels for name in names}
        if len(self.channels) != 3 or not all(self.channels) or used != set(self.polarisations):
            raise _wrong("channels", self.channels, f"three that use just {self.polarisations}")
        if self.scaling != "p99" and not (_is_number(self.scaling) and self.scaling > 0):
            raise _wrong("scaling", self.scaling, "p99 or a positive amplitude")
        if self.gsd_m is not None and not (_is_number(self.gsd_m) and self.gsd_m > 0):
            raise _wrong("gsd_m", self.gsd_m, "positive metres or null")
        for name, most in {"template_px": 4096, "search_px": 4096, "steps": 1000}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise _wrong(name, value, f"1 to {most}")
        if not (_is_number(self.pixel_weight) and self.pixel_weight >= 0):
            raise _wrong("pixel_weight", self.pixel_weight, "0 or more")
        for name in ("threshold", "false_accepts"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value >= 0):
                raise _wrong(name, value, "0 or more, or null")

    @classmethod
    def read(cls, folder: Path) -> MatcherCard:
        """Read the card of a matcher's folder.

        Raises
        ------
        CheckpointError
            If it is missing, not JSON, or has other fields or values than it may.
        """
        path = folder / MATCHER_CARD_NAME
        raw = read_card(path, "a matcher (see 'sar2eo train-matcher')")
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(raw, dict) or set(raw) != known:
            odd = sorted(set(raw) ^ known) if isinstance(raw, dict) else ["all"]
            raise CheckpointError(f"{path}: unknown or missing fields {', '.join(odd)}")
        try:
            channels = tuple(tuple(names) for names in raw["channels"])
            return cls(**raw | {"polarisations": tuple(raw["polarisations"]), "channels": channels})
        except TypeError as error:
            raise CheckpointError(f"{path}: a field has the wrong type ({error})") from error

    def write(self, folder: Path) -> None:
        """Write the card into a matcher's folder; it is the old one or the new one, whatever happens."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_atomically(folder / MATCHER_CARD_NAME, text.encode())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wrong(name: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(f"card: {name}={value!r}, must be {allowed}")
