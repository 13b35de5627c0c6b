"""Model cards: what the weights of a model mean.

Weights without their radiometry are worth nothing, so the card travels in the model's folder and is read
strictly: an unknown or missing field is an error (fields that came later may be missing).
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

TRAIN_TIMESTEPS = 1000
"""T of the noise schedules (C-DiffSET, section 4.2)."""

SAMPLERS: tuple[str, ...] = get_args(Sampler)
SPACINGS: tuple[str, ...] = get_args(Spacing)
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)

_SAMPLING = ("sampler", "steps")
# A model sees textures at its own scale; beyond this ratio of pixel sizes it sees something else.
_GSD_TOLERANCE = 1.5


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the weights of a model were trained on, and which input they take.

    Parameters
    ----------
    name : str
        Short name, written to the tags of outputs.
    quantity, calibration : str
        Radiometry of the SAR images of training (see `sar2eo.geo.radiometry`); input is their amplitude.
    polarisations : tuple of str
        Polarisations of the input.
    channels : tuple of tuple of str
        Polarisations of which each of the three input channels is the mean; empty:
        `sar2eo.geo.radiometry.default_channels`.
    gsd_m : float or None
        Ground sample distance in true ground metres; None: unknown, and not checked.
    scaling : {"p99", "db"} or float
        What amplitude is divided by: "p99", the scene's 99th percentile, or this number. "db": input is dB
        about the level of its polarisation (`sar2eo.geo.radiometry.REFERENCE_DB`), and one of the
        polarisations will do.
    training_data, licence : str
        Free text.
    metrics : dict of str to float
        Measured figures by name.
    """

    file_name: ClassVar[str]
    """In the model's folder."""
    kind: ClassVar[str]
    """What the folder holds, for messages."""
    made_by: ClassVar[str]
    """The command that makes it, for messages."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that older cards lack; their defaults hold."""

    name: str
    quantity: str = "amplitude"
    calibration: str = "none"
    polarisations: tuple[str, ...] = ("VV",)
    channels: Channels = ()
    gsd_m: float | None = None
    scaling: Literal["p99", "db"] | float = "p99"
    training_data: str = "none"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "training_data", "licence"):
            value = getattr(self, name)
            if not isinstance(value, str) or (name == "name" and not (value and value.isprintable())):
                raise _wrong(name, value, "text (the name: one line)")
        self.check_choices(quantity=QUANTITIES, calibration=CALIBRATIONS)
        names = set(self.polarisations)
        if not names or not names <= set(POLARISATIONS) or len(names) < len(self.polarisations):
            raise _wrong("polarisations", self.polarisations, f"of {', '.join(POLARISATIONS)}, each once")
        if not self.channels:
            object.__setattr__(self, "channels", default_channels(self.polarisations))
        used = {name for names in self.channels for name in names}
        if len(self.channels) != 3 or not all(self.channels) or used != set(self.polarisations):
            raise _wrong("channels", self.channels, f"three that use just {self.polarisations}")
        if self.scaling not in ("p99", "db") and not _is_positive(self.scaling):
            raise _wrong("scaling", self.scaling, "p99, db or a positive amplitude")
        if self.gsd_m is not None and not _is_positive(self.gsd_m):
            raise _wrong("gsd_m", self.gsd_m, "positive metres or null")
        if not isinstance(self.metrics, dict) or not all(map(_is_number, self.metrics.values())):
            raise _wrong("metrics", self.metrics, "numbers by name")

    def with_changes(self, **fields: Any) -> Self:
        """Return a copy with other values in some fields."""
        try:
            return dataclasses.replace(self, **fields)
        except TypeError as error:
            raise SettingsError(f"card: {error}") from error

    def fits_gsd(self, *sizes_m: float) -> bool:
        """Whether pixels of these sizes on the ground are within a factor of 1.5 of those of training."""
        gsd = self.gsd_m
        return gsd is None or max(max(size / gsd, gsd / size) for size in sizes_m) <= _GSD_TOLERANCE

    def check_choices(self, **choices: tuple[str, ...]) -> None:
        """Raise CheckpointError if a field is not one of the allowed values."""
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(allowed)}")

    def check_counts(self, **ranges: tuple[int, int]) -> None:
        """Raise CheckpointError if a field is not a whole number within its range."""
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise _wrong(name, value, f"{least} to {most}")

    @property
    def networks(self) -> tuple[str, ...]:
        """Subfolders of the model's folder."""
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the card of a model's folder."""
        path = folder / cls.file_name
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder} has no {path.name}: not {cls.kind} (see {cls.made_by})"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Any) -> Self:
        """Make a card from JSON values; unknown or missing fields are errors, except those in `later`."""
        if not isinstance(raw, dict):
            raise CheckpointError(f"card: must be a JSON object, not {type(raw).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        names = sorted(set(raw) ^ known - (cls.later - set(raw)))
        if names:
            listed = ", ".join(name if name.isprintable() else repr(name) for name in names)
            raise CheckpointError(f"card: unknown or missing fields {listed}")
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
        """Return the card as JSON values."""
        raw: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return raw

    def to_text(self) -> str:
        """Return the card as the text of its file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def write(self, folder: Path) -> None:
        """Write the card into a model's folder."""
        (folder / self.file_name).write_text(self.to_text(), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class TranslatorCard(ModelCard):
    """What a C-DiffSET checkpoint was trained on, and how it is sampled by default.

    Parameters
    ----------
    name, quantity, calibration, polarisations, channels, gsd_m, scaling, training_data, licence, metrics
        See `ModelCard`.
    prediction_type, sampler, spacing, steps
        Defaults of sampling.
    temperature : float
        Factor on the starting noise with this sampler and number of steps; 1 in the paper and with others.
        A little more makes up for the contrast that few steps lose.
    confidence_timestep : int
        The variance is taken at the step nearest to this timestep (C-DiffSET, Fig. 7: T / 2).
    encoder : bool
        Whether SAR latents come from an encoder of their own (`sar2eo.model.encoder.SarEncoder`), not from
        the VAE.
    start : int
        Timestep + 1 that sampling starts from: 1000 is pure noise; less, with an encoder, its guess of the EO
        latents under the noise of that timestep.
    """

    file_name: ClassVar[str] = "sar2eo.json"
    kind: ClassVar[str] = "a sar2eo checkpoint"
    made_by: ClassVar[str] = "'sar2eo model init'"
    later: ClassVar[frozenset[str]] = frozenset({"temperature", "encoder", "start"})

    prediction_type: str = "epsilon"
    sampler: str = "ddim"
    spacing: str = "leading"
    steps: int = 50
    temperature: float = 1.0
    confidence_timestep: int = 500
    encoder: bool = False
    start: int = TRAIN_TIMESTEPS

    @property
    def networks(self) -> tuple[str, ...]:
        """Subfolders of the checkpoint's folder."""
        return ("unet", "vae", "encoder") if self.encoder else ("unet", "vae")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.encoder, bool) or self.encoder != (self.scaling == "db"):
            raise _wrong("encoder", self.encoder, 'true with scaling "db", else false')
        guessed = self.encoder and self.spacing == "trailing"
        self.check_counts(start=(1 if guessed else TRAIN_TIMESTEPS, TRAIN_TIMESTEPS))
        self.check_choices(prediction_type=PREDICTION_TYPES, sampler=SAMPLERS, spacing=SPACINGS)
        self.check_counts(steps=(1, TRAIN_TIMESTEPS), confidence_timestep=(0, TRAIN_TIMESTEPS - 1))
        if not _is_positive(self.temperature):
            raise _wrong("temperature", self.temperature, "a positive number")

    def with_changes(self, **fields: Any) -> Self:
        """Return a copy with other values in some fields; other steps or samplers reset the temperature."""
        own = all(fields.get(name, getattr(self, name)) == getattr(self, name) for name in _SAMPLING)
        return super().with_changes(**({} if own else {"temperature": 1.0}) | fields)


@dataclass(frozen=True, kw_only=True)
class MatcherCard(ModelCard):
    """What a matcher (`sar2eo.matching.dcdm`) was trained on, and which of its matches to accept.

    Parameters
    ----------
    name, quantity, calibration, polarisations, channels, gsd_m, scaling, training_data, licence, metrics
        See `ModelCard`.
    template_px, search_px : int
        Sides of templates and search images in training.
    steps : int
        Sampling steps; 5 in the supplement (section 2.2).
    pixel_weight, structure_weight : float
        Weights of the correlation of decoded pixels, and of the agreement of edges without translation,
        against 1 for the correlation of latent features.
    threshold : float or None
        Lowest score of an accepted match; None: not yet calibrated.
    false_accepts : float or None
        Share of wrong matches above the threshold, as measured in calibration.
    vae_sha256 : str
        Hash of the frozen VAE's values (see `sar2eo.matching.dcdm.checkpoint.hash_values`).
    """

    file_name: ClassVar[str] = "sar2eo-matcher.json"
    kind: ClassVar[str] = "a matcher"
    made_by: ClassVar[str] = "'sar2eo train-matcher'"

    template_px: int = 128
    search_px: int = 256
    steps: int = 5
    pixel_weight: float = 1.0
    structure_weight: float = 0.0
    threshold: float | None = None
    false_accepts: float | None = None
    vae_sha256: str = ""

    @property
    def networks(self) -> tuple[str, ...]:
        """Subfolders of the matcher's folder."""
        return ("denoiser", "vae")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(template_px=(1, 4096), search_px=(1, 4096), steps=(1, TRAIN_TIMESTEPS))
        for name in ("pixel_weight", "structure_weight", "threshold", "false_accepts"):
            value, required = getattr(self, name), name.endswith("_weight")
            absent = value is None and not required
            if not absent and not (_is_number(value) and (value == 0 or _is_positive(value))):
                raise _wrong(name, value, "0 or more" + ("" if required else ", or null"))
        if not isinstance(self.vae_sha256, str):
            raise _wrong("vae_sha256", self.vae_sha256, "text")


def _check_lists(*values: object) -> None:
    """Raise TypeError unless all are lists: a text would be split into letters."""
    for value in values:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is not a list")


def _wrong(name: str, value: object, allowed: str) -> CheckpointError:
    """Return the error for a field: its value, and what is allowed."""
    return CheckpointError(f"card: {name}={value!r}, must be {allowed}")


def _is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    """Whether a value is a positive number within the range of floats."""
    return _is_number(value) and 0 < value <= sys.float_info.max
