"""Blocks of a lazy Dataset into a journal, on Dask's scheduler in force."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from sar2eo import telemetry
from sar2eo.blocks import BlockWriter
from sar2eo.computing import WorkerLostError, active_client, compute_keys
from sar2eo.errors import ClusterError, Sar2eoWarning
from sar2eo.journal import Journal
from sar2eo.pacing import paced
from sar2eo.windows import Window

__all__ = ["BlockStore"]

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
        compute_keys(paced(graph, keys, _is_batch, _lead()), keys, stop_on_loss=True)


def _store_block(
    writer: BlockWriter, names: str, row: int, col: int, height: int, width: int, *blocks: Any
) -> None:
    arrays = dict(zip(names.split(), blocks, strict=True))
    place = Window(row, col, height, width)
    valid, eo = arrays.pop("valid", None), arrays.pop("eo")
    mask = np.full(eo.shape[1:], 255, np.uint8) if valid is None else valid.astype(np.uint8) * np.uint8(255)
    with telemetry.timed("journal_seconds"):
        for name, values in arrays.items():
            writer.write(name, place, values[None].astype(np.float32, copy=False))
        writer.write("eo", place, np.concatenate([eo, mask[None]]))
    telemetry.add("blocks_done", 1)


def _is_batch(key: Any) -> bool:
    return isinstance(key, tuple) and str(key[0]).startswith("batch-")


def _lead() -> int:
    """Batches that may run ahead: enough to keep every thread busy."""
    client = active_client()
    return 16 if client is None else max(16, 3 * sum(client.nthreads().values()))
