"""One run at a time: locks that die with their owner, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sar2eo.durable import refuse
from sar2eo.errors import JournalError

__all__ = ["LOCK", "acquire", "locked"]

LOCK = "lock"
"""The file in a folder that is locked; it says nothing, and may stay behind."""


def acquire(folder: Path, name: str = LOCK) -> int:
    """Lock a folder that exists, by the file of that name: the kernel unlocks it when this process ends.

    Returns
    -------
    int
        A file descriptor, which holds the lock until it is closed.

    Raises
    ------
    JournalError
        If another run holds it.
    OSError
        If there cannot be a lock.
    """
    path = folder / name
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A run that just ended may have deleted the file this lock is on.
        current = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
    except BlockingIOError as error:
        os.close(handle)
        raise _busy(folder) from error
    except OSError:
        os.close(handle)
        raise
    if not current:
        os.close(handle)
        raise _busy(folder)
    return handle


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that is there for nothing else: it is made, locked, and deleted in the end.

    Raises
    ------
    JournalError
        If another run holds it.
    OutputError
        If it cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
        handle = acquire(folder)
    except OSError as error:
        refuse(error, folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
            folder.rmdir()
        os.close(handle)


def _busy(folder: Path) -> JournalError:
    return JournalError(f"{folder}: another run is writing here: wait for it, or give another --out")
