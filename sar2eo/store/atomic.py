"""Files that a crash leaves whole: written under another name, flushed to disk, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from sar2eo.errors import JournalError, OutputError

__all__ = [
    "LOCK",
    "acquire",
    "locked",
    "refuse",
    "sync_file",
    "sync_folder",
    "write_atomically",
    "write_durably",
]

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, `path` is the old file or the whole new one.

    A crash may leave ``.<name>.tmp`` beside it, which the next call takes over. Calls of several threads or
    processes for one path wait for each other.

    Raises
    ------
    OutputError
        If it cannot be written; the old file then stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        handle = _alone(temporary)
    except OSError as error:
        refuse(error, path.parent, len(data))
    _commit(os.fdopen(handle, "wb"), temporary, path, data)
    sync_folder(path.parent)


def _alone(path: Path) -> int:
    """Open a file for writing, locked against others who would; it may hold what one of them has left."""
    while True:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    os.ftruncate(handle, 0)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it has given it its final name


def write_durably(temporary: Path, path: Path, data: bytes | memoryview) -> None:
    """Write and flush `temporary`, which must not exist, then rename it to `path`.

    Raises
    ------
    OutputError
        If it cannot be written; `temporary` is then deleted.
    """
    try:
        file = temporary.open("xb")
    except OSError as error:
        refuse(error, path.parent, len(data))
    _commit(file, temporary, path, data)


def _commit(file: BinaryIO, temporary: Path, path: Path, data: bytes | memoryview) -> None:
    """Fill a file, flush it, and give it its final name; or delete it. Either way it is closed."""
    try:
        with file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        refuse(error, path.parent, len(data))


def sync_file(path: Path) -> None:
    """Flush a file that somebody else wrote to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it outlives a power cut.

    Raises
    ------
    OutputError
        If the disk fails; not where file system or permissions are not made for this.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            refuse(error, folder)


def refuse(error: OSError, folder: Path, size: int = 0) -> NoReturn:
    """Raise the one-line error for a failed write of `size` bytes in a folder.

    Raises
    ------
    OutputError
        Always.
    """
    if error.errno in _FULL_DISK:
        raise OutputError(
            f"{folder}: no space for another {size / 1e6:.1f} MB: free some and repeat the command, "
            "finished work is kept"
        ) from error
    if error.errno in _NO_LOCKS:
        raise OutputError(
            f"{folder}: its file system has no locks: choose another place for --out"
        ) from error
    raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


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
