"""Where unfinished work lies; results for an object store are made there, and uploaded when whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sar2eo.errors import OutputError, SettingsError
from sar2eo.results.stac_output import COLLECTION
from sar2eo.store import s3
from sar2eo.store.http import Found

__all__ = ["Destination", "check_tmp"]


@dataclass(frozen=True)
class Destination:
    """A prefix in an object store, and the local folder in which what goes there is made.

    Parameters
    ----------
    url : str
        Of the prefix, ending in ``/``.
    folder : Path
        Holds unfinished work, and finished files until they are uploaded; the same for the same output, so
        that the same command goes on.
    probe : str
        URL of something that will be written.
    """

    url: str
    folder: Path
    probe: str

    @classmethod
    def of(cls, out: str, tmp: Path | None) -> Destination:
        """Return the destination of a result, or of a prefix for many.

        Parameters
        ----------
        out : str
            ``s3://bucket/key.tif``, or ``s3://bucket/prefix/``.
        tmp : Path or None
            Where the local folder is, or will be; by default where the process runs.

        Raises
        ------
        SettingsError
            If it is no such name.
        """
        bucket, key = s3.split_url(out)
        single = Path(key).suffix.lower() in (".tif", ".tiff") and not key.endswith("/")
        parts = key.removesuffix("/").split("/") if key.strip("/") else []
        if not bucket or any(part in ("", ".", "..") for part in parts):
            raise SettingsError(f"{out!r}: must be s3://bucket/key.tif, or s3://bucket/prefix/ for many")
        url = "/".join([f"s3://{bucket}", *(parts[:-1] if single else parts), ""])
        whole = url + parts[-1] if single else url
        name = f"{Path(parts[-1]).stem if parts else bucket}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        place = (tmp or Path()).absolute() / f"{name}.partial"
        return cls(url, place, whole if single else url + COLLECTION)

    def url_of(self, path: Path) -> str:
        """Return where a file of the folder will be."""
        return self.url + path.name

    def beside(self, url: str) -> Path:
        """Return the file of the folder that will be at a URL.

        Raises
        ------
        SettingsError
            If that is not right under the prefix.
        """
        name = url.removeprefix(self.url)
        if not url.startswith(self.url) or not name or "/" in name:
            raise SettingsError(f"{url}: must be beside the EO image, right under {self.url}")
        return self.folder / name

    def make(self) -> None:
        """Make the folder.

        Raises
        ------
        OutputError
            If it cannot be made.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror}): give a --tmp") from error

    def leave(self) -> None:
        """Delete the folder, if nothing waits in it."""
        with suppress(OSError):
            self.folder.rmdir()

    @cached_property
    def present(self) -> Mapping[str, Found]:
        """What was under the prefix, by name, when it was asked for first.

        Raises
        ------
        OutputError
            If it cannot be listed.
        """
        return self.listed()

    def listed(self) -> dict[str, Found]:
        """Return what is under the prefix now, by name.

        Raises
        ------
        OutputError
            If it cannot be listed.
        """
        with self._told():
            return s3.list_objects(self.url)

    def check(self) -> None:
        """Refuse a place that cannot be listed, or where nothing may be written.

        Raises
        ------
        OutputError
        """
        with self._told():
            _ = self.present
            s3.check_writable(self.probe)

    def texts(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return what is in small files under the prefix, by name.

        Raises
        ------
        OutputError
            If that cannot be read.
        """
        from concurrent.futures import ThreadPoolExecutor

        with self._told(), ThreadPoolExecutor(8, "sar2eo-items") as pool:
            return dict(pool.map(lambda name: (name, s3.fetch(self.url + name)), names))

    def upload(self, path: Path, name: str) -> None:
        """Upload a file, checked as `sar2eo.store.s3.upload` does.

        Raises
        ------
        OutputError
            If it cannot be uploaded.
        """
        with self._told():
            s3.upload(path, self.url + name)

    def delete(self, name: str) -> None:
        """Delete what is there of that name, if anything is.

        Raises
        ------
        OutputError
            If that is refused.
        """
        with self._told():
            s3.delete(self.url + name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(str(error)) from error


def check_tmp(tmp: Path | None) -> None:
    """Refuse a folder for unfinished work that could not be used.

    Parameters
    ----------
    tmp : Path or None
        None: the work lies beside the result.

    Raises
    ------
    OutputError
        If it is not there, or not writable.
    """
    if tmp is not None and not tmp.is_dir():
        raise OutputError(f"--tmp {tmp}: there is no such folder: make it first")
    if tmp is not None and not os.access(tmp, os.W_OK | os.X_OK):
        raise OutputError(f"--tmp {tmp}: it is not writable")
