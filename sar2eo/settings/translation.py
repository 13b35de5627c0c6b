"""Settings of scenes and their parts, and of the commands ``translate`` and ``info``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sar2eo.errors import SettingsError
from sar2eo.settings.schema import Bounds, Flag, Names, Recipe, Settings, Without, quote_name
from sar2eo.settings.vocabulary import (
    INPUT,
    MODEL,
    OUTPUT,
    RUN,
    Calibration,
    CardSampler,
    CardSteps,
    Checkpoint,
    Compression,
    Device,
    Dtype,
    File,
    Folder,
    Natural,
    PixelWindow,
    Polarisations,
    Quantity,
    Report,
    Revision,
    Samples,
    Seed,
    Threads,
)

SCALED_AS = ("quantity", "calibration")
"""What a scaling by polarisation may say besides, of the scene it is of."""

IsoTime = Annotated[str, Flag(metavar="ISO8601")]
Box = Annotated[tuple[float, ...], Names("W,S,E,N")]
Target = Annotated[str, Flag(metavar="FILE|FOLDER")]


@dataclass(frozen=True, kw_only=True)
class SceneSettings(Settings):
    """How a SAR scene is opened: the options of `sar2eo.open_scene`."""

    group = "Scene"

    polarisations: Annotated[
        Polarisations | None, "Polarisations to take; of bands without names, their names in order."
    ] = None
    quantity: Annotated[Quantity | None, "What the values are, where the file does not say."] = None
    calibration: Annotated[Calibration | None, "Calibration of the values, where the file does not say."] = (
        None
    )
    calibrate: Annotated[
        Literal["beta0", "sigma0", "gamma0"] | None,
        "Calibrate a Sentinel-1 SAFE product to this, by its annotation.",
    ] = None
    asset: Annotated[str | None, "Asset to take of a STAC item.", Flag(metavar="KEY")] = None
    date: Annotated[str | None, "Day to take of a stack of dates.", Flag(metavar="YYYY-MM-DD")] = None
    bands: Annotated[
        tuple[int, ...] | None, "Bands of the file to take, by number from 1.", Flag("--band", "N,N")
    ] = None
    nodata: Annotated[
        float | Literal["none"] | None,
        "Value that means no data, instead of the file's own; none: undeclared fill is no such value.",
        Flag(metavar="VALUE|none"),
    ] = None
    crs: Annotated[str | None, "CRS to warp to; 'source' keeps a geographic grid."] = None
    resolution: Annotated[float | None, "Pixel size to warp to, in units of the CRS."] = None
    datetime: Annotated[IsoTime | None, "Acquisition time, where the file does not say."] = None
    allow_ungeoreferenced: Annotated[bool, "Take an image without a georeference."] = False
    force: Annotated[bool, "Go on where values contradict what is said of them."] = False


@dataclass(frozen=True, kw_only=True)
class RegionSettings(Settings):
    """Which part of a scene is translated: one of `bbox`, `aoi` and `window`, or all of it."""

    group = "Region"
    alternatives = ("bbox", "aoi", "window")

    bbox: Annotated[Box | None, "Bounds of the part to translate: west, south, east, north."] = None
    bbox_crs: Annotated[str, "CRS of the bounds."] = "EPSG:4326"
    aoi: Annotated[
        str | None,
        "File of polygons (GeoJSON, GeoPackage, Shapefile and others); pixels outside of them are masked.",
        Flag(metavar="FILE"),
    ] = None
    window: Annotated[PixelWindow | None, "Pixels of the scene to translate."] = None

    def _check(self) -> None:
        named = [f"{{{name}:}}" for name in self.alternatives if getattr(self, name) is not None]
        if len(named) > 1:
            self.refuse(
                f"{' and '.join(named)} are given: a region is one of {{bbox:}}, {{aoi:}}, {{window:}}"
            )


@dataclass(frozen=True, kw_only=True)
class TranslateSettings(Settings):
    """How a scene is translated."""

    group = "Model"

    tile: Annotated[int, Bounds(1, 4096), "Side of a tile in pixels, a multiple of the model's factor."] = 512
    overlap: Annotated[Natural, "Overlap of tiles in pixels, a multiple of the model's factor."] = 64
    steps: CardSteps = None
    sampler: CardSampler = None
    seed: Annotated[Seed, "Seed of the noise."] = 2025
    samples: Annotated[Samples, "Images to draw, whose mean is the result."] = 1
    scaling: Annotated[
        tuple[float, ...] | dict[str, float | str] | None,
        "Amplitude that becomes 1: a value for each polarisation, by order or by name (then also with the "
        "quantity and calibration it belongs to), or as a flag another run's report; or as the card says.",
        Flag("--scaling-from", "FILE|VALUE"),
    ] = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    batch: Annotated[Samples | None, "Tiles per call of the model; by default chosen by device.", RUN] = None
    compile: Annotated[bool, "Compile the U-Net: slower to start, at first by minutes.", RUN] = False
    threads: Threads = None
    revision: Revision = None
    force: Annotated[
        bool,
        "Go on where scene and model, values and what is said of them, or result and disk space do not fit.",
        RUN,
    ] = False

    def _check(self) -> None:
        for name, value in self.scaling.items() if isinstance(self.scaling, dict) else ():
            if isinstance(value, str) != (name in SCALED_AS):
                what = "text" if name in SCALED_AS else "a number"
                self.refuse(f"scaling.{quote_name(name)}={value!r}: must be {what}")


@dataclass(frozen=True, kw_only=True)
class TranslateRecipe(Recipe):
    """Translate SAR scenes: the table ``[translate]`` of a TOML recipe."""

    scenes: Annotated[
        tuple[str, ...],
        "Rasters, products or STAC items; for a folder also globs, folders of scenes and item collections.",
        Flag("", "SCENE..."),
        INPUT,
    ]
    out: Annotated[Target, "A .tif, or a folder for any number of scenes; also s3://."]
    name: Annotated[str, "Template of the names of results in a folder, without suffix."] = "{id}_eo"
    model: Annotated[
        Checkpoint,
        "Checkpoint; 'bundled' is the package's own for VH of Sentinel-1 at 10 m, 'identity' is for tests.",
        MODEL,
    ] = "bundled"
    scene: Annotated[SceneSettings, Without("force")] = field(default_factory=SceneSettings)
    region: RegionSettings = field(default_factory=RegionSettings)
    settings: TranslateSettings = field(default_factory=TranslateSettings)
    compress: Annotated[Compression, "Compression of the EO image; jpeg and webp lose detail."] = "deflate"
    confidence: Annotated[File | None, "Also write the confidence, a COG."] = None
    spread: Annotated[File | None, "Also write the standard deviation over the samples, a COG."] = None
    quicklook: Annotated[str | None, "Also write a small picture.", Flag(metavar="FILE.png")] = None
    report: Report = None
    tmp: Annotated[
        Folder | None, "Unfinished work; by default beside the result, or here for s3://.", RUN
    ] = None
    overwrite: Annotated[bool, "Replace outputs made by other settings.", OUTPUT] = False
    restart: Annotated[bool, "Begin anew instead of going on, or of keeping finished results.", RUN] = False


@dataclass(frozen=True, kw_only=True)
class InfoSettings(Settings):
    """What ``info`` shows."""

    source: Annotated[str, "A raster, a product or a STAC item.", Flag("", "SCENE"), INPUT]
    scene: SceneSettings = field(default_factory=SceneSettings)
    json: Annotated[bool, "Print JSON.", OUTPUT] = False


def read_scaling(text: str) -> tuple[float, ...] | dict[str, float | str]:
    """Read ``--scaling-from``: a number, numbers with commas, or the report of another run on one scene."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        pass
    try:
        report = json.loads(Path(text).read_text(encoding="utf-8"))
        if "scenes" not in report:
            scaling = report["scaling"]
            values = zip(scaling["polarisations"], map(float, scaling["p99"]), strict=True)
            return dict(values) | {name: str(scaling[name]) for name in SCALED_AS if scaling.get(name)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--scaling-from {text}: neither a positive amplitude nor a report of 'translate --report'"
        ) from error
    raise SettingsError(
        f"--scaling-from {text}: a report of many scenes or of none, without a scaling; give that of one, "
        "or values, as in --scaling-from 255"
    )
