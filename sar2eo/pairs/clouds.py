"""Clouds of an EO scene, from the band that classifies its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sar2eo.pairs.bands import CloudRule
from sar2eo.scene.raster import RasterReader
from sar2eo.scene.reader import FloatArray, WrappingReader
from sar2eo.windows import Window

__all__ = ["CloudReader"]

_LIKELY_PERCENT = 50.0


@dataclass(frozen=True, eq=False)
class CloudReader(WrappingReader):
    """Read 1 where there is cloud or its shadow, 0 where not, NaN where that is not known.

    Parameters
    ----------
    source : RasterReader
        The one band that tells.
    rule : CloudRule
        How.
    label : str
        Name of the band or asset.
    """

    source: RasterReader
    rule: CloudRule
    label: str

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        values = self.source.read(window)
        known = np.isfinite(values)
        numbers = np.where(known, values, 0)
        if self.rule.kind == "classes":
            told = np.isin(numbers, self.rule.numbers)
        elif self.rule.kind == "bits":
            flags = sum(1 << bit for bit in self.rule.numbers)
            told = (numbers.astype(np.int64) & flags) != 0
        elif self.rule.kind == "percent":
            told = numbers >= _LIKELY_PERCENT
        else:
            told = numbers != 0
        return np.where(known, told, np.nan).astype(np.float32)

    def identity(self) -> dict[str, Any]:
        """Return the band's identity and how it is read."""
        return {**self.source.identity(), "cloud": str(self.rule)}
