"""Runs over many scenes: while one is computed, the next is prepared and the one before published.

So neither memory nor unfinished work grows with the archive.
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
from sar2eo.results.cog import check_space
from sar2eo.results.outputs import Destination
from sar2eo.results.stac_output import COLLECTION, make_stac_collection, write_stac_collection
from sar2eo.results.targets import read_report, write_report
from sar2eo.settings import TranslateRecipe
from sar2eo.store.atomic import hold_folder, write_file
from sar2eo.store.journal import Journal
from sar2eo.translation.plan import Entry, RunTarget, estimate_disk, find_target, plan
from sar2eo.translation.region import FINGERPRINT, open_region, translate_region
from sar2eo.translation.writer import ResultWriter, check_dataset

Report = Callable[[Entry], None]


def run(
    recipe: TranslateRecipe,
    spec: ModelSpec,
    target: RunTarget | None = None,
    *,
    planned: Callable[[Sequence[Entry]], None] = lambda _: None,
    report: Report = lambda _: None,
    progress: Progress | None = None,
) -> list[Entry]:
    """Translate the scenes of a recipe into files; failed scenes are reported and the run goes on.

    At the end, also after an error, the folder's STAC collection and the report are written: `summarise`, or
    for a single file the report of `sar2eo.write_cog`.

    Parameters
    ----------
    target : RunTarget, optional
        From `sar2eo.translation.plan.find_target`, if the caller has it.
    planned : callable, optional
        Called with the plan before work starts; an exception stops the run.
    report : callable, optional
        Called with each entry that has ended, also from other threads.
    progress : callable, optional
        Called as by `sar2eo.translation.plan.plan`, then as by `sar2eo.write_cog` with three more counts:
        ``scene``, the number of the scene, ``scenes``, and ``seconds`` since its computing began.

    Raises `SettingsError` or `OutputError` if nothing can be done as asked, the disk cannot hold it, or
    another run is filling the folder; `ClusterError` if the cluster is lost, and with it all further scenes.
    """
    target = target or find_target(recipe)
    started = time.perf_counter()
    with _lock(target):
        entries = plan(recipe, spec, target, progress=progress)
        planned(entries)
        if not recipe.settings.force:
            check_space(estimate_disk(entries, recipe))
        for entry in entries:
            if entry.status == "skipped":
                _clear_journal(entry)
            if entry.status != "pending":
                report(entry)
        pending = [entry for entry in entries if entry.status == "pending"]
        pipeline = _Pipeline(recipe, spec, _name_collection(target), report)
        try:
            pipeline.run(pending, progress)
        finally:
            if pipeline.collection is not None and target.destination is not None:
                _upload_collection(pipeline.collection, target.destination, changed=bool(pending))
            elif pipeline.collection is not None:
                write_stac_collection(target.folder, pipeline.collection)
            if recipe.report is not None:
                _report(entries, target, time.perf_counter() - started, Path(recipe.report))
    return entries


@contextmanager
def _lock(target: RunTarget) -> Iterator[None]:
    """Keep other runs out of a folder of results, or of unfinished work that will be uploaded."""
    if target.destination is not None:
        target.destination.make_folder()
    shared = target.single is None or target.destination is not None
    try:
        with hold_folder(target.folder / "archive.partial") if shared else nullcontext():
            yield
    finally:
        if target.destination is not None:
            target.destination.remove_folder()


def _name_collection(target: RunTarget) -> str | None:
    """Return the id of the STAC collection; a single result is in none."""
    if target.single is not None:
        return None
    if target.destination is not None:
        return target.destination.url.rstrip("/").rpartition("/")[2]
    return target.folder.resolve().name or "archive"


def _upload_collection(name: str, destination: Destination, *, changed: bool) -> None:
    """Upload the collection of all results under a prefix, if this run or a stopped one changed any."""
    path = destination.folder / COLLECTION
    present = destination.list_files()
    if not changed and not path.exists() and COLLECTION in present:
        return
    texts = destination.read_texts(file for file in present if file.endswith(".json"))
    content = make_stac_collection(texts, present, name)
    if content is not None:
        # The file stays until it is uploaded, so that the next run knows that the upload is due.
        write_file(path, content)
        destination.upload(path, COLLECTION)
        path.unlink()


def _clear_journal(entry: Entry) -> None:
    """Delete the journal that a run of the same result has left."""
    outputs = entry.outputs
    try:
        if outputs is not None and (outputs.journal.exists() or outputs.journal.is_symlink()):
            Journal.clear(outputs.journal, str(outputs.read_tag(outputs.eo, FINGERPRINT)))
    except (OutputError, SceneError) as error:
        entry.fail(error)


def summarise(entries: Sequence[Entry], seconds: float) -> dict[str, Any]:
    """Return counts by status and the outcome of every scene of a run of some seconds, as JSON values."""
    statuses = ("done", "skipped", "failed", "pending")
    return {
        "seconds": seconds,
        "megapixels": sum(entry.megapixels for entry in entries if entry.status == "done"),
        "counts": {status: sum(entry.status == status for entry in entries) for status in statuses},
        "scenes": [
            {
                "source": entry.name,
                "output": entry.output,
                "status": entry.status,
                "error": entry.reason,
                "seconds": entry.seconds,
                "megapixels": entry.megapixels,
                "report": entry.report,
            }
            for entry in entries
        ],
    }


def _report(entries: Sequence[Entry], target: RunTarget, seconds: float, path: Path) -> None:
    content = summarise(entries, seconds)
    if target.single is not None and entries:
        (entry,) = entries
        content = entry.report or content
        # The report of the run that made the result says more than this run knows.
        if entry.status == "skipped" and (read_report(path) or {}).get("output") == entry.output:
            return
    write_report(path, content)


class _Pipeline:
    """Takes scenes through three stages at once: prepare the next, compute one, publish the one before."""

    def __init__(
        self, recipe: TranslateRecipe, spec: ModelSpec, collection: str | None, report: Report
    ) -> None:
        self.recipe, self.spec, self.collection, self.report = recipe, spec, collection, report

    def run(self, entries: Sequence[Entry], progress: Progress | None) -> None:
        before, after = (ThreadPoolExecutor(1, f"sar2eo-{name}") for name in ("prepare", "publish"))
        prepared = before.submit(self._prepare, entries[0]) if entries else None
        published: Future[None] | None = None
        patient = False  # after Ctrl-C nobody wants to wait for a scene; the journal is safe at any moment
        try:
            for number, entry in enumerate(entries, start=1):
                writer = None
                try:
                    writer = prepared.result() if prepared is not None else None
                except Exception as error:
                    self._fail(entry, error)
                prepared = before.submit(self._prepare, entries[number]) if number < len(entries) else None
                place = {"scene": number, "scenes": len(entries)}
                if writer is None or not self._compute(entry, writer, _with_place(progress, place)):
                    continue
                if published is not None:
                    published.result()  # at most one scene waits for its files
                published = after.submit(self._publish, entry, writer)
            patient = True
        except Exception:
            patient = True  # the same scenes may be tried again at once: release them first
            raise
        finally:
            if prepared is not None and not prepared.cancel():
                prepared.add_done_callback(_release)
            for pool in (before, after):
                pool.shutdown(wait=patient, cancel_futures=not patient)
        if published is not None:
            published.result()

    def _prepare(self, entry: Entry) -> ResultWriter:
        recipe, outputs = self.recipe, entry.outputs
        assert outputs is not None  # noqa: S101  (of a pending scene)
        started = time.perf_counter()
        Journal.check_free(outputs.journal)  # before the graph is built, which takes its time
        region = entry.region or open_region(entry.source, recipe, self.spec)
        entry.region = None
        dataset = translate_region(region, recipe, self.spec)
        check_dataset(dataset, outputs)
        return ResultWriter(
            dataset,
            outputs,
            compress=recipe.compress,
            overwrite=recipe.overwrite,
            restart=recipe.restart,
            tmp=None if recipe.tmp is None else Path(recipe.tmp),
            force=recipe.settings.force,
            fingerprint=region.fingerprint,
            collection=self.collection,
            opened_in=entry.seconds + time.perf_counter() - started,
        )

    def _compute(self, entry: Entry, writer: ResultWriter, progress: Progress | None) -> bool:
        try:
            writer.compute(progress)
        except BaseException as error:
            writer.release()
            if isinstance(error, Exception):
                self._fail(entry, error)
            if isinstance(error, ClusterError) or not isinstance(error, Exception):
                raise
            return False
        return True

    def _publish(self, entry: Entry, writer: ResultWriter) -> None:
        try:
            if self._has_changed(entry):
                writer.discard()
                raise SceneError(f"{entry.name}: has changed while it was read: run the same command again")
            entry.report = writer.publish()
            entry.seconds = entry.report["seconds"]["total"]
            entry.status = "done"
        except Exception as error:
            entry.fail(error)
        finally:
            writer.release()
        self.report(entry)

    def _has_changed(self, entry: Entry) -> bool:
        """Whether a scene with remote files has changed; of local ones, every read would have noticed."""
        if '"href"' not in json.dumps(entry.identity, default=str):
            return False
        now = open_region(entry.source, self.recipe, self.spec).fingerprint["input"]
        return bool(now != entry.identity)

    def _fail(self, entry: Entry, error: Exception) -> None:
        entry.fail(error)
        self.report(entry)


def _release(prepared: Future[ResultWriter]) -> None:
    if not prepared.cancelled() and prepared.exception() is None:
        prepared.result().release()


def _with_place(progress: Progress | None, place: Mapping[str, float]) -> Progress | None:
    if progress is None:
        return None
    started = time.monotonic()
    return lambda counts: progress({**counts, **place, "seconds": time.monotonic() - started})
