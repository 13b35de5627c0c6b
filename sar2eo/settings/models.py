"""Settings of the commands ``model ...`` and ``simulate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from sar2eo.settings.schema import Flag, Names, Recipe, Settings
from sar2eo.settings.vocabulary import (
    INPUT,
    OUTPUT,
    Calibration,
    Checkpoint,
    File,
    Folder,
    Polarisations,
    Positive,
    PredictionType,
    Quantity,
    Revision,
    Sampler,
    SamplingSteps,
    Seed,
    Spacing,
)

NewFolder = Annotated[Folder, "New folder.", OUTPUT]
Shift = Annotated[tuple[float, ...], Names("ROWS,COLS")]


@dataclass(frozen=True, kw_only=True)
class CardSettings(Settings):
    """Fields of a new checkpoint's card; those that are not given are as the base or the default has them."""

    group = "Card"

    name: Annotated[str | None, "Short name of the model."] = None
    quantity: Annotated[Quantity | None, "Quantity of the SAR that it is trained on."] = None
    calibration: Annotated[Calibration | None, "Calibration of the SAR that it is trained on."] = None
    polarisations: Annotated[Polarisations | None, "Polarisations that it takes."] = None
    gsd_m: Annotated[Positive | None, "Ground sample distance in true ground metres.", Flag("--gsd")] = None
    prediction_type: Annotated[PredictionType | None, "What the U-Net predicts."] = None
    sampler: Annotated[Sampler | None, "Default sampler."] = None
    spacing: Annotated[Spacing | None, "Default spacing of timesteps."] = None
    steps: Annotated[SamplingSteps | None, "Default number of denoising steps."] = None
    temperature: Annotated[Positive | None, "Temperature of the noise it starts from; by default 1."] = None
    licence: Annotated[str | None, "Licence of the weights."] = None
    training_data: Annotated[str | None, "What it was trained on."] = None

    def changes(self) -> dict[str, object]:
        """Return the fields that are set, as changes of a card."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class InitRecipe(Recipe):
    """Make a checkpoint to be trained: the table ``[model-init]`` of a TOML recipe."""

    group = "Model"

    out: NewFolder
    base: Annotated[Checkpoint | None, "Stable Diffusion 1.x or 2.x model, in diffusers' layout."] = None
    revision: Revision = None
    size: Annotated[Literal["tiny", "small", "region"] | None, "Without a base: size of the model."] = None
    vae: Annotated[Folder | None, "With a size: trained VAE whose latents it is made for."] = None
    zero_terminal_snr: Annotated[bool, "Let the noise schedule end in pure noise; needs v_prediction."] = (
        False
    )
    untrained: Annotated[bool, "With a base: fresh weights for the U-Net (the ablation of Table 3)."] = False
    card: CardSettings = field(default_factory=CardSettings)


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Settings):
    """What ``model import`` takes."""

    group = "Model"

    unet: Annotated[File, "The release's model.safetensors.", INPUT]
    base: Annotated[Checkpoint, "Model that the release was trained from."]
    revision: Revision = None
    out: NewFolder
    card: CardSettings = field(default_factory=CardSettings)


@dataclass(frozen=True, kw_only=True)
class PackSettings(Settings):
    """What ``model pack`` takes."""

    group = "Model"

    folder: Annotated[str, "Trained checkpoint or matcher.", Flag("", "DIR")]
    out: NewFolder
    dtype: Annotated[str, "Precision of the weights on disk: float16, bfloat16 or float32."] = "float16"
    vae: Annotated[Folder | None, "VAE of train-vae --decoder-only, to decode with."] = None
    report: Annotated[Folder | None, "Report of an evaluation, whose figures go on the card."] = None
    card: CardSettings = field(default_factory=CardSettings)


@dataclass(frozen=True, kw_only=True)
class ModelInfoSettings(Settings):
    """What ``model info`` shows."""

    folder: Annotated[str, "Checkpoint or matcher.", Flag("", "DIR")]
    json: Annotated[bool, "Print JSON.", OUTPUT] = False


@dataclass(frozen=True, kw_only=True)
class SimulateRecipe(Recipe):
    """Simulate a pair of scenes: the table ``[simulate]`` of a TOML recipe."""

    group = "Scene"

    out: Annotated[Folder, "Folder of sar.tif, eo.tif and truth.tif.", OUTPUT]
    size: Annotated[int, "Rows and columns, in pixels."] = 2048
    seed: Annotated[Seed, "Seed of the landscape and the speckle."] = 1
    polarisations: Annotated[
        Polarisations, "Bands of the SAR scene.", Flag("--polarisations", "VV,VH", str.upper)
    ] = ("VH",)
    shift: Annotated[Shift, "Shift of the SAR against the EO, in pixels."] = (0.0, 0.0)
    discrepancies: Annotated[bool, "Let some objects differ between the two dates."] = True
