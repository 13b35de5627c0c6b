"""Settings of `sar2eo.translate` and of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.errors import SettingsError
from sar2eo.geo.radiometry import Calibration, Quantity
from sar2eo.model.card import Sampler

__all__ = [
    "SCALED_AS",
    "Compression",
    "RegionSettings",
    "SceneSettings",
    "TranslateRecipe",
    "TranslateSettings",
]

Compression = Literal["deflate", "zstd", "jpeg", "webp"]
"""Compression of COGs; jpeg and webp lose detail of the EO image."""

SCALED_AS = ("quantity", "calibration")
"""What a scaling by polarisation may say besides, of the scene it is of."""


@dataclass(frozen=True, kw_only=True)
class TranslateSettings:
    """What `sar2eo.translate` needs besides the scene and the model.

    Parameters
    ----------
    tile, overlap : int
        Window size and overlap in pixels, multiples of the model's factor.
    steps, sampler
        None: as the model's card says.
    seed : int
        Of the noise.
    samples : int
        Draws whose mean is the result.
    scaling : tuple of float, dict or None
        Amplitude that becomes 1, for each polarisation in the order the model takes them, or by its name,
        then also with the ``quantity`` and ``calibration`` of the scene it is of, which the scene's have to
        fit; None: as the card says, by default the 99th percentile of the whole scene.
    device, dtype : str
        "auto", or as torch spells them.
    batch : int or None
        Windows per model call; None: chosen by device.
    compile : bool
        Compile the U-Net.
    threads : int or None
        Torch threads of each process; None: all cores.
    revision : str or None
        Of a model on a hub.
    force : bool
        Use a model on a scene its card does not fit, and a disk that may be too small.
    """

    tile: int = 512
    overlap: int = 64
    steps: int | None = None
    sampler: Sampler | None = None
    seed: int = 2025
    samples: int = 1
    scaling: tuple[float, ...] | dict[str, float | str] | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch: int | None = None
    compile: bool = False
    threads: int | None = None
    revision: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        by_name = self.scaling if isinstance(self.scaling, dict) else {}
        for name, value in by_name.items():
            if isinstance(value, str) != (name in SCALED_AS):
                raise SettingsError(
                    f"scaling.{name}={value!r}: must be float, or text of quantity and calibration"
                )


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes are opened: the options of `sar2eo.open_scene`.

    Parameters
    ----------
    polarisations : tuple of str or None
        Names of the bands, or which of several to take.
    quantity, calibration : str or None
        What the values are, where the file does not say.
    calibrate : str or None
        Calibrate a SAFE product to this.
    nodata : float or None
        The value that means no data, instead of the file's own.
    crs, resolution : str, float or None
        Grid to warp to: any CRS, or "source"; pixel size in its units.
    datetime : str or None
        Acquisition time, ISO 8601, where the file does not say.
    allow_ungeoreferenced : bool
        Take an image without a georeference.
    """

    polarisations: tuple[str, ...] | None = None
    quantity: Quantity | None = None
    calibration: Calibration | None = None
    calibrate: Literal["beta0", "sigma0", "gamma0"] | None = None
    nodata: float | None = None
    crs: str | None = None
    resolution: float | None = None
    datetime: str | None = None
    allow_ungeoreferenced: bool = False


@dataclass(frozen=True, kw_only=True)
class RegionSettings:
    """Which part of a scene is translated; at most one of `bbox`, `aoi` and `window`.

    Parameters
    ----------
    bbox : tuple of float or None
        West, south, east, north.
    bbox_crs : str
        CRS of `bbox`.
    aoi : str or None
        A file of polygons (GeoJSON, GeoPackage, Shapefile and others); pixels outside of them are masked.
    window : tuple of int or None
        Row, column, height, width in pixels of the scene.
    """

    bbox: tuple[float, ...] | None = None
    bbox_crs: str = "EPSG:4326"
    aoi: str | None = None
    window: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("bbox", "aoi", "window") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingsError(f"{' and '.join(given)} are given: a region is one of bbox, aoi, window")
        for name in ("bbox", "window"):
            value = getattr(self, name)
            if value is not None and len(value) != 4:
                raise SettingsError(f"{name}={value}: must be four numbers")


@dataclass(frozen=True, kw_only=True)
class TranslateRecipe:
    """Translations from files to files: the table ``[translate]`` of a TOML recipe.

    Parameters
    ----------
    scenes : tuple of str
        Inputs, as `sar2eo.open_scene` takes them; for a folder also globs, folders of scenes and item
        collections.
    out : str
        A ``.tif``, or a folder for any number of scenes; also ``s3://bucket/key.tif``, ``s3://bucket/folder/``.
    name : str
        Of results in a folder, without suffix: a template with `FIELDS` of `sar2eo.translation.plan`.
    model : str
        "bundled", "identity", a checkpoint folder, or a hub id.
    scene, region, settings
        The tables ``[translate.scene]``, ``[translate.region]``, ``[translate.settings]``.
    compress : str
        Compression of the EO image.
    confidence, spread, quicklook : str or None
        Further outputs; in a folder templates as `name`, with suffix.
    report : str or None
        What was done, as JSON.
    tmp : str or None
        Folder for unfinished work.
    overwrite : bool
        Replace outputs made by other settings.
    restart : bool
        Discard unfinished work, and make finished results anew.
    """

    scenes: tuple[str, ...]
    out: str
    name: str = "{id}_eo"
    model: str = "bundled"
    scene: SceneSettings = field(default_factory=SceneSettings)
    region: RegionSettings = field(default_factory=RegionSettings)
    settings: TranslateSettings = field(default_factory=TranslateSettings)
    compress: Compression = "deflate"
    confidence: str | None = None
    spread: str | None = None
    quicklook: str | None = None
    report: str | None = None
    tmp: str | None = None
    overwrite: bool = False
    restart: bool = False
