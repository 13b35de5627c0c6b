"""The folder of pairs: how it is built beside its place, published, and recognised.

::

    pairs/
        pairs.json  pairs.parquet  audit.json  chips/     the finished pairs
        chips.partial/                                    a journal (see sar2eo.store.journal), while building
            blocks-<fingerprint digest>/
                chips/  parts/  ready/

A part is the result of one task (see sar2eo.store.task_results), and holds the checksums of its chips. A task
whose part and chips are whole does not run again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo.errors import JournalError, OutputError
from sar2eo.pairs.index import list_chip_files
from sar2eo.store.atomic import checksum, refuse, sync_folder
from sar2eo.store.journal import Journal, differences
from sar2eo.store.task_results import TaskResults

_FILES = ("audit.json", "pairs.parquet", "pairs.json")
_CHIPS = ("sar_chip", "eo_chip")
_PARTIAL = "chips.partial"


@dataclass(frozen=True)
class UnfinishedPairs:
    """Pairs that are being built in a folder; its journal holds them, and keeps others out."""

    out: Path
    journal: Journal

    @classmethod
    def begin(cls, out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> UnfinishedPairs:
        """Begin, or go on where an interrupted run of the same fingerprint was; errors as `Journal.open`."""
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            refuse(error, out.parent)
        work = cls(out, Journal.resume(out / _PARTIAL, fingerprint, overwrite=overwrite))
        if not work.publishing:
            work.chips.mkdir(exist_ok=True)
            (work.journal.blocks / "parts").mkdir(exist_ok=True)
        return work

    @staticmethod
    def clear(out: Path, fingerprint: Mapping[str, Any]) -> None:
        """Remove the journal of a run that was stopped after its last file; other unfinished work stays."""
        if (out / _PARTIAL).exists():
            # Finished pairs can be used also where nothing can be written.
            with suppress(JournalError, OutputError):
                Journal.open(out / _PARTIAL, fingerprint).remove()

    @property
    def chips(self) -> Path:
        """Folder of chips, before they are published."""
        return self.journal.blocks.absolute() / "chips"

    def results(self) -> TaskResults:
        """Read the results of tasks that are done; those whose chips are damaged run again."""

        def is_whole(value: Any) -> bool:
            try:
                return not isinstance(value, dict) or all(
                    [checksum((self.chips / Path(row[name]).name).read_bytes()) for name in _CHIPS]
                    == row["checksums"]
                    for row in value["rows"]
                )
            except OSError:
                return False

        return TaskResults(self.journal.blocks / "parts", is_whole)

    @property
    def ready(self) -> Path:
        """Folder of the index and its records, before they are published."""
        return self.journal.blocks / "ready"

    @property
    def publishing(self) -> bool:
        """Whether an earlier run was stopped on its last steps."""
        return (self.ready / _FILES[-1]).exists()

    def publish(self) -> None:
        """Move chips and index to their place; ``pairs.json``, which makes the folder valid, last.

        Chips that are not in the index are deleted. If it is stopped at any point, it can be called again.
        """
        final, made = self.out / "chips", self.chips
        try:
            if made.exists():
                names = list_chip_files(self.ready)
                for path in made.iterdir():
                    if path.name not in names:
                        path.unlink(missing_ok=True)
                # Chips were not flushed one by one.
                os.sync()
                (self.out / _FILES[-1]).unlink(missing_ok=True)
                if final.exists():
                    final.rename(self.journal.blocks / f"replaced-{uuid.uuid4().hex}")
                made.rename(final)
            for name in _FILES:
                if (self.ready / name).exists():
                    (self.ready / name).replace(self.out / name)
            sync_folder(self.out)
        except OSError as error:
            refuse(error, self.out)
        self.journal.remove()

    def abandon(self) -> None:
        """Remove everything of a run that found no pairs; the folder, too, if nothing else is in it."""
        self.journal.remove()
        if not any(self.out.iterdir()):
            self.out.rmdir()


def check_target(out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Check a folder before pairs are built in it; return whether it holds this whole result already.

    Raises
    ------
    OutputError
        If it holds something else, or pairs of other settings that may not be replaced.
    """
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.absolute().parent}: make it first")
    if not out.exists():
        return False
    if not out.is_dir():
        raise OutputError(f"{out}: is a file: --out names a folder")
    record = read_record(out)
    if record is None:
        # A replacement that was stopped while it published goes on without an old record.
        foreign = sorted(path.name for path in out.iterdir() if path.name not in (*_FILES, "chips", _PARTIAL))
        leftover = not (out / _PARTIAL).exists() and any(out.iterdir())
        if foreign or (leftover and not overwrite):
            name = foreign[0] if foreign else "chips without pairs.json"
            raise OutputError(f"{out}: holds {name}, so it is no folder of pairs: give another --out")
        return False
    differ = differences(record.get("fingerprint", {}), fingerprint)
    if differ and not overwrite:
        raise OutputError(f"{out} holds pairs that differ in {differ}: pass overwrite=True to replace them")
    return not differ and _is_whole(out, record)


def read_record(out: Path) -> dict[str, Any] | None:
    """Return ``pairs.json`` of a folder; None where there is none, or it is damaged."""
    try:
        record = json.loads((out / _FILES[-1]).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _is_whole(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether the index is unchanged, and no chip is missing."""
    try:
        index = (out / "pairs.parquet").read_bytes()
        chips = {path.name for path in (out / "chips").iterdir()}
    except OSError:
        return False
    if checksum(index) != record.get("index_crc32") or not (out / "audit.json").exists():
        return False
    # Viewers leave files of their own beside chips.
    return chips >= list_chip_files(out)
