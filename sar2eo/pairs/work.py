"""The folder of pairs while it is being built, and how it is published.

::

    pairs/
        pairs.json  pairs.parquet  audit.json  chips/     the finished pairs
        chips.partial/                                    a journal (see sar2eo.journal), while building
            blocks-<fingerprint digest>/
                chips/  parts/  ready/

A part is the result of one task, under a name that carries a checksum; of chips, it holds the checksums
too. What has a part, and all the chips that it speaks of, is not done again.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo.durable import refuse, sync_folder, write_durably
from sar2eo.errors import JournalError, OutputError
from sar2eo.fingerprints import differences
from sar2eo.journal import Journal
from sar2eo.pairs.chips import checksum
from sar2eo.pairs.index import chip_names

__all__ = ["PartStore", "Work", "check_target", "finished_record"]

_FILES = ("audit.json", "pairs.parquet", "pairs.json")
_PARTIAL = "chips.partial"
_READERS = 4
_PART = re.compile(r"([a-z0-9-]+)\.([0-9a-f]{8})\.json")


@dataclass(frozen=True)
class PartStore:
    """Chips and results of tasks, written from any thread, process or machine that sees the folder.

    Parameters
    ----------
    folder : str
        ``blocks-...`` of the journal; never created here, so that a worker that outlives its run does not
        write into the next.
    """

    folder: str

    @property
    def chips(self) -> Path:
        """Folder of chips."""
        return Path(self.folder) / "chips"

    def save(self, name: str, value: Any) -> None:
        """Keep the result of a task.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        data = json.dumps(value, separators=(",", ":")).encode()
        parts = Path(self.folder) / "parts"
        final = parts / f"{name}.{checksum(data)}.json"
        write_durably(parts / f".{uuid.uuid4().hex}.tmp", final, data)

    def load(self) -> dict[str, Any]:
        """Return the results that are there and whole, by task; what is damaged is deleted."""
        paths = sorted((Path(self.folder) / "parts").iterdir())
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(filter(None, pool.map(self._part, paths)))

    def _part(self, path: Path) -> tuple[str, Any] | None:
        match = _PART.fullmatch(path.name)
        data = path.read_bytes() if match else b""
        if match and checksum(data) == match[2]:
            value = json.loads(data)
            rows = value["rows"] if isinstance(value, dict) else ()
            if all(map(self._has_chips, rows)):
                return match[1], value
        # A thread of a call that was interrupted may be just giving a file its final name.
        path.unlink(missing_ok=True)
        return None

    def _has_chips(self, row: Mapping[str, Any]) -> bool:
        paths = (self.chips / Path(row[name]).name for name in ("sar_chip", "eo_chip"))
        try:
            return [checksum(path.read_bytes()) for path in paths] == list(row["checksums"])
        except OSError:
            return False


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
