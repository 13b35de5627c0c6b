"""Load the translator that a spec names; the weights are loaded at most once per process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sar2eo.compute.dask_run import timed
from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model.interface import Translation, Translator
from sar2eo.model.spec import ModelSpec

_LOADED: OrderedDict[str, Translator] = OrderedDict()
_LOADED_AT_MOST = 2
_LOAD_LOCK = threading.Lock()


def load_translator(spec: ModelSpec) -> Translator:
    """Return the translator that a spec names, loading its weights on first use.

    Raises
    ------
    CheckpointError
        If the folder is broken, or is not the one that was resolved.
    """
    with _LOAD_LOCK:
        key = repr(spec)  # the card holds a dict, so a spec has no hash
        if key not in _LOADED:
            # Settings may change from call to call in a long session; weights are large.
            while len(_LOADED) >= _LOADED_AT_MOST:
                _LOADED.popitem(last=False)
            with timed("load_seconds"):
                _LOADED[key] = _create_translator(spec)
        _LOADED.move_to_end(key)
        return _LOADED[key]


def _create_translator(spec: ModelSpec) -> Translator:
    if spec.card is None:
        return IdentityTranslator(spec.samples)
    from sar2eo.model.translator import DiffusionTranslator  # needs torch

    return DiffusionTranslator(spec)


class IdentityTranslator:
    """Returns its three-channel input as bytes: it checks everything but the model."""

    multiple = 1

    def __init__(self, samples: int = 1) -> None:
        self._samples = samples

    def translate(self, sar: npt.NDArray[np.float32], origins: Sequence[tuple[int, int]]) -> Translation:
        """Return the input as bytes, without variance; the spread over several samples is zero."""
        with timed("model_seconds"):
            spread = np.zeros(sar.shape[:1] + sar.shape[2:], dtype=np.float32) if self._samples > 1 else None
            return Translation(to_eo_bytes(sar), None, spread)

    def with_steps(self, steps: int) -> IdentityTranslator:
        """Return itself: it has no steps."""
        return self
