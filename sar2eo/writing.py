"""From a lazy Dataset to files: compute into the journal, assemble, publish.

What is computed goes block by block into the journal beside the output; the files appear whole, at the
end, or not at all. The same call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize

from sar2eo.cog import check_space, needed_bytes
from sar2eo.computing import Progress, collect_telemetry, reporting, reset_telemetry
from sar2eo.errors import OutputError, SettingsError
from sar2eo.graph import count_windows
from sar2eo.grid import Grid
from sar2eo.inference import place_of
from sar2eo.journal import Journal
from sar2eo.outputs import Outputs
from sar2eo.recipe import Compression
from sar2eo.scene.identity import file_identity
from sar2eo.storing import BlockStore

__all__ = ["write_cog"]


def write_cog(
    dataset: xr.Dataset,
    path: str | Path,
    *,
    confidence: str | Path | None = None,
    spread: str | Path | None = None,
    quicklook: str | Path | None = None,
    compress: Compression = "deflate",
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute a translated Dataset and write it as COGs, safely against crashes.

    The work is done by Dask's scheduler in force: threads of this process, or a cluster whose client
    is active (its workers must see the output's folder).

    Parameters
    ----------
    dataset : Dataset
        As `sar2eo.translate` returns it, or edited since.
    path : str or Path
        Of the EO image's COG, ending in .tif.
    confidence, spread, quicklook : str or Path, optional
        Further outputs: two COGs, and a PNG.
    compress : {"deflate", "zstd", "jpeg", "webp"}
        Of the EO image; the others take deflate where it is lossy.
    overwrite : bool
        Replace existing files; until the new ones are complete, the old ones stay.
    restart : bool
        Discard unfinished work instead of going on with it.
    progress : callable, optional
        Called about once a second with counters (see `sar2eo.telemetry`) and ``blocks_total``,
        ``blocks_resumed``.

    Returns
    -------
    dict
        The report: grid, windows, scaling, model, settings, seconds and peak memory, as JSON values.

    Raises
    ------
    OutputError, JournalError
        If an output exists, cannot be written, or unfinished work belongs to another run.
    """
    if not isinstance(dataset, xr.Dataset):
        raise SettingsError(f"{type(dataset).__name__} is not a Dataset of sar2eo.translate")
    if compress not in get_args(Compression):
        raise SettingsError(f"compress={compress!r}: must be one of {', '.join(get_args(Compression))}")
    started = time.perf_counter()
    optional = {"confidence": confidence, "spread": spread, "quicklook": quicklook}
    outputs = Outputs(eo=Path(path), **{k: Path(v) for k, v in optional.items() if v is not None})
    _check_variables(dataset, outputs)
    outputs.check(overwrite=overwrite)
    _check_apart(dataset, outputs)
    grid = _grid_of(dataset)
    windows = _windows(dataset)
    reset_telemetry()
    divisors = _divisors(dataset)
    journal = Journal.open(outputs.journal, _fingerprint(dataset, grid, divisors), restart=restart)
    try:
        store = BlockStore(dataset, tuple(outputs.rasters))
        done = store.finished(journal)
        pending = [window for window in store.windows if window not in done]
        if not done:
            check_space(journal.folder, needed_bytes(grid, outputs.rasters, compress))
        counts = {
            "windows_total": _windows(dataset, store.keys(pending)),
            "blocks_total": len(store.windows),
            "blocks_resumed": len(done),
        }
        with reporting(progress, counts):
            store.run(journal, pending, divisors)
        computed = time.perf_counter()
        outputs.finish(
            journal, grid, store.windows, _tags(dataset, divisors), dataset.attrs.get("datetime"), compress
        )
        journal.remove()
    finally:
        journal.release()
    ended = time.perf_counter()
    seconds = {"total": ended - started, "assemble": ended - computed}
    return _report(dataset, grid, windows, divisors, collect_telemetry(), seconds)


def _check_apart(dataset: xr.Dataset, outputs: Outputs) -> None:
    """Refuse to replace what the Dataset is yet to be computed from, however it is named or pointed to."""
    read = json.dumps(dataset.attrs.get("input"), default=str)
    for path in outputs.paths:
        if path.is_file() and file_identity(str(path))["sha256"] in read:
            raise OutputError(f"{path} is a file of the scene itself: give the result another name")


def _check_variables(dataset: xr.Dataset, outputs: Outputs) -> None:
    slips = {
        "eo": "is this a Dataset of sar2eo.translate?",
        "confidence": "the model has no confidence channel",
        "spread": "it needs samples above 1",
    }
    for name in outputs.rasters:
        if name not in dataset:
            raise SettingsError(f"the Dataset has no variable {name!r}: {slips[name]}")
    eo = dataset["eo"]
    if eo.dtype != np.uint8 or sorted(map(str, eo.dims)) != ["band", "x", "y"] or eo.sizes["band"] != 3:
        raise SettingsError(
            f"eo is {eo.dtype} {dict(eo.sizes)}: must be uint8 with 3 bands, y and x; after arithmetic, "
            "round and cast it back with .astype('uint8')"
        )


def _grid_of(dataset: xr.Dataset) -> Grid:
    anchor = dataset.attrs.get("grid")
    eo = dataset["eo"].assign_attrs(scene_grid=anchor)
    whole, window = place_of(eo)
    return whole.crop(window)


def _divisors(dataset: xr.Dataset) -> npt.NDArray[np.float32] | None:
    if "amplitude_divisor" not in dataset:
        return None
    return np.asarray(dataset["amplitude_divisor"].values)


def _fingerprint(dataset: xr.Dataset, grid: Grid, divisors: Any) -> dict[str, Any]:
    """Return what a result depends on: readable settings first, then the graph's own names."""
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
    names = {str(name): tokenize(variable.data) for name, variable in dataset.data_vars.items()}
    return {
        **{name: dataset.attrs[name] for name in told if name in dataset.attrs},
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "scaling": None if divisors is None else [float(d) for d in divisors],
        "graph": names,
    }


def _windows(dataset: xr.Dataset, keys: list[Any] | None = None) -> int:
    eo = dataset["eo"].data
    return count_windows(eo, keys) if isinstance(eo, da.Array) else 0


def _tags(dataset: xr.Dataset, divisors: npt.NDArray[np.float32] | None) -> dict[str, str]:
    """Provenance for the files' metadata."""
    attrs = dataset.attrs
    told = (
        "software",
        "synthetic",
        "source",
        "model",
        "model_sha256",
        "polarisations",
        "quantity",
        "geolocation",
    )
    sampling = attrs.get("settings", {})
    values = {
        **{name: attrs.get(name) for name in told},
        **{name: sampling.get(name) for name in ("steps", "sampler", "spacing", "seed", "samples")},
        "card": attrs.get("card"),
        "amplitude_divisor": None if divisors is None else [f"{d:.9g}" for d in divisors],
        "TIFFTAG_DATETIME": _tiff_time(attrs.get("datetime")),
        "TIFFTAG_SOFTWARE": attrs.get("software"),
    }
    return {name: _tag_text(value) for name, value in values.items() if value is not None}


def _tag_text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _tiff_time(iso: str | None) -> str | None:
    return None if iso is None else datetime.fromisoformat(iso).strftime("%Y:%m:%d %H:%M:%S")


def _report(
    dataset: xr.Dataset,
    grid: Grid,
    windows: int,
    divisors: npt.NDArray[np.float32] | None,
    work: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, Any]:
    attrs = dataset.attrs
    counted = {name: int(work.get(f"windows_{name}", 0)) for name in ("translated", "skipped")}
    kinds = ("load", "scaling", "read", "model", "blend", "journal")
    sampling = dict(attrs.get("settings", {}))
    return {
        "grid": {"crs": grid.crs, "transform": list(grid.transform), "shape": list(grid.shape)},
        "windows": {"total": windows, **counted, "resumed": max(0, windows - sum(counted.values()))},
        "scaling": {
            "quantity": attrs.get("quantity"),
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
