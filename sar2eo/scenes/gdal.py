"""GDAL: the names it takes for scenes, and its handles, few in number, each used by one thread at a time."""

from __future__ import annotations

import functools
import os
import re
import stat
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from sar2eo.errors import PolarisationError, SceneError, hide_secrets, one_line
from sar2eo.geo.grid import ignore_missing_georeference
from sar2eo.geo.radiometry import POLARISATIONS
from sar2eo.store import http, s3
from sar2eo.store.documents import read_start

T = TypeVar("T")

IDLE_LIMIT = 32
"""Idle handles that stay open, of all scenes together."""

RETRIES = 3
"""Of opening and reading over a network; GDAL itself does not repeat a transfer that was cut short."""

# https://gdal.org/en/stable/user/configoptions.html: no listing of the folder (there may be
# thousands of files, or no right to list), patience with a server that falters, none with a dead one.
REMOTE_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": http.RETRIES,
    "GDAL_HTTP_RETRY_DELAY": http.DELAY_SECONDS,
    "GDAL_HTTP_CONNECTTIMEOUT": http.CONNECT_SECONDS,
    "GDAL_HTTP_LOW_SPEED_TIME": http.READ_SECONDS,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,
    "GDAL_HTTP_MULTIRANGE": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}
# Drivers of text that leads to other files or to the network, and what such a file is called.
_LEADING: dict[str, tuple[str, ...]] = {
    "VRT": (".vrt",),
    "GTI": (".gti",),
    "WMS": (".xml", ".wms"),
    "WMTS": (".xml",),
    "WCS": (".xml", ".wcs"),
    "MRF": (".mrf",),
    "KMLSUPEROVERLAY": (".kml", ".kmz"),
    "STACIT": (".json",),
    "STACTA": (".json",),
    **dict.fromkeys(("DAAS", "EEDAI", "HTTP", "NGW", "OGCAPI", "PLMOSAIC"), ()),
}
# A VRT may hold Python code, which would run.
_SAFE_OPTIONS = {"GDAL_VRT_ENABLE_PYTHON": "NO"}
# GDAL caches what it has read of a file, even if that was cut short; not of one that is closed under this.
_FORGETTING = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/", "GDAL_HTTP_MAX_RETRY": 0}

_SCHEMES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
    "file": "/",
}
_COLOURS = ("red", "green", "blue", "cloud")
_PAIR = re.compile(rf"(?:^|,)\s*({'|'.join((*POLARISATIONS, *_COLOURS))})=", re.I)
_ARCHIVE = re.compile(r"/vsi(?:zip|tar|gzip|7z)/\{?(.+?\.(?:zip|kmz|tar|tgz|tar\.gz|gz|7z))\}?(?:/|$)", re.I)
_REMOTE = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)[/?]")

_idle: OrderedDict[tuple[str, str, int], list[Any]] = OrderedDict()
_versions: dict[str, str] = {}
_watched: dict[tuple[str, str], list[str]] = {}
_lock = threading.Lock()


# Far beyond any SAR scene (a strip once around the Earth at 10 m; a million square kilometres at 4 m), and
# within what coordinates and windows can be counted for: more is a header that was damaged or made up.
MAX_SIDE = 1 << 22
MAX_PIXELS = 1 << 36
MAX_BANDS = 2000  # more than any stack of dates or hyperspectral image, and each takes time
# A block is decoded as one. Programs write a whole image as one strip, and then every window costs all of it.
MAX_BLOCK_BYTES = 1 << 30
_NUMPY_NAMES = {"complex_int16": "complex64"}  # which NumPy does not have


def gdal_path(source: str | Path) -> str:
    """Turn a path or URL into what GDAL opens: ``s3://b/k`` becomes ``/vsis3/b/k``."""
    text = str(source)
    scheme, found, rest = text.partition("://")
    if found and scheme.lower() in _SCHEMES:
        return _SCHEMES[scheme.lower()] + (rest.lstrip("/") if scheme.lower() == "file" else rest)
    return text


def is_remote(path: str) -> bool:
    """Whether GDAL reads this path over a network."""
    return _REMOTE.search(path) is not None


def display_name(source: str) -> str:
    """Name a scene in messages and results: URLs without passwords and signatures."""
    try:
        parsed = parse_source(source)
    except PolarisationError:
        return source
    if isinstance(parsed, dict):
        return ",".join(f"{polarisation}={display_name(file)}" for polarisation, file in parsed.items())
    if not is_remote(gdal_path(source)):
        return source
    for scheme, prefix in _SCHEMES.items():
        if source.startswith(prefix) and scheme != "file":
            source = f"{scheme}://{source.removeprefix(prefix)}"
    return hide_secrets(source)


def parse_source(source: str | Path | Mapping[str, str | Path]) -> str | dict[str, str]:
    """Read ``VV=a.tif,VH=b.tif`` as a dict of files by polarisation; leave a path or URL as it is.

    Of optical scenes, ``red=a.tif,green=b.tif,blue=c.tif`` and a mask, ``cloud=d.tif``, are read alike.
    A `PolarisationError` is raised for a name that is no polarisation, is given twice, or has no file.
    """
    if isinstance(source, Mapping):
        names = check_polarisations(list(source)) or ()
        return dict(zip(names, map(str, source.values()), strict=True))
    text = str(source)
    starts = list(_PAIR.finditer(text))
    if not starts or starts[0].start() != 0:
        return text
    stops = [match.start() for match in starts[1:]] + [len(text)]
    colours = [match[1].lower() for match in starts]
    optical = set(colours) <= set(_COLOURS) and len(set(colours)) == len(colours)
    names = tuple(colours) if optical else check_polarisations([match[1] for match in starts]) or ()
    files = [text[match.end() : stop].strip() for match, stop in zip(starts, stops, strict=True)]
    unnamed = [name for name, file in zip(names, files, strict=True) if not file]
    if unnamed:
        raise PolarisationError(f"{text!r}: {unnamed[0]}= names no file")
    return dict(zip(names, files, strict=True))


def check_polarisations(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return polarisations, of a list or ``"VV,VH"``, in capitals; refuse unknown and repeated ones."""
    if names is None:
        return None
    parts = names.split(",") if isinstance(names, str) else names
    checked = tuple(str(name).strip().upper() for name in parts)
    if not checked or len(set(checked)) != len(checked) or not set(checked) <= set(POLARISATIONS):
        raise PolarisationError(
            f"polarisations={','.join(checked) or 'none'}: allowed are {', '.join(POLARISATIONS)}, each once"
        )
    return checked


@contextmanager
def open_dataset(path: str, version: str | None = None) -> Iterator[Any]:
    """Open a raster for a moment; a `SceneError` is raised where GDAL cannot.

    Parameters
    ----------
    path : str
        As GDAL opens it.
    version : str, optional
        Of a remote file. Where it differs from the last time, GDAL's cached blocks of the file are dropped.
    """
    if version is not None and _versions.setdefault(path, version) != version:
        _forget(path)
        _versions[path] = version
    with _environment(path):
        check_readable(path)
        dataset = _persistently(path, lambda: _open(path))
        try:
            yield dataset
        finally:
            dataset.close()


def find_archive(path: str) -> str | None:
    """Return the archive of a path into one, such as ``/vsizip/a.zip/b.tif``."""
    found = _ARCHIVE.match(path)
    return None if found is None else found[1]


def list_files(dataset: Any) -> list[str]:
    """List the files of an open dataset, and those that VRTs among them name."""
    found: dict[str, None] = {}
    waiting = list(dataset.files)
    opened_by_caller = waiting[:1]
    while waiting:
        path = waiting.pop(0)
        if path not in found:
            found[path] = None
            if path.endswith(".vrt") and path not in opened_by_caller:
                with open_dataset(path) as inner:
                    waiting += inner.files
    return list(found)


def stamp_files(files: Iterable[str], etag: str | None = None) -> str:
    """Return a text that changes whenever local files are written, and holds the ETag of a remote one."""
    sizes = []
    for path in files:
        if not path.endswith((".aux.xml", ".ovr")):  # any viewer may write them
            with suppress(OSError):
                status = Path(find_archive(path) or path).stat()
                sizes.append(f"{status.st_size}:{status.st_mtime_ns}")
    strong = etag if etag and not etag.startswith("W/") else ""
    return f"|{zlib.crc32(' '.join(sizes).encode())}|{strong}"


def _check_unchanged(path: str, stamp: str, dataset: Any) -> None:
    """Refuse a local file that was written or replaced since it was opened."""
    if is_remote(path):
        return
    files = _watched.get((path, stamp)) or _watched.setdefault((path, stamp), list_files(dataset))
    if not stamp.endswith(stamp_files(files)):
        raise SceneError(f"{path}: has changed since it was opened: run again when nobody writes to it")


def read_dataset(path: str, stamp: str, read: Callable[[Any], T]) -> T:
    """Read from an open dataset that one thread holds; over a network, try again after a failure.

    A `SceneError` is raised where a file has changed since it was stamped: its pixels are never mixed.

    Parameters
    ----------
    path : str
        As GDAL opens it.
    stamp : str
        Names the content, so that a file replaced under the same name is opened afresh; ends with what
        `stamp_files` returned before.
    read : callable
        Takes the dataset. Called again after a failure.
    """
    # The process is part of the key: a handle inherited through a fork shares its file position.
    key = (path, stamp, os.getpid())

    def attempt() -> T:
        with _environment(path, stamp):
            with _lock:
                dataset = _idle[key].pop() if _idle.get(key) else None
            if dataset is None:
                check_readable(path)
                dataset = _open(path)
            try:
                found = read(dataset)
                _check_unchanged(path, stamp, dataset)
            except RasterioIOError as error:
                _check_unchanged(path, stamp, dataset)
                dataset.close()
                reason = _line(error, path)
                raise SceneError(
                    f"{display_name(path)}: cannot be read, is it damaged? ({reason})"
                ) from error
            except BaseException:
                dataset.close()
                raise
            with _lock:
                _idle.setdefault(key, []).append(dataset)
                _idle.move_to_end(key)
                surplus = _surplus()
        for each in surplus:
            each.close()
        return found

    return _persistently(path, attempt)


def _persistently(path: str, attempt: Callable[[], T]) -> T:
    """Try again what fails over a network, a little later each time."""
    for number in range(RETRIES if is_remote(path) else 0):
        try:
            return attempt()
        except SceneError:
            _forget(path)
            time.sleep(http.DELAY_SECONDS * 2**number)
    return attempt()


def _forget(path: str) -> None:
    """Close the idle handles of a path, and drop what GDAL has cached of it."""
    with _lock:
        mine = [key for key in _idle if key[0] == path and key[2] == os.getpid()]
        closing = [each for key in mine for each in _idle.pop(key)]
    for each in closing:
        each.close()
    with suppress(SceneError), _environment(path), rasterio.Env(DummySession(), **_FORGETTING):
        _open(path).close()


def _surplus() -> list[Any]:
    """Take the handles used longest ago out of the idle ones, down to the limit."""
    taken = []
    while sum(map(len, _idle.values())) > IDLE_LIMIT:
        oldest, handles = next(iter(_idle.items()))
        taken += handles[:1]
        del handles[:1]
        if not handles:  # perhaps before: its only handle is in use
            del _idle[oldest]
    return taken


def _environment(path: str, stamp: str = "") -> AbstractContextManager[Any]:
    # Without a session of ours, rasterio makes one of boto3's for each environment.
    if not is_remote(path):
        # Without an environment GDAL writes its warnings straight to the terminal.
        local: AbstractContextManager[Any] = rasterio.Env(DummySession(), **_SAFE_OPTIONS)
        return local
    # What the user sets for GDAL, in the environment or around the call, stays.
    known = {*os.environ, *(rasterio.env.getenv() if rasterio.env.hasenv() else ())}
    options = {name: value for name, value in REMOTE_OPTIONS.items() if name not in known}
    session = DummySession()
    if "/vsis3/" in path:
        try:
            session, more = s3.gdal_environment()
        except OSError as error:
            raise SceneError(str(error)) from error
        options |= more
    etag = stamp.rpartition("|")[2]
    if etag and "GDAL_HTTP_HEADERS" not in known:
        options["GDAL_HTTP_HEADERS"] = f"If-Match: {etag}\r\n"
    environment: AbstractContextManager[Any] = rasterio.Env(session, **options, **_SAFE_OPTIONS)
    return environment


def _open(path: str) -> Any:
    try:
        # Whether a scene needs a georeference is decided by who opens it, with a better message.
        with ignore_missing_georeference():
            return DatasetReader(path, driver=_choose_drivers(path), sharing=False)
    except RasterioIOError as error:
        reason = _line(error, path)
        if _is_markup(path):
            reason = "it is text that may lead elsewhere: a VRT must be called .vrt, a WMS .xml"
        elif is_remote(path) and "412" in reason:
            reason = "it has changed since it was opened"
        raise SceneError(f"{display_name(path)}: GDAL cannot open it as a raster ({reason})") from error


def _choose_drivers(path: str) -> list[str]:
    """Return the drivers that may open a path: those whose files lead elsewhere only where it says so."""
    plain = path.partition("?")[0].lower()
    return [
        name
        for name in _list_drivers()
        if name not in _LEADING or plain.endswith(_LEADING[name]) or plain.startswith(f"{name.lower()}:")
    ]


@functools.cache
def _list_drivers() -> list[str]:
    with rasterio.Env() as environment:
        return sorted(environment.drivers())


def _is_markup(path: str) -> bool:
    with suppress(OSError, ValueError):
        if Path(path).is_file():
            return read_start(Path(path)).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<")
    return False


def _line(error: Exception, path: str) -> str:
    """Put GDAL's message, and that of its cause, on one line."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    text = one_line("; ".join(map(str, causes)))
    query = path.partition("?")[2]  # GDAL also names a file without its server
    return text.replace(f"?{query}", "") if query else text


def check_readable(path: str) -> None:
    """Refuse what would block a reader for ever, or has no name that GDAL can take.

    Pipes, sockets, devices, standard input, and names that the system refuses. What does not exist may still
    be something that a driver knows.
    """
    if path.startswith("/vsistdin"):
        raise SceneError(f"{path}: a scene is read in pieces and more than once, so not from standard input")
    try:
        path.encode()
        kind = Path(path).stat().st_mode
    except UnicodeEncodeError as error:
        raise SceneError(
            f"{path!r}: the name is not valid UTF-8, and GDAL takes no other: rename it"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # too long, a loop of links, no right to look, a null character
        reason = getattr(error, "strerror", None) or error
        raise SceneError(f"{path}: cannot be looked up ({reason})") from error
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise SceneError(
            f"{path}: neither a file nor a folder, but a pipe, a socket or a device: give a file"
        )


def check_size(dataset: Any, path: str) -> None:
    """Refuse a raster with more pixels than a scene can have, or in blocks too large for memory."""
    rows, cols = dataset.shape
    if dataset.count > MAX_BANDS:
        raise SceneError(f"{path}: {dataset.count} bands, and a scene has {MAX_BANDS} at most")
    if max(rows, cols) > MAX_SIDE or rows * cols > MAX_PIXELS:
        raise SceneError(
            f"{path}: its header claims {rows} x {cols} pixels, more than any SAR scene has (at most "
            f"{MAX_SIDE} along a side and {MAX_PIXELS:.2g} in all): is the file damaged?"
        )
    high, wide = dataset.block_shapes[0]
    size = high * wide * np.dtype(_NUMPY_NAMES.get(dataset.dtypes[0], dataset.dtypes[0])).itemsize
    if size > MAX_BLOCK_BYTES:
        raise SceneError(
            f"{path}: stored in blocks of {high} x {wide} pixels, {size / 2**30:.1f} GiB each, and none can "
            "be read in part: rewrite it with gdal_translate -co TILED=YES"
        )
