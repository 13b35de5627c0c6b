"""Whether a matcher was trained on scenes like these."""

from __future__ import annotations

from functools import partial

from sar2eo.errors import PolarisationError, RadiometryError, SceneError, misfit
from sar2eo.matching.coregistration.opening import ScenePair
from sar2eo.matching.dcdm.card import MatcherCard
from sar2eo.pairs.scenes import SarScene
from sar2eo.radiometry import nearest_polarisation

__all__ = ["bands_for", "check_fit"]

_misfit = partial(misfit, verb="matches")


def check_fit(pair: ScenePair, card: MatcherCard, *, force: bool) -> None:
    """Refuse scenes that a matcher's card does not fit.

    Compared are what it was trained on and the reference's pixels, which both scenes are read onto; the
    moving scene's, which may be smaller, not larger; polarisations; and for a scaling that is fixed,
    calibration.

    Parameters
    ----------
    pair : ScenePair
    card : MatcherCard
    force : bool
        Warn instead.

    Raises
    ------
    SceneError
        For other ground sample distances.
    PolarisationError
        If the SAR scene lacks one.
    RadiometryError
        For another calibration.

    Warns
    -----
    FitWarning
        Where it would have been refused.
    """
    _check_gsd(pair, card, force=force)
    sar = pair.sar
    names = sar.reader.polarisations
    if not set(card.polarisations) <= set(names):
        _misfit(
            f"{sar.href}: has {', '.join(names)}, and the matcher was trained on "
            f"{', '.join(card.polarisations)}: name its bands with --pol",
            PolarisationError,
            force=force,
        )
    calibration = sar.calibration or "unknown"
    # A scaling by the scene's own percentile does not care about the calibration's factor.
    if card.scaling != "p99" and card.calibration != calibration:
        _misfit(
            f"{sar.href}: its calibration is {calibration}, and the matcher's fixed scaling is for "
            f"{card.calibration}: name it with --calibration",
            RadiometryError,
            force=force,
        )


def bands_for(sar: SarScene, card: MatcherCard) -> tuple[int, ...]:
    """Return the numbers of the bands that a matcher is given: its polarisations, or the nearest ones."""
    names = sar.reader.polarisations
    return tuple(names.index(nearest_polarisation(wanted, names)) for wanted in card.polarisations)


def _check_gsd(pair: ScenePair, card: MatcherCard, *, force: bool) -> None:
    if card.gsd_m is None:
        return
    trained = f"and the matcher was trained at {card.gsd_m:g} m"
    ground = pair.grid.ground_sample_distance_m()
    if not card.fits_gsd(*ground):
        _misfit(
            f"{pair.reference.href}: the reference's pixels are {ground[0]:.3g} x {ground[1]:.3g} m on the "
            f"ground, {trained}: resample it, let the other scene be the reference, or match by structure",
            SceneError,
            force=force,
        )
        return
    ground = pair.moving.grid.ground_sample_distance_m()
    if not card.fits_gsd(max(card.gsd_m, *ground)):  # smaller ones are read at the reference's
        _misfit(
            f"{pair.moving.href}: its pixels are {ground[0]:.3g} x {ground[1]:.3g} m on the ground, "
            f"{trained}: it shows less than that; match by structure",
            SceneError,
            force=force,
        )
