"""Finished blocks of a result, which survive a crash, until the result is complete.

A journal is a folder beside the output::

    eo.tif.partial/
        manifest.json                       the fingerprint: everything the result depends on
        lock                                held by the one run that may write here
        publishing                          this run is replacing results: they may be of two runs
        finished                            nothing here is needed any more
        blocks-<fingerprint digest>/
            eo.<row>.<col>.<height>.<width>.<crc32>.tif
        assembled/                          made anew by every run

(or a link of that name to such a folder in temporary space).

A block is valid once it has its final name, which holds a checksum of its bytes. Everything else in the
folder is left over from an interruption, and is deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from affine import Affine
from filelock import FileLock
from rasterio.io import MemoryFile

from sar2eo._version import __version__
from sar2eo.errors import JournalError
from sar2eo.geo.windows import Window
from sar2eo.store.atomic import (
    LOCK,
    check_owner,
    checksum,
    json_values,
    lock_folder,
    refuse,
    sync_folder,
    write_file,
    write_json,
)

_MANIFEST = "manifest.json"
_FORMAT = 1
_PUBLISHING = "publishing"
_FINISHED = "finished"


@dataclass
class Journal:
    """The unfinished work of one run; `Journal.open` creates it.

    As a context manager it is removed after success, or where there is nothing to keep; else it is released.

    Attributes
    ----------
    folder : Path
        ``<output>.partial``.
    blocks : Path
        Folder of the blocks; its name depends on the fingerprint.
    """

    folder: Path
    blocks: Path
    _lock: FileLock = field(repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        fingerprint: Mapping[str, Any],
        *,
        restart: bool = False,
        discards: str = "restart=True",
        tmp: Path | None = None,
        result: str | None = None,
    ) -> Journal:
        """Begin a journal, or go on with an unfinished one, and lock it.

        Parameters
        ----------
        folder : Path
            Created if need be; its parent must exist.
        fingerprint : mapping
            Everything that the result depends on; nested mappings of JSON values.
        restart : bool, optional (default: False)
            Discard unfinished work.
        discards : str, optional (default: "restart=True")
            The setting that does so, for messages.
        tmp : Path, optional
            Folder to keep a new journal in, with a link in its own place.
        result : str, optional
            Provenance that the result will carry, for `clear`.

        Raises
        ------
        JournalError
            If the unfinished work belongs to another fingerprint (the message names what differs), is damaged
            or of another format, or another run is writing here.
        OutputError
            If the folder cannot be written.
        """
        folder = Path(folder)
        try:
            _make(folder, tmp)
        except OSError as error:
            refuse(error, folder)
        lock = lock_folder(folder)
        digest = hashlib.sha256(canonical(fingerprint).encode()).hexdigest()[:16]
        journal = cls(folder, folder / f"blocks-{digest}", lock)
        try:
            journal._begin(fingerprint, restart, discards, result)
        except OSError as error:
            journal.release()
            refuse(error, folder)
        except BaseException:
            journal.release()
            raise
        return journal

    @classmethod
    def resume(cls, folder: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Journal:
        """Begin, or go on, for a command with ``--overwrite``, which discards work of another fingerprint."""
        restart = overwrite and _differs(folder, fingerprint)
        return cls.open(folder, fingerprint, restart=restart, discards="overwrite=True")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None or not self.begun:
                self.remove()
        finally:
            self.release()

    def _begin(
        self, fingerprint: Mapping[str, Any], restart: bool, discards: str, result: str | None
    ) -> None:
        manifest = self.folder / _MANIFEST
        old_blocks = list(self.folder.glob("blocks-*"))
        if restart or (self.folder / _FINISHED).exists():
            # Blocks go first: a crash in between leaves a valid journal with fewer of them.
            for old in old_blocks:
                shutil.rmtree(old)
        elif self.publishing or any(any(old.iterdir()) for old in old_blocks):
            _check_manifest(manifest, fingerprint, discards)
        content = {"format": _FORMAT, "software": f"sar2eo {__version__}", "fingerprint": fingerprint}
        content |= {} if result is None else {"result": result}
        write_json(manifest, content)
        self.blocks.mkdir(exist_ok=True)
        self._delete_leftovers()
        sync_folder(self.folder)

    @classmethod
    def clear(cls, folder: Path, result: str) -> None:
        """Remove the journal of a run that was stopped after its result, or an equal one, was complete.

        Unfinished work of another result stays.

        Parameters
        ----------
        folder : Path
            ``<output>.partial``, or a link of that name.
        result : str
            As given to `open`.
        """
        try:
            made: object = json.loads((folder / _MANIFEST).read_bytes()).get("result")
        except (OSError, ValueError, AttributeError):
            made = None
        if made == result or (folder / _FINISHED).exists() or not any(folder.glob("blocks-*/*")):
            cls.open(folder, {}, restart=True).remove()

    def _delete_leftovers(self) -> None:
        for temporary in (*self.folder.glob(".*.tmp"), *self.blocks.glob(".*.tmp")):
            temporary.unlink(missing_ok=True)
        for stale in (self.folder / "assembled", *self.folder.glob("blocks-*")):
            if stale != self.blocks and stale.exists():
                shutil.rmtree(stale)
        (self.folder / _FINISHED).unlink(missing_ok=True)

    @staticmethod
    def check_free(folder: Path) -> None:
        """Raise `JournalError` if another run is writing here, before the work is prepared.

        Another one may still begin in between: `open` checks again. `folder` need not exist.
        """
        if (folder / LOCK).exists():
            lock_folder(folder).release()

    def writer(self) -> BlockWriter:
        """Return a writer of blocks into this journal; it pickles as a path."""
        return BlockWriter(str(self.blocks.absolute()))

    def finished(self, variable: str, windows: Iterable[Window]) -> set[Window]:
        """Return those of `windows` whose block is there and undamaged.

        Every byte of them is read and checked; damaged blocks are deleted.
        """
        wanted = set(windows)
        whole = set()
        for path, name, window, expected in self._list_blocks():
            if name != variable or window not in wanted:
                continue
            if window not in whole and checksum(path.read_bytes()) == expected:
                whole.add(window)
            else:
                path.unlink()
        return whole

    def paths(self, variable: str) -> dict[Window, Path]:
        """Return the files of all blocks of a variable, without reading them."""
        return {window: path for path, name, window, _ in self._list_blocks() if name == variable}

    def _list_blocks(self) -> list[tuple[Path, str, Window, str]]:
        matches = [(path, NAME.fullmatch(path.name)) for path in sorted(self.blocks.iterdir())]
        return [
            (path, found[1], Window(*(int(found[i]) for i in range(2, 6))), found[6])
            for path, found in matches
            if found
        ]

    @staticmethod
    def is_publishing(folder: Path) -> bool:
        """Whether an earlier run was stopped while it replaced results, which may be of two runs."""
        return (folder / _PUBLISHING).exists()

    @property
    def publishing(self) -> bool:
        """As `is_publishing`, for this journal."""
        return self.is_publishing(self.folder)

    def begin_publishing(self) -> None:
        """Write down that results are being replaced from now on, until `remove`."""
        try:
            (self.folder / _PUBLISHING).touch()
        except OSError as error:
            refuse(error, self.folder)
        sync_folder(self.folder)

    @property
    def begun(self) -> bool:
        """Whether there is something to keep: work, or results to finish; or the journal was released."""
        return not self._lock.is_locked or self.publishing or any(self.blocks.iterdir())

    def release(self) -> None:
        """Unlock the journal and keep it for a later run; it may be called twice."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the journal, after success. Other files in its folder are kept."""
        if not self._lock.is_locked:
            self._lock = lock_folder(self.folder)
        # After a crash in the middle, the next run must not refuse to go on.
        publishing, finished = self.folder / _PUBLISHING, self.folder / _FINISHED
        with suppress(OSError):  # a disk that is full, say
            publishing.replace(finished) if publishing.exists() else finished.touch()
        shutil.rmtree(self.blocks, ignore_errors=True)
        shutil.rmtree(self.folder / "assembled", ignore_errors=True)
        (self.folder / _MANIFEST).unlink(missing_ok=True)
        if not self.blocks.exists():
            finished.unlink(missing_ok=True)
        (self.folder / LOCK).unlink(missing_ok=True)
        self.release()
        with suppress(OSError):
            self.folder.resolve().rmdir()
            self.folder.unlink(missing_ok=True)  # of a link


def _make(folder: Path, tmp: Path | None) -> None:
    """Make the folder of a journal; in `tmp`, with a link to it where the journal belongs."""
    if folder.is_symlink() and not folder.exists():
        folder.unlink()  # temporary space is cleared now and then
    if tmp is None or folder.exists():
        folder.mkdir(exist_ok=True)
        check_owner(folder, folder.lstat())
        check_owner(folder.resolve(), folder.stat())
        return
    here = folder.absolute()
    place = tmp.absolute() / f"{here.stem}-{hashlib.sha256(str(here).encode()).hexdigest()[:8]}{here.suffix}"
    place.mkdir(exist_ok=True)
    check_owner(place, place.lstat())
    with suppress(FileExistsError):  # of another run: the lock decides
        folder.symlink_to(place, target_is_directory=True)


def _check_manifest(manifest: Path, fingerprint: Mapping[str, Any], discards: str) -> None:
    folder = manifest.parent
    try:
        content = json.loads(manifest.read_bytes())
        version, old = content["format"], content["fingerprint"]
        found = differences(old, fingerprint) if version == _FORMAT else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(f"{folder}: its manifest is damaged: {discards} discards this work") from error
    if version != _FORMAT:
        raise JournalError(
            f"{folder}: format {version!r} of unfinished work is not known, this is {_FORMAT} "
            f"(another version of sar2eo made it?): {discards} discards it"
        )
    if found:
        raise JournalError(
            f"{folder} holds unfinished work of another run, which differs in {found}: "
            f"repeat the earlier command to finish it, or pass {discards} to discard it"
        )


_NAMED = 5
_LONGEST = 60


def canonical(fingerprint: Mapping[str, Any]) -> str:
    """Return the JSON text of a fingerprint, the same for equal fingerprints."""
    return json.dumps(json_values(fingerprint), sort_keys=True, allow_nan=False)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one with dotted keys."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two fingerprints, briefly; empty if nothing does."""
    before, after = (
        {key: json.dumps(value) for key, value in flatten(json.loads(canonical(each))).items()}
        for each in (old, new)
    )
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    # The graph's names differ whenever anything does: they matter only where nothing else differs.
    keys = [key for key in keys if not key.startswith("graph.")] or keys
    named = [f"{key} {_short(before.get(key))} -> {_short(after.get(key))}" for key in keys]
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(named[:_NAMED])}{more}"


def _short(text: str | None) -> str:
    text = "(nothing)" if text is None else text
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _differs(journal: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Check whether the folder of a journal exists and may belong to another fingerprint."""
    try:
        made = json.loads((journal / _MANIFEST).read_bytes())["fingerprint"]
        return bool(differences(made, fingerprint))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return journal.exists()


NAME = re.compile(r"([a-z0-9_]+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.([0-9a-f]{8})\.tif")
"""Variable, row, column, height, width, and CRC-32 of the file."""

_TILE = 512


@dataclass(frozen=True)
class BlockWriter:
    """Writes blocks into a journal from any thread, process or machine that sees its folder.

    Parameters
    ----------
    folder : str
        The journal's folder of blocks. It is never created here: a worker that outlives its run must not
        write into the journal of the next.
    """

    folder: str

    def write(self, variable: str, window: Window, bands: npt.NDArray[Any]) -> None:
        """Write one block, and flush it to disk.

        Parameters
        ----------
        variable : str
            Lower-case letters, digits and underscores.
        window : Window
            Place of the block in the output.
        bands : ndarray of uint8 or float32, shape (band, height, width)
            512 x 512 tiles of nothing but 0 (uint8) or NaN (float32) take no disk space.

        Raises
        ------
        OutputError
            If it cannot be written: the message names the folder and the space needed.
        ValueError
            If name, shape or dtype are not as above.
        """
        if not re.fullmatch(r"[a-z0-9_]+", variable):
            raise ValueError(f"variable={variable!r}: lower-case letters, digits and underscores only")
        if bands.shape[1:] != (window.height, window.width) or bands.dtype not in (np.uint8, np.float32):
            raise ValueError(f"a block of {bands.dtype} {bands.shape} does not fit {window}")
        folder = Path(self.folder)
        with _encode(window, bands) as data:
            name = f"{variable}.{'.'.join(map(str, window))}.{checksum(data)}.tif"
            write_file(folder / name, data)


@contextmanager
def _encode(window: Window, bands: npt.NDArray[Any]) -> Iterator[memoryview]:
    """Yield the bytes of a block as an uncompressed, tiled GeoTIFF."""
    count, height, width = bands.shape
    layout = {"tiled": True, "blockysize": _tile(height), "blockxsize": _tile(width), "interleave": "band"}
    nodata = {"nodata": float("nan")} if bands.dtype == np.float32 else {}
    # Never the identity, which would be taken for a lack of georeference and warned about.
    place = Affine.translation(window.col + 1, window.row + 1)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype=bands.dtype.name,
            count=count,
            height=height,
            width=width,
            transform=place,
            sparse_ok=True,
            **layout,
            **nodata,
        ) as raster:
            raster.write(bands)
        yield memoryview(memory.getbuffer())


def _tile(size: int) -> int:
    """Return the tile size along an axis: 512, or less for a smaller block."""
    # TIFF asks for multiples of 16.
    return min(_TILE, -(-size // 16) * 16)
