"""The folder of pairs while it is being built, and how it is published.

::

    pairs/
        pairs.json  pairs.parquet  audit.json  chips/     the finished pairs
        chips.partial/                                    a journal (see sar2eo.store.journal), while building
            blocks-<fingerprint digest>/
                chips/  parts/  ready/

A part is the result of one task, under a name that carries a checksum; of chips, it holds the checksums
too. What has a part, and all the chips that it speaks of, is not done again.
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
from sar2eo.pairs.index import chip_names
from sar2eo.store.atomic import refuse, sync_folder
from sar2eo.store.fingerprint import checksum, differences
from sar2eo.store.journal import Journal
from sar2eo.store.task_results import PartStore

__all__ = ["Work", "check_target", "finished_record"]

_FILES = ("audit.json", "pairs.parquet", "pairs.json")
_PARTIAL = "chips.partial"


@dataclass(frozen=True)
class Work:
    """A run that builds into a folder, which is locked until it ends.

    Attributes
    ----------
    out : Path
        Folder of pairs.
    journal : Journal
        Locked.
    """

    out: Path
    journal: Journal

    @classmethod
    def begin(cls, out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Work:
        """Begin, or go on with what an interrupted run of the same fingerprint has left.

        Raises
        ------
        JournalError
            If what is there belongs to other settings, or another run is writing here.
        OutputError
            If the folder cannot be written.
        """
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            refuse(error, out.parent)
        work = cls(out, Journal.resume(out / _PARTIAL, fingerprint, overwrite=overwrite))
        if not work.publishing:
            for name in ("chips", "parts"):
                (work.journal.blocks / name).mkdir(exist_ok=True)
        return work

    @staticmethod
    def clear(out: Path, fingerprint: Mapping[str, Any]) -> None:
        """Remove what a run that was stopped after its last file has left; other unfinished work stays."""
        if (out / _PARTIAL).exists():
            # Pairs that are there can be used where nothing can be written, too.
            with suppress(JournalError, OutputError):
                Journal.open(out / _PARTIAL, fingerprint).remove()

    @property
    def store(self) -> PartStore:
        """Where tasks write."""
        return PartStore(str(self.journal.blocks.absolute()))

    @property
    def ready(self) -> Path:
        """Folder of the index and what goes with it, before they are published."""
        return self.journal.blocks / "ready"

    @property
    def publishing(self) -> bool:
        """Whether an earlier run was stopped on its last steps."""
        return (self.ready / _FILES[-1]).exists()

    def publish(self) -> None:
        """Move chips and index to where they belong; ``pairs.json``, without which nothing counts, last.

        Chips that are not in the index are deleted. Stopped at any point, it can be called again.

        Raises
        ------
        OutputError
            If a file cannot be moved.
        """
        final, made = self.out / "chips", self.store.chips
        try:
            if made.exists():
                _keep(made, chip_names(self.ready))
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
        """Leave nothing behind of a run that found no pairs; the folder goes if nothing else is in it."""
        self.journal.remove()
        if not any(self.out.iterdir()):
            self.out.rmdir()


def _keep(folder: Path, names: set[str]) -> None:
    """Delete all files of a folder but these."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink(missing_ok=True)


def check_target(out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Refuse a folder that pairs cannot be built in, before any work; tell if they are built already.

    Returns
    -------
    bool
        Whether the folder holds the whole result of this fingerprint.

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
    record = finished_record(out)
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
        raise OutputError(f"{out} holds pairs that differ in {differ}: pass --overwrite to replace them")
    return not differ and _is_whole(out, record)


def finished_record(out: Path) -> dict[str, Any] | None:
    """Return ``pairs.json`` of a folder; None where there is none, or it is damaged."""
    try:
        record = json.loads((out / _FILES[-1]).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _is_whole(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether the index is the one that was written, and no chip is missing."""
    try:
        index = (out / "pairs.parquet").read_bytes()
        chips = {path.name for path in (out / "chips").iterdir()}
    except OSError:
        return False
    if checksum(index) != record.get("index_crc32") or not (out / "audit.json").exists():
        return False
    # Viewers leave files of their own beside chips.
    return chips >= chip_names(out)
