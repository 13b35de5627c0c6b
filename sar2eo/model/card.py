"""Model cards: what a checkpoint's weights mean.

Weights without their radiometry are worth nothing, so the card travels in the checkpoint's folder
and is read strictly: an unknown or missing field is an error (one that came later may be missing).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.geo.radiometry import CALIBRATIONS, POLARISATIONS, QUANTITIES, Channels, default_channels
from sar2eo.settings.vocabulary import PredictionType, Sampler, Spacing

__all__ = [
    "CARD_NAME",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SPACINGS",
    "Card",
    "InputCard",
    "PredictionType",
    "Sampler",
    "Spacing",
    "is_number",
    "is_positive",
    "wrong",
]

CARD_NAME = "sar2eo.json"

SAMPLERS: tuple[str, ...] = get_args(Sampler)
SPACINGS: tuple[str, ...] = get_args(Spacing)
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)

_SAMPLING = ("sampler", "steps")
# A model sees textures at its own scale; beyond this ratio of pixel sizes it sees something else.
_GSD_TOLERANCE = 1.5


@dataclass(frozen=True, kw_only=True)
class InputCard:
    """What the cards of all models say: what the weights were trained on, and what they take.

    Parameters
    ----------
    name : str
        Short name, written to the tags of what the model makes.
    quantity, calibration : str
        Of the SAR it was trained on (see `sar2eo.geo.radiometry`), which it was, and is, given as amplitude.
    polarisations : tuple of str
        Those it wants.
    channels : tuple of tuple of str
        Its three input channels, each the mean of the named polarisations; by default as
        `sar2eo.geo.radiometry.default_channels` says.
    gsd_m : float or None
        Ground sample distance in true ground metres; None: not known, not checked.
    scaling : {"p99"} or float
        "p99": amplitude divided by the scene's 99th percentile; a number: by that amplitude.
    training_data, licence : str
        Free text.
    metrics : dict of str to float
        Measured figures.

    Raises
    ------
    CheckpointError
        For a value that it may not have.
    """

    file_name: ClassVar[str]
    """In the model's folder."""
    kind: ClassVar[str]
    """What a folder with such a card is, for messages."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that older cards lack; the default holds for these."""

    name: str
    quantity: str = "amplitude"
    calibration: str = "none"
    polarisations: tuple[str, ...] = ("VV",)
    channels: Channels = ()
    gsd_m: float | None = None
    scaling: Literal["p99"] | float = "p99"
    training_data: str = "none"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "training_data", "licence"):
            value = getattr(self, name)
            if not isinstance(value, str) or (name == "name" and not (value and value.isprintable())):
                raise wrong(name, value, "text (the name: a line of it)")
        self.check_choices(quantity=QUANTITIES, calibration=CALIBRATIONS)
        names = set(self.polarisations)
        if not names or not names <= set(POLARISATIONS) or len(names) < len(self.polarisations):
            raise wrong("polarisations", self.polarisations, f"of {', '.join(POLARISATIONS)}, each once")
        if not self.channels:
            object.__setattr__(self, "channels", default_channels(self.polarisations))
        used = {name for names in self.channels for name in names}
        if len(self.channels) != 3 or not all(self.channels) or used != set(self.polarisations):
            raise wrong("channels", self.channels, f"three that use just {self.polarisations}")
        if self.scaling != "p99" and not is_positive(self.scaling):
            raise wrong("scaling", self.scaling, "p99 or a positive amplitude")
        if self.gsd_m is not None and not is_positive(self.gsd_m):
            raise wrong("gsd_m", self.gsd_m, "positive metres or null")
        if not isinstance(self.metrics, dict) or not all(map(is_number, self.metrics.values())):
            raise wrong("metrics", self.metrics, "numbers by name")

    def changed(self, **fields: Any) -> Self:
        """Return the card with other values in some fields.

        Raises
        ------
        SettingsError
            For a field that it does not have.
        CheckpointError
            For a value that it may not have.
        """
        try:
            return dataclasses.replace(self, **fields)
        except TypeError as error:
            raise SettingsError(f"card: {error}") from error

    def fits_gsd(self, *sizes_m: float) -> bool:
        """Tell whether pixels of these sides on the ground are near enough to those it was trained on."""
        gsd = self.gsd_m
        return gsd is None or max(max(size / gsd, gsd / size) for size in sizes_m) <= _GSD_TOLERANCE

    def check_choices(self, **choices: tuple[str, ...]) -> None:
        """Raise CheckpointError where a field is none of what it may be."""
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise wrong(name, getattr(self, name), f"one of {', '.join(allowed)}")

    def check_counts(self, **ranges: tuple[int, int]) -> None:
        """Raise CheckpointError where a field is no whole number within its range."""
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise wrong(name, value, f"{least} to {most}")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the card of a model's folder.

        Raises
        ------
        CheckpointError
            If it is missing, not JSON, or has other fields or values than it may.
        """
        path = folder / cls.file_name
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} has no {path.name}: not {cls.kind}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Any) -> Self:
        """Make a card from plain JSON values; unknown or missing fields are errors, but those of `later`."""
        if not isinstance(raw, dict):
            raise CheckpointError(f"card: must be a JSON object, not {type(raw).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        odd = sorted(set(raw) ^ known - (cls.later - set(raw)))
        if odd:
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

    def to_text(self) -> str:
        """Return the card as the text of its file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


@dataclass(frozen=True, kw_only=True)
class Card(InputCard):
    """What a C-DiffSET checkpoint was trained on, and how it wants to be sampled.

    Parameters
    ----------
    name, quantity, calibration, polarisations, channels, gsd_m, scaling, training_data, licence, metrics
        As of `InputCard`.
    prediction_type, sampler, spacing, steps
        Defaults of sampling.
    temperature : float
        Factor on the noise that sampling starts from, for this sampler and number of steps; 1 in the paper
        and for all others. A little more gives back the power that few steps lose.
    confidence_timestep : int
        Timestep whose variance is the confidence (C-DiffSET, Fig. 7: half of T); the sampler takes
        its nearest step.
    """

    file_name: ClassVar[str] = CARD_NAME
    kind: ClassVar[str] = "a sar2eo checkpoint (see 'sar2eo model init')"
    later: ClassVar[frozenset[str]] = frozenset({"temperature"})

    prediction_type: str = "epsilon"
    sampler: str = "ddim"
    spacing: str = "leading"
    steps: int = 50
    temperature: float = 1.0
    confidence_timestep: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choices(prediction_type=PREDICTION_TYPES, sampler=SAMPLERS, spacing=SPACINGS)
        self.check_counts(steps=(1, 1000), confidence_timestep=(0, 999))
        if not is_positive(self.temperature):
            raise wrong("temperature", self.temperature, "a positive number")

    def changed(self, **fields: Any) -> Self:
        """Return the card with other values in some fields; other steps or samplers have temperature 1."""
        own = all(fields.get(name, getattr(self, name)) == getattr(self, name) for name in _SAMPLING)
        return super().changed(**({} if own else {"temperature": 1.0}) | fields)

    def write(self, folder: Path) -> None:
        """Write the card into a checkpoint folder."""
        (folder / CARD_NAME).write_text(self.to_text(), encoding="utf-8")


def _check_lists(*values: object) -> None:
    """Raise TypeError for what is no list: a text would fall apart into letters."""
    for value in values:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is no list")


def wrong(name: str, value: object, allowed: str) -> CheckpointError:
    """Return the error of a field: its value, and what it must be."""
    return CheckpointError(f"card: {name}={value!r}, must be {allowed}")


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether a value is a number that a float can hold, above 0."""
    return is_number(value) and 0 < value <= sys.float_info.max
