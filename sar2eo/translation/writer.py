"""Writing a lazy Dataset to files: blocks are computed into a journal, then assembled and published.

Each block goes into the journal beside the output as soon as it is computed. The files appear at the end,
whole or not at all. The same call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from sar2eo._version import __version__
from sar2eo.compute.dask_run import (
    Progress,
    WorkerLostError,
    active_client,
    add_count,
    collect_telemetry,
    compute_keys,
    pace,
    report_progress,
    reset_telemetry,
    timed,
)
from sar2eo.errors import ClusterError, OutputError, Sar2eoWarning, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.results.cog import check_space
from sar2eo.results.outputs import Outputs, check_tmp
from sar2eo.scenes.identity import is_part
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.user_arrays import face_north
from sar2eo.settings import Compression
from sar2eo.store.journal import BlockWriter, Journal
from sar2eo.translation.dataset import EO_BANDS, SAMPLING, SYNTHETIC, count_tiles, find_place
from sar2eo.translation.region import FINGERPRINT

_LOSSES_AT_MOST = 3

Divisors = npt.NDArray[np.float32] | None


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
    tmp: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute a translated Dataset and write it as COGs; an interrupted call can be repeated.

    The work is done by Dask's current scheduler: threads of this process, or a cluster with an active client
    (its workers must see the output's folder).

    Parameters
    ----------
    dataset : Dataset
        Returned by `sar2eo.translate`; it may have been edited since.
    path : str or Path
        COG of the EO image, ending in .tif; an ``s3://bucket/key.tif`` is uploaded once it is whole.
    confidence, spread, quicklook : str or Path, optional
        Further outputs: two COGs and a PNG; in an object store beside the EO image.
    compress : {"deflate", "zstd", "jpeg", "webp"}
        Compression of the EO image; if it is lossy, the other COGs take deflate.
    overwrite : bool
        Replace existing files. They stay until the new ones are complete.
    restart : bool
        Discard unfinished work instead of going on with it.
    tmp : str or Path, optional
        Folder for unfinished work; it may be on another file system. By default the work lies beside the
        result, or in the working directory for a result in an object store.
    force : bool
        Begin even if the disk may not hold the result.
    progress : callable, optional
        Called about once a second with counters of the work and ``blocks_total``,
        ``blocks_resumed``.

    Returns
    -------
    dict
        The report: output, grid, tiles, scaling, model, settings, seconds and peak memory, as JSON values.

    Raises
    ------
    OutputError, JournalError
        If an output exists or cannot be written, or unfinished work belongs to another run.
    """
    if not isinstance(dataset, xr.Dataset):
        raise SettingsError(f"{type(dataset).__name__} is not a Dataset of sar2eo.translate")
    if compress not in get_args(Compression):
        raise SettingsError(f"compress={compress!r}: must be one of {', '.join(get_args(Compression))}")
    space = None if tmp is None else Path(tmp)
    check_tmp(space)
    optional = {"confidence": confidence, "spread": spread, "quicklook": quicklook}
    further = {name: given for name, given in optional.items() if given is not None}
    outputs = Outputs.from_paths(path, further, space)
    check_dataset(dataset, outputs)
    outputs.check(overwrite=overwrite, restart=restart)
    Journal.check_free(outputs.journal)
    if not force and not outputs.journal.exists():  # after an interruption `compute` knows what is left
        check_space(outputs.estimate_disk(_find_grid(dataset), compress, space))
    writer = ResultWriter(
        dataset, outputs, compress=compress, overwrite=overwrite, restart=restart, tmp=space, force=force
    )
    try:
        writer.compute(progress)
        return writer.publish()
    finally:
        writer.release()


class ResultWriter:
    """Takes one result from its Dataset to its files: open a journal, compute, publish.

    While one result is computed, the next may be opened and the one before published, each in its own thread.
    The Dataset is checked by `check_dataset`, the outputs before, and here again under the journal's lock.
    `fingerprint` is that of the `Region`, for a tag of the COGs; `collection` the id of the STAC collection
    that the item belongs to; `opened_in` the seconds that it took to open the scene. All else is as in
    `write_cog`.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        outputs: Outputs,
        *,
        compress: Compression = "deflate",
        overwrite: bool = False,
        restart: bool = False,
        tmp: Path | None = None,
        force: bool = False,
        fingerprint: Mapping[str, Any] | None = None,
        collection: str | None = None,
        opened_in: float = 0.0,
    ) -> None:
        self.outputs, self.dataset = outputs, _normalise(dataset)
        self._compress, self._force, self._collection = compress, force, collection
        self._fingerprint = None if fingerprint is None else json.dumps(fingerprint, sort_keys=True)
        self._attrs, self._grid = decode_attributes(dataset), _find_grid(self.dataset)
        self._work: dict[str, float] = {}
        started = time.perf_counter()
        sampled = "amplitude_divisor" in dataset
        self._divisors = np.asarray(dataset["amplitude_divisor"].values) if sampled else None
        self._seconds = {"open": opened_in, "scaling": time.perf_counter() - started}

        eo = self.dataset["eo"].chunk(band=-1)
        rows, cols = eo.data.chunks[1:]
        self._arrays: dict[str, da.Array] = {"eo": eo.data}
        for name in ("valid", *outputs.rasters):
            if name != "eo" and name in dataset:
                self._arrays[name] = self.dataset[name].chunk(y=rows, x=cols).data
        tops, lefts = np.cumsum((0, *rows)).tolist(), np.cumsum((0, *cols)).tolist()
        # Row and column number of the chunk of each block.
        self._blocks = {
            Window(tops[i], lefts[j], height, width): (i, j)
            for i, height in enumerate(rows)
            for j, width in enumerate(cols)
        }

        if outputs.destination is not None:
            outputs.destination.make_folder()
        self._journal = Journal.open(
            outputs.journal,
            fingerprint_work(self.dataset, self._attrs, self._grid, self._divisors),
            restart=restart,
            tmp=tmp if outputs.destination is None else None,  # where its folder lies
            result=self._fingerprint,
        )
        try:
            # Again, now that nobody else writes here: another run may just have ended.
            outputs.check(overwrite=overwrite, restart=restart)
        except BaseException:
            self.release()
            raise

    def compute(self, progress: Progress | None = None) -> None:
        """Compute the blocks that are not in the journal yet.

        If a worker is lost (a warning says so), blocks that are not in the journal are started again. Raises
        `OutputError` if blocks cannot be written, or would not fit on the disk; `ClusterError` if workers die
        time and again while no block is finished.
        """
        started = time.perf_counter()
        reset_telemetry()
        done = self._find_finished_blocks()
        pending = [block for block in self._blocks if block not in done]
        if pending and not self._force:
            check_space(self.outputs.estimate_disk(self._grid, self._compress))
        counts = {
            "tiles_total": self._count_tiles(pending),
            "blocks_total": len(self._blocks),
            "blocks_resumed": len(done),
        }
        losses = 0
        with report_progress(progress, counts):
            while pending:
                try:
                    self._run(pending)
                    break
                except WorkerLostError as error:
                    left = sorted(set(pending) - self._find_finished_blocks())
                    losses = losses + 1 if len(left) == len(pending) else 1
                    if losses > _LOSSES_AT_MOST:
                        raise ClusterError(
                            f"workers died {losses} times without finishing a block (out of memory?), the "
                            f"last was {error}: see their logs, then run the same command again to go on"
                        ) from error
                    warnings.warn(
                        f"worker {error} was lost: the {len(left)} blocks that are not written yet are "
                        "started again",
                        Sar2eoWarning,
                        stacklevel=3,
                    )
                    pending = left
        self._work = collect_telemetry()
        self._seconds["compute"] = time.perf_counter() - started

    def publish(self) -> dict[str, Any]:
        """Assemble the files from the journal and publish or upload them; return the report."""
        self._seconds |= self.outputs.publish(
            self._journal,
            self._grid,
            list(self._blocks),
            tags=format_tags(self._attrs, self._divisors, self._fingerprint),
            when=self._attrs.get("datetime"),
            compress=self._compress,
            collection=self._collection,
        )
        self._journal.remove()
        seconds = {"total": sum(self._seconds.values()), **self._seconds}
        tiles = self._count_tiles(list(self._blocks))
        report = build_report(self._attrs, self._grid, tiles, self._divisors, self._work, seconds)
        return {"output": self.outputs.display_name(self.outputs.eo), **report}

    def discard(self) -> None:
        """Delete unfinished work: of a scene that has changed, it may be of two."""
        self._journal.remove()

    def release(self) -> None:
        """Unlock unfinished work, so that another run can go on with it; may be called twice."""
        if self._journal.begun:
            self._journal.release()
        else:
            self._journal.remove()
        if self.outputs.destination is not None:
            self.outputs.destination.remove_folder()

    def _find_finished_blocks(self) -> set[Window]:
        """Return the blocks of which the journal holds every variable, whole."""
        done = set(self._blocks)
        for variable in self.outputs.rasters:
            done &= self._journal.finished(variable, self._blocks)
        return done

    def _count_tiles(self, blocks: Sequence[Window]) -> int:
        eo = self.dataset["eo"].data
        name = self._arrays["eo"].name
        keys = [(name, 0, *self._blocks[block]) for block in blocks]
        return count_tiles(self._arrays["eo"], keys) if isinstance(eo, da.Array) else 0

    def _run(self, pending: Sequence[Window]) -> None:
        """Compute blocks of every variable, and write them to the journal."""
        name = f"store-{uuid.uuid4().hex}"  # a cluster may still know a run that was given up
        variables, writer = " ".join(self._arrays), self._journal.writer()
        layer: dict[Any, Any] = {}
        for block in pending:
            i, j = self._blocks[block]
            below = [(array.name, *(0,) * (array.ndim - 2), i, j) for array in self._arrays.values()]
            layer[name, i, j] = (_store_block, writer, variables, *block, *below)
        arrays: Any = list(self._arrays.values())
        graph = HighLevelGraph.from_collections(name, layer, dependencies=arrays)
        scaling = self.dataset["amplitude_divisor"].data if self._divisors is not None else None
        if isinstance(scaling, da.Array) and scaling.name in graph.layers:
            # Its values are known: it need not be sampled a second time.
            known = MaterializedLayer({(scaling.name, 0): self._divisors})
            graph = HighLevelGraph(
                {**graph.layers, scaling.name: known}, {**graph.dependencies, scaling.name: set()}
            )
        client = active_client()
        # Batches that may run ahead: enough to keep every thread busy.
        lead = 16 if client is None else max(16, 3 * sum(client.nthreads().values()))
        keys = list(layer)
        compute_keys(
            pace(graph, keys, lambda key: isinstance(key, tuple) and str(key[0]).startswith("batch-"), lead),
            keys,
            stop_on_loss=True,
        )


def check_dataset(dataset: xr.Dataset, outputs: Outputs) -> None:
    """Refuse a Dataset without what the outputs need, or outputs that are files of its scene."""
    hints = {
        "eo": "is this a Dataset of sar2eo.translate?",
        "confidence": "the model has no confidence channel",
        "spread": "it needs samples above 1",
    }
    for name in outputs.rasters:
        if name not in dataset:
            raise SettingsError(f"the Dataset has no variable {name!r}: {hints[name]}")
    eo = dataset["eo"]
    if eo.dtype != np.uint8 or sorted(map(str, eo.dims)) != ["band", "x", "y"] or eo.sizes["band"] != 3:
        raise SettingsError(
            f"eo is {eo.dtype} {dict(eo.sizes)}: must be uint8 with 3 bands, y and x; after arithmetic, "
            "round and cast it back with .astype('uint8')"
        )
    inputs = json.dumps(decode_attributes(dataset).get("input"), default=str)
    for path in outputs.paths:
        name = outputs.display_name(path)
        if is_part(path, inputs) or (outputs.destination is not None and json.dumps(name) in inputs):
            raise OutputError(f"{name} is a file of the scene itself: give the result another name")


def _normalise(dataset: xr.Dataset) -> xr.Dataset:
    """Return a Dataset as it is written: bands red, green, blue (if so labelled) in one chunk, then y, x."""
    labels = [str(label) for label in dataset["band"].values]
    if labels != list(EO_BANDS) and sorted(labels) == sorted(EO_BANDS):
        dataset = dataset.sel(band=list(EO_BANDS))
    dataset = face_north(dataset.transpose("band", "y", "x", ...))
    chunks = dataset["eo"].chunks
    whole = chunks is None or len(chunks[0]) == 1
    return dataset if whole else dataset.assign(eo=dataset["eo"].chunk(band=-1))


def _find_grid(dataset: xr.Dataset) -> Grid:
    eo = dataset["eo"].transpose("band", "y", "x").assign_attrs(scene_grid=dataset.attrs.get("grid"))
    whole, window = find_place(eo)
    return whole.crop(window)


def _store_block(
    writer: BlockWriter, names: str, row: int, col: int, height: int, width: int, *blocks: Any
) -> None:
    arrays = dict(zip(names.split(), blocks, strict=True))
    place = Window(row, col, height, width)
    valid, eo = arrays.pop("valid", None), arrays.pop("eo")
    mask = np.full(eo.shape[1:], 255, np.uint8) if valid is None else valid.astype(np.uint8) * np.uint8(255)
    with timed("journal_seconds"):
        for name, values in arrays.items():
            writer.write(name, place, values[None].astype(np.float32, copy=False))
        writer.write("eo", place, np.concatenate([eo, mask[None]]))
    add_count("blocks_done", 1)


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


def format_tags(attrs: Mapping[str, Any], divisors: Divisors, fingerprint: str | None) -> dict[str, str]:
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
        FINGERPRINT: fingerprint,
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

    `tiles` counts those of the whole result, `work` holds the counters of all processes, `seconds` are by
    phase.
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
