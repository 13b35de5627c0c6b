"""From a lazy Dataset to files: compute into the journal, assemble, publish.

What is computed goes block by block into the journal beside the output; the files appear whole, at the
end, or not at all. The same call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from sar2eo.compute import counters
from sar2eo.compute.dask_run import (
    Progress,
    WorkerLostError,
    active_client,
    collect_telemetry,
    compute_keys,
    pace,
    report_progress,
    reset_telemetry,
)
from sar2eo.errors import ClusterError, OutputError, Sar2eoWarning, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.results.cog import check_space
from sar2eo.results.destination import check_tmp
from sar2eo.results.files import Outputs
from sar2eo.scenes.identity import identify_file
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.settings import Compression
from sar2eo.store.journal import BlockWriter, Journal
from sar2eo.translation.dataset import EO_BANDS, place_of
from sar2eo.translation.graph import count_windows
from sar2eo.translation.provenance import FINGERPRINT, report_of, tags_of, work_fingerprint

__all__ = ["BlockStore", "WriteSettings", "Writing", "write_cog"]


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
    """Compute a translated Dataset and write it as COGs, safely against crashes.

    The work is done by Dask's scheduler in force: threads of this process, or a cluster whose client
    is active (its workers must see the output's folder).

    Parameters
    ----------
    dataset : Dataset
        As `sar2eo.translate` returns it, or edited since.
    path : str or Path
        Of the EO image's COG, ending in .tif; as ``s3://bucket/key.tif`` it is uploaded when it is whole.
    confidence, spread, quicklook : str or Path, optional
        Further outputs: two COGs, and a PNG; in an object store beside the EO image.
    compress : {"deflate", "zstd", "jpeg", "webp"}
        Of the EO image; the others take deflate where it is lossy.
    overwrite : bool
        Replace existing files; until the new ones are complete, the old ones stay.
    restart : bool
        Discard unfinished work instead of going on with it.
    tmp : str or Path, optional
        Folder for unfinished work, which else lies beside the result (of one in an object store: in the
        working directory); it may be on another file system.
    force : bool
        Begin although the disk may not hold the result.
    progress : callable, optional
        Called about once a second with counters (see `sar2eo.compute.counters`) and ``blocks_total``,
        ``blocks_resumed``.

    Returns
    -------
    dict
        The report: output, grid, windows, scaling, model, settings, seconds and peak memory, as JSON values.

    Raises
    ------
    OutputError, JournalError
        If an output exists, cannot be written, or unfinished work belongs to another run.
    """
    optional = {"confidence": confidence, "spread": spread, "quicklook": quicklook}
    further = {name: given for name, given in optional.items() if given is not None}
    outputs = Outputs.of(path, further, None if tmp is None else Path(tmp))
    settings = WriteSettings(
        compress=compress,
        overwrite=overwrite,
        restart=restart,
        tmp=None if tmp is None else Path(tmp),
        force=force,
    )
    _check(dataset, outputs, settings)
    if not force and not outputs.journal.exists():  # what is left of an unfinished run, `compute` knows
        check_space(outputs.needs(_grid_of(dataset), compress, settings.tmp))
    writing = Writing(dataset, outputs, settings)
    try:
        writing.compute(progress)
        return writing.finish()
    finally:
        writing.release()


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """How results are written; see `write_cog`.

    Parameters
    ----------
    compress, overwrite, restart, tmp, force
        As of `write_cog`.
    tags : mapping of str to str
        Further tags of the files.
    collection : str or None
        Id of the STAC collection that the item belongs to.
    """

    compress: Compression = "deflate"
    overwrite: bool = False
    restart: bool = False
    tmp: Path | None = None
    force: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    collection: str | None = None


class Writing:
    """One result on its way to its files: begun, then computed, then finished.

    While one is computed, the next may be begun, and the one before finished, in threads of their own.

    Parameters
    ----------
    dataset : Dataset
        As `sar2eo.translate` returns it, or edited since.
    outputs : Outputs
        Where it goes.
    settings : WriteSettings
        How.
    opened_in : float, optional (default: 0.0)
        Seconds that it took to open the scene, for the report.

    Raises
    ------
    OutputError, JournalError, SettingsError
        As of `write_cog`.
    """

    def __init__(
        self, dataset: xr.Dataset, outputs: Outputs, settings: WriteSettings, opened_in: float = 0.0
    ) -> None:
        _check(dataset, outputs, settings)
        dataset = _in_order(dataset)
        self._dataset, self._outputs, self._settings = dataset, outputs, settings
        self._grid = _grid_of(dataset)
        self._work: dict[str, float] = {}
        started = time.perf_counter()
        self._divisors = _divisors(dataset)
        self._seconds = {"open": opened_in, "scaling": time.perf_counter() - started}
        self._store = BlockStore(dataset, tuple(outputs.rasters))
        if outputs.destination is not None:
            outputs.destination.make()
        self._journal = Journal.open(
            outputs.journal,
            work_fingerprint(dataset, self._grid, self._divisors),
            restart=settings.restart,
            tmp=settings.tmp if outputs.destination is None else None,  # where its folder lies
            result=settings.tags.get(FINGERPRINT),
        )
        try:
            # Again, now that nobody else writes here: another run may just have ended.
            outputs.check(overwrite=settings.overwrite, restart=settings.restart)
        except BaseException:
            self.release()
            raise

    def compute(self, progress: Progress | None = None) -> None:
        """Compute what is not in the journal yet.

        Raises
        ------
        OutputError
            If it cannot be written, or would not fit on the disk.
        """
        store, settings = self._store, self._settings
        started = time.perf_counter()
        reset_telemetry()
        done = store.finished(self._journal)
        pending = [window for window in store.windows if window not in done]
        if pending and not settings.force:
            check_space(self._outputs.needs(self._grid, settings.compress))
        counts = {
            "windows_total": _windows(self._dataset, store.keys(pending)),
            "blocks_total": len(store.windows),
            "blocks_resumed": len(done),
        }
        with report_progress(progress, counts):
            store.run(self._journal, pending, self._divisors)
        self._work = collect_telemetry()
        self._seconds["compute"] = time.perf_counter() - started

    def finish(self) -> dict[str, Any]:
        """Assemble the files from the journal and publish or upload them; returns the report.

        Raises
        ------
        OutputError
            If that cannot be done.
        """
        settings, attrs = self._settings, self._dataset.attrs
        started = time.perf_counter()
        self._outputs.finish(
            self._journal,
            self._grid,
            self._store.windows,
            tags_of(self._dataset, self._divisors) | dict(settings.tags),
            attrs.get("datetime"),
            settings.compress,
            settings.collection,
        )
        self._seconds["assemble"] = time.perf_counter() - started
        if self._outputs.destination is not None:
            self._outputs.upload(self._journal)
            self._seconds["upload"] = time.perf_counter() - started - self._seconds["assemble"]
        self._journal.remove()
        seconds = {"total": sum(self._seconds.values()), **self._seconds}
        windows = _windows(self._dataset)
        told = report_of(self._dataset, self._grid, windows, self._divisors, self._work, seconds)
        return {"output": self._outputs.name(self._outputs.eo), **told}

    def release(self) -> None:
        """Let another run go on with what is unfinished, if anything is; doing so twice is harmless."""
        if self._journal.begun:
            self._journal.release()
        else:
            self._journal.remove()
        if self._outputs.destination is not None:
            self._outputs.destination.leave()


def _check(dataset: xr.Dataset, outputs: Outputs, settings: WriteSettings) -> None:
    """Refuse what could not be written, without computing anything."""
    if not isinstance(dataset, xr.Dataset):
        raise SettingsError(f"{type(dataset).__name__} is not a Dataset of sar2eo.translate")
    if settings.compress not in get_args(Compression):
        allowed = ", ".join(get_args(Compression))
        raise SettingsError(f"compress={settings.compress!r}: must be one of {allowed}")
    check_tmp(settings.tmp)
    _check_variables(dataset, outputs)
    outputs.check(overwrite=settings.overwrite, restart=settings.restart)
    _check_apart(dataset, outputs)
    Journal.check_free(outputs.journal)


def _check_apart(dataset: xr.Dataset, outputs: Outputs) -> None:
    """Refuse to replace what the Dataset is yet to be computed from, however it is named or pointed to."""
    read = json.dumps(decode_attributes(dataset).get("input"), default=str)
    for path in outputs.paths:
        name = outputs.name(path)
        taken = path.is_file() and identify_file(str(path))["sha256"] in read
        if taken or (outputs.destination is not None and json.dumps(name) in read):
            raise OutputError(f"{name} is a file of the scene itself: give the result another name")


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


def _in_order(dataset: xr.Dataset) -> xr.Dataset:
    """Return a Dataset as it is written: red, green, blue (where so labelled) in one chunk; then y, x."""
    labels = [str(label) for label in dataset["band"].values]
    if labels != list(EO_BANDS) and sorted(labels) == sorted(EO_BANDS):
        dataset = dataset.sel(band=list(EO_BANDS))
    dataset = dataset.transpose("band", "y", "x", ...)
    chunks = dataset["eo"].chunks
    whole = chunks is None or len(chunks[0]) == 1
    return dataset if whole else dataset.assign(eo=dataset["eo"].chunk(band=-1))


def _grid_of(dataset: xr.Dataset) -> Grid:
    anchor = dataset.attrs.get("grid")
    eo = dataset["eo"].transpose("band", "y", "x").assign_attrs(scene_grid=anchor)
    whole, window = place_of(eo)
    return whole.crop(window)


def _divisors(dataset: xr.Dataset) -> npt.NDArray[np.float32] | None:
    if "amplitude_divisor" not in dataset:
        return None
    return np.asarray(dataset["amplitude_divisor"].values)


def _windows(dataset: xr.Dataset, keys: list[Any] | None = None) -> int:
    eo = dataset["eo"].data
    return count_windows(eo, keys) if isinstance(eo, da.Array) else 0


_LOSSES_AT_MOST = 3


class BlockStore:
    """The last layer of the graph: each block of every variable, into the journal.

    Parameters
    ----------
    dataset : Dataset
        With ``eo`` (band, y, x) uint8 and, where it has them, ``valid`` and the further `variables` (y, x).
    variables : tuple of str
        What is written, "eo" first.
    """

    def __init__(self, dataset: xr.Dataset, variables: tuple[str, ...]) -> None:
        eo = dataset["eo"].chunk(band=-1)
        rows, cols = eo.data.chunks[1:]
        self.variables = variables
        self.arrays: dict[str, da.Array] = {"eo": eo.data}
        for name in ("valid", *variables[1:]):
            if name in dataset:
                self.arrays[name] = dataset[name].chunk(y=rows, x=cols).data
        self.scaling = dataset["amplitude_divisor"].data if "amplitude_divisor" in dataset else None
        tops, lefts = np.cumsum((0, *rows)).tolist(), np.cumsum((0, *cols)).tolist()
        self._places = {
            Window(tops[i], lefts[j], height, width): (i, j)
            for i, height in enumerate(rows)
            for j, width in enumerate(cols)
        }

    @property
    def windows(self) -> list[Window]:
        """All blocks, in the Dataset's own frame."""
        return list(self._places)

    def keys(self, windows: Sequence[Window]) -> list[Any]:
        """Return the keys of the EO image's chunks under some blocks."""
        return [(self.arrays["eo"].name, 0, *self._places[window]) for window in windows]

    def finished(self, journal: Journal) -> set[Window]:
        """Return the blocks of which the journal holds every variable, whole."""
        done = set(self.windows)
        for variable in self.variables:
            done &= journal.finished(variable, self.windows)
        return done

    def run(self, journal: Journal, pending: list[Window], divisors: npt.NDArray[np.float32] | None) -> None:
        """Compute the pending blocks and write them.

        When a worker dies, what is not in the journal by then is begun anew.

        Parameters
        ----------
        journal : Journal
        pending : list of Window
            Blocks to compute.
        divisors : ndarray of float32 or None
            The values of ``amplitude_divisor``, which need not be sampled a second time.

        Raises
        ------
        ClusterError
            If workers die time and again while no block is finished.

        Warns
        -----
        Sar2eoWarning
            If a worker is lost.
        """
        losses = 0
        while pending:
            try:
                self._compute(journal.writer(), pending, divisors)
                return
            except WorkerLostError as error:
                left = sorted(set(pending) - self.finished(journal))
                losses = losses + 1 if len(left) == len(pending) else 1
                if losses > _LOSSES_AT_MOST:
                    raise ClusterError(
                        f"workers died {losses} times without finishing a block (out of memory?), at last "
                        f"{error}: see their logs, then run the same command again to go on"
                    ) from error
                warnings.warn(
                    f"worker {error} is gone: the {len(left)} blocks that are not written yet are begun anew",
                    Sar2eoWarning,
                    stacklevel=3,
                )
                pending = left

    def _compute(
        self, writer: BlockWriter, pending: list[Window], divisors: npt.NDArray[np.float32] | None
    ) -> None:
        name = f"store-{uuid.uuid4().hex}"  # a cluster may not have forgotten a run that was given up
        layer: dict[Any, Any] = {}
        for window in pending:
            i, j = self._places[window]
            blocks = [(array.name, *(0,) * (array.ndim - 2), i, j) for array in self.arrays.values()]
            layer[name, i, j] = (_store_block, writer, " ".join(self.arrays), *window, *blocks)
        below: Any = list(self.arrays.values())
        graph = HighLevelGraph.from_collections(name, layer, dependencies=below)
        if isinstance(self.scaling, da.Array) and self.scaling.name in graph.layers:
            known = {(self.scaling.name, 0): divisors}
            graph = HighLevelGraph(
                {**graph.layers, self.scaling.name: MaterializedLayer(known)},
                {**graph.dependencies, self.scaling.name: set()},
            )
        keys = list(layer)
        compute_keys(pace(graph, keys, _is_batch, _lead()), keys, stop_on_loss=True)


def _store_block(
    writer: BlockWriter, names: str, row: int, col: int, height: int, width: int, *blocks: Any
) -> None:
    arrays = dict(zip(names.split(), blocks, strict=True))
    place = Window(row, col, height, width)
    valid, eo = arrays.pop("valid", None), arrays.pop("eo")
    mask = np.full(eo.shape[1:], 255, np.uint8) if valid is None else valid.astype(np.uint8) * np.uint8(255)
    with counters.timed("journal_seconds"):
        for name, values in arrays.items():
            writer.write(name, place, values[None].astype(np.float32, copy=False))
        writer.write("eo", place, np.concatenate([eo, mask[None]]))
    counters.add("blocks_done", 1)


def _is_batch(key: Any) -> bool:
    return isinstance(key, tuple) and str(key[0]).startswith("batch-")


def _lead() -> int:
    """Batches that may run ahead: enough to keep every thread busy."""
    client = active_client()
    return 16 if client is None else max(16, 3 * sum(client.nthreads().values()))
