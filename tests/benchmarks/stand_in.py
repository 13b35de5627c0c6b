"""A stand-in for a fast GPU: it is busy for a fixed time for each window, and leaves the processor alone."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from sar2eo.compute.dask_run import timed
from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model import loading
from sar2eo.model.interface import Translation
from sar2eo.model.spec import ModelSpec, resolve_model

_DEVICE = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandIn(ModelSpec):
    """A model that returns its input after `seconds` for each window of a batch."""

    seconds: float


class Sleeper:
    """Translates one batch at a time, as a device does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def translate(self, sar, origins):
        with _DEVICE, timed("model_seconds"):
            until = time.perf_counter() + self._seconds * len(sar)
            eo = to_eo_bytes(sar)
            time.sleep(max(0.0, until - time.perf_counter()))
            return Translation(eo, None, None)


_create_translator = loading._create_translator


def _create(spec: ModelSpec) -> Any:
    return Sleeper(spec.seconds) if isinstance(spec, StandIn) else _create_translator(spec)


loading._create_translator = _create  # also in a worker, which imports this module to read a spec


def stand_in(seconds: float, batch: int) -> StandIn:
    """Return a stand-in that takes so long for each window."""
    plain = resolve_model("identity", batch=batch)
    return StandIn(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}, seconds=seconds)
