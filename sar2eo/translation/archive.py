"""Archive runs: scenes one after the other, each begun and finished beside the others' computing.

At any time one scene is computed; the next one is opened, sampled and checked, and of the one before files
are assembled. So neither memory nor unfinished work grows with the archive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sar2eo.compute.dask_run import Progress
from sar2eo.errors import ClusterError, OutputError, SceneError
from sar2eo.model.spec import ModelSpec
from sar2eo.results.destination import Destination
from sar2eo.results.stac_output import COLLECTION, stac_collection, write_stac_collection
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.settings import TranslateRecipe
from sar2eo.store.atomic import hold_folder, write_file, write_json
from sar2eo.store.journal import Journal
from sar2eo.translation.job import destination_of, prepare, single_job
from sar2eo.translation.plan import Entry, check_disk, plan
from sar2eo.translation.provenance import FINGERPRINT
from sar2eo.translation.writer import WriteSettings, Writing

__all__ = ["run", "summary"]

Told = Callable[[Entry], None]


def run(
    recipe: TranslateRecipe,
    spec: ModelSpec,
    *,
    planned: Callable[[Sequence[Entry]], None] = lambda _: None,
    told: Told = lambda _: None,
    progress: Progress | None = None,
) -> list[Entry]:
    """Translate the scenes of a recipe into files; one that fails does not stop the others.

    Afterwards, however it ends, the folder's STAC collection and the report (`summary`; of a single file as
    `sar2eo.write_cog` returns it) are written.

    Parameters
    ----------
    recipe : TranslateRecipe
        What is to be done.
    spec : ModelSpec
        The model, resolved; each process loads it once.
    planned : callable, optional
        Called with the plan before work starts; what it raises stops the run.
    told : callable, optional
        Called with each entry that has ended, also from other threads.
    progress : callable, optional
        As of `sar2eo.translation.plan.plan`; then as of `sar2eo.write_cog`, with ``scene``, the number of the
        scene, ``scenes``, and ``seconds`` that this one is computed for.

    Returns
    -------
    list of Entry
        What became of every scene; errors are in it.

    Raises
    ------
    SettingsError, OutputError
        If nothing can be done as asked, the disk cannot hold it, or another run is filling the folder.
    ClusterError
        If the cluster is lost, and with it all further scenes.
    """
    single = single_job(recipe) is not None
    destination = destination_of(recipe)
    folder = Path(recipe.out) if destination is None else destination.folder
    started = time.perf_counter()
    with _held(folder, destination, alone=not single):
        entries = plan(recipe, spec, progress=progress)
        planned(entries)
        if not recipe.settings.force:
            check_disk(entries, recipe)
        for entry in entries:
            if entry.status != "pending":
                _clear(entry)
                told(entry)
        collection = None if single else _collection_id(folder, destination)
        pending = [entry for entry in entries if entry.status == "pending"]
        try:
            _Line(recipe, spec, collection, told).run(pending, progress)
        finally:
            if collection is not None and destination is None:
                write_stac_collection(folder, collection)
            elif collection is not None and destination is not None:
                _upload_collection(destination, collection, changed=bool(pending))
            whole = summary(entries, time.perf_counter() - started)
            one = entries[0].report if single else None
            if not (single and _has_left_report(entries[0], recipe)):
                _write_report(whole if one is None else one, recipe)
    return entries


@contextmanager
def _held(folder: Path, destination: Destination | None, *, alone: bool) -> Iterator[None]:
    """Keep other runs out of a folder of results, or of what waits to be uploaded."""
    if destination is None:
        with hold_folder(folder / "archive.partial") if alone else nullcontext():
            yield
        return
    destination.make()
    try:
        with hold_folder(folder / "archive.partial"):
            yield
    finally:
        destination.leave()


def _collection_id(folder: Path, destination: Destination | None) -> str:
    if destination is not None:
        return destination.url.rstrip("/").rpartition("/")[2]
    return folder.resolve().name or "archive"


def _upload_collection(destination: Destination, name: str, *, changed: bool) -> None:
    """Upload the collection of all results under a prefix, if this run or a stopped one changed any."""
    path = destination.folder / COLLECTION
    present = destination.listed()
    if not changed and not path.exists() and COLLECTION in present:
        return
    texts = destination.texts(file for file in present if file.endswith(".json"))
    content = stac_collection(texts, present, name)
    if content is not None:
        # It stays until it is uploaded: the next run then knows that it is due.
        write_file(path, content)
        destination.upload(path, COLLECTION)
        path.unlink()


def _clear(entry: Entry) -> None:
    """Delete what a run of the same result has left."""
    if entry.status == "skipped" and entry.job is not None:
        outputs = entry.job.outputs
        try:
            if outputs.journal.exists() or outputs.journal.is_symlink():
                Journal.clear(outputs.journal, str(outputs.tag(outputs.eo, FINGERPRINT)))
        except (OutputError, SceneError) as error:
            entry.fail(error)


def summary(entries: Sequence[Entry], seconds: float) -> dict[str, Any]:
    """Return what became of every scene, as JSON values.

    Parameters
    ----------
    entries : sequence of Entry
        Of the run.
    seconds : float
        That it took.
    """
    return {
        "seconds": seconds,
        "megapixels": sum(entry.megapixels for entry in entries if entry.status == "done"),
        "counts": {
            status: sum(entry.status == status for entry in entries)
            for status in ("done", "skipped", "failed", "pending")
        },
        "scenes": [
            {
                "source": entry.name,
                "output": None if entry.job is None else entry.job.outputs.name(entry.job.outputs.eo),
                "status": entry.status,
                "error": entry.reason,
                "seconds": entry.seconds,
                "megapixels": entry.megapixels,
                "report": entry.report,
            }
            for entry in entries
        ],
    }


def _has_left_report(entry: Entry, recipe: TranslateRecipe) -> bool:
    """Tell whether the report of what was done before is still there: this run knows less."""
    if entry.status != "skipped" or entry.job is None or recipe.report is None:
        return False
    try:
        told = json.loads(Path(recipe.report).read_bytes())
        return bool(told["output"] == entry.job.outputs.name(entry.job.outputs.eo))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_report(content: Mapping[str, Any] | None, recipe: TranslateRecipe) -> None:
    if recipe.report is not None and content is not None:
        write_json(Path(recipe.report), content)


class _Line:
    """An assembly line of three stations: begin, compute, finish."""

    def __init__(self, recipe: TranslateRecipe, spec: ModelSpec, collection: str | None, told: Told) -> None:
        self._recipe, self._spec, self._collection, self._told = recipe, spec, collection, told

    def run(self, entries: Sequence[Entry], progress: Progress | None) -> None:
        before, after = (ThreadPoolExecutor(1, f"sar2eo-{name}") for name in ("begin", "finish"))
        begun: Future[Writing] | None = None
        finished: Future[None] | None = None
        patient = False  # after Ctrl-C nobody wants to wait for a scene; the journal is safe at any moment
        try:
            for number, entry in enumerate(entries, start=1):
                writing = self._take(entry, begun or before.submit(self._begin, entry))
                begun = before.submit(self._begin, entries[number]) if number < len(entries) else None
                place = {"scene": number, "scenes": len(entries)}
                if writing is None or not self._compute(entry, writing, _placed(progress, place)):
                    continue
                if finished is not None:
                    finished.result()  # at most one scene waits for its files
                finished = after.submit(self._finish, entry, writing)
            patient = True
        except Exception:
            patient = True  # the same scenes may be tried again at once: let go of them first
            raise
        finally:
            if begun is not None and not begun.cancel():
                begun.add_done_callback(_release)
            for pool in (before, after):
                pool.shutdown(wait=patient, cancel_futures=not patient)
        if finished is not None:
            finished.result()

    def _begin(self, entry: Entry) -> Writing:
        recipe, job = self._recipe, entry.job
        assert job is not None  # noqa: S101  (of a pending scene)
        started = time.perf_counter()
        Journal.check_free(job.outputs.journal)  # before the graph is built, which takes its time
        dataset = prepare(job.source, recipe, self._spec)
        settings = WriteSettings(
            compress=recipe.compress,
            overwrite=recipe.overwrite,
            restart=recipe.restart,
            tmp=None if recipe.tmp is None else Path(recipe.tmp),
            force=recipe.settings.force,
            tags={FINGERPRINT: json.dumps(decode_attributes(dataset)["result_fingerprint"], sort_keys=True)},
            collection=self._collection,
        )
        opened_in = time.perf_counter() - started
        return Writing(dataset, job.outputs, settings, opened_in)

    def _take(self, entry: Entry, begun: Future[Writing]) -> Writing | None:
        try:
            return begun.result()
        except Exception as error:
            self._failed(entry, error)
            return None

    def _compute(self, entry: Entry, writing: Writing, progress: Progress | None) -> bool:
        try:
            writing.compute(progress)
        except BaseException as error:
            writing.release()
            if isinstance(error, Exception):
                self._failed(entry, error)
            if isinstance(error, ClusterError) or not isinstance(error, Exception):
                raise
            return False
        return True

    def _finish(self, entry: Entry, writing: Writing) -> None:
        try:
            entry.report = writing.finish()
            entry.seconds = entry.report["seconds"]["total"]
            entry.status = "done"
        except Exception as error:
            entry.fail(error)
        finally:
            writing.release()
        self._told(entry)

    def _failed(self, entry: Entry, error: Exception) -> None:
        entry.fail(error)
        self._told(entry)


def _release(begun: Future[Writing]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().release()


def _placed(progress: Progress | None, place: Mapping[str, float]) -> Progress | None:
    if progress is None:
        return None
    started = time.monotonic()
    return lambda counts: progress({**counts, **place, "seconds": time.monotonic() - started})
