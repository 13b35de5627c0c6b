"""Settings of ``simulate`` and of ``model init``: what a recipe may start from."""

from __future__ import annotations

from dataclasses import dataclass, field

from sar2eo.geo.radiometry import Calibration, Quantity
from sar2eo.model.card import PredictionType, Sampler, Spacing

__all__ = ["CardSettings", "InitRecipe", "SimulateRecipe"]


@dataclass(frozen=True, kw_only=True)
class SimulateRecipe:
    """A simulated pair of scenes: the table ``[simulate]`` of a TOML recipe.

    Parameters
    ----------
    out : str
        Folder of ``sar.tif``, ``eo.tif`` and ``truth.tif``.
    size, seed, polarisations, shift, discrepancies
        As in `sar2eo.simulation.SimulationSettings`.
    """

    out: str
    size: int = 2048
    seed: int = 1
    polarisations: tuple[str, ...] = ("VH",)
    shift: tuple[float, ...] = (0.0, 0.0)
    discrepancies: bool = True


@dataclass(frozen=True, kw_only=True)
class CardSettings:
    """Fields of a new checkpoint's card; None: as the base or the default has it.

    Parameters
    ----------
    name, quantity, calibration, polarisations, gsd_m, prediction_type, sampler, spacing, steps, \
temperature, licence, training_data
        As in `sar2eo.model.card.TranslatorCard`.
    """

    name: str | None = None
    quantity: Quantity | None = None
    calibration: Calibration | None = None
    polarisations: tuple[str, ...] | None = None
    gsd_m: float | None = None
    prediction_type: PredictionType | None = None
    sampler: Sampler | None = None
    spacing: Spacing | None = None
    steps: int | None = None
    temperature: float | None = None
    licence: str | None = None
    training_data: str | None = None


@dataclass(frozen=True, kw_only=True)
class InitRecipe:
    """A checkpoint to be trained: the table ``[model-init]`` of a TOML recipe.

    Parameters
    ----------
    out : str
        New folder.
    base, revision : str or None
        A Stable Diffusion model to start from; or
    size : str or None
        the size of an untrained one,
    vae : str or None
        over a trained VAE, as `sar2eo.train_vae` exports it.
    untrained : bool
        Take the base's architecture and VAE, and fresh weights for the U-Net (the ablation of Table 3).
    zero_terminal_snr : bool
        Let the schedule end in pure noise; needs v_prediction.
    card
        The table ``[model-init.card]``.
    """

    out: str
    base: str | None = None
    revision: str | None = None
    size: str | None = None
    vae: str | None = None
    zero_terminal_snr: bool = False
    untrained: bool = False
    card: CardSettings = field(default_factory=CardSettings)
