"""Provenance of a result: tags, the report, and the fingerprints by which a later run recognises it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize

from sar2eo._version import __version__
from sar2eo.errors import SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.model.spec import ModelSpec
from sar2eo.scenes import find_reader
from sar2eo.settings import TranslateRecipe
from sar2eo.settings.translation import SCALED_AS
from sar2eo.translation.dataset import SAMPLING, SYNTHETIC

__all__ = [
    "FINGERPRINT",
    "build_report",
    "fingerprint_result",
    "fingerprint_work",
    "format_tags",
    "read_scaling",
]

FINGERPRINT = "fingerprint"
"""The tag of a COG that holds `fingerprint_result`, as JSON."""

# Where and how fast a model ran: results of two machines belong to one archive.
_FREE = ("device", "batch", "compile", "threads", "torch", "diffusers")

Divisors = npt.NDArray[np.float32] | None


def fingerprint_result(
    scene: xr.DataArray, area: Any, recipe: TranslateRecipe, spec: ModelSpec
) -> dict[str, Any]:
    """Return what distinguishes a finished result from those of other settings or input, as JSON values.

    `scene` is the opened slice, `area` the shapely geometry outside of which pixels are masked, or None. Of
    the model, neither the machine nor versions of libraries count.
    """
    read = find_reader(scene)
    assert read is not None  # noqa: S101  (of a scene just opened)
    settings, attrs = recipe.settings, scene.attrs
    return {
        "input": read[0].identity(),
        "scene": {name: attrs.get(name) for name in ("quantity", "calibration", "datetime")},
        "region": [list(read[1]), None if area is None else hashlib.sha256(area.wkb).hexdigest()[:20]],
        "model": {name: value for name, value in spec.fingerprint().items() if name not in _FREE},
        "settings": {name: getattr(settings, name) for name in ("tile", "overlap", "scaling")},
        "compress": recipe.compress,
    }


def fingerprint_work(
    dataset: xr.Dataset, attrs: Mapping[str, Any], grid: Grid, divisors: Divisors
) -> dict[str, Any]:
    """Return everything that pixels depend on: readable settings first, then the graph's own names."""
    readable = ["software", "input", "model", "model_sha256", "quantity", "polarisations"]
    readable += ["tile", "overlap", "fingerprint", "region"]
    return {
        **{name: attrs[name] for name in readable if name in attrs},
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "scaling": None if divisors is None else [float(d) for d in divisors],
        "graph": {str(name): tokenize(variable.data) for name, variable in dataset.data_vars.items()},
    }


def format_tags(attrs: Mapping[str, Any], divisors: Divisors) -> dict[str, str]:
    """Return the provenance in the attributes of a translated Dataset as tags for its files."""
    software, when = attrs.get("software", f"sar2eo {__version__}"), attrs.get("datetime")
    kept = ["source", "platform", "orbit_direction", "polarisations", "quantity", "geolocation"]
    kept += ["model", "model_sha256"]
    values = {
        "software": software,
        "synthetic": SYNTHETIC,  # also where a Dataset was made anew, and has no attributes
        **{name: attrs.get(name) for name in kept},
        **{name: attrs.get("settings", {}).get(name) for name in SAMPLING},
        "card": attrs.get("card"),
        "amplitude_divisor": None if divisors is None else [f"{d:.9g}" for d in divisors],
        "TIFFTAG_DATETIME": (
            None if when is None else datetime.fromisoformat(when).strftime("%Y:%m:%d %H:%M:%S")
        ),
        "TIFFTAG_SOFTWARE": software,
    }
    texts = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {
        name: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in texts.items()
        if value is not None
    }


def build_report(
    attrs: Mapping[str, Any],
    grid: Grid,
    tiles: int,
    divisors: Divisors,
    work: Mapping[str, float],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the report of a written result, as JSON values.

    Parameters
    ----------
    attrs : mapping
        Attributes of the written Dataset.
    grid : Grid
    tiles : int
        Tiles of the whole result.
    divisors : ndarray of float32, shape (polarisation,), or None
        Amplitude that became 1.
    work : mapping
        Counters of all processes.
    seconds : mapping
        Seconds by phase.
    """
    counted = {name: int(work.get(f"tiles_{name}", 0)) for name in ("translated", "skipped")}
    kinds = ("load", "read", "model", "blend", "journal")
    return {
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "tiles": {"total": tiles, **counted, "resumed": max(0, tiles - sum(counted.values()))},
        "scaling": {
            **{name: attrs.get(name) for name in ("quantity", "calibration", "polarisations")},
            "p99": None if divisors is None else [float(d) for d in divisors],
        },
        "model": {
            "id": attrs.get("model"),
            "sha256": attrs.get("model_sha256"),
            "parameters": attrs.get("model_parameters"),
        },
        "settings": {**{name: attrs.get(name) for name in ("tile", "overlap")}, **attrs.get("settings", {})},
        "seconds": {**seconds, **{name: work.get(f"{name}_seconds", 0.0) for name in kinds}},
        "megapixels": grid.shape[0] * grid.shape[1] / 1e6,
        "peak_rss_bytes": int(work["peak_rss_bytes"]),
    }


def read_scaling(text: str) -> tuple[float, ...] | dict[str, float | str]:
    """Read ``--scaling-from``: a number, numbers with commas, or the report of another run.

    Raises
    ------
    SettingsError
        For other text, or the report of many scenes.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        pass
    try:
        report = json.loads(Path(text).read_text(encoding="utf-8"))
        if "scenes" not in report:
            scaling = report["scaling"]
            values = zip(scaling["polarisations"], map(float, scaling["p99"]), strict=True)
            return dict(values) | {name: str(scaling[name]) for name in SCALED_AS if scaling.get(name)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--scaling-from {text}: neither a positive amplitude nor a report of 'translate --report'"
        ) from error
    raise SettingsError(
        f"--scaling-from {text}: a report of many scenes or of none, without a scaling; give that of one, "
        "or values, as in --scaling-from 255"
    )
