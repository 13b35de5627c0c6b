"""What is said of a result: tags, the report, and the fingerprints by which the next run knows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize

from sar2eo._version import __version__
from sar2eo.geo.grid import Grid
from sar2eo.model.spec import ModelSpec
from sar2eo.scenes import find_reader
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.settings import TranslateRecipe
from sar2eo.translation.dataset import SYNTHETIC

__all__ = ["FINGERPRINT", "report_of", "result_fingerprint", "tags_of", "work_fingerprint"]

FINGERPRINT = "fingerprint"
"""The tag of a COG that holds `result_fingerprint`, as JSON."""

# Where and how fast a model ran: results of two machines belong to one archive.
_FREE = ("device", "batch", "compile", "threads", "torch", "diffusers")

Divisors = npt.NDArray[np.float32] | None


def result_fingerprint(
    scene: xr.DataArray, area: Any, recipe: TranslateRecipe, spec: ModelSpec
) -> dict[str, Any]:
    """Return what tells a finished result from one of other settings or input.

    Parameters
    ----------
    scene : DataArray
        The part of a scene that is translated, as `open_scene` and `cut` return it.
    area : shapely geometry or None
        That is not masked.
    recipe : TranslateRecipe
        Tile, overlap, scaling and compression.
    spec : ModelSpec
        The model and how to sample; neither the machine nor versions of libraries count.

    Returns
    -------
    dict
        JSON values.
    """
    read = find_reader(scene)
    assert read is not None  # noqa: S101  (of a scene just opened)
    settings, attrs = recipe.settings, scene.attrs
    return {
        "input": read[0].identity(),
        "scene": {name: attrs.get(name) for name in ("quantity", "calibration", "datetime")},
        "region": [list(read[1]), None if area is None else area.wkt],
        "model": {name: value for name, value in spec.fingerprint().items() if name not in _FREE},
        "settings": {name: getattr(settings, name) for name in ("tile", "overlap", "scaling")},
        "compress": recipe.compress,
    }


def work_fingerprint(dataset: xr.Dataset, grid: Grid, divisors: Divisors) -> dict[str, Any]:
    """Return what every pixel depends on: readable settings first, then the graph's own names."""
    told = (
        "software",
        "input",
        "model",
        "model_sha256",
        "quantity",
        "polarisations",
        "tile",
        "overlap",
        "fingerprint",
        "region",
    )
    attrs = decode_attributes(dataset)
    names = {str(name): tokenize(variable.data) for name, variable in dataset.data_vars.items()}
    return {
        **{name: attrs[name] for name in told if name in attrs},
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "scaling": None if divisors is None else [float(d) for d in divisors],
        "graph": names,
    }


def tags_of(dataset: xr.Dataset, divisors: Divisors) -> dict[str, str]:
    """Provenance for the files' metadata."""
    attrs = decode_attributes(dataset)
    told = (
        "source",
        "model",
        "model_sha256",
        "polarisations",
        "quantity",
        "geolocation",
    )
    sampling = attrs.get("settings", {})
    software = attrs.get("software", f"sar2eo {__version__}")
    values = {
        "software": software,
        "synthetic": SYNTHETIC,  # also where a Dataset was made anew, and has no attributes
        **{name: attrs.get(name) for name in told},
        **{
            name: sampling.get(name)
            for name in ("steps", "sampler", "spacing", "temperature", "seed", "samples")
        },
        "card": attrs.get("card"),
        "amplitude_divisor": None if divisors is None else [f"{d:.9g}" for d in divisors],
        "TIFFTAG_DATETIME": _tiff_time(attrs.get("datetime")),
        "TIFFTAG_SOFTWARE": software,
    }
    return {name: _tag_text(value) for name, value in values.items() if value is not None}


def _tag_text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _tiff_time(iso: str | None) -> str | None:
    return None if iso is None else datetime.fromisoformat(iso).strftime("%Y:%m:%d %H:%M:%S")


def report_of(
    dataset: xr.Dataset,
    grid: Grid,
    windows: int,
    divisors: Divisors,
    work: Mapping[str, float],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return what was done, as JSON values.

    Parameters
    ----------
    dataset : Dataset
        That was written.
    grid : Grid
        Of it.
    windows : int
        That it has.
    divisors : ndarray of float32 or None
        Amplitude that became 1.
    work : mapping
        Counters of all processes.
    seconds : mapping
        By phase.
    """
    attrs = decode_attributes(dataset)
    counted = {name: int(work.get(f"windows_{name}", 0)) for name in ("translated", "skipped")}
    kinds = ("load", "read", "model", "blend", "journal")
    sampling = dict(attrs.get("settings", {}))
    return {
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "windows": {"total": windows, **counted, "resumed": max(0, windows - sum(counted.values()))},
        "scaling": {
            "quantity": attrs.get("quantity"),
            "calibration": attrs.get("calibration"),
            "polarisations": attrs.get("polarisations"),
            "p99": None if divisors is None else [float(d) for d in divisors],
        },
        "model": {
            "id": attrs.get("model"),
            "sha256": attrs.get("model_sha256"),
            "parameters": attrs.get("model_parameters"),
        },
        "settings": {"tile": attrs.get("tile"), "overlap": attrs.get("overlap"), **sampling},
        "seconds": {**seconds, **{name: work.get(f"{name}_seconds", 0.0) for name in kinds}},
        "megapixels": grid.shape[0] * grid.shape[1] / 1e6,
        "peak_rss_bytes": int(work["peak_rss_bytes"]),
    }
