"""GDAL handles: opened when first needed, used by one thread at a time, and bounded in number."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from sar2eo.errors import SceneError
from sar2eo.scene.plausibility import check_readable

__all__ = ["borrowed", "gdal_path", "is_remote", "opened", "warning_filters"]

IDLE_LIMIT = 32
"""Handles that stay open, of all scenes together, while nobody reads."""

# https://gdal.org/en/stable/user/configoptions.html: no listing of the folder (there may be
# thousands of files, or no right to list), patience with a server that hiccups, none with a dead one.
REMOTE_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MULTIRANGE": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "VSI_CACHE": True,
}

_SCHEMES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
    "file": "/",
}
_REMOTE = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)")

_idle: OrderedDict[tuple[str, str, int], list[Any]] = OrderedDict()
_lock = threading.Lock()
warning_filters = threading.Lock()
"""Held while warnings are set aside: their filters belong to the process, not to a thread."""


def gdal_path(source: str | Path) -> str:
    """Turn a path or URL into what GDAL opens: ``s3://b/k`` becomes ``/vsis3/b/k``."""
    text = str(source)
    scheme, found, rest = text.partition("://")
    if found and scheme.lower() in _SCHEMES:
        return _SCHEMES[scheme.lower()] + (rest.lstrip("/") if scheme.lower() == "file" else rest)
    return text


def is_remote(path: str) -> bool:
    """Whether GDAL reads this path over a network."""
    return _REMOTE.match(path) is not None


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open a raster for a moment.

    Raises
    ------
    SceneError
        If GDAL cannot open it.
    """
    with _environment(path):
        dataset = _open(path)
        try:
            yield dataset
        finally:
            dataset.close()


@contextmanager
def borrowed(path: str, stamp: str) -> Iterator[Any]:
    """Lend an open dataset to one thread.

    Parameters
    ----------
    path : str
        What GDAL opens.
    stamp : str
        Names the content, so that a file replaced under the same name is opened afresh.

    Raises
    ------
    SceneError
        If GDAL cannot open it any more.
    """
    # The process is part of the key: a handle inherited through a fork shares its file position.
    key = (path, stamp, os.getpid())
    with _environment(path):
        with _lock:
            dataset = _idle[key].pop() if _idle.get(key) else None
        if dataset is None:
            dataset = _open(path)
        try:
            yield dataset
        except RasterioIOError as error:
            dataset.close()
            raise SceneError(f"{path}: cannot be read, is it damaged? ({_line(error)})") from error
        except BaseException:
            dataset.close()
            raise
        with _lock:
            _idle.setdefault(key, []).append(dataset)
            _idle.move_to_end(key)
            surplus = _surplus()
    for each in surplus:
        each.close()


def _surplus() -> list[Any]:
    """Take the handles used longest ago out of the idle ones, down to the limit."""
    taken = []
    while sum(map(len, _idle.values())) > IDLE_LIMIT:
        oldest = next(iter(_idle))
        taken.append(_idle[oldest].pop(0))
        if not _idle[oldest]:
            del _idle[oldest]
    return taken


def _environment(path: str) -> AbstractContextManager[Any]:
    if not is_remote(path):
        # Without an environment GDAL writes its warnings straight to the terminal.
        local: AbstractContextManager[Any] = rasterio.Env()
        return local
    # What the user sets for GDAL, in the environment or around the call, stays.
    known = {*os.environ, *(rasterio.env.getenv() if rasterio.env.hasenv() else ())}
    options = {name: value for name, value in REMOTE_OPTIONS.items() if name not in known}
    environment: AbstractContextManager[Any] = rasterio.Env(**options)
    return environment


def _open(path: str) -> Any:
    check_readable(path)
    try:
        with warning_filters, warnings.catch_warnings():
            # Whether a scene needs a georeference is decided by who opens it, with a better message.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path, sharing=False)
    except RasterioIOError as error:
        raise SceneError(f"{path}: GDAL cannot open it as a raster ({_line(error)})") from error


def _line(error: Exception) -> str:
    """Put GDAL's message, and that of its cause, on one line."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    return " ".join("; ".join(map(str, causes)).split())
