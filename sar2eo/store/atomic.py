"""Files and folders that are whole or not there: written under another name, flushed to disk, renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from sar2eo.errors import JournalError, OutputError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

LOCK = "lock"
"""The file in a folder that is locked; it is empty, and may stay behind."""


@contextmanager
def atomic_file(target: Path, *, size: int = 0, durable: bool = True) -> Iterator[Path]:
    """Write a file so that, whatever happens, `target` is the old file or the whole new one.

    Yields the name to write under, ``.<name>.tmp`` beside it, of an empty file. A crash may leave that file;
    the next call takes it over. Threads and processes that write one target wait for each other.

    Parameters
    ----------
    size : int, optional (default: 0)
        Bytes to write, for the message of a full disk.
    durable : bool, optional (default: True)
        Flush it to disk. Without, a power cut may damage it: for files that are checked before use.

    Raises
    ------
    OutputError
        If it cannot be written; the old file then stays.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        handle = open_alone(temporary)
        try:
            yield temporary
            if durable:
                sync_file(temporary)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        if durable:
            sync_folder(target.parent)
    except OSError as error:
        refuse(error, target.parent, size)


def open_alone(path: Path) -> int:
    """Open an empty file, locked against other writers; a crashed one may have left it."""
    while True:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                status = os.fstat(handle)
                if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EEXIST, f"{path.name} is a link or no file: remove it")
                check_owner(path, status)
                if os.path.samestat(status, path.stat()):
                    os.ftruncate(handle, 0)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the writer before has renamed it: try again


def check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what another user has put under a name that is to be ours, as in a shared folder.

    Raises
    ------
    OutputError
        If it is not owned by who owns a file that is made now.
    """
    if status.st_uid == os.geteuid():
        return
    with tempfile.TemporaryFile(dir=path.parent) as mine:  # some file systems give all files to somebody else
        if os.fstat(mine.fileno()).st_uid != status.st_uid:
            raise OutputError(
                f"{path}: belongs to another user (number {status.st_uid}), who could change what is in it: "
                "remove it, or choose another --out or --tmp"
            )


def write_file(target: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write the bytes of a file as `atomic_file` does."""
    with atomic_file(target, size=len(data), durable=durable) as temporary:
        temporary.write_bytes(data)


def write_unseen(target: Path, data: bytes) -> None:
    """Write a file as `write_file` does, without a name until it is whole: a kill leaves nothing."""
    try:
        handle = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:  # not every file system has files without a name
        return write_file(target, data)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
            temporary.unlink(missing_ok=True)
            # A link cannot replace a file. With a folder it follows the name of the handle to the file.
            os.link(f"/proc/self/fd/{handle}", temporary, src_dir_fd=handle)
            temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        refuse(error, target.parent, len(data))


def write_json(target: Path, values: Any) -> None:
    """Write JSON as `atomic_file` does; see `json_values` for what becomes of other values."""
    write_file(target, (json.dumps(json_values(values), indent=2, allow_nan=False) + "\n").encode())


def json_values(value: Any) -> Any:
    """Return JSON values: numbers that are not finite become null, and other objects their text."""
    if isinstance(value, dict):
        return {str(name): json_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


@contextmanager
def atomic_folder(target: Path, *, size: int = 0) -> Iterator[Path]:
    """Fill a folder so that, whatever happens, `target` is the old folder or the whole new one.

    Yields a new folder beside it, which then replaces `target`. A crash may leave folders named
    ``.<name>.partial-*`` and ``.<name>.old-*``.

    Parameters
    ----------
    target : Path
        Its parent is made if need be.
    size : int, optional (default: 0)
        Bytes to write, for the message of a full disk.

    Raises
    ------
    OutputError
        If it cannot be written; the old folder then stays.
    """
    partial, old = (target.with_name(f".{target.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            sync_folder(path) if path.is_dir() else sync_file(path)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        refuse(error, target.parent, size)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def checksum(data: bytes | memoryview) -> str:
    """Return the CRC-32 of a file's bytes as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def sync_file(path: Path) -> None:
    """Flush a closed file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it outlives a power cut.

    Raises
    ------
    OutputError
        If the disk fails; not where file system or permissions do not allow it.
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
    """Raise an `OutputError` of one line for a failed write of `size` bytes in a folder."""
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


def lock_folder(folder: Path, name: str = LOCK) -> FileLock:
    """Lock a folder by a file of that name in it, until `release` or the end of this process.

    Raises
    ------
    JournalError
        If another run holds it.
    OutputError
        If there cannot be a lock.
    """
    lock = FileLock(folder / name, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise JournalError(
            f"{folder}: another run is writing here: wait for it, or give another --out"
        ) from error
    except OSError as error:
        refuse(error, folder)
    return lock


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder that says a run is going on, and lock it; delete it in the end.

    Raises
    ------
    JournalError
        If another run holds it.
    OutputError
        If it cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
        check_owner(folder, folder.lstat())
    except OSError as error:
        refuse(error, folder)
    lock = lock_folder(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()
