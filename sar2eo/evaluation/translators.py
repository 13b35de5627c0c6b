"""Evaluate translators on pairs: settings and data in, a report with figures and pictures out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from sar2eo.evaluation.model_probe import Drawn, ModelImages, Probe
from sar2eo.evaluation.perceptual import open_inception, open_lpips
from sar2eo.evaluation.report import REPORT, EvaluationPictures, PictureCase, write_report
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
        blocks of 8 pixels (``_8px``), and per octave of wavelength power ratio to and correlation with the
        truth. Also "calibration", "shuffle", "sweep", "pairs" and metrics that were left out ("left_out"),
        with settings and fingerprints.

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
        return write_report(Path(out), {**facts, **results}, pictures, overwrite=overwrite)


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
        measures=_open_measures(settings, left_out),
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


def _open_measures(settings: EvaluateSettings, left_out: dict[str, str]) -> Measures:
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
    return Measures(settings.metrics, settings.protocol, networks.get("lpips"), networks.get("fid"))


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
        return results, self._pictures(main, probe, by_pair)

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
        single, averaged = ScoreKeeper(self.plan.measures), ScoreKeeper(self.plan.measures)
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
            for i, index in enumerate(batch["index"]):
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
        judges = {name: ScoreKeeper(self.plan.measures) for name in predictions}
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
            judge, images = ScoreKeeper(self.plan.measures), main.with_steps(steps)
            for batch in self._batches(f"{steps} steps", some):
                drawn = self._drawn(f"steps-{steps}", images, batch)
                judge.add(drawn.eo, batch, drawn.seconds)
            temperature = dataclasses.replace(main.spec, steps=steps).temperature
            found.append({"steps": steps, "temperature": temperature, **judge.summarise()})
        return found

    def _pictures(
        self, main: ModelImages, probe: Probe | None, by_pair: list[dict[str, Any]]
    ) -> EvaluationPictures:
        """Draw the images of the best, median and worst pairs again."""
        index_of = {self.dataset.ids[int(index)]: int(index) for index in self.chosen}
        ranked = sorted(
            (row for row in by_pair if not np.isnan(row["psnr_pooled"])), key=lambda row: -row["psnr_pooled"]
        )
        cases = []
        for kind, rows in pick_best_median_worst(ranked).items():
            for row in rows:
                batch = collate([self.dataset[index_of[row["id"]]]])
                drawn = main.draw(batch)
                forced = None if probe is None else probe.predict_from_truth(batch)
                cases.append(
                    PictureCase(
                        kind=kind,
                        name=row["id"],
                        psnr=row["psnr_pooled"],
                        sar=batch["sar"][0],
                        prediction=drawn.eo[0],
                        truth=batch["eo"][0],
                        valid=batch["valid"][0, 0] > 0,
                        variance=None if drawn.variance is None else drawn.variance[0],
                        forced_variance=None if forced is None else forced.variance[0],
                    )
                )
        denoising = []
        if probe is not None:
            firsts = {case.kind: case for case in reversed(cases)}
            for case in reversed(firsts.values()):
                sample = self.dataset[index_of[case.name]]
                denoising.append((case, *probe.trace_denoising(sample["sar"], sample["index"])))
        return EvaluationPictures(cases=cases, denoising=denoising, factor=main.spec.factor)

    def _batches(
        self, stage: str, indices: npt.NDArray[np.intp], dataset: PairsDataset | None = None
    ) -> Iterator[Batch]:
        # At least the model's batch, which would be padded otherwise.
        size, seen = max(_BATCH, self.plan.specs[MODEL].batch), dataset or self.dataset
        for first in range(0, len(indices), size):
            self.progress(stage, first, len(indices))
            yield collate([seen[int(index)] for index in indices[first : first + size]])
        self.progress(stage, len(indices), len(indices))


def pick_best_median_worst(ranked: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Take up to three rows from the start, the middle and the end of a ranking, none twice."""
    each = min(3, max(1, len(ranked) // 3))
    middle = max(each, (len(ranked) - each) // 2)
    parts = {
        "best": ranked[:each],
        "median": ranked[middle : middle + each],
        "worst": ranked[max(middle + each, len(ranked) - each) :],
    }
    return {kind: rows for kind, rows in parts.items() if rows}


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
