"""The whole evaluation: settings and data in, figures and pictures out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo.datasets import Batch, PairsDataset, collate
from sar2eo.evaluation import scores
from sar2eo.evaluation.calibration import Shuffle, calibration_table
from sar2eo.evaluation.image_cache import KeptImages, keeping
from sar2eo.evaluation.model_probe import Drawn, Forced, ModelImages, Probe
from sar2eo.evaluation.report import Case, Pictures, write_report
from sar2eo.evaluation.request import MODEL, SWEPT_PAIRS, Request, evenly, prepare
from sar2eo.evaluation.scores import Judge
from sar2eo.model.translator import DiffusionTranslator
from sar2eo.settings import DataSettings, EvaluateSettings, replace_settings

__all__ = ["evaluate", "plan_evaluation", "torch_threads"]

SHUFFLED_PAIRS = 128
"""Pairs of the shuffle control at most, spread evenly: they are held in memory."""

CALIBRATED_VALUES = 2**22
"""Latent pixels of the calibration at most, an even share of each pair."""

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
    """Measure what a model is worth on pairs, against baselines and bounds, and write a report.

    Parameters
    ----------
    model : str or Path
        Checkpoint folder or hub id, or "identity".
    data : DataSettings, str or Path
        Which pairs; a path is a folder of `sar2eo.build_pairs`.
    out : str or Path
        Folder of the report; it appears whole or not at all. ``metrics.json`` holds everything,
        ``report.md`` a table; and there are pictures. The same call goes on where an interrupted one
        stopped: images that were drawn lie in ``<out>.partial`` meanwhile.
    settings : EvaluateSettings, optional
        All settings at once.
    overwrite : bool
        Replace an existing report, or unfinished work of another evaluation.
    progress : callable, optional
        Called with what is being done, how many are done, and how many there are.
    **changes
        Fields of `EvaluateSettings`.

    Returns
    -------
    dict
        What ``metrics.json`` holds; None is what cannot be measured or is infinite. "methods": figures
        of the model, of what it is held ``against`` and of its bound, among them means over images
        (psnr, ssim, scc, lpips, ciede2000), the PSNR of errors pooled over all pixels, the same at
        means of 8 pixels (``_8px``), and per octave of wavelength the power ratio to the truth and the
        correlation with it. "calibration", "shuffle", "sweep", "pairs" and what could not be measured
        ("left_out"), with settings and fingerprints.

    Raises
    ------
    SettingsError, PairsError, CheckpointError, OutputError
        Before anything is measured, if settings, data and models cannot be used or the report exists.
    JournalError
        If ``<out>.partial`` holds images of another evaluation, or another process is writing there.

    Warns
    -----
    EvaluationWarning
        If something could not be measured for lack of a network or of training pairs.
    """
    settings = replace_settings(settings or EvaluateSettings(), changes)
    request = prepare(model, data, out, settings, overwrite=overwrite)
    facts = request.facts()  # looks at all files
    with (
        keeping(Path(out), facts, overwrite=overwrite) as kept,
        torch_threads(request.specs[MODEL].threads),
    ):
        under_way = _Evaluation(request, kept, progress or (lambda stage, done, total: None))
        results, pictures = under_way.results()
        return write_report(Path(out), {**facts, **results}, pictures, overwrite=overwrite)


def plan_evaluation(
    model: str | Path,
    data: DataSettings | str | Path,
    out: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Check an evaluation and say what it would do, as plain values; parameters as in `evaluate`.

    Raises
    ------
    SettingsError, PairsError, CheckpointError, OutputError
        As in `evaluate`.
    """
    settings = settings or EvaluateSettings()
    return prepare(model, data, out, settings, overwrite=overwrite).plan()


class _Evaluation:
    """One evaluation under way."""

    def __init__(self, request: Request, kept: KeptImages, progress: Progress) -> None:
        self.request = request
        self.kept = kept
        self.settings = request.settings
        self.dataset = request.dataset
        self.chosen = request.chosen
        self.progress = progress

    def results(self) -> tuple[dict[str, Any], Pictures]:
        """Measure everything."""
        main = ModelImages(self.request.specs[MODEL])
        probe = None
        if isinstance(main.translator, DiffusionTranslator):
            probe = Probe(main.translator.checkpoint, main.spec)
        judges: dict[str, Judge] = {}
        shuffles: dict[str, Shuffle] = {}
        for name, spec in self.request.specs.items():
            # Loaded one after the other: several may not fit into memory together.
            found, shuffles[name] = self._judge_model(name, main if name == MODEL else ModelImages(spec))
            judges |= found
        judges |= self._judge_others(self._predictions(probe))
        calibration = self._calibration(probe)
        sweep = self._sweep(main)
        by_pair = judges[MODEL].by_pair()
        results = {
            "methods": {name: judge.summary() for name, judge in judges.items()},
            "shuffle": {name: shuffle.result(self.settings.protocol) for name, shuffle in shuffles.items()},
            "calibration": calibration,
            "sweep": sweep,
            "left_out": self.request.left_out,
            "pairs": by_pair,
        }
        return results, self._pictures(main, probe, by_pair)

    def _predictions(self, probe: Probe | None) -> dict[str, Predict]:
        """Return the methods that are not models."""
        found: dict[str, Predict] = {}
        if self.request.training is not None:
            colour = scores.mean_colour(
                self.request.training, lambda done, total: self.progress(scores.MEAN_COLOUR, done, total)
            )
            found[scores.MEAN_COLOUR] = scores.constant(colour)
        if scores.SAR_GREY in self.settings.against:
            found[scores.SAR_GREY] = scores.sar_grey
        if self.settings.upper_bound and probe is not None:
            found[scores.VAE_UPPER_BOUND] = probe.reconstruct
        return found

    def _judge_model(self, name: str, images: ModelImages) -> tuple[dict[str, Judge], Shuffle]:
        """Judge a model's single draws, and their mean where there are several."""
        samples = self.settings.samples
        single, averaged = Judge(self.request.measures), Judge(self.request.measures)
        shuffle = Shuffle(self.settings.seed, self.request.seen[name].apart)
        held = set(self.chosen[evenly(len(self.chosen), SHUFFLED_PAIRS)].tolist())
        kind = f"model-{list(self.request.specs).index(name)}"
        for batch in self._batches(name, self.chosen, self.request.seen[name]):
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

    def _judge_others(self, predictions: dict[str, Predict]) -> dict[str, Judge]:
        judges = {name: Judge(self.request.measures) for name in predictions}
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
            forced = probe.teacher_forced(batch)
            for variance, error, valid in zip(*forced, strict=True):
                stride = -(-int(valid.sum()) // share) or 1
                variances.append(variance[valid][::stride].numpy())
                errors.append(error[valid][::stride].numpy())
        return {
            "timestep": probe.card.confidence_timestep,
            **calibration_table(np.concatenate(variances), np.concatenate(errors)),
        }

    def _sweep(self, main: ModelImages) -> list[dict[str, Any]]:
        some = self.chosen[evenly(len(self.chosen), SWEPT_PAIRS)]
        found = []
        for steps in self.settings.sweep_steps:
            judge, images = Judge(self.request.measures), main.with_steps(steps)
            for batch in self._batches(f"{steps} steps", some):
                drawn = self._drawn(f"steps-{steps}", images, batch)
                judge.add(drawn.eo, batch, drawn.seconds)
            temperature = dataclasses.replace(main.spec, steps=steps).temperature
            found.append({"steps": steps, "temperature": temperature, **judge.summary()})
        return found

    def _pictures(self, main: ModelImages, probe: Probe | None, by_pair: list[dict[str, Any]]) -> Pictures:
        """Make the images of the best, median and worst pairs again."""
        index_of = {self.dataset.ids[int(index)]: int(index) for index in self.chosen}
        ranked = sorted(
            (row for row in by_pair if not np.isnan(row["psnr_pooled"])), key=lambda row: -row["psnr_pooled"]
        )
        cases = []
        for kind, rows in best_median_worst(ranked).items():
            for row in rows:
                batch = collate([self.dataset[index_of[row["id"]]]])
                drawn = main.draw(batch)
                forced = None if probe is None else probe.teacher_forced(batch)
                cases.append(_case(kind, row, batch, drawn.eo, drawn.variance, forced))
        denoising = []
        if probe is not None:
            firsts = {case.kind: case for case in reversed(cases)}
            for case in reversed(firsts.values()):
                sample = self.dataset[index_of[case.name]]
                denoising.append((case, *probe.denoising(sample["sar"], sample["index"])))
        return Pictures(cases=cases, denoising=denoising, factor=main.spec.factor)

    def _batches(
        self, stage: str, indices: npt.NDArray[np.intp], dataset: PairsDataset | None = None
    ) -> Iterator[Batch]:
        # At least what the model takes at once, or the rest of it would be padding.
        size, seen = max(_BATCH, self.request.specs[MODEL].batch), dataset or self.dataset
        for first in range(0, len(indices), size):
            self.progress(stage, first, len(indices))
            yield collate([seen[int(index)] for index in indices[first : first + size]])
        self.progress(stage, len(indices), len(indices))


def best_median_worst(ranked: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Take up to three from the start, the middle and the end of a ranking, none twice."""
    each = min(3, max(1, len(ranked) // 3))
    middle = max(each, (len(ranked) - each) // 2)
    parts = {
        "best": ranked[:each],
        "median": ranked[middle : middle + each],
        "worst": ranked[max(middle + each, len(ranked) - each) :],
    }
    return {kind: rows for kind, rows in parts.items() if rows}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use so many torch threads, for metrics too: two runs that each take all cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _case(
    kind: str,
    row: dict[str, Any],
    batch: Batch,
    prediction: Tensor,
    variance: Tensor | None,
    forced: Forced | None,
) -> Case:
    return Case(
        kind=kind,
        name=row["id"],
        psnr=row["psnr_pooled"],
        sar=batch["sar"][0],
        prediction=prediction[0],
        truth=batch["eo"][0],
        valid=batch["valid"][0, 0] > 0,
        variance=None if variance is None else variance[0],
        forced_variance=None if forced is None else forced.variance[0],
    )
