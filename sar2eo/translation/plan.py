"""What an archive run will do: every scene looked at, named, and compared with what is there already."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np
import psutil

from sar2eo.compute.dask_run import Progress
from sar2eo.errors import OutputError, Sar2eoError, SceneError, SettingsError, one_line
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.spec import ModelSpec
from sar2eo.results.cog import check_space, cog_bytes, needed_bytes
from sar2eo.results.destination import Destination, check_tmp
from sar2eo.results.files import Outputs
from sar2eo.results.stac_output import COLLECTION
from sar2eo.scenes import describe_scene
from sar2eo.scenes.gdal import display_name, parse_source
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.sources import expand_glob, expand_sources, scene_key
from sar2eo.scenes.stac_input import is_stac, read_item
from sar2eo.settings import TranslateRecipe, checked
from sar2eo.store.journal import differences
from sar2eo.translation.graph import count_windows
from sar2eo.translation.job import Job, destination_of, further_outputs, is_there, opened, prepare, single_job
from sar2eo.translation.provenance import FINGERPRINT, result_fingerprint

__all__ = [
    "FIELDS",
    "Entry",
    "Status",
    "check_disk",
    "check_template",
    "estimate",
    "estimate_archive",
    "facts_of",
    "fill",
    "needs",
    "plan",
]

Status = Literal["pending", "done", "skipped", "failed"]


@dataclass(kw_only=True)
class Entry:
    """One scene of a run, from the plan to the summary.

    Parameters
    ----------
    source : str
        Of the scene.
    job : Job or None
        None for a scene that failed before it had a name.
    grid : Grid or None
        Of the result.
    status : {"pending", "done", "skipped", "failed"}
        Skipped: a result of the same scene and settings is there.
    error : Exception or None
        Why it failed.
    report : dict or None
        Of a scene that is done, as `sar2eo.write_cog` returns it.
    seconds : float
        Of work.
    """

    source: str
    job: Job | None = None
    grid: Grid | None = None
    status: Status = "pending"
    error: Exception | None = None
    report: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The source for people, without the queries of signed URLs."""
        return display_name(self.source)

    @property
    def megapixels(self) -> float:
        """Size of the result; 0 where it is not known."""
        return 0.0 if self.grid is None else self.grid.shape[0] * self.grid.shape[1] / 1e6

    @property
    def reason(self) -> str | None:
        """Why it failed, on one line."""
        if self.error is None:
            return None
        text = one_line(self.error)
        return text if isinstance(self.error, Sar2eoError) else f"{type(self.error).__name__}: {text}"

    def fail(self, error: Exception) -> None:
        """Note why it failed."""
        self.status, self.error = "failed", error


def plan(recipe: TranslateRecipe, spec: ModelSpec, *, progress: Progress | None = None) -> list[Entry]:
    """Look at every scene of a recipe; no pixels are read.

    A result of this run that lies among the scenes is not taken for one of them.

    Parameters
    ----------
    recipe : TranslateRecipe
        What is to be done.
    spec : ModelSpec
        The model, resolved.
    progress : callable, optional
        Called with the counts ``scenes_seen`` and ``scenes``.

    Returns
    -------
    list of Entry
        In the order given, sorted within folders and globs; those that cannot be done have failed.

    Raises
    ------
    SettingsError, OutputError
        If nothing could be done as asked: settings, names, the report.
    """
    _check_settings(recipe, spec)
    single = single_job(recipe)
    destination = destination_of(recipe) if single is None else single.outputs.destination
    if destination is not None:
        destination.check()
    entries = _expanded(recipe.scenes) if single is None else [Entry(source=single.source, job=single)]
    for number, entry in enumerate(entries, start=1):
        if entry.status == "pending":
            try:
                _look(entry, recipe, spec, destination)
            except Exception as error:
                entry.fail(error)
        if progress is not None:
            progress({"scenes_seen": number, "scenes": len(entries)})
    named = [entry.job for entry in entries if entry.job is not None]
    results = {path.resolve(): job for job in named for path in job.outputs.paths}
    kept = [entry for entry in entries if _is_own(entry, results)]
    _check_names(kept, recipe)
    _check_report(kept, recipe)
    return kept


def check_disk(entries: Sequence[Entry], recipe: TranslateRecipe) -> None:
    """Refuse a run that the disks cannot hold.

    Counted are all results that stay on them, and the unfinished work of the two largest scenes: while one
    is assembled, the next is computed.

    Raises
    ------
    OutputError
        With numbers.
    """
    check_space(needs(entries, recipe))


def needs(entries: Sequence[Entry], recipe: TranslateRecipe) -> list[tuple[Path, int]]:
    """Return folders, and the bytes that a run needs there."""
    found: list[tuple[Path, int]] = []
    work: list[tuple[int, Path]] = []
    for entry in entries:
        if entry.status == "pending" and entry.job is not None and entry.grid is not None:
            outputs = entry.job.outputs
            size = cog_bytes(entry.grid, outputs.rasters, recipe.compress)
            place, total = outputs.needs(entry.grid, recipe.compress, _tmp(recipe))[0]
            away = outputs.destination is not None or place.stat().st_dev != outputs.home.stat().st_dev
            work.append((total if away else max(0, total - size), place))
            if outputs.destination is None:
                found.append((outputs.home, size))
    return found + [(place, size) for size, place in sorted(work, reverse=True)[:2]]


def _tmp(recipe: TranslateRecipe) -> Path | None:
    return None if recipe.tmp is None else Path(recipe.tmp)


def _check_settings(recipe: TranslateRecipe, spec: ModelSpec) -> None:
    """Refuse what no scene could be translated with."""
    settings = checked(recipe.settings)
    Lattice((settings.tile, settings.tile), settings.tile, settings.overlap, spec.factor)
    if single_job(recipe) is None:
        for template in (recipe.name, *further_outputs(recipe).values()):
            check_template(template)
    check_tmp(_tmp(recipe))


def _expanded(given: Sequence[str]) -> list[Entry]:
    found: dict[str, Entry] = {}
    # One of a glob's matches that cannot be read is one failing scene.
    for text in (part for pattern in given for part in expand_glob(pattern) or [pattern]):
        try:
            sources = [source.href for source in expand_sources([text], "sar")]
        except Exception as error:
            found.setdefault(text, Entry(source=text)).fail(error)
            continue
        for source in sources:
            found.setdefault(scene_key(source), Entry(source=source))
    return list(found.values())


def _look(entry: Entry, recipe: TranslateRecipe, spec: ModelSpec, destination: Destination | None) -> None:
    """Open a scene, name its results, and see whether they are there."""
    if entry.job is not None:
        # What a single scene is asked for is refused before it is opened.
        entry.job.check_inputs(recipe.region.aoi)
    scene, area = opened(entry.source, recipe)
    whole: Grid = decode_attributes(scene)["scene_grid"]
    if entry.job is None:
        entry.job = Job(source=entry.source, outputs=_named(entry.source, scene.attrs, recipe, destination))
        entry.job.check_inputs(recipe.region.aoi)
    fingerprint = result_fingerprint(scene, area, recipe, spec)
    row, col, height, width = fingerprint["region"][0]
    entry.grid = whole.crop(type(whole.window)(row, col, height, width))
    outputs = entry.job.outputs
    placed = whole.crs is not None
    if not recipe.restart and _is_there(outputs, fingerprint, placed=placed, overwrite=recipe.overwrite):
        entry.status = "skipped"
    else:
        outputs.check(overwrite=recipe.overwrite, restart=recipe.restart)


def _named(
    source: str, attrs: Mapping[str, Any], recipe: TranslateRecipe, destination: Destination | None
) -> Outputs:
    facts = facts_of(source, attrs)
    out = Path(recipe.out) if destination is None else destination.folder
    further = {name: out / fill(text, facts) for name, text in further_outputs(recipe).items()}
    return Outputs(
        eo=out / f"{fill(recipe.name.removesuffix('.tif'), facts)}.tif", destination=destination, **further
    )


def _is_there(outputs: Outputs, fingerprint: Mapping[str, Any], *, placed: bool, overwrite: bool) -> bool:
    """Whether all results are there, of this scene and these settings; others need `overwrite`."""
    if outputs.half_published or not outputs.is_there(outputs.eo):
        return False
    for path in outputs.rasters.values():
        differing = _differing(outputs, path, fingerprint) if outputs.is_there(path) else ""
        if differing and not overwrite:
            raise OutputError(
                f"{outputs.name(path)} exists, and differs in {differing}: pass --overwrite to replace it, "
                "or give another --out or --name"
            )
        if differing:
            return False
    expected = [*outputs.rasters.values(), *([outputs.quicklook] if outputs.quicklook else [])]
    if outputs.destination is not None and placed and fingerprint["scene"]["datetime"] is not None:
        expected.append(outputs.item)  # the last to be uploaded
    return all(outputs.is_there(path) for path in expected)


def _differing(outputs: Outputs, path: Path, fingerprint: Mapping[str, Any]) -> str:
    """Name what a result that is there differs in; empty if it is the one."""
    try:
        said = outputs.tag(path, FINGERPRINT)
        return (
            "how it was made, which it does not say"
            if said is None
            else differences(json.loads(said), fingerprint)
        )
    except (SceneError, ValueError, AttributeError):
        return "how it was made, which cannot be read"


def _is_own(entry: Entry, results: Mapping[Path, Job]) -> bool:
    """Whether a scene is one, and not the result of another."""
    path = Path(entry.source)
    job = results.get(path.resolve()) if is_there(path) else None
    return job is None or job.source == entry.source


def _check_names(entries: Sequence[Entry], recipe: TranslateRecipe) -> None:
    counts: Counter[Path] = Counter()
    for entry in entries:
        if entry.job is not None:
            counts.update(set(entry.job.outputs.paths))
    twice = sorted(path for path, count in counts.items() if count > 1)
    if twice:
        sources = [e.name for e in entries if e.job is not None and twice[0] in e.job.outputs.paths]
        named = next(e.job.outputs.name(twice[0]) for e in entries if e.job is not None)
        raise SettingsError(
            f"{named} would be written twice, of {' and '.join(sources[:2])}: give a --name that tells "
            f"scenes apart, such as {{id}}_{{date}}, instead of {recipe.name!r}"
        )


def _check_report(entries: Sequence[Entry], recipe: TranslateRecipe) -> None:
    if recipe.report is None:
        return
    report = Path(recipe.report)
    jobs = [entry.job for entry in entries if entry.job is not None]
    outputs = {path.resolve() for job in jobs for path in job.outputs.paths}
    if report.resolve() in outputs | {(Path(recipe.out) / COLLECTION).resolve()}:
        raise SettingsError(
            f"--report {report}: another output goes there (a STAC item, say): choose another name"
        )
    if report.resolve() in {path.resolve() for job in jobs for path in job.inputs}:
        raise SettingsError(f"--report {report} is the scene itself: give the report another name")
    if recipe.region.aoi is not None and report.resolve() == Path(recipe.region.aoi).resolve():
        raise SettingsError(f"--report {report} is the file of --aoi: give the report another name")
    if report.is_dir():
        raise OutputError(f"--report {report}: is a folder: name a file, such as {report / 'report.json'}")
    if not report.parent.is_dir():
        raise OutputError(f"--report {report}: there is no folder {report.parent}")


FIELDS = ("id", "stem", "date", "time", "platform", "orbit", "polarisations")
"""What a template may hold.

``id`` is a STAC item's id, else the ``stem``, which is the name of the scene's file without its suffix;
``date`` and ``time`` are those of the acquisition, as in 20240506 and 070809, in UTC.
"""

_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f]+")


def check_template(template: str) -> None:
    """Refuse what is no template of a file's name.

    Raises
    ------
    SettingsError
        For fields that are not in `FIELDS`, and for folders.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise SettingsError(f"name {template!r}: {error}; a brace itself is {{{{ or }}}}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in FIELDS or form or conversion):
            allowed = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise SettingsError(f"name {template!r}: {{{name}}} is not known, known are {allowed}")
    if not template or "/" in template or template.startswith("."):
        raise SettingsError(f"name {template!r}: must name files in --out, not folders or hidden files")


def facts_of(source: str, attrs: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the values of the fields for a scene.

    Parameters
    ----------
    source : str
        As `sar2eo.open_scene` takes it.
    attrs : mapping
        Of the opened scene.
    """
    parsed = parse_source(source)
    first = parsed if isinstance(parsed, str) else next(iter(parsed.values()))
    named = display_name(first)
    file, _, item = named.partition("#") if is_stac(first) else (named, "", "")
    if file.endswith("/manifest.safe"):
        file = file.removesuffix("/manifest.safe")  # of the product that it lies in
    stem = file.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zip").rsplit(".", 1)[0]
    name = item or (read_item(source).id if is_stac(source) else stem)
    when = str(attrs.get("datetime") or "")
    digits = re.sub(r"[-:]", "", when)
    return {
        "id": name,
        "stem": stem,
        "date": digits[:8] or None,
        "time": digits[9:15] or None,
        "platform": attrs.get("platform"),
        "orbit": attrs.get("orbit_direction"),
        "polarisations": "-".join(attrs.get("polarisations") or ()) or None,
    }


def fill(template: str, facts: Mapping[str, str | None]) -> str:
    """Fill a template that `check_template` let pass; what no file's name should hold becomes ``_``.

    Raises
    ------
    SceneError
        If the scene does not tell what the template asks for.
    """
    asked = {name for _, name, _, _ in Formatter().parse(template) if name}
    missing = sorted(name for name in asked if not facts[name])
    if missing:
        raise SceneError(f"the scene does not say its {', '.join(missing)}, which name {template!r} asks for")
    return template.format_map({name: _NOT_IN_NAMES.sub("_", str(facts[name])) for name in asked})


_WINDOWS_SAMPLED = 256
# Of an activation-heavy model, beyond its weights, for each window of a batch; measured with SD 2.1 at 512.
_BYTES_PER_WINDOW = 1.5e9


def estimate(job: Job, recipe: TranslateRecipe, spec: ModelSpec) -> dict[str, Any]:
    """Describe one job of a plan without doing it.

    Returns
    -------
    dict
        Nested, for printing: scene, scaling, windows, model, memory and disk, seconds.

    Raises
    ------
    Sar2eoError
        All that the run itself would raise before work starts.
    """
    scene, _ = opened(job.source, recipe)
    dataset = prepare(job.source, recipe, spec)
    attrs = decode_attributes(dataset)
    grid = attrs["grid"]
    lattice = Lattice(tuple(attrs["scene_shape"]), attrs["tile"], attrs["overlap"], spec.factor)
    windows = count_windows(dataset["eo"].data)
    translated = round(windows * (1 - _empty_share(scene, lattice, Window(*attrs["region"]))))
    divisors = [float(d) for d in dataset["amplitude_divisor"].values]
    disk = needed_bytes(grid, job.outputs.rasters, recipe.compress)
    return {
        "scene": describe_scene(scene),
        "output": {"file": job.outputs.name(job.outputs.eo), "crs": grid.crs, "shape": list(grid.shape)},
        "scaling": dict(zip(attrs["polarisations"], divisors, strict=True)),
        "windows": {"total": windows, "without data, estimated": windows - translated},
        "model": {"path": spec.path, "parameters": spec.parameters, **spec.fingerprint()},
        "takes": {
            **_memory(spec),
            "disk, GB": round(disk / 1e9, 2),
            "seconds, estimated": round(_seconds(spec, attrs["tile"], translated), 1),
        },
    }


def estimate_archive(entries: Sequence[Entry], recipe: TranslateRecipe, spec: ModelSpec) -> dict[str, Any]:
    """Describe a plan without doing it; of windows without data nothing is known, so all are counted.

    Parameters
    ----------
    entries : sequence of Entry
        As `sar2eo.translation.plan.plan` returns them.
    recipe : TranslateRecipe
    spec : ModelSpec

    Returns
    -------
    dict
        Nested, for printing: scenes by status, outputs, windows, model, memory and disk, seconds.
    """
    settings = recipe.settings
    pending = [entry for entry in entries if entry.status == "pending"]
    sizes = [entry.grid.shape for entry in pending if entry.grid is not None]
    windows = sum(len(Lattice(size, settings.tile, settings.overlap, spec.factor)) for size in sizes)
    disk = sum(size for _, size in needs(entries, recipe))
    return {
        "scenes": {
            status: sum(entry.status == status for entry in entries)
            for status in ("pending", "skipped", "failed")
        },
        "outputs": {
            entry.name: entry.reason if entry.job is None else entry.job.outputs.name(entry.job.outputs.eo)
            for entry in entries
        },
        "failing": {entry.name: entry.reason for entry in entries if entry.status == "failed"},
        "megapixels": round(sum(entry.megapixels for entry in pending), 1),
        "windows": windows,
        "model": {"path": spec.path, "parameters": spec.parameters, **spec.fingerprint()},
        "takes": {
            **_memory(spec),
            "disk, GB": round(disk / 1e9, 2),
            "seconds at most, estimated": round(_seconds(spec, settings.tile, windows), 1),
        },
    }


def _memory(spec: ModelSpec) -> dict[str, float]:
    return {
        "memory, GB": round((_model_bytes(spec) + 0.5e9) / 1e9, 1),
        "memory available, GB": round(psutil.virtual_memory().available / 1e9, 1),
    }


def _empty_share(part: Any, lattice: Lattice, region: Window) -> float:
    """Share of the windows over a region that hold no valid pixel of it, from a seeded sample of them."""
    draw = np.random.Generator(np.random.Philox(2025))
    picked = draw.permutation(lattice.touching(region))[:_WINDOWS_SAMPLED]
    empty = 0
    for index in picked:
        common = lattice[int(index)].intersection(region)
        assert common is not None  # noqa: S101  (they touch)
        rows, cols = common.shifted(-region.row, -region.col).slices
        empty += not bool(np.isfinite(part.isel(y=rows, x=cols).values).all(axis=0).any())
    return empty / len(picked)


def _model_bytes(spec: ModelSpec) -> float:
    if spec.card is None:
        return 0.0
    per_parameter = 4 if spec.dtype == "float32" else 2
    return spec.parameters * per_parameter + _BYTES_PER_WINDOW * spec.batch


def _seconds(spec: ModelSpec, tile: int, windows: int) -> float:
    """Seconds inside the model: a batch of one step is timed, and of three."""
    sar = np.zeros((spec.batch, 3, tile, tile), np.float32)
    origins = [(0, tile * k) for k in range(spec.batch)]
    translator = spec.load()

    def timed(steps: int) -> float:
        start = time.perf_counter()
        translator.with_steps(steps).translate(sar, origins)
        return time.perf_counter() - start

    timed(1)
    short, long = (min(timed(steps), timed(steps)) for steps in (1, 3))
    batch = (short + max(long - short, 0) / 2 * max(spec.steps - 1, 0)) * spec.samples
    return batch * -(-windows // spec.batch)
