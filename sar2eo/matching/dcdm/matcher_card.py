"""The matcher's card, ``sar2eo-matcher.json``: what its weights mean, and when it says "cannot match"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sar2eo.model.card import InputCard, is_number, is_positive, wrong
from sar2eo.model.hub import BUNDLED_MATCHER, find_folder
from sar2eo.store.atomic import write_file

__all__ = ["MATCHER_CARD_NAME", "MatcherCard", "matcher_folder"]

MATCHER_CARD_NAME = "sar2eo-matcher.json"


@dataclass(frozen=True, kw_only=True)
class MatcherCard(InputCard):
    """What a matcher was trained on, and how its answers are to be taken.

    Parameters
    ----------
    name, quantity, calibration, polarisations, channels, gsd_m, scaling, training_data, licence, metrics
        As of `sar2eo.model.card.InputCard`.
    template_px, search_px : int
        Sides that it was trained with.
    steps : int
        Of sampling; the supplement's 5 (section 2.2).
    pixel_weight : float
        Of the correlation of decoded pixels, against 1 for that of latent features.
    structure_weight : float
        Of the agreement of edges, without translation, against 1 for that of latent features.
    threshold : float or None
        Score below which it cannot match; None: not yet calibrated.
    false_accepts : float or None
        Share of wrong matches above the threshold at the most, as measured for it.
    vae_sha256 : str
        Of the frozen VAE's values (see `sar2eo.matching.dcdm.checkpoint.values_sha256`).
    """

    file_name: ClassVar[str] = MATCHER_CARD_NAME
    kind: ClassVar[str] = "a matcher (see 'sar2eo train-matcher')"

    template_px: int = 128
    search_px: int = 256
    steps: int = 5
    pixel_weight: float = 1.0
    structure_weight: float = 0.0
    threshold: float | None = None
    false_accepts: float | None = None
    vae_sha256: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts(template_px=(1, 4096), search_px=(1, 4096), steps=(1, 1000))
        for name in ("pixel_weight", "structure_weight", "threshold", "false_accepts"):
            value, needed = getattr(self, name), name.endswith("_weight")
            absent = value is None and not needed
            if not absent and not (is_number(value) and (value == 0 or is_positive(value))):
                raise wrong(name, value, "0 or more" + ("" if needed else ", or null"))
        if not isinstance(self.vae_sha256, str):
            raise wrong("vae_sha256", self.vae_sha256, "text")

    def write(self, folder: Path) -> None:
        """Write the card into a matcher's folder; it is the old one or the new one, whatever happens."""
        write_file(folder / MATCHER_CARD_NAME, self.to_text().encode())


def matcher_folder(model: str | Path) -> Path:
    """Find a matcher's folder: one on this machine, one on a hub by its id, or "bundled", the package's own.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    return find_folder(model, allow=["*.json", "*.safetensors"], own=BUNDLED_MATCHER)
