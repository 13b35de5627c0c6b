"""Whether a model's variance tells planted discrepancies from unchanged objects of the same kind.

Ships that one sensor alone saw are held against ships that both saw, fields with another crop at each date
against fields with the same one: never objects against bare ground, which any map of brightness tells
apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo._version import __version__
from sar2eo.errors import OutputError, SceneError, SettingsError
from sar2eo.evaluation.calibration import calibration_table
from sar2eo.evaluation.confidence.objects import Truth, read_truth, score_objects
from sar2eo.evaluation.confidence.pictures import Case, choose_cases, pair_picture
from sar2eo.evaluation.confidence.report import REPORT, write_report
from sar2eo.evaluation.confidence.roc import compare_groups
from sar2eo.evaluation.confidence.variance_maps import VarianceMaps, map_variance, open_scene_pair
from sar2eo.evaluation.request import model_facts
from sar2eo.evaluation.translators import torch_threads
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.checkpoint_files import TRAIN_TIMESTEPS
from sar2eo.model.spec import ModelSpec, resolve_model
from sar2eo.settings import ConfidenceSettings, checked
from sar2eo.store.atomic import write_file

__all__ = ["judge_confidence", "picture_confidence", "plan_confidence", "spec_with_variance", "timesteps_of"]

_PACKAGES = ("torch", "diffusers", "numpy", "scipy")

CONSTANT = (
    "the variance is the same everywhere: this model was trained without it (loss l2), so it can tell "
    "nothing apart"
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    """What was asked for, checked."""

    spec: ModelSpec
    folders: list[Path]
    truths: list[Truth]
    settings: ConfidenceSettings

    def plan(self) -> dict[str, Any]:
        lattices = [
            Lattice(truth.label.shape, self.settings.tile, self.settings.overlap, self.spec.factor)
            for truth in self.truths
        ]
        return {
            "scenes": [str(folder) for folder in self.folders],
            "objects": sum(len(truth.numbers) for truth in self.truths),
            "windows": sum(map(len, lattices)),
            "timesteps": list(timesteps_of(self.spec, self.settings)),
            "model": {name: getattr(self.spec, name) for name in ("steps", "sampler", "device", "dtype")},
        }


def judge_confidence(
    model: str | Path,
    scenes: tuple[str | Path, ...],
    out: str | Path,
    settings: ConfidenceSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure how well a model's variance finds planted discrepancies, and write a report.

    Parameters
    ----------
    model : str or Path
        Checkpoint folder or hub id.
    scenes : tuple of str or Path
        Folders of ``sar2eo simulate``, of places that the model was not trained on.
    out : str or Path
        Folder of the report; it appears whole or not at all. ``report.json`` holds everything,
        ``report.md`` a table; and there are pictures.
    settings : ConfidenceSettings, optional
    overwrite : bool
        Replace an existing report.
    progress : callable, optional
        Called with what is being done, how many are done, and how many there are.

    Returns
    -------
    dict
        What ``report.json`` holds. "groups": for each kind of object and of discrepancy the counts, and
        by detector the area under the ROC curve with its 95 % bootstrap interval ("areas"; above 0.5: what
        changed scores higher), and how far the teacher-forced variance is ahead of the SAR contrast
        ("margin"). "calibration": by timestep the variance against the squared error. "objects": every
        score. None is what cannot be measured. "left_out" says why.

    Raises
    ------
    SettingsError, SceneError, CheckpointError, OutputError
        Before anything is measured, if settings, scenes and model cannot be used or the report exists.
    """
    settings = checked(settings or ConfidenceSettings())
    request = _prepare(model, scenes, out, settings, overwrite=overwrite)
    timesteps = timesteps_of(request.spec, settings)
    objects: list[dict[str, Any]] = []
    found: list[VarianceMaps] = []
    cases: list[Case] = []
    with torch_threads(request.spec.threads):
        for folder, truth in zip(request.folders, request.truths, strict=True):
            pair = open_scene_pair(folder / "sar.tif", folder / "eo.tif", _card(request.spec))
            maps = map_variance(
                pair,
                request.spec,
                timesteps=timesteps,
                tile=settings.tile,
                overlap=settings.overlap,
                progress=partial(progress, str(folder)),
            )
            rows = score_objects(truth, pair, maps, request.spec.factor)
            cases += choose_cases(rows, truth, pair, maps, request.spec, known=cases)
            objects += [{"scene": str(folder), **row} for row in rows]
            found.append(maps)
    constant = all(maps.constant for maps in found)
    results = {
        **_facts(request),
        "left_out": {"variance": CONSTANT} if constant else {},
        "groups": compare_groups(
            objects, f"forced {_card(request.spec).confidence_timestep} mean", settings.seed, blind=constant
        ),
        "calibration": {} if constant else _calibration(found, timesteps),
        "objects": objects,
    }
    return write_report(Path(out), results, [] if constant else cases, overwrite=overwrite)


def plan_confidence(
    model: str | Path,
    scenes: tuple[str | Path, ...],
    out: str | Path,
    settings: ConfidenceSettings | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Check what `judge_confidence` would do and say it, as plain values; parameters and errors are its."""
    return _prepare(model, scenes, out, checked(settings or ConfidenceSettings()), overwrite=overwrite).plan()


def picture_confidence(
    model: str | Path,
    pair: tuple[str | Path, ...],
    window: tuple[int, ...],
    out: str | Path,
    settings: ConfidenceSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Draw SAR, EO, confidence and surprise of a part of two real scenes, of which there is no truth.

    Parameters
    ----------
    model : str or Path
    pair : tuple of str or Path
        Files of the SAR and the EO scene, on one grid.
    window : tuple of int
        Row, column, height, width.
    out : str or Path
        A PNG.
    settings, overwrite, progress
        As in `judge_confidence`.

    Raises
    ------
    SettingsError, SceneError, PairsError, CheckpointError, OutputError
        If they cannot be used, or the picture exists.
    """
    settings, target = checked(settings or ConfidenceSettings()), Path(out)
    if target.exists() and not overwrite:
        raise OutputError(f"{out} exists already: choose another name, or --overwrite it")
    if not target.absolute().parent.is_dir():
        raise OutputError(f"{out}: its folder does not exist")
    spec = spec_with_variance(model, settings)
    sar, eo = map(Path, pair)
    scenes = open_scene_pair(sar, eo, _card(spec), Window(*window))
    with torch_threads(spec.threads):
        maps = map_variance(
            scenes,
            spec,
            timesteps=(TRAIN_TIMESTEPS - 1,),  # nothing is known of the EO image
            tile=settings.tile,
            overlap=settings.overlap,
            progress=partial(progress, str(pair[0])),
        )
    write_file(target, pair_picture(scenes, maps, spec))
    return target


def spec_with_variance(model: str | Path, settings: ConfidenceSettings) -> ModelSpec:
    """Settle a model that has a variance.

    Raises
    ------
    SettingsError
        If it has none.
    CheckpointError
        If there is no such checkpoint, or it is broken.
    """
    names = ("steps", "sampler", "seed", "device", "dtype", "threads")
    spec = resolve_model(model, **{name: getattr(settings, name) for name in names})
    if not spec.confidence:
        raise SettingsError(f"model={model}: has no variance to judge: give a checkpoint folder")
    return spec


def timesteps_of(spec: ModelSpec, settings: ConfidenceSettings) -> tuple[int, ...]:
    """Return the timesteps of the settings and that of the model's card, in rising order."""
    return tuple(sorted({*settings.timesteps, _card(spec).confidence_timestep}))


def _prepare(
    model: str | Path,
    scenes: tuple[str | Path, ...],
    out: str | Path,
    settings: ConfidenceSettings,
    *,
    overwrite: bool,
) -> _Request:
    REPORT.check_target(Path(out), overwrite=overwrite)
    if not scenes:
        raise SettingsError("scenes: must name at least one folder of sar2eo simulate")
    spec = spec_with_variance(model, settings)
    folders = [Path(scene) for scene in scenes]
    truths = [read_truth(folder) for folder in folders]
    if not any(truth.changed.any() for truth in truths):
        raise SceneError(
            f"{', '.join(map(str, folders))}: no object changed: simulate without --no-discrepancies, and "
            "large enough for ships and fields"
        )
    request = _Request(spec=spec, folders=folders, truths=truths, settings=settings)
    request.plan()  # whose lattices refuse a wrong tile
    return request


def _facts(request: _Request) -> dict[str, Any]:
    timestep = _card(request.spec).confidence_timestep
    return {
        "software": {"sar2eo": __version__, **{name: version(name) for name in _PACKAGES}},
        "settings": dataclasses.asdict(request.settings),
        "model": model_facts(request.spec),
        "timestep": timestep,
        "timesteps": list(timesteps_of(request.spec, request.settings)),
        "scenes": [
            {"folder": str(folder), "settings": truth.settings}
            for folder, truth in zip(request.folders, request.truths, strict=True)
        ],
    }


def _calibration(found: list[VarianceMaps], timesteps: tuple[int, ...]) -> dict[str, Any]:
    """Hold the variance against the squared error at each timestep, over all valid latent pixels."""

    def joined(name: str, timestep: int) -> npt.NDArray[np.float32]:
        return np.concatenate([getattr(maps, name)[timestep][maps.valid] for maps in found])

    return {
        str(timestep): calibration_table(joined("forced", timestep), joined("error", timestep))
        for timestep in timesteps
    }


def _card(spec: ModelSpec) -> Any:
    return spec.card
