"""The trained matcher where others align: tie points of `sar2eo.coregister`, and pairs being built.

Nothing here loads torch before a match is asked for; each process loads the weights once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo.errors import CheckpointError, PolarisationError, SettingsError
from sar2eo.matching.shifts import Aligner, Displacement, LocalShift, SceneDrift, fit_drift
from sar2eo.model.card import MatcherCard
from sar2eo.model.folder import BUNDLED_MATCHER, ModelFolder, find_folder

FloatArray = npt.NDArray[np.float32]


def open_calibrated(model: str | Path) -> tuple[ModelFolder[MatcherCard], MatcherCard]:
    """Find a matcher's folder and read its card; its threshold must be calibrated."""
    folder = ModelFolder(find_folder(model, own=BUNDLED_MATCHER), MatcherCard)
    card = folder.card()
    if card.threshold is None:
        raise CheckpointError(
            f"{model}: its card has no threshold: calibrate it, as 'sar2eo train-matcher' does"
        )
    return folder, card


@lru_cache(maxsize=2)
def _open_matcher(folder: str, device: str, threads: int | None) -> Any:
    from sar2eo.matching.dcdm.matcher import Matcher

    return Matcher(folder, device=device, threads=threads)


def find_learned(
    sar: FloatArray,
    eo: FloatArray,
    *,
    folder: str,
    device: str = "auto",
    threads: int | None = None,
    steps: int | None = None,
    seed: int = 2025,
) -> LocalShift:
    """Find the shift of an optical template from the middle of a larger SAR image.

    `sar`, shape (polarisation, row, col), is amplitude of the card's polarisations, divided as the card's
    scaling says; `eo`, shape (row, col) or (row, col, 3), is 0 to 255. The other arguments are those of
    `sar2eo.matching.dcdm.matcher.match_dcdm`. NaN if no pixel is valid or the template cannot be matched.
    """
    from sar2eo.matching.dcdm.matcher import match_dcdm

    if not (np.isfinite(sar).all(axis=0).any() and np.isfinite(eo).any()):
        return LocalShift(np.nan, np.nan, 0.0, False)
    matcher = _open_matcher(folder, device, threads)
    found = match_dcdm(eo, sar, model=matcher, scaling=1.0, steps=steps, seed=seed)
    if found.shift is None:
        return LocalShift(np.nan, np.nan, found.score, False)
    middle = [(a - b) // 2 for a, b in zip(sar.shape[1:], eo.shape[:2], strict=True)]
    rows, cols = found.shift[0] - middle[0], found.shift[1] - middle[1]
    # At the edge of the search the true place may lie beyond it.
    inside = max(abs(rows) - middle[0], abs(cols) - middle[1]) <= -1
    return LocalShift(rows, cols, found.score, inside)


@dataclass
class DcdmAligner:
    """Finds local shifts by a trained matcher, and fits a smooth drift to them.

    Parameters
    ----------
    model : str or Path
        Folder of a matcher, or a hub id; trained on one polarisation, scaled by its 99th percentile.
    device, threads
        Of torch.
    seed : int
        Seed of the noise.

    Attributes
    ----------
    sha256 : str
        Hash of the matcher's files; pairs depend on it, not on the folder's place.
    polarisations : tuple of str
        Polarisations that the scene must have.
    neighbourhood_px, template_px : int
        Sides of the search image and of the template in its middle.

    Raises
    ------
    CheckpointError
        If it is not a calibrated matcher.
    SettingsError
        If its scaling is not the 99th percentile.
    """

    model: InitVar[str | Path]
    device: InitVar[str] = "auto"
    threads: InitVar[int | None] = None
    seed: int = 2025
    sha256: str = field(init=False)
    polarisations: tuple[str, ...] = field(init=False)
    neighbourhood_px: int = field(init=False)
    template_px: int = field(init=False)

    def __post_init__(self, model: str | Path, device: str, threads: int | None) -> None:
        folder, card = open_calibrated(model)
        if card.scaling != "p99":
            raise SettingsError(
                f"{model}: takes amplitude divided by {card.scaling:g}; for pairs it is divided by the "
                "scene's 99th percentile"
            )
        self.sha256, self.polarisations = folder.sha256(), card.polarisations
        self.neighbourhood_px, self.template_px = card.search_px, card.template_px
        # Not fields: pairs depend on the hash above, not on the folder's place.
        self._card = card
        self._how: dict[str, Any] = {"folder": str(folder.path), "device": device, "threads": threads}

    @property
    def gsd_m(self) -> float | None:
        """Ground sample distance of training in true ground metres; None: unknown."""
        return self._card.gsd_m

    def fits_gsd(self, *sizes_m: float) -> bool:
        """Whether pixels of these sizes on the ground are near enough to those of training."""
        return self._card.fits_gsd(*sizes_m)

    def displacement(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find the shift of the middle of a neighbourhood; see `sar2eo.matching.shifts.Aligner`."""
        if sar.ndim != 3 or len(sar) != len(self.polarisations):
            raise PolarisationError(
                f"sar of shape {sar.shape}: the matcher wants {', '.join(self.polarisations)}"
            )
        top, left = ((side - self.template_px) // 2 for side in eo.shape[:2])
        middle = eo[top : top + self.template_px, left : left + self.template_px]
        return find_learned(sar, middle, seed=self.seed, **self._how)

    def drift(self, displacements: Sequence[Displacement]) -> SceneDrift | None:
        """Fit the drift of one scene pair; None if too few shifts agree."""
        return fit_drift(displacements, apart_px=self.neighbourhood_px)


_: type[Aligner] = DcdmAligner
