"""Translations from files to files: what a recipe says about each scene, settled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from sar2eo.errors import OutputError, SettingsError
from sar2eo.model.spec import BUNDLED, IDENTITY, ModelSpec
from sar2eo.results.destination import Destination
from sar2eo.results.files import Outputs
from sar2eo.scenes import open_scene, parse_source
from sar2eo.scenes.gdal import gdal_path
from sar2eo.scenes.lazy_array import decode_attributes, encode_attributes
from sar2eo.settings import TranslateRecipe
from sar2eo.settings.translation import SCALED_AS
from sar2eo.store.s3 import is_object
from sar2eo.translation.dataset import spec_of, translate
from sar2eo.translation.provenance import result_fingerprint
from sar2eo.translation.region import clip_to, cut

__all__ = [
    "Job",
    "destination_of",
    "further_outputs",
    "is_there",
    "opened",
    "prepare",
    "resolve",
    "scaling_of",
    "shared_paths",
    "single_job",
]

# Blocks of the journal: wide, so that there are few tasks, but not so wide that memory follows the scene.
_BLOCK = (512, 2048)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scene of a recipe and where its results go.

    Parameters
    ----------
    source : str
        Of the scene.
    outputs : Outputs
        Of its results.
    """

    source: str
    outputs: Outputs

    @property
    def inputs(self) -> list[Path]:
        """What of the scene are local files or folders."""
        # A fragment names an item of a collection.
        paths = (Path(name) for file in self._files for name in (file, file.partition("#")[0]))
        return [path for path in dict.fromkeys(paths) if is_there(path)]

    @property
    def _files(self) -> list[str]:
        parsed = parse_source(self.source)
        return [parsed] if isinstance(parsed, str) else list(parsed.values())

    def check_inputs(self, aoi: str | None) -> None:
        """Refuse to replace the scene, or the area of interest, by the translation.

        Raises
        ------
        SettingsError
        """
        area = None if aoi is None else str(Path(aoi).resolve())
        inputs = {str(path.resolve()) for path in self.inputs} | {gdal_path(file) for file in self._files}
        for path in self.outputs.paths:
            name, place = self.outputs.name(path), str(path.resolve())
            if place == area:
                raise SettingsError(f"{name} is the file of --aoi: give the result another name")
            if gdal_path(name) in inputs or place in inputs:
                raise SettingsError(f"{name} is the scene itself: give the result another name")


def is_there(path: Path) -> bool:
    """Tell whether a path exists; of what cannot be a path, a link to itself say, opening it will tell."""
    try:
        return path.exists()
    except OSError:
        return False


def further_outputs(recipe: TranslateRecipe) -> dict[str, str]:
    """Return the names of the outputs beside the EO image that a recipe asks for, by variable."""
    names = ("confidence", "spread", "quicklook")
    return {name: value for name in names if (value := getattr(recipe, name)) is not None}


def single_job(recipe: TranslateRecipe) -> Job | None:
    """Return the job of a recipe that makes one file of one scene; None: it fills a folder.

    Raises
    ------
    SettingsError, OutputError
        If it can do neither.
    """
    if not recipe.scenes:
        raise SettingsError("no scene is given")
    out = Path(recipe.out)
    if out.suffix.lower() in (".tif", ".tiff") and not out.is_dir() and not recipe.out.endswith("/"):
        if len(recipe.scenes) > 1:
            raise SettingsError(f"--out {recipe.out}: {len(recipe.scenes)} scenes need a folder")
        tmp = None if recipe.tmp is None else Path(recipe.tmp)
        return Job(source=recipe.scenes[0], outputs=Outputs.of(recipe.out, further_outputs(recipe), tmp))
    if is_object(recipe.out):
        destination_of(recipe)
        return None
    if not recipe.out or (out.suffix and not out.is_dir()):
        raise SettingsError(f"--out {recipe.out!r}: must end in .tif, or be a folder")
    if not out.is_dir():
        raise OutputError(f"--out {out}: there is no such folder; make it first, or name a .tif")
    return None


def destination_of(recipe: TranslateRecipe) -> Destination | None:
    """Return where in an object store a recipe's results go; None where they stay here.

    Raises
    ------
    SettingsError
        If that is no such place.
    """
    tmp = None if recipe.tmp is None else Path(recipe.tmp)
    return Destination.of(recipe.out, tmp) if is_object(recipe.out) else None


def resolve(recipe: TranslateRecipe) -> ModelSpec:
    """Settle the model of a recipe, once for all its scenes.

    Raises
    ------
    CheckpointError
        If there is no such model, or it is broken.
    """
    return spec_of(recipe.model, recipe.settings)


def shared_paths(jobs: Sequence[Job], spec: ModelSpec, tmp: Path | None = None) -> list[Path]:
    """Return the local folders, and the scene if there is one, that every worker of a cluster must see."""
    model = [] if spec.path in (IDENTITY, BUNDLED) else [Path(spec.path).absolute()]
    folders = [job.outputs.home for job in jobs]
    scenes = [path.absolute() for job in jobs for path in job.inputs]
    if len(jobs) > 1:  # each path takes a moment
        scenes = [path.parent for path in scenes]
    space = [] if tmp is None else [tmp.absolute()]
    return list(dict.fromkeys([*model, *folders, *scenes, *space]))


def scaling_of(text: str) -> tuple[float, ...] | dict[str, float | str]:
    """Read ``--scaling-from``: a number, numbers with commas, or the report of another run.

    Raises
    ------
    SettingsError
        If it is none of them, or a report of many scenes.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        pass
    try:
        report = json.loads(Path(text).read_text(encoding="utf-8"))
        if "scenes" not in report:
            said = report["scaling"]
            by_name = {name: float(v) for name, v in zip(said["polarisations"], said["p99"], strict=True)}
            return by_name | {name: str(said[name]) for name in SCALED_AS if said.get(name)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--scaling-from {text}: neither a positive amplitude nor a report of 'translate --report'"
        ) from error
    raise SettingsError(
        f"--scaling-from {text}: a report of many scenes or of none, without a scaling; give that of one, "
        "or values, as in --scaling-from 255"
    )


def opened(source: str, recipe: TranslateRecipe) -> tuple[xr.DataArray, Any]:
    """Open a scene of a recipe and cut it; returns the area of interest too, or None."""
    scene = open_scene(source, **dataclasses.asdict(recipe.scene))
    return cut(scene, decode_attributes(scene)["scene_grid"], recipe.region)


def prepare(source: str, recipe: TranslateRecipe, spec: ModelSpec) -> xr.Dataset:
    """Open, cut and translate a scene, lazily; attrs["result_fingerprint"] is what its files will carry."""
    part, area = opened(source, recipe)
    dataset = translate(part, spec, settings=recipe.settings, block=_BLOCK)
    dataset = dataset if area is None else clip_to(dataset, area, decode_attributes(dataset)["grid"])
    return dataset.assign_attrs(
        encode_attributes({"result_fingerprint": result_fingerprint(part, area, recipe, spec)})
    )
