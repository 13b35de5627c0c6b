"""Translations from files to files: what the command line and recipes run.

Each scene is opened, cut, translated and written; nothing is computed before all of it is known to
fit. Nothing is printed here: callers pass functions that tell.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from sar2eo.durable import write_atomically
from sar2eo.errors import OutputError, SettingsError
from sar2eo.inference import spec_of, translate
from sar2eo.models import BUNDLED, IDENTITY, ModelSpec
from sar2eo.outputs import Outputs
from sar2eo.recipe import TranslateRecipe
from sar2eo.region import clip_to, cut
from sar2eo.scene import open_scene, parse_source
from sar2eo.writing import write_cog

__all__ = ["Job", "jobs_of", "opened", "prepare", "resolve", "run_job", "scaling_of", "shared_paths"]

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
    report : Path or None
        JSON report.
    """

    source: str
    outputs: Outputs
    report: Path | None = None

    def check_report(self) -> None:
        """Refuse a report that cannot be written, or that would replace another output.

        Raises
        ------
        SettingsError, OutputError
        """
        if self.report is None:
            return
        if self.report.resolve() in {path.resolve() for path in self.outputs.paths}:
            raise SettingsError(f"--report {self.report}: another output goes there; choose another name")
        if not self.report.parent.is_dir():
            raise OutputError(f"--report {self.report}: there is no folder {self.report.parent}")

    @property
    def inputs(self) -> list[Path]:
        """What may be local files of the scene."""
        return [Path(part.split("=")[-1]) for part in (self.source, *self.source.split(","))]

    def check_inputs(self) -> None:
        """Refuse to replace the scene by its own translation.

        Raises
        ------
        SettingsError
        """
        inputs = {path.resolve() for path in self.inputs}
        written = [*self.outputs.paths, *([self.report] if self.report else [])]
        taken = [path for path in written if path.resolve() in inputs]
        if taken:
            raise SettingsError(f"{taken[0]} is the scene itself: give the result another name")


def jobs_of(recipe: TranslateRecipe) -> list[Job]:
    """Pair every scene of a recipe with its outputs.

    Raises
    ------
    SettingsError
        If several scenes share one output, or single-scene outputs are asked for several scenes.
    """
    out = Path(recipe.out)
    further = ("confidence", "spread", "quicklook", "report")
    paths = {name: Path(value) for name in further if (value := getattr(recipe, name)) is not None}
    report = paths.pop("report", None)
    if not recipe.scenes:
        raise SettingsError("no scene is given")
    if len(recipe.scenes) == 1 and out.suffix.lower() in (".tif", ".tiff"):
        job = Job(source=recipe.scenes[0], outputs=Outputs(eo=out, **paths), report=report)
        job.check_report()
        return [job]
    if not recipe.out or (out.suffix and not out.is_dir()):
        raise SettingsError(f"--out {recipe.out!r}: must end in .tif, or be a folder")
    if len(recipe.scenes) > 1 and (paths or report):
        raise SettingsError("--confidence, --spread, --quicklook and --report name one file, for one scene")
    if not out.is_dir():
        raise OutputError(f"--out {out}: there is no such folder; make it first, or name a .tif")
    names = [out / f"{_stem(scene)}_eo.tif" for scene in recipe.scenes]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"{twice[0]} would be written twice: scenes of equal names need separate runs")
    return [
        Job(source=scene, outputs=Outputs(eo=name, **paths), report=report)
        for scene, name in zip(recipe.scenes, names, strict=True)
    ]


def resolve(recipe: TranslateRecipe) -> ModelSpec:
    """Settle the model of a recipe, once for all its scenes.

    Raises
    ------
    CheckpointError
        If there is no such model, or it is broken.
    """
    return spec_of(recipe.model, recipe.settings)


def shared_paths(jobs: Sequence[Job], spec: ModelSpec) -> list[Path]:
    """Return the local files and folders that every worker of a cluster must see."""
    model = [] if spec.path in (IDENTITY, BUNDLED) else [Path(spec.path).absolute()]
    folders = [job.outputs.eo.absolute().parent for job in jobs]
    scenes = [path.absolute() for job in jobs for path in job.inputs if path.exists()]
    return list(dict.fromkeys([*model, *folders, *scenes]))


def scaling_of(text: str) -> tuple[float, ...]:
    """Read ``--scaling-from``: a number, numbers with commas, or the report of another run.

    Raises
    ------
    SettingsError
        If it is none of them.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        pass
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))["scaling"]["p99"]
        return tuple(float(value) for value in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--scaling-from {text}: neither a positive amplitude nor a report of 'translate --report'"
        ) from error


def run_job(
    job: Job,
    recipe: TranslateRecipe,
    spec: ModelSpec,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Translate one scene into its files.

    Returns
    -------
    dict
        The report, which is also written where the job says.

    Raises
    ------
    Sar2eoError
        As `sar2eo.open_scene`, `sar2eo.translate` and `sar2eo.write_cog` raise.
    """
    job.check_inputs()
    job.outputs.check(overwrite=recipe.overwrite)
    started = time.perf_counter()
    dataset = prepare(job, recipe, spec)
    opened_in = time.perf_counter() - started
    report = write_cog(
        dataset,
        job.outputs.eo,
        confidence=job.outputs.confidence,
        spread=job.outputs.spread,
        quicklook=job.outputs.quicklook,
        compress=recipe.compress,
        overwrite=recipe.overwrite,
        restart=recipe.restart,
        progress=progress,
    )
    report["seconds"]["open"] = opened_in
    report["seconds"]["total"] += opened_in
    if job.report is not None:
        write_atomically(job.report, (json.dumps(report, indent=2) + "\n").encode())
    return report


def opened(job: Job, recipe: TranslateRecipe) -> tuple[xr.DataArray, Any]:
    """Open the scene of a job and cut it; returns the area of interest too, or None."""
    scene = open_scene(_absolute(job.source), **dataclasses.asdict(recipe.scene))
    return cut(scene, scene.attrs["scene_grid"], recipe.region)


def prepare(job: Job, recipe: TranslateRecipe, spec: ModelSpec) -> xr.Dataset:
    """Open, cut and translate the scene of a job, lazily."""
    part, area = opened(job, recipe)
    dataset = translate(part, spec, settings=recipe.settings, block=_BLOCK)
    return dataset if area is None else clip_to(dataset, area, dataset.attrs["grid"])


def _absolute(source: str) -> str | dict[str, str]:
    """Name local files so that a worker in another folder finds them."""
    parsed = parse_source(source)
    if isinstance(parsed, dict):
        return {name: str(_absolute(str(part))) for name, part in parsed.items()}
    path = Path(str(parsed))
    return str(path.absolute()) if path.exists() else str(parsed)


def _stem(source: str) -> str:
    """Name a result after its scene: the last part of its path, or of its first polarisation's."""
    first = source.split(",")[0].split("=")[-1]
    return first.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zip").rsplit(".", 1)[0]
