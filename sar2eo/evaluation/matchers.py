"""Evaluate matchers on templates cut from pairs at known places, against methods that are not learned.

Metrics of the supplement: CMR(T), the share of matches within T pixels; RMSE(T=5) over the correct ones;
RMSE(all). The truth is as good as the registration of the pairs: build them with ``align = "shift"``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sar2eo.datasets import Augmentation, PairsDataset, collate, open_dataset
from sar2eo.errors import CheckpointError, PairsError, SettingsError
from sar2eo.evaluation.report import ReportKind, format_table
from sar2eo.evaluation.translators import adapt_pairs
from sar2eo.matching.dcdm.matcher import Matcher
from sar2eo.matching.dcdm.similarity import Images, PlantedTemplates, pixel_multiple, plant_templates
from sar2eo.matching.structure import StructuralAligner, match
from sar2eo.settings import DataSettings, MatchEvaluationSettings

DCDM = "dcdm"
RIGHT_PX, NEARER_PX = 5.0, 2.0

Values = npt.NDArray[np.float64]
Answer = tuple[float, float, bool]
"""Row and column of the shift, and whether it is accepted."""


class _Trial(NamedTuple):
    """One template, its own search image, that of another pair, and its place and scene."""

    own: PlantedTemplates
    other: PlantedTemplates
    place: str
    scene: str


def figures(distances: npt.ArrayLike) -> dict[str, float]:
    """Summarise one or more distances between shifts found and true, in pixels.

    Returns ``cmr_5``, ``cmr_2``, ``rmse_5`` (nan where nothing is correct), ``rmse_all`` and ``matches``.
    """
    found = np.asarray(distances, float)
    right = found[found <= RIGHT_PX]
    return {
        "cmr_5": float((found <= RIGHT_PX).mean()),
        "cmr_2": float((found <= NEARER_PX).mean()),
        "rmse_5": float(np.sqrt(np.mean(right**2))) if right.size else math.nan,
        "rmse_all": float(np.sqrt(np.mean(found**2))),
        "matches": float(found.size),
    }


def bootstrap_error_ratio(
    wrong: npt.ArrayLike, against: npt.ArrayLike, places: Sequence[str], *, resamples: int, seed: int
) -> dict[str, float]:
    """Return the ratio of two methods' errors, and its 95 % interval by bootstrap over places.

    `wrong` and `against` tell whether each match is wrong, for the same trials; trials of one place are drawn
    together. ``ratio``, ``low`` and ``high`` are nan if the other method makes no error.
    """
    names, index = np.unique(np.asarray(places), return_inverse=True)
    counts = [
        np.bincount(index, weights=np.asarray(part, float), minlength=len(names)) for part in (wrong, against)
    ]
    drawn = np.random.Generator(np.random.Philox(seed)).integers(len(names), size=(resamples, len(names)))
    sums = [part[drawn].sum(axis=1) for part in counts]
    some = sums[1] > 0
    ratios = sums[0][some] / sums[1][some]
    low, high = np.percentile(ratios, [2.5, 97.5]) if some.any() else (math.nan, math.nan)
    total = counts[1].sum()
    ratio = counts[0].sum() / total if total else math.nan
    return {"ratio": float(ratio), "low": float(low), "high": float(high), "places": float(len(names))}


def evaluate_matcher(
    model: str | Path,
    data: DataSettings | str | Path,
    out: str | Path,
    settings: MatchEvaluationSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a matcher and methods that are not learned on the same templates.

    Parameters
    ----------
    model : str or Path
        Folder of a matcher.
    data : DataSettings, str or Path
        Which pairs; a path is a folder of `sar2eo.build_pairs`.
    out : str or Path
        Folder of the report: ``matches.json`` and ``report.md``.
    overwrite : bool
        Replace an existing report.
    progress : callable, optional
        Called with the stage, templates done, and templates in total.

    Returns
    -------
    dict
        The report as JSON values.

    Raises
    ------
    SettingsError, PairsError, CheckpointError
        If something does not fit, before any work.
    OutputError
        If the report cannot be written.
    """
    settings = settings or MatchEvaluationSettings()
    REPORT.check_target(Path(out), overwrite=overwrite)
    matcher = Matcher(model, device=settings.device, threads=settings.threads)
    if matcher.card.threshold is None:
        raise CheckpointError(
            f"{model}: its card has no threshold: calibrate it, as 'sar2eo train-matcher' does"
        )
    given = data if isinstance(data, DataSettings) else DataSettings(pairs=str(data))
    side = settings.search or matcher.card.search_px
    pairs = open_dataset(given, settings.split, augmentation=Augmentation(crop=side, centre=True))
    if min(pairs.shape) < side:
        raise SettingsError(f"search={side}: pairs have {pairs.shape[0]} x {pairs.shape[1]} pixels")
    pairs = adapt_pairs(matcher.card, pairs)
    if not pairs.has_strangers:
        raise PairsError(
            f"{len(pairs)} pairs of one place: templates are also searched for in other places, so two "
            "are needed"
        )
    template = _template_px(matcher, settings, side)
    measured = _match_all(matcher, pairs, settings, template, progress)
    results = {
        "model": {"path": str(model), "card": dataclasses.asdict(matcher.card)},
        "data": {"pairs": pairs.describe(), "search_px": side, "template_px": template},
        "settings": dataclasses.asdict(settings),
        **measured,
    }
    return REPORT.write(Path(out), results, lambda _, plain: format_match_report(plain), overwrite=overwrite)


def _match_all(
    matcher: Matcher,
    pairs: PairsDataset,
    settings: MatchEvaluationSettings,
    template: int,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    """Match every template by every method, and summarise."""
    methods = {DCDM: _dcdm(matcher, settings.steps, settings.seed)}
    methods |= {name: _classical(name) for name in settings.against}
    sweeps = [_dcdm(matcher, steps, settings.seed) for steps in settings.sweep_steps]
    distances: dict[str, list[list[float]]] = {name: [[] for _ in settings.noise] for name in methods}
    accepted: dict[str, list[bool]] = {name: [] for name in methods}
    strangers: dict[str, list[bool]] = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    swept: list[list[float]] = [[] for _ in sweeps]
    places, scenes = [], []
    numbers = _choose_templates(len(pairs), settings)
    for done, trial in enumerate(_trials(pairs, settings, template, numbers), start=1):
        places.append(trial.place)
        scenes.append(trial.scene)
        for level, variance in enumerate(settings.noise):
            noisy = _add_noise(trial.own, variance, settings.seed + done)
            for name, method in methods.items():
                start = time.perf_counter()
                answer = method(noisy.images)
                seconds[name] += time.perf_counter() - start
                distances[name][level].append(_distance(answer, trial.own))
                if level == 0:
                    accepted[name].append(answer[2])
        for name, method in methods.items():
            strangers[name].append(method(trial.other.images)[2])
        for found, sweep in zip(swept, sweeps, strict=True):
            found.append(_distance(sweep(trial.own.images), trial.own))
        if progress is not None:
            progress("matches", done, len(numbers))
    table = {
        name: _summarise(distances[name], accepted[name], strangers[name], scenes, settings)
        | {"seconds": seconds[name] / (len(places) * len(settings.noise))}
        for name in methods
    }
    steps = {str(n): figures(found) for n, found in zip(settings.sweep_steps, swept, strict=True)}
    return {"methods": table, "steps": steps, "comparison": _compare_errors(distances, places, settings)}


def _template_px(matcher: Matcher, settings: MatchEvaluationSettings, side: int) -> int:
    """Return the templates' side: as in training, or half of a search image of another size."""
    template = matcher.card.template_px if settings.search is None else side // 2
    multiple = pixel_multiple(matcher.checkpoint.factor)
    if side % multiple or template % multiple:
        raise SettingsError(
            f"search={side}, with templates of {template}: with this matcher both must be multiples of "
            f"{multiple} pixels"
        )
    return template


def _dcdm(matcher: Matcher, steps: int | None, seed: int) -> Callable[[Images], Answer]:
    def find(images: Images) -> Answer:
        found = matcher.compare(images, steps=steps, seed=seed).find_best(matcher.weights)
        row, col = found.shifts[0]
        return float(row), float(col), bool(found.scores[0] >= (matcher.card.threshold or 0.0))

    return find


def _classical(method: Any) -> Callable[[Images], Answer]:
    limits = StructuralAligner()

    def find(images: Images) -> Answer:
        sar, eo = images.search[0].mean(dim=0).add(1).numpy(), images.template[0].add(1).mul(127.5).numpy()
        sar = np.where(images.search_valid[0, 0].numpy() > 0, sar, np.nan)
        eo = np.moveaxis(np.where(images.template_valid[0].numpy() > 0, eo, np.nan), 0, -1)
        # As for dcdm, only places where the template fits in whole.
        found = match(sar, eo, method=method, radius_px=(sar.shape[0] - eo.shape[0]) // 2)
        return found.rows, found.cols, limits.is_sure(found, method)

    return find


def _choose_templates(count: int, settings: MatchEvaluationSettings) -> list[tuple[int, int]]:
    """Return the pair and the number of each template."""
    some = count if settings.limit is None else min(count, settings.limit)
    indices = np.unique(np.linspace(0, count - 1, some).round().astype(int)).tolist()
    return [(index, number) for index in indices for number in range(settings.offsets)]


def _trials(
    pairs: PairsDataset, settings: MatchEvaluationSettings, template: int, numbers: list[tuple[int, int]]
) -> Iterator[_Trial]:
    places = pairs.places
    for index, number in numbers:
        both = [pairs.sample(i, 0) for i in (index, pairs.strangers(index)[0])]
        draw = torch.Generator().manual_seed(settings.seed + index * settings.offsets + number)
        own = plant_templates(collate([both[0]]), template, draw)
        strange = collate([both[1]])
        searched = own.images._replace(search=strange["sar"], search_valid=strange["valid"])
        scene = str(both[0].get("sar_href", "all"))
        yield _Trial(own, own._replace(images=searched), places[index], scene)


def _add_noise(planted: PlantedTemplates, percent: float, seed: int) -> PlantedTemplates:
    """Add Gaussian noise of a variance in percent to a template read as 0 to 1 (supplement, Fig. 4)."""
    if percent == 0:
        return planted
    template = planted.images.template
    noise = torch.randn(template.shape, generator=torch.Generator().manual_seed(seed))
    # From 0 to 1 to -1 to 1 deviations double.
    spoilt = (template + 2 * math.sqrt(percent / 100) * noise).clamp(-1, 1)
    return planted._replace(images=planted.images._replace(template=spoilt))


def _distance(answer: Answer, planted: PlantedTemplates) -> float:
    """Return the distance of an answer from the truth, in pixels; the largest possible for no answer."""
    row, col = planted.offsets[0].tolist()
    distance = math.hypot(answer[0] - row, answer[1] - col)
    if math.isfinite(distance):
        return distance
    images = planted.images
    return math.hypot(*(images.search.shape[axis] - images.template.shape[axis] for axis in (2, 3)))


def _summarise(
    distances: list[list[float]],
    accepted: list[bool],
    strangers: list[bool],
    scenes: list[str],
    settings: MatchEvaluationSettings,
) -> dict[str, Any]:
    """Return the figures of one method: overall, by scene, by noise, and of accepted matches."""
    clean, taken = np.array(distances[0]), np.array(accepted)
    of = np.array(scenes)
    return {
        **figures(clean),
        "accepted": float(taken.mean()),
        "false_accepts": float((taken & (clean > RIGHT_PX)).mean()),
        "false_accepts_elsewhere": float(np.mean(strangers)),
        "scenes": {name: figures(clean[of == name]) for name in sorted(set(scenes))},
        "noise": {f"{v:g}": figures(part) for v, part in zip(settings.noise, distances, strict=True)},
    }


def _compare_errors(
    distances: dict[str, list[list[float]]], places: list[str], settings: MatchEvaluationSettings
) -> dict[str, Any]:
    """Compare the error 1 - CMR(T=5) with that of the best of the other methods."""
    wrong = {name: np.array(found[0]) > RIGHT_PX for name, found in distances.items()}
    others = [name for name in wrong if name != DCDM]
    if not others:
        return {}
    best = min(others, key=lambda name: wrong[name].mean())
    found = bootstrap_error_ratio(
        wrong[DCDM], wrong[best], places, resamples=settings.resamples, seed=settings.seed
    )
    return {"against": best, **found}


REPORT = ReportKind("matches.json", "evaluate-matcher")

_FIGURES = {
    "cmr_5": ("CMR(T=5)", 3),
    "cmr_2": ("CMR(T=2)", 3),
    "rmse_5": ("RMSE(T=5)", 3),
    "rmse_all": ("RMSE(all)", 2),
}
_DECISIONS = {
    "accepted": ("accepted", 3),
    "false_accepts": ("accepted and wrong", 4),
    "false_accepts_elsewhere": ("accepted elsewhere", 4),
    "seconds": ("seconds", 3),
}
_READING = """\
* CMR(T): share of templates found within T pixels of where they were cut; RMSE(T=5): of those within 5.
* Accepted elsewhere: templates that were accepted in the search image of another pair, where they do not lie.
* The truth is as good as the registration of the pairs.
"""


def format_match_report(results: dict[str, Any]) -> str:
    """Return the report in Markdown, from its JSON values."""
    data, methods = results["data"], results["methods"]
    count = next(iter(methods.values()))["matches"]
    parts = [
        f"# Matches of {results['model']['card']['name']}",
        f"{count:.0f} templates of {data['template_px']} pixels in {data['search_px']}; {data['pairs']}.",
        _table("method", methods, _FIGURES | _DECISIONS),
    ]
    compared = results["comparison"]
    if compared and compared["ratio"] is not None:
        parts.append(
            f"The error 1 - CMR(T=5) is {compared['ratio']:.2f} times that of {compared['against']}, the "
            f"best of the others (95 %: {compared['low']:.2f} to {compared['high']:.2f}, by bootstrap over "
            f"{compared['places']:.0f} places)."
        )
    scenes = sorted(next(iter(methods.values()))["scenes"])
    if len(scenes) > 1:
        short = {scene: Path(scene).name for scene in scenes}
        if len(set(short.values())) < len(scenes):  # as of sar.tif in many folders
            short = dict(zip(scenes, scenes, strict=True))
        rows = {
            f"{short[scene]}: {name}": found["scenes"][scene]
            for scene in scenes
            for name, found in methods.items()
        }
        parts += ["## By scene", _table("scene: method", rows, _FIGURES)]
    levels = list(next(iter(methods.values()))["noise"])
    if len(levels) > 1:
        head = ["CMR(T=5) by noise variance in %", *levels]
        lines = [
            [name, *(_text(found["noise"][level]["cmr_5"], 3) for level in levels)]
            for name, found in methods.items()
        ]
        parts += ["## By noise on the template", format_table(head, lines)]
    if results["steps"]:
        parts += ["## By number of steps", _table("steps", results["steps"], _FIGURES)]
    return "\n\n".join([*parts, "## Reading", _READING])


def _table(first: str, rows: dict[str, Any], columns: dict[str, tuple[str, int]]) -> str:
    head = [first, *(title for title, _ in columns.values())]
    lines = [
        [name, *(_text(found[key], digits) for key, (_, digits) in columns.items())]
        for name, found in rows.items()
    ]
    return format_table(head, lines)


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
