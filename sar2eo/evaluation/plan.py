"""Plan an evaluation: check settings, data and models before any work."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo._version import __version__
from sar2eo.datasets import PairsDataset, open_dataset
from sar2eo.errors import EvaluationWarning, PairsError, Sar2eoError, SettingsError
from sar2eo.evaluation.perceptual import open_inception, open_lpips
from sar2eo.evaluation.report import REPORT
from sar2eo.evaluation.scores import BASELINES, MEAN_COLOUR, Measures
from sar2eo.model.card import ModelCard
from sar2eo.model.spec import ModelSpec, resolve_model
from sar2eo.settings import DataSettings, EvaluateSettings

MODEL = "model"
"""Name of the evaluated model's own figures."""

SWEPT_PAIRS = 50
"""Most pairs of the comparison of steps, as in C-DiffSET, Fig. 9; spread evenly."""

_PACKAGES = ("torch", "diffusers", "torchmetrics", "scikit-image", "numpy")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationPlan:
    """What will be evaluated, checked.

    Parameters
    ----------
    specs : dict of str to ModelSpec
        Models by name, the evaluated one first.
    seen : dict of str to PairsDataset
        The evaluated split, as each model sees it.
    chosen : ndarray of int
        Indices of the evaluated pairs.
    training : PairsDataset or None
        The training split, if its mean colour is asked for and the split exists.
    left_out : dict of str to str
        Metrics and baselines that cannot be measured, and why.
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


def plan_translators(
    model: str | Path,
    data: DataSettings | str | Path,
    out: str | Path,
    settings: EvaluateSettings,
    *,
    overwrite: bool,
) -> EvaluationPlan:
    """Check what to evaluate; parameters and errors as in `sar2eo.evaluate`."""
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

    Warns
    -----
    EvaluationWarning
        If the pairs lack its polarisations, or pixel size or scaling differ from its card: the figures then
        say how well the model generalises.
    """
    found = []
    if not set(card.polarisations) <= set(pairs.polarisations):
        found.append(f"polarisations {','.join(pairs.polarisations)} for {','.join(card.polarisations)}")
    if pairs.gsd_m is not None and not card.fits_gsd(pairs.gsd_m):
        found.append(f"pixels of {pairs.gsd_m:.3g} m for {card.gsd_m:.3g} m")
    if pairs.scaling != card.scaling:
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
