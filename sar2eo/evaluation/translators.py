"""Evaluate translators on pairs: settings and data in, a report with figures and pictures out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor

from sar2eo._version import __version__
from sar2eo.datasets import Batch, PairsDataset, collate, open_dataset
from sar2eo.errors import EvaluationWarning, PairsError, Sar2eoError, SettingsError
from sar2eo.evaluation import scores
from sar2eo.evaluation.crop_search import measure_offsets
from sar2eo.evaluation.model_probe import Drawn, ModelImages, Probe
from sar2eo.evaluation.perceptual import open_efficientnet, open_inception, open_lpips
from sar2eo.evaluation.report import REPORT, EvaluationPictures, InsideCase, PictureCase, format_report
from sar2eo.evaluation.scores import (
    BASELINES,
    MEAN_COLOUR,
    Measures,
    ScoreKeeper,
    ShuffleControl,
    compute_calibration,
)
from sar2eo.model.card import ModelCard
from sar2eo.model.spec import ModelSpec, resolve_model
from sar2eo.model.translator import DiffusionTranslator
from sar2eo.settings import DataSettings, EvaluateSettings, replace_settings
from sar2eo.store.atomic import refuse
from sar2eo.store.journal import Journal
from sar2eo.store.task_results import keep_result, read_result

MODEL = "model"
"""Name of the evaluated model's own figures."""

SWEPT_PAIRS = 50
"""Most pairs of the comparison of steps, as in C-DiffSET, Fig. 9; spread evenly."""

_PACKAGES = ("torch", "diffusers", "torchmetrics", "scikit-image", "numpy")

SHOWN_PAIRS = 12
"""Most pairs of the contact sheet, the same for every model; spread evenly over places."""

SHUFFLED_PAIRS = 128
"""Most pairs of the shuffle control, which are held in memory; spread evenly."""

CALIBRATED_VALUES = 2**22
"""Most latent pixels of the calibration, an even share of each pair."""

_BATCH = 8

Progress = Callable[[str, int, int], None]
Predict = Callable[[Batch], Tensor]


def evaluate(
    model: str | Path,
    data: DataSettings | str | Path,
    out: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Measure how good a model is on pairs, against baselines and bounds, and write a report.

    Parameters
    ----------
    model : str or Path
        Checkpoint folder or hub id, or "identity".
    data : DataSettings, str or Path
        Which pairs; a path is a folder of `sar2eo.build_pairs`.
    out : str or Path
        Folder of the report, written whole or not at all: ``metrics.json`` with everything, ``report.md``
        with tables, and pictures. The same call resumes an interrupted one; images drawn so far are kept
        in ``<out>.partial``.
    settings : EvaluateSettings, optional
        All settings at once.
    overwrite : bool
        Replace an existing report, or unfinished work of another evaluation.
    progress : callable, optional
        Called with the stage, how many are done, and how many there are.
    **changes
        Fields of `EvaluateSettings`.

    Returns
    -------
    dict
        Content of ``metrics.json``; None if a figure cannot be measured or is infinite. "methods": figures
        of the model, of those it is compared with (``against``) and of its bound: means over images (psnr,
        ssim, scc, lpips, ciede2000), the PSNR of errors pooled over all pixels, the same after averaging
        blocks of 8 pixels (``_8px``), shares of crops found in the truth (structure, grey), correlation and
        gain of blocks, with "intervals", all of that by place ("scenes"), and per octave of wavelength power
        ratio to and correlation with the truth, and with another draw. Also "calibration", "shuffle",
        "sweep", "pairs" and metrics that were left out ("left_out"), with settings and fingerprints.

    Raises
    ------
    SettingsError, PairsError, CheckpointError, OutputError
        Before anything is measured, if settings, data or models cannot be used, or the report exists.
    JournalError
        If ``<out>.partial`` holds images of another evaluation, or another process is writing there.

    Warns
    -----
    EvaluationWarning
        If something cannot be measured without network weights or training pairs.
    """
    settings = replace_settings(settings or EvaluateSettings(), changes)
    plan = plan_evaluation(model, data, out, settings, overwrite=overwrite)
    facts = plan.facts()  # reads all files
    with (
        keep_images(Path(out), facts, overwrite=overwrite) as kept,
        use_torch_threads(plan.specs[MODEL].threads),
    ):
        evaluation = _Evaluation(plan, kept, progress or (lambda stage, done, total: None))
        results, pictures = evaluation.results()
        whole = {**facts, **results}
        return REPORT.write(
            Path(out), whole, lambda folder, _: format_report(folder, whole, pictures), overwrite=overwrite
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationPlan:
    """What will be evaluated, checked.

    `specs` are the models by name, the evaluated one first, and `seen` the split as each of them sees it.
    `chosen` are the indices of the evaluated pairs. `training` is there if its mean colour is asked for.
    `left_out` says why metrics and baselines cannot be measured.
    """

    settings: EvaluateSettings
    data: DataSettings
    specs: dict[str, ModelSpec]
    seen: dict[str, PairsDataset]
    chosen: npt.NDArray[np.intp]
    training: PairsDataset | None
    measures: Measures
    left_out: dict[str, str]

    @property
    def dataset(self) -> PairsDataset:
        """The evaluated split, as the evaluated model sees it."""
        return self.seen[MODEL]

    def describe(self) -> dict[str, Any]:
        """Describe what would be done, as plain values."""
        swept = min(len(self.chosen), SWEPT_PAIRS) * len(self.settings.sweep_steps)
        spec = self.specs[MODEL]
        return {
            "data": self.dataset.describe(),
            "pairs": len(self.chosen),
            "metrics": [name for name in self.settings.metrics if name not in self.left_out],
            "left_out": self.left_out,
            "models": list(self.specs),
            "baselines": [name for name in self.settings.against if name in BASELINES],
            "model": {name: getattr(spec, name) for name in ("steps", "sampler", "device", "dtype", "batch")},
            "images_to_draw": len(self.chosen) * self.settings.samples * len(self.specs) + swept,
        }

    def facts(self) -> dict[str, Any]:
        """Return everything that the figures depend on, as plain values."""
        dataset = self.dataset
        return {
            "software": {"sar2eo": __version__, **{name: version(name) for name in _PACKAGES}},
            "settings": dataclasses.asdict(self.settings),
            "data": {
                **dataclasses.asdict(self.data),
                "split": self.settings.split,
                "pairs": len(self.chosen),
                "of": len(dataset),
                "description": dataset.describe(),
                "gsd_m": dataset.gsd_m,
                "fingerprint": dataset.fingerprint(),
            },
            "models": {name: collect_model_facts(spec) for name, spec in self.specs.items()},
        }


def plan_evaluation(
    model: str | Path,
    data: DataSettings | str | Path,
    out: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    overwrite: bool = False,
) -> EvaluationPlan:
    """Check settings, data and models before any work; parameters and errors as in `evaluate`."""
    settings = settings or EvaluateSettings()
    REPORT.check_target(Path(out), overwrite=overwrite)
    pairs = data if isinstance(data, DataSettings) else DataSettings(pairs=str(data))
    specs = _resolve_models(str(model), settings)
    dataset = open_dataset(pairs, settings.split)
    seen = {
        name: dataset if spec.card is None else adapt_pairs(spec.card, dataset)
        for name, spec in specs.items()
    }
    left_out: dict[str, str] = {}
    training = None
    if MEAN_COLOUR in settings.against:
        try:
            training = open_dataset(pairs, "train")
        except PairsError as error:
            left_out[MEAN_COLOUR] = f"{MEAN_COLOUR}: needs the training split: {error}"
    plan = EvaluationPlan(
        settings=settings,
        data=pairs,
        specs=specs,
        seen=seen,
        chosen=spread_evenly(len(dataset), settings.limit),
        training=training,
        measures=_open_measures(settings, dataset, left_out),
        left_out=left_out,
    )
    for why in left_out.values():
        warnings.warn(f"left out: {why}", EvaluationWarning, stacklevel=3)
    return plan


def adapt_pairs(card: ModelCard, pairs: PairsDataset) -> PairsDataset:
    """Return pairs with the channels that a model takes, and warn of other differences.

    An `EvaluationWarning` says where the pairs lack its polarisations, or pixel size or scaling differ from
    its card: the figures then say how well the model generalises.
    """
    found = []
    enough = set.intersection if card.scaling == "db" else set.issubset
    if not enough(set(card.polarisations), pairs.polarisations):
        found.append(f"polarisations {','.join(pairs.polarisations)} for {','.join(card.polarisations)}")
    if pairs.gsd_m is not None and not card.fits_gsd(pairs.gsd_m):
        found.append(f"pixels of {pairs.gsd_m:.3g} m for {card.gsd_m:.3g} m")
    if card.scaling not in ("db", pairs.scaling):
        found.append(f"scaling {pairs.scaling} for {card.scaling}")
    if found:
        warnings.warn(
            f"the pairs differ from those that {card.name} was trained on: {'; '.join(found)}",
            EvaluationWarning,
            stacklevel=4,
        )
    return pairs.with_channels_of(card)


def spread_evenly(count: int, limit: int | None) -> npt.NDArray[np.intp]:
    """Return at most `limit` of `count` positions, spread evenly."""
    return np.linspace(0, count - 1, min(count, limit or count)).round().astype(np.intp)


def _resolve_models(model: str, settings: EvaluateSettings) -> dict[str, ModelSpec]:
    names = ("steps", "sampler", "seed", "device", "dtype", "threads", "batch")
    options: dict[str, Any] = {name: getattr(settings, name) for name in names}
    if MODEL in settings.against:
        raise SettingsError(f"against={MODEL!r}: give the path as ./{MODEL}")
    specs = {MODEL: resolve_model(model, **options)}
    if specs[MODEL].card is None and (settings.upper_bound or settings.sweep_steps):
        raise SettingsError(f"upper_bound, sweep_steps: {model} has neither a VAE to judge nor steps")
    for steps in settings.sweep_steps:
        resolve_model(model, **options | {"steps": steps})
    for name in settings.against:
        if name in BASELINES:
            continue
        try:
            specs[name] = resolve_model(name, **options)
        except Sar2eoError as error:
            raise SettingsError(
                f"against={name!r}: neither a baseline ({', '.join(BASELINES)}) nor a model: {error}"
            ) from error
    return specs


def spread_over_places(places: Sequence[str], count: int) -> list[int]:
    """Return at most `count` positions: as many of each place as can be, spread evenly over it."""
    numbers = np.unique(np.asarray(places), return_inverse=True)[1]
    members = [np.flatnonzero(numbers == place) for place in spread_evenly(numbers.max() + 1, count)]
    turns = sorted((turn, place) for place, own in enumerate(members) for turn in range(len(own)))
    quotas = np.bincount([place for _, place in turns[:count]]).tolist()
    found = (own[spread_evenly(len(own), quota)] for own, quota in zip(members, quotas, strict=True))
    return sorted(int(position) for own in found for position in own)


def _name_places(dataset: PairsDataset) -> list[str | None]:
    """Return the SAR scene of each pair, or else its place; None where each pair is its own."""
    known = len(set(dataset.places)) < len(dataset)
    return [
        dataset.facts(index).get("sar_href", place if known else None)
        for index, place in enumerate(dataset.places)
    ]


def _open_measures(settings: EvaluateSettings, dataset: PairsDataset, left_out: dict[str, str]) -> Measures:
    networks: dict[str, Any] = {}
    for name, make, weights in (
        ("lpips", open_lpips, settings.lpips_weights),
        ("fid", open_inception, settings.fid_weights),
    ):
        if name in settings.metrics:
            try:
                networks[name] = make(weights)
            except SettingsError as error:
                if weights is not None:
                    raise
                left_out[name] = str(error)
    lpips = networks.pop("lpips", None)
    if "features" in settings.metrics:
        networks["feature-distance"] = open_efficientnet()
    places, offsets = _name_places(dataset), np.zeros((len(dataset), 2))
    return Measures(settings.metrics, settings.protocol, places, offsets, lpips, networks)


def collect_model_facts(spec: ModelSpec) -> dict[str, Any]:
    """Collect everything about a model that its figures depend on, as plain values."""
    return {
        "name": None if spec.card is None else spec.card.name,
        "parameters": spec.parameters,
        "spacing": spec.spacing,
        "temperature": spec.temperature,
        **spec.fingerprint(),
        "card": None if spec.card is None else spec.card.to_dict(),
    }


class _Evaluation:
    """One evaluation."""

    def __init__(self, plan: EvaluationPlan, kept: DrawnImages, progress: Progress) -> None:
        self.plan, self.kept, self.progress = plan, kept, progress
        self.settings, self.dataset, self.chosen = plan.settings, plan.dataset, plan.chosen
        self.places = [plan.measures.places[index] or "" for index in self.chosen]
        self.measures = dataclasses.replace(plan.measures, offsets=self._radar_offsets())
        shown = self.chosen[spread_over_places(self.places, SHOWN_PAIRS)].tolist()
        self.shown: dict[int, Tensor] = dict.fromkeys(shown, torch.empty(0))

    def results(self) -> tuple[dict[str, Any], EvaluationPictures]:
        """Measure everything."""
        main = ModelImages(self.plan.specs[MODEL])
        probe = None
        if isinstance(main.translator, DiffusionTranslator):
            probe = Probe(main.translator.checkpoint, main.spec)
        judges: dict[str, ScoreKeeper] = {}
        shuffles: dict[str, ShuffleControl] = {}
        for name, spec in self.plan.specs.items():
            # Loaded one after the other: several may not fit into memory together.
            found, shuffles[name] = self._judge_model(name, main if name == MODEL else ModelImages(spec))
            judges |= found
        judges |= self._judge_others(self._predictions(probe))
        by_pair = judges[MODEL].summarise_pairs()
        results = {
            "methods": {name: judge.summarise() for name, judge in judges.items()},
            "shuffle": {
                name: shuffle.summarise(self.settings.protocol) for name, shuffle in shuffles.items()
            },
            "calibration": self._calibration(probe),
            "sweep": self._sweep(main),
            "left_out": self.plan.left_out,
            "pairs": by_pair,
        }
        return results, self._pictures(main, probe)

    def _radar_offsets(self) -> npt.NDArray[np.float64]:
        """Return where the radar's crops are found in the truth, in the middle; by the pairs' index."""
        shifts = [
            scores.search_crop(*images)[0]
            for batch in self._batches("radar", self.chosen)
            for images in zip(scores.predict_sar_grey(batch), batch["eo"], batch["valid"], strict=True)
        ]
        offsets = self.plan.measures.offsets.copy()
        offsets[self.chosen] = measure_offsets(np.array(shifts), self.places)
        return offsets

    def _predictions(self, probe: Probe | None) -> dict[str, Predict]:
        """Return baselines and bound, by name."""
        found: dict[str, Predict] = {}
        if self.plan.training is not None:
            colour = scores.compute_mean_colour(
                self.plan.training, lambda done, total: self.progress(scores.MEAN_COLOUR, done, total)
            )
            found[scores.MEAN_COLOUR] = scores.predict_constant(colour)
        if scores.SAR_GREY in self.settings.against:
            found[scores.SAR_GREY] = scores.predict_sar_grey
        if self.settings.upper_bound and probe is not None:
            found[scores.VAE_UPPER_BOUND] = probe.reconstruct
        return found

    def _judge_model(self, name: str, images: ModelImages) -> tuple[dict[str, ScoreKeeper], ShuffleControl]:
        """Score a model's single draws, and their mean if there are several."""
        samples = self.settings.samples
        single, averaged = ScoreKeeper(self.measures), ScoreKeeper(self.measures)
        shuffle = ShuffleControl(self.settings.seed, self.plan.seen[name].apart)
        held = set(self.chosen[spread_evenly(len(self.chosen), SHUFFLED_PAIRS)].tolist())
        kind = f"model-{list(self.plan.specs).index(name)}"
        for batch in self._batches(name, self.chosen, self.plan.seen[name]):
            drawn = [self._drawn(kind, images, batch, number) for number in range(samples)]
            for draw in drawn:
                single.add(draw.eo, batch, draw.seconds)
            if samples > 1:
                mean = torch.stack([draw.eo for draw in drawn]).mean(0)
                averaged.add(mean, batch, sum(draw.seconds for draw in drawn))
                single.compare_draws(drawn[0].eo, drawn[1].eo, batch["valid"])
            for i, index in enumerate(batch["index"]):
                if name == MODEL and index in self.shown:
                    self.shown[index] = drawn[0].eo[i]
                if index in held:
                    shuffle.add(drawn[0].eo[i], batch["eo"][i], batch["valid"][i], index)
        judges = {name: single}
        if samples > 1:
            judges[f"{name}, mean of {samples}"] = averaged
        return judges, shuffle

    def _drawn(self, kind: str, images: ModelImages, batch: Batch, number: int = 0) -> Drawn:
        name = f"{kind}.{number}.{batch['index'][0]}"
        return self.kept.draw(name, lambda: images.draw(batch, number))

    def _judge_others(self, predictions: dict[str, Predict]) -> dict[str, ScoreKeeper]:
        judges = {name: ScoreKeeper(self.measures) for name in predictions}
        for batch in self._batches("baselines", self.chosen) if predictions else ():
            for name, predict in predictions.items():
                judges[name].add(predict(batch), batch)
        return judges

    def _calibration(self, probe: Probe | None) -> dict[str, Any] | None:
        if probe is None:
            return None
        variances, errors = [], []
        share = max(1, CALIBRATED_VALUES // len(self.chosen))
        for batch in self._batches("calibration", self.chosen):
            forced = probe.predict_from_truth(batch)
            for variance, error, valid in zip(*forced, strict=True):
                stride = -(-int(valid.sum()) // share) or 1
                variances.append(variance[valid][::stride].numpy())
                errors.append(error[valid][::stride].numpy())
        return {
            "timestep": probe.card.confidence_timestep,
            **compute_calibration(np.concatenate(variances), np.concatenate(errors)),
        }

    def _sweep(self, main: ModelImages) -> list[dict[str, Any]]:
        some = self.chosen[spread_evenly(len(self.chosen), SWEPT_PAIRS)]
        found = []
        for steps in self.settings.sweep_steps:
            judge, images = ScoreKeeper(self.measures), main.with_steps(steps)
            for batch in self._batches(f"{steps} steps", some):
                drawn = self._drawn(f"steps-{steps}", images, batch)
                judge.add(drawn.eo, batch, drawn.seconds)
            temperature = dataclasses.replace(main.spec, steps=steps).temperature
            found.append({"steps": steps, "temperature": temperature, **judge.summarise()})
        return found

    def _pictures(self, main: ModelImages, probe: Probe | None) -> EvaluationPictures:
        """Show fixed pairs, and of every fourth also the inside of the model."""
        cases, inside = [], []
        for number, (index, prediction) in enumerate(self.shown.items()):
            batch = collate([self.dataset[index]])
            sar, truth = batch["sar"][0], batch["eo"][0]
            cases.append(PictureCase(batch["id"][0], sar, prediction, truth, batch["valid"][0, 0] > 0))
            if probe is not None and number % 4 == 0:
                variance = probe.predict_from_truth(batch).variance[0]
                inside.append(InsideCase(cases[-1], variance, *probe.trace_denoising(sar, index)))
        return EvaluationPictures(cases, inside, main.spec.factor)

    def _batches(
        self, stage: str, indices: npt.NDArray[np.intp], dataset: PairsDataset | None = None
    ) -> Iterator[Batch]:
        # At least the model's batch, which would be padded otherwise.
        size, seen = max(_BATCH, self.plan.specs[MODEL].batch), dataset or self.dataset
        for first in range(0, len(indices), size):
            self.progress(stage, first, len(indices))
            yield collate([seen[int(index)] for index in indices[first : first + size]])
        self.progress(stage, len(indices), len(indices))


@contextmanager
def use_torch_threads(count: int) -> Iterator[None]:
    """Limit torch's threads, for metrics too: two runs that each take all cores slow each other down."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class DrawnImages:
    """Images drawn by an evaluation and by the interrupted run before it, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draw(self, name: str, draw: Callable[[], Drawn]) -> Drawn:
        """Return the kept images of a model, draw and batch, named so, or draw and keep them.

        The variance is not kept; seconds are those of the process that drew.
        """
        for kept in map(read_result, self._folder.glob(f"{name}.*.safetensors")):
            if kept:
                found = load(kept[1])
                # [B, 3, H, W], levels as they were drawn
                return Drawn(found["eo"].float() / 127.5 - 1, None, float(found["seconds"]))
        drawn = draw()
        levels = ((drawn.eo + 1) * 127.5).round().to(torch.uint8)
        seconds = torch.tensor(drawn.seconds, dtype=torch.float64)
        data = save({"eo": levels.contiguous(), "seconds": seconds})
        keep_result(self._folder, name, data, "safetensors")
        return drawn._replace(variance=None)


@contextmanager
def keep_images(out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Iterator[DrawnImages]:
    """Start an evaluation, or resume an interrupted one with the same fingerprint.

    ``<out>.partial/`` is a journal (`sar2eo.store.journal`) with a safetensors file for each draw of a batch.
    Success removes it; `overwrite` discards images of another evaluation.
    """
    folder = out.absolute().with_name(f"{out.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(error, folder.parent)
    with Journal.resume(folder, fingerprint, overwrite=overwrite) as journal:
        yield DrawnImages(journal.blocks)
