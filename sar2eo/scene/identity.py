"""What tells one input file from another: name, size, time, and a sample of its bytes."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sar2eo.scene.handles import is_remote

__all__ = ["digest", "file_identity", "files_identity"]

_BLOCK_BYTES = 64 * 1024
_BLOCKS = 16
_ARCHIVE = re.compile(r"/vsi(?:zip|tar|gzip|7z)/\{?(.+?\.(?:zip|kmz|tar|tgz|tar\.gz|gz|7z))\}?(?:/|$)", re.I)


def file_identity(path: str) -> dict[str, Any]:
    """Identify one file, local or remote, in a few milliseconds.

    Parameters
    ----------
    path : str
        A path or URL as GDAL reads it; a member of an archive is identified by the archive.

    Returns
    -------
    dict
        Local: name, bytes, mtime_ns, and sha256 of up to 18 blocks of 64 KiB (the first, the last
        and seeded ones between; all of a small file). Remote: href, with bytes and etag (or
        time of modification) where the server tells them for one HEAD request. Otherwise the path alone.
    """
    archive = _ARCHIVE.match(path)
    if archive:
        return {**file_identity(archive[1]), "member": path.rpartition("/")[2]}
    if path.startswith("/vsicurl/"):
        return _web_identity(path.removeprefix("/vsicurl/"))
    local = Path(path)
    if is_remote(path) or not local.is_file():
        return {"href": path}
    status = local.stat()
    sample = _sampled_sha256(local, status.st_size)
    return {"name": local.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sample}


def files_identity(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Identify several files, each named once, overviews left out (they are never read)."""
    chosen = dict.fromkeys(p for p in paths if not p.endswith(".ovr"))
    return [file_identity(path) for path in chosen]


def digest(values: Any) -> str:
    """Return a short hash of JSON values, the same in every process."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _sampled_sha256(path: Path, size: int) -> str:
    starts = [0]
    if size > (_BLOCKS + 2) * _BLOCK_BYTES:
        draw = np.random.Generator(np.random.Philox(size))
        inner = sorted(draw.integers(_BLOCK_BYTES, size - 2 * _BLOCK_BYTES, size=_BLOCKS).tolist())
        starts = [0, *inner, size - _BLOCK_BYTES]
        length = _BLOCK_BYTES
    else:
        length = size
    found = hashlib.sha256()
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            found.update(file.read(length))
    return found.hexdigest()


def _web_identity(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {"href": url}
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 (the scheme is checked above)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            size, etag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
            modified = answer.headers.get("Last-Modified")
    except (urllib.error.URLError, OSError, ValueError):
        return {"href": url}
    if etag is None:
        return {"href": url, "bytes": size and int(size), "modified": modified}
    # The query of a signed URL changes with every signature; the content is known by its tag.
    return {"href": url.partition("?")[0], "bytes": size and int(size), "etag": etag}
