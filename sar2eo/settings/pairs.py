"""Settings of what brings SAR and EO together: `sar2eo.build_pairs`, `sar2eo.coregister` and ``match``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from sar2eo.settings.schema import Bounds, Flag, Recipe, Settings, Without
from sar2eo.settings.translation import SceneSettings
from sar2eo.settings.vocabulary import (
    INPUT,
    MODEL,
    OUTPUT,
    RUN,
    Align,
    Checkpoint,
    Count,
    Device,
    EoBands,
    EoRange,
    Folder,
    JsonFile,
    Positive,
    Report,
    SamplingSteps,
    Seed,
    Share,
    Source,
    Sources,
    Threads,
    TieMethod,
    Transform,
    Weight,
)

Gap = Annotated[float, Bounds(least=0)]


def check_range(settings: PairsSettings | CoregisterSettings) -> None:
    """Refuse an `eo_range` whose ends are not in order."""
    if not settings.eo_range[0] < settings.eo_range[1]:
        settings.refuse("{eo_range}: must be LOW,HIGH with LOW below HIGH")


@dataclass(frozen=True, kw_only=True)
class PairsSettings(Settings):
    """How scenes are cut into paired chips, and which split each chip belongs to."""

    group = "Chips"

    size: Annotated[int, Bounds(least=16), "Side of a chip in pixels."] = 256
    stride: Annotated[Count, "Distance of the cells that chips are cut from, in pixels."] = 256
    max_days: Annotated[Gap, "Largest gap between acquisitions in days; inf: times may be unknown."] = 30.0
    min_valid: Annotated[Share, "Smallest share of pixels that are valid in both images."] = 0.99
    max_cloud: Annotated[Share, "Largest share of cloud, where the EO scene says it."] = 0.1
    resolution: Annotated[
        Literal["native"] | Positive,
        "Pixel size of chips in metres; native: the SAR scene's own.",
        Flag(metavar="native|METRES"),
    ] = "native"
    eo_range: Annotated[EoRange, "Reflectance that becomes 0 and 255; bytes stay as they are."] = (
        0.0,
        3000.0,
    )
    eo_bands: EoBands = None
    align: Annotated[Align, "Leave the registration, record how well it holds, or correct it."] = "off"
    split: Annotated[Literal["place"], "How chips are split."] = "place"
    block: Annotated[Positive, "Side in metres of the squares that go to one split as a whole."] = 20000.0
    val: Annotated[Share, "Share of the squares for validation."] = 0.1
    test: Annotated[Share, "Share of the squares for testing."] = 0.2
    buffer: Annotated[Weight, "Smallest distance in metres of a training chip from all others."] = 500.0
    seed: Annotated[Seed, "Seed of the split."] = 2025

    def _check(self) -> None:
        check_range(self)
        if self.val + self.test >= 1:
            self.refuse("{val}, {test}: nothing is left to train on")


@dataclass(frozen=True, kw_only=True)
class PairsRecipe(Recipe):
    """Cut scenes into pairs: the table ``[build-pairs]`` of a TOML recipe."""

    sar: Annotated[Sources, "SAR scenes: rasters, products, folders, globs, STAC files, footprint tables."]
    eo: Annotated[Sources, "EO scenes, given in the same ways."]
    out: Annotated[Folder, "Folder of the pairs."]
    # --resolution is that of the chips.
    scene: Annotated[SceneSettings, Without("resolution allow_ungeoreferenced")] = field(
        default_factory=SceneSettings
    )
    settings: PairsSettings = field(default_factory=PairsSettings)
    matcher: Annotated[Folder | None, "Matcher to align with; by default structure is matched.", MODEL] = None
    overwrite: Annotated[bool, "Replace pairs, or unfinished work, of other settings."] = False
    report: Report = None


@dataclass(frozen=True, kw_only=True)
class CoregisterSettings(Settings):
    """How two scenes are matched, and how one is moved."""

    group = "Matching"

    method: Annotated[TieMethod, "How tie points are matched; dcdm is learned."] = "structure"
    model: Annotated[Checkpoint | None, "Matcher for method dcdm; by default the package's own."] = None
    transform: Annotated[Transform, "One shift, affine, or a smooth field as the evidence says."] = "local"
    grid: Annotated[
        int,
        Bounds(least=32),
        "Distance of tie points, and side of their templates (for dcdm at most as trained), in pixels.",
    ] = 512
    points: Annotated[Count, "Largest number of tie points, spread evenly."] = 600
    radius: Annotated[
        Annotated[int, Bounds(least=2)] | None,
        "Largest shift that is searched for, in pixels of the reference; by default 24, for dcdm as trained.",
    ] = None
    tolerance: Annotated[Positive, "Distance from the fit in pixels at which a tie point supports it."] = 3.0
    eo_range: Annotated[EoRange, "Reflectance that is black and white; bytes stay as they are."] = (
        0.0,
        3000.0,
    )
    eo_bands: EoBands = None
    steps: Annotated[SamplingSteps | None, "Denoising steps of dcdm; by default as the card says."] = None
    seed: Annotated[Seed, "Seed of the samples of a fit, of folds, and of dcdm's noise."] = 2025
    device: Device = "auto"
    threads: Threads = None
    force: Annotated[bool, "Go on where scenes and matcher, or result and disk, do not fit.", RUN] = False

    @property
    def matcher(self) -> str | None:
        """The matcher of dcdm; None where nothing is learned."""
        return (self.model or "bundled") if self.method == "dcdm" else None

    def _check(self) -> None:
        check_range(self)
        if self.method != "dcdm" and self.model is not None:
            self.refuse(f"{{model}}: goes with method dcdm, not with {self.method}")


@dataclass(frozen=True, kw_only=True)
class CoregisterRecipe(Recipe):
    """Move one scene onto another: the table ``[coregister]`` of a TOML recipe."""

    reference: Annotated[Source, "Scene that stays where it is and gives the grid."]
    moving: Annotated[Source, "Scene that is moved. One is SAR, the other optical."]
    out: Annotated[str, "The moving scene on the reference's grid.", Flag(metavar="FILE.tif")]
    scene: Annotated[SceneSettings, Without("resolution allow_ungeoreferenced datetime force")] = field(
        default_factory=SceneSettings
    )
    settings: CoregisterSettings = field(default_factory=CoregisterSettings)
    overwrite: Annotated[bool, "Replace an earlier result."] = False
    report: Annotated[JsonFile | None, "Write what was found as JSON, also where nothing is moved."] = None


@dataclass(frozen=True, kw_only=True)
class MatchSettings(Settings):
    """What ``match`` takes: the arguments of `sar2eo.matching.match_files.match_files`."""

    group = "Matching"

    search: Annotated[str, "SAR image, georeferenced or not.", Flag(metavar="SAR"), INPUT]
    template: Annotated[str, "Smaller optical image: RGB or grey bytes.", Flag(metavar="EO"), INPUT]
    method: Annotated[TieMethod, "How it is matched; dcdm is learned."] = "structure"
    model: Annotated[Checkpoint | None, "Matcher for dcdm; by default the package's own."] = None
    steps: Annotated[SamplingSteps | None, "Denoising steps of dcdm; by default as the card says."] = None
    seed: Annotated[Seed, "Seed of dcdm's noise."] = 2025
    scaling: Annotated[float | None, "For dcdm: amplitude that becomes 1; by default a percentile."] = None
    scene: Annotated[SceneSettings, Without("allow_ungeoreferenced crs resolution")] = field(
        default_factory=SceneSettings
    )
    device: Device = "auto"
    threads: Threads = None
    out: Annotated[Folder | None, "New folder for match.json and pictures.", OUTPUT] = None
    overwrite: Annotated[bool, "Replace an earlier match in the folder.", OUTPUT] = False
    json: Annotated[bool, "Print JSON.", OUTPUT] = False

    def _check(self) -> None:
        for name in ("model", "steps", "scaling"):
            if self.method != "dcdm" and getattr(self, name) is not None:
                self.refuse(f"{{{name}}}: goes with method dcdm, not with {self.method}")
