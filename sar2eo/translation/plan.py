"""The plan of a run: every scene opened, its results named and compared with those that exist.

Also what a dry run prints: how many tiles, how much memory and disk, how many seconds.
"""

from __future__ import annotations

import json
import os.path
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
from sar2eo.errors import OutputError, SceneError, SettingsError, explain
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.folder import BUNDLED
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import IDENTITY, ModelSpec
from sar2eo.results.cog import estimate_bytes
from sar2eo.results.outputs import Destination, Outputs, check_tmp
from sar2eo.results.stac_output import COLLECTION
from sar2eo.results.targets import check_report
from sar2eo.scenes import describe_scene
from sar2eo.scenes.gdal import display_name, gdal_path, parse_source
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.sources import expand_glob, expand_sources, scene_key, without_polarisation
from sar2eo.scenes.stac_input import is_stac, read_item
from sar2eo.settings import TranslateRecipe
from sar2eo.store.atomic import refuse
from sar2eo.store.journal import Journal, differences
from sar2eo.store.s3 import is_object
from sar2eo.translation.dataset import count_tiles
from sar2eo.translation.region import FINGERPRINT, Region, open_region, translate_region

# An opened scene takes half a megabyte, mostly coordinates: of a long archive the others are opened again.
_KEPT_OPEN = 64


@dataclass(frozen=True)
class RunTarget:
    """Where the results of a run go: a folder, or `single`, the outputs of the only scene.

    `folder` is that of the results, or of their unfinished work if they are uploaded to `destination`.
    """

    folder: Path
    single: Outputs | None = None
    destination: Destination | None = None


@dataclass(kw_only=True)
class Entry:
    """One scene of a run, from the plan to the summary.

    `outputs` are None if it failed before they had names. `region` is the opened scene, from the plan until
    its work begins, `grid` that of the result. It is skipped where results of the same scene and settings
    exist. `report` is that of `sar2eo.write_cog`, once it is done; `seconds` are those of work so far.
    `identity` is that of the files that are read.
    """

    source: str
    outputs: Outputs | None = None
    region: Region | None = None
    grid: Grid | None = None
    status: Literal["pending", "done", "skipped", "failed"] = "pending"
    error: Exception | None = None
    report: dict[str, Any] | None = None
    seconds: float = 0.0
    identity: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The source as messages name it, without the queries of signed URLs."""
        return display_name(self.source)

    @property
    def output(self) -> str | None:
        """Path or URL of the EO image."""
        return None if self.outputs is None else self.outputs.display_name(self.outputs.eo)

    @property
    def megapixels(self) -> float:
        """Size of the result; 0 if unknown."""
        return 0.0 if self.grid is None else self.grid.shape[0] * self.grid.shape[1] / 1e6

    @property
    def reason(self) -> str | None:
        """Why it failed, on one line."""
        return None if self.error is None else explain(self.error)

    @property
    def inputs(self) -> list[Path]:
        """Local files or folders of the scene."""
        # A fragment names an item of a collection.
        paths = (Path(name) for file in _split_source(self.source) for name in (file, file.partition("#")[0]))
        return [path for path in dict.fromkeys(paths) if os.path.exists(path)]  # noqa: PTH110 (any text is safe)

    def fail(self, error: Exception) -> None:
        """Record why it failed."""
        self.status, self.error, self.region = "failed", error, None


def _split_source(source: str) -> list[str]:
    parsed = parse_source(source)
    return [parsed] if isinstance(parsed, str) else list(parsed.values())


def _further_outputs(recipe: TranslateRecipe) -> dict[str, str]:
    names = ("confidence", "spread", "quicklook")
    return {name: value for name in names if (value := getattr(recipe, name)) is not None}


def find_target(recipe: TranslateRecipe, *, dry_run: bool = False) -> RunTarget:
    """Find out whether a recipe writes one file or fills a folder, and where.

    A folder that ends with a slash is made, unless it is a dry run.
    """
    if not recipe.scenes:
        raise SettingsError("no scene is given")
    out, tmp = Path(recipe.out), None if recipe.tmp is None else Path(recipe.tmp)
    if out.suffix.lower() in (".tif", ".tiff") and not out.is_dir() and not recipe.out.endswith("/"):
        if len(recipe.scenes) > 1:
            raise SettingsError(f"--out {recipe.out}: {len(recipe.scenes)} scenes need a folder")
        outputs = Outputs.from_paths(recipe.out, _further_outputs(recipe), tmp)
        folder = out if outputs.destination is None else outputs.destination.folder
        return RunTarget(folder, outputs, outputs.destination)
    if is_object(recipe.out):
        destination = Destination.from_url(recipe.out, tmp)
        return RunTarget(destination.folder, None, destination)
    if recipe.out.endswith("/") and not dry_run:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refuse(error, out)
    if not recipe.out or (out.suffix and not out.is_dir()):
        raise SettingsError(f"--out {recipe.out!r}: must end in .tif, or be a folder")
    if not out.is_dir() and not recipe.out.endswith("/"):
        raise OutputError(f"--out {out}: there is no such folder: {out}/ makes it, or name a .tif")
    return RunTarget(out)


def plan(
    recipe: TranslateRecipe, spec: ModelSpec, target: RunTarget, *, progress: Progress | None = None
) -> list[Entry]:
    """Open every scene of a recipe and find out what is to be done; no pixels are read.

    Entries come in the order given, sorted within folders and globs; scenes that cannot be translated have
    failed. Results of this run that lie among the scenes do not count as scenes. `progress` is called with
    ``scenes_seen`` and ``scenes``.

    Raises `SettingsError` or `OutputError` if no scene could be translated as asked: settings, names, the
    report.
    """
    settings = recipe.settings
    Lattice((settings.tile, settings.tile), settings.tile, settings.overlap, spec.factor)
    if target.single is None:
        for template in (recipe.name, *_further_outputs(recipe).values()):
            check_template(template)
        entries = _expand_sources(recipe.scenes)
    else:
        entries = [Entry(source=recipe.scenes[0], outputs=target.single)]
    check_tmp(None if recipe.tmp is None else Path(recipe.tmp))
    if target.destination is not None:
        target.destination.check()
    for number, entry in enumerate(entries, start=1):
        if entry.status == "pending":
            try:
                _plan_entry(entry, recipe, spec, target)
            except Exception as error:
                entry.fail(error)
        if number > _KEPT_OPEN:
            entry.region = None
        if progress is not None:
            progress({"scenes_seen": number, "scenes": len(entries)})
    return _check_paths(entries, recipe)


def _expand_sources(given: Sequence[str]) -> list[Entry]:
    found: dict[str, Entry] = {}
    # One of a glob's matches that cannot be read is one failed scene.
    for text in (part for pattern in given for part in expand_glob(pattern) or [pattern]):
        try:
            sources = [source.href for source in expand_sources([text], "sar")]
        except Exception as error:
            found.setdefault(text, Entry(source=text)).fail(error)
            continue
        for source in sources:
            found.setdefault(scene_key(source), Entry(source=source))
    return list(found.values())


def _plan_entry(entry: Entry, recipe: TranslateRecipe, spec: ModelSpec, target: RunTarget) -> None:
    """Open a scene, name its results, and find out whether they exist."""
    if entry.outputs is not None:
        # A single scene's outputs are checked before it is opened.
        _check_inputs(entry, entry.outputs, recipe.region.aoi)
    started = time.perf_counter()
    region = open_region(entry.source, recipe, spec)
    opened_in = time.perf_counter() - started
    entry.identity = region.fingerprint["input"]
    outputs = entry.outputs
    if outputs is None:
        outputs = entry.outputs = _name_outputs(entry.source, region.scene.attrs, recipe, target)
        _check_inputs(entry, outputs, recipe.region.aoi)
    whole: Grid = decode_attributes(region.scene)["scene_grid"]
    entry.grid = whole.crop(Window(*region.fingerprint["region"][0]))
    # Uploaded last, where there is one.
    item = [outputs.item] if whole.crs is not None and region.scene.attrs.get("datetime") else []
    if not recipe.restart and _is_done(outputs, region.fingerprint, item, overwrite=recipe.overwrite):
        entry.status = "skipped"
    else:
        outputs.check(overwrite=recipe.overwrite, restart=recipe.restart)
        entry.region, entry.seconds = region, opened_in


def _check_inputs(entry: Entry, outputs: Outputs, aoi: str | None) -> None:
    """Refuse to replace the scene or the area of interest by the translation."""
    area = None if aoi is None else str(Path(aoi).resolve())
    inputs = {str(path.resolve()) for path in entry.inputs}
    inputs |= {gdal_path(file) for file in _split_source(entry.source)}
    for path in outputs.paths:
        name, place = outputs.display_name(path), str(path.resolve())
        if place == area:
            raise SettingsError(f"{name} is the file of --aoi: give the result another name")
        if gdal_path(name) in inputs or place in inputs:
            raise SettingsError(f"{name} is the scene itself: give the result another name")


def _name_outputs(
    source: str, attrs: Mapping[str, Any], recipe: TranslateRecipe, target: RunTarget
) -> Outputs:
    fields = read_name_fields(source, attrs)
    further = {
        name: target.folder / fill_template(text, fields) for name, text in _further_outputs(recipe).items()
    }
    eo = target.folder / f"{fill_template(recipe.name.removesuffix('.tif'), fields)}.tif"
    return Outputs(eo=eo, destination=target.destination, **further)


def _is_done(outputs: Outputs, fingerprint: Mapping[str, Any], item: list[Path], *, overwrite: bool) -> bool:
    """Whether all results exist, made of this scene by these settings; others need `overwrite`."""
    if Journal.is_publishing(outputs.journal) or not outputs.exists(outputs.eo):
        return False
    for path in outputs.rasters.values():
        differing = _find_differences(outputs, path, fingerprint) if outputs.exists(path) else ""
        if differing and not overwrite:
            raise OutputError(
                f"{outputs.display_name(path)} exists, and {differing}: pass overwrite=True to "
                "replace it, or give another --out or --name"
            )
        if differing:
            return False
    expected = [*outputs.rasters.values(), *([outputs.quicklook] if outputs.quicklook else [])]
    expected += item if outputs.destination is not None else []
    return all(outputs.exists(path) for path in expected)


def _find_differences(outputs: Outputs, path: Path, fingerprint: Mapping[str, Any]) -> str:
    """Say what an existing result differs in; empty if it is the same."""
    try:
        tag = outputs.read_tag(path, FINGERPRINT)
        if tag is None:
            return "does not say how it was made"
        found = differences(json.loads(tag), fingerprint)
        return found and f"differs in {found}"
    except (SceneError, ValueError, AttributeError):
        return "how it was made cannot be read"


def _check_paths(entries: Sequence[Entry], recipe: TranslateRecipe) -> list[Entry]:
    """Drop results of this run from its scenes, and refuse files that would be written twice or replaced."""
    results = {
        path.resolve(): entry.source
        for entry in entries
        if entry.outputs is not None
        for path in entry.outputs.paths
    }

    def is_scene(entry: Entry) -> bool:
        path = Path(entry.source)
        made_of = results.get(path.resolve()) if os.path.exists(path) else None  # noqa: PTH110 (as above)
        return made_of is None or made_of == entry.source

    kept = [entry for entry in entries if is_scene(entry)]
    named = [(entry, outputs) for entry in kept if (outputs := entry.outputs) is not None]
    counts = Counter(path for _, outputs in named for path in set(outputs.paths))
    twice = sorted(path for path, count in counts.items() if count > 1)
    if twice:
        sources = [entry.name for entry, outputs in named if twice[0] in outputs.paths]
        raise SettingsError(
            f"{named[0][1].display_name(twice[0])} would be written twice, of {' and '.join(sources[:2])}: "
            "give a --name that distinguishes scenes, by "
            f"{', '.join(f'{{{field}}}' for field in FIELDS)}, instead of {recipe.name!r}"
        )
    if recipe.report is not None:
        area = filter(None, [recipe.region.aoi])
        check_report(
            Path(recipe.report),
            overwrite=recipe.overwrite,
            inputs=[path for entry in kept for path in entry.inputs] + list(map(Path, area)),
            outputs=[*(path for _, outputs in named for path in outputs.paths), Path(recipe.out, COLLECTION)],
            identity=[entry.identity for entry in kept],
        )
    return kept


FIELDS = ("id", "folder", "stem", "date", "time", "platform", "orbit", "polarisations")
"""Fields of a template.

``id`` is a STAC item's id, else the ``stem``, which is the name of the scene's file without its suffix, and
of several files without their polarisations; ``folder`` is the name of the folder it lies in; ``date`` and
``time`` are those of the acquisition, as in 20240506 and 070809, in UTC.
"""

_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f]+")


def check_template(template: str) -> None:
    """Refuse a template with fields that are not in `FIELDS`, or that names folders or hidden files."""
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


def read_name_fields(source: str, attrs: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the values of `FIELDS` for a scene, from its source and the attributes of the opened scene."""
    files = _split_source(source)
    first = files[0]
    joined = {without_polarisation(file) for file in files}
    named = display_name(joined.pop() if len(files) > 1 and len(joined) == 1 else first)
    file, _, item = named.partition("#") if is_stac(first) else (named, "", "")
    file = file.removesuffix("/manifest.safe")  # of the product that it lies in
    stem = file.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zip").rsplit(".", 1)[0]
    digits = re.sub(r"[-:]", "", str(attrs.get("datetime") or ""))
    return {
        "id": item or (read_item(source).id if is_stac(source) else stem),
        "stem": stem,
        "folder": Path(first).absolute().parent.name.rstrip("}").removesuffix(".zip") or None,
        "date": digits[:8] or None,
        "time": digits[9:15] or None,
        "platform": attrs.get("platform"),
        "orbit": attrs.get("orbit_direction"),
        "polarisations": "-".join(attrs.get("polarisations") or ()) or None,
    }


def fill_template(template: str, fields: Mapping[str, str | None]) -> str:
    """Fill a checked template; characters that file names must not have become ``_``."""
    used = {name for _, name, _, _ in Formatter().parse(template) if name}
    missing = sorted(name for name in used if not fields[name])
    if missing:
        raise SceneError(f"the scene does not say its {', '.join(missing)}, which name {template!r} asks for")
    return template.format_map({name: _NOT_IN_NAMES.sub("_", str(fields[name])) for name in used})


def find_shared_paths(entries: Sequence[Entry], recipe: TranslateRecipe, spec: ModelSpec) -> list[Path]:
    """Return the local folders that every worker of a cluster must see; of a single scene also its files."""
    pending = [entry for entry in entries if entry.status == "pending" and entry.outputs is not None]
    model = [] if spec.path in (IDENTITY, BUNDLED) else [Path(spec.path).absolute()]
    folders = [entry.outputs.home for entry in pending if entry.outputs is not None]
    scenes = [path.absolute() for entry in pending for path in entry.inputs]
    if len(pending) > 1:  # each path takes a moment
        scenes = [path.parent for path in scenes]
    space = [] if recipe.tmp is None else [Path(recipe.tmp).absolute()]
    return list(dict.fromkeys([*model, *folders, *scenes, *space]))


def estimate_disk(entries: Sequence[Entry], recipe: TranslateRecipe) -> list[tuple[Path, int]]:
    """Return folders and the bytes that a run needs there, for `sar2eo.results.cog.check_space`.

    These are all results that stay on the disks, and the unfinished work of the two largest scenes: while
    one is assembled, the next is computed.
    """
    tmp = None if recipe.tmp is None else Path(recipe.tmp)
    results: list[tuple[Path, int]] = []
    work: list[tuple[int, Path]] = []
    for entry in entries:
        if entry.status == "pending" and (outputs := entry.outputs) is not None and entry.grid is not None:
            _, size = estimate_bytes(entry.grid, outputs.rasters, recipe.compress)
            place, total = outputs.estimate_disk(entry.grid, recipe.compress, tmp)[0]
            away = outputs.destination is not None or place.stat().st_dev != outputs.home.stat().st_dev
            work.append((total if away else max(0, total - size), place))
            if outputs.destination is None:
                results.append((outputs.home, size))
    return results + [(place, size) for size, place in sorted(work, reverse=True)[:2]]


_TILES_SAMPLED = 256
# Of an activation-heavy model, beyond its weights, for each tile of a batch; measured with SD 2.1 at 512.
_BYTES_PER_TILE = 1.5e9


def estimate(entry: Entry, recipe: TranslateRecipe, spec: ModelSpec) -> dict[str, Any]:
    """Estimate the work on a single pending scene: scaling, tiles, memory, disk, seconds; for printing."""
    region = entry.region or open_region(entry.source, recipe, spec)
    dataset = translate_region(region, recipe, spec)
    attrs = decode_attributes(dataset)
    lattice = Lattice(tuple(attrs["scene_shape"]), attrs["tile"], attrs["overlap"], spec.factor)
    tiles = count_tiles(dataset["eo"].data)
    empty = _estimate_empty_share(region.scene, lattice, Window(*attrs["region"]))
    translated = round(tiles * (1 - empty))
    divisors = [float(d) for d in dataset["amplitude_divisor"].values]
    rasters = () if entry.outputs is None else entry.outputs.rasters
    disk = sum(estimate_bytes(attrs["grid"], rasters, recipe.compress))
    return {
        "scene": describe_scene(region.scene),
        "output": {"file": entry.output, "crs": attrs["grid"].crs, "shape": list(attrs["grid"].shape)},
        "scaling": dict(zip(attrs["polarisations"], divisors, strict=True)),
        "tiles": {"total": tiles, "without data, estimated": tiles - translated},
        **_estimate_costs(spec, disk, "seconds, estimated", attrs["tile"], translated),
    }


def estimate_archive(entries: Sequence[Entry], recipe: TranslateRecipe, spec: ModelSpec) -> dict[str, Any]:
    """Estimate the work of a plan; all tiles are counted, also those without data; for printing."""
    settings = recipe.settings
    pending = [entry for entry in entries if entry.status == "pending"]
    shapes = [entry.grid.shape for entry in pending if entry.grid is not None]
    tiles = sum(len(Lattice(shape, settings.tile, settings.overlap, spec.factor)) for shape in shapes)
    disk = sum(size for _, size in estimate_disk(entries, recipe))
    statuses = ("pending", "skipped", "failed")
    return {
        "scenes": {status: sum(entry.status == status for entry in entries) for status in statuses},
        "outputs": {entry.name: entry.output or entry.reason for entry in entries},
        "failing": {entry.name: entry.reason for entry in entries if entry.status == "failed"},
        "megapixels": round(sum(entry.megapixels for entry in pending), 1),
        "tiles": tiles,
        **_estimate_costs(spec, disk, "seconds at most, estimated", settings.tile, tiles),
    }


def _estimate_costs(spec: ModelSpec, disk: int, seconds: str, tile: int, tiles: int) -> dict[str, Any]:
    model = 0.0
    if spec.card is not None:
        model = spec.parameters * (4 if spec.dtype == "float32" else 2) + _BYTES_PER_TILE * spec.batch
    return {
        "model": {"path": spec.path, "parameters": spec.parameters, **spec.fingerprint()},
        "takes": {
            "memory, GB": round((model + 0.5e9) / 1e9, 1),
            "memory available, GB": round(psutil.virtual_memory().available / 1e9, 1),
            "disk, GB": round(disk / 1e9, 2),
            seconds: round(_estimate_seconds(spec, tile, tiles), 1),
        },
    }


def _estimate_empty_share(scene: Any, lattice: Lattice, region: Window) -> float:
    """Return the share of the tiles over a region without a valid pixel of it, from a seeded sample."""
    draw = np.random.Generator(np.random.Philox(2025))
    picked = draw.permutation(lattice.touching(region))[:_TILES_SAMPLED]
    empty = 0
    for index in picked:
        common = lattice[int(index)].intersection(region)
        assert common is not None  # noqa: S101  (they touch)
        rows, cols = common.shifted(-region.row, -region.col).slices
        empty += not bool(np.isfinite(scene.isel(y=rows, x=cols).values).all(axis=0).any())
    return empty / len(picked)


def _estimate_seconds(spec: ModelSpec, tile: int, tiles: int) -> float:
    """Return the seconds inside the model, from the times of batches of one step and of three."""
    sar = np.zeros((spec.batch, 3, tile, tile), np.float32)
    origins = [(0, tile * k) for k in range(spec.batch)]
    translator = load_translator(spec)

    def measure(steps: int) -> float:
        start = time.perf_counter()
        translator.with_steps(steps).translate(sar, origins)
        return time.perf_counter() - start

    measure(1)
    short, long = (min(measure(steps), measure(steps)) for steps in (1, 3))
    batch = (short + max(long - short, 0) / 2 * max(spec.steps - 1, 0)) * spec.samples
    return batch * -(-tiles // spec.batch)
