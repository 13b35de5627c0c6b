"""The model card, ``sar2eo.json``: what a checkpoint's weights mean.

Weights without their radiometry are worth nothing, so the card travels in the checkpoint's folder
and is read strictly: an unknown or missing field is an error.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sar2eo.errors import CheckpointError
from sar2eo.radiometry import CALIBRATIONS, POLARISATIONS, QUANTITIES, Channels, default_channels

__all__ = [
    "CARD_NAME",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SPACINGS",
    "Card",
    "PredictionType",
    "Sampler",
    "Spacing",
    "read_card",
]

CARD_NAME = "sar2eo.json"

Sampler = Literal["ddim", "dpm++"]
"""DDIM with eta 0, or DPM-Solver++ of second order (2M)."""

Spacing = Literal["leading", "trailing"]
"""Which timesteps few steps take; the paper's 981 ... 1 are leading."""

PredictionType = Literal["epsilon", "v_prediction"]
"""What the U-Net's first channels mean."""

SAMPLERS: tuple[str, ...] = get_args(Sampler)
SPACINGS: tuple[str, ...] = get_args(Spacing)
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a C-DiffSET checkpoint was trained on, and how it wants to be sampled.

    Parameters
    ----------
    name : str
        Short name, written to the tags of what the model makes.
    quantity, calibration : str
        Of the SAR it was trained on (see `sar2eo.radiometry`).
    polarisations : tuple of str
        Those it wants.
    channels : tuple of tuple of str
        Its three input channels, each the mean of the named polarisations; by default as
        `sar2eo.radiometry.default_channels` says.
    gsd_m : float or None
        Ground sample distance in true ground metres; None: not known, not checked.
    scaling : {"p99"} or float
        "p99": amplitude divided by the scene's 99th percentile; a number: by that amplitude.
    prediction_type, sampler, spacing, steps
        Defaults of sampling.
    confidence_timestep : int
        Timestep whose variance is the confidence (C-DiffSET, Fig. 7: half of T); the sampler takes
        its nearest step.
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
    prediction_type: str = "epsilon"
    sampler: str = "ddim"
    spacing: str = "leading"
    steps: int = 50
    confidence_timestep: int = 500
    training_data: str = "none"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.channels:
            object.__setattr__(self, "channels", default_channels(self.polarisations))
        for name in ("name", "training_data", "licence"):
            value = getattr(self, name)
            if not isinstance(value, str) or (name == "name" and not (value and value.isprintable())):
                raise CheckpointError(f"card: {name}={value!r}, must be text (the name: a line of it)")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise CheckpointError(
                    f"card: {name}={getattr(self, name)!r}, must be one of {', '.join(allowed)}"
                )
        names = set(self.polarisations)
        if not names or not names <= set(POLARISATIONS) or len(names) < len(self.polarisations):
            raise CheckpointError(
                f"card: polarisations={self.polarisations}, must be of {', '.join(POLARISATIONS)}, each once"
            )
        used = {name for names in self.channels for name in names}
        if len(self.channels) != 3 or not all(self.channels) or used != set(self.polarisations):
            raise CheckpointError(
                f"card: channels={self.channels}, must be three that use just {self.polarisations}"
            )
        if self.scaling != "p99" and not _is_positive(self.scaling):
            raise CheckpointError(f"card: scaling={self.scaling!r}, must be p99 or a positive amplitude")
        if self.gsd_m is not None and not _is_positive(self.gsd_m):
            raise CheckpointError(f"card: gsd_m={self.gsd_m!r}, must be positive metres or null")
        if not isinstance(self.metrics, dict) or not all(map(_is_number, self.metrics.values())):
            raise CheckpointError(f"card: metrics={self.metrics!r}, must be numbers by name")
        if not _is_count(self.steps) or not 1 <= self.steps <= 1000:
            raise CheckpointError(f"card: steps={self.steps!r}, must be 1 to 1000")
        if not _is_count(self.confidence_timestep) or not 0 <= self.confidence_timestep < 1000:
            raise CheckpointError(f"card: confidence_timestep={self.confidence_timestep!r}, must be 0 to 999")

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read the card of a checkpoint folder.

        Raises
        ------
        CheckpointError
            If it is missing, not JSON, or has other fields or values than it may.
        """
        return cls.from_dict(read_card(folder / CARD_NAME, "a sar2eo checkpoint (see 'sar2eo model init')"))

    @classmethod
    def from_dict(cls, raw: Any) -> Card:
        """Make a card from plain JSON values; unknown or missing fields are errors."""
        if not isinstance(raw, dict):
            raise CheckpointError(f"card: must be a JSON object, not {type(raw).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        if set(raw) != known:
            odd = sorted(set(raw) ^ known)
            raise CheckpointError(
                f"card: unknown or missing fields {', '.join(n if n.isprintable() else repr(n) for n in odd)}"
            )
        try:
            _check_lists(raw["polarisations"], raw["channels"], *raw["channels"])
            tuples: dict[str, Any] = {
                "polarisations": tuple(raw["polarisations"]),
                "channels": tuple(tuple(names) for names in raw["channels"]),
            }
            return cls(**raw | tuples)
        except TypeError as error:
            raise CheckpointError(f"card: a field has the wrong type ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        raw: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return raw

    def write(self, folder: Path) -> None:
        """Write the card into a checkpoint folder."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (folder / CARD_NAME).write_text(text, encoding="utf-8")


def read_card(path: Path, kind: str) -> Any:
    """Read the JSON of a card, whatever it holds.

    Parameters
    ----------
    path : Path
    kind : str
        What a folder with such a card is, for the message where there is none.

    Raises
    ------
    CheckpointError
        If it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: not {kind}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


_CHOICES = {
    "quantity": QUANTITIES,
    "calibration": CALIBRATIONS,
    "prediction_type": PREDICTION_TYPES,
    "sampler": SAMPLERS,
    "spacing": SPACINGS,
}


def _check_lists(*values: object) -> None:
    """Raise TypeError for what is no list: a text would fall apart into letters."""
    for value in values:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is no list")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    """Whether a value is a number that a float can hold, above 0."""
    return _is_number(value) and 0 < value <= sys.float_info.max


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
