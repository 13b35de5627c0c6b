"""Identity of input files: name, size, time, and a hash of a sample of their bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sar2eo.errors import SceneError
from sar2eo.scenes.gdal import display_name, find_archive, is_remote
from sar2eo.store import http, s3
from sar2eo.store.documents import parse_xml, read_file

_SIDECAR = ".aux.xml"
_ARRAY = (".zarray", "zarr.json")  # of Zarr, version 2 and 3: what GDAL names of an array
_BLOCK_BYTES = 64 * 1024
_BLOCKS = 16
_GDAL_KEYS = (
    "GDAL_HTTP_USERPWD",
    "GDAL_HTTP_BEARER",
    "GDAL_HTTP_HEADER",
    "GDAL_HTTP_AUTH",
    "GDAL_HTTP_COOKIE",
)


def identify_file(path: str) -> dict[str, Any]:
    """Identify one file: a local one in a few milliseconds, a remote one by one request.

    Parameters
    ----------
    path : str
        As GDAL reads it. A member of an archive is identified by the archive.

    Returns
    -------
    dict
        Local: name, bytes, mtime_ns, and sha256 of up to 18 blocks of 64 KiB (the first, the last and seeded
        ones between; all of a small file). Remote, by HTTP or from S3: href, bytes, and etag or time of
        modification; where the server gives neither, sha256 of the first 64 KiB (a second request). Otherwise
        the path alone.

    Raises
    ------
    SceneError
        If a remote file is not there, refused, or cannot be reached.
    """
    archive = find_archive(path)
    if archive is not None:
        return {**identify_file(archive), "member": path.rpartition("/")[2]}
    if path.startswith(("/vsicurl/http", "/vsis3/")):
        return _remote_identity(path)
    local = Path(path)
    if is_remote(path) or not local.is_file():
        return {"href": display_name(path)}
    if local.name in _ARRAY:
        return _array_identity(local.parent)
    status = local.stat()
    sample = _sampled_sha256(local, status.st_size)
    return {"name": local.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sample}


def is_part(path: Path, identity: Any) -> bool:
    """Whether a local file is one of those that an identity, as JSON values, describes."""
    return path.is_file() and identify_file(str(path))["sha256"] in json.dumps(identity, default=str)


def identify_files(paths: Iterable[str], known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Identify the files of a raster, each once, without overviews (they are never read).

    `paths` are those of `sar2eo.scenes.gdal.list_files`, and of a Zarr array all chunks are looked up.
    Statistics in a local ``.aux.xml`` do not count, for any viewer may write them. `known` holds identities
    that need not be asked for again, by path.
    """
    chosen = dict.fromkeys(p for p in paths if not p.endswith(".ovr"))
    sidecars = {path: _sidecar_identity(path) for path in chosen if path.endswith(_SIDECAR)}
    found = (sidecars.get(path) or known.get(path) or identify_file(path) for path in chosen)
    return [identity for path, identity in zip(chosen, found, strict=True) if sidecars.get(path) != {}]


def _array_identity(folder: Path) -> dict[str, Any]:
    """Identify a Zarr array by the sizes and times of all of its chunks."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        found.append([str(path.relative_to(folder)), status.st_size, status.st_mtime_ns])
    return {"name": folder.name, "files": len(found), "sha256": digest(found)}


def _sidecar_identity(path: str) -> dict[str, Any] | None:
    """Identify a local file of GDAL's metadata without its statistics; empty if it holds nothing else."""
    local = Path(path)
    if is_remote(path) or not local.is_file():
        return None
    try:
        root = parse_xml(read_file(local))
    except (OSError, ValueError):
        return None
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "Histograms" or child.get("key", "").startswith("STATISTICS_"):
                parent.remove(child)
    for parent in [*root.findall("PAMRasterBand"), root]:  # what that has emptied
        for child in list(parent):
            if not len(child) and not (child.text or "").strip():
                parent.remove(child)
    if not len(root):
        return {}
    return {
        "name": local.name,
        "sha256": digest(ElementTree.canonicalize(ElementTree.tostring(root), strip_text=True)),
    }


def digest(values: Any) -> str:
    """Return a short hash of JSON values, the same in every process."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _sampled_sha256(path: Path, size: int) -> str:
    starts, length = [0], size
    if size > (_BLOCKS + 2) * _BLOCK_BYTES:
        draw = np.random.Generator(np.random.Philox(size))
        inner = sorted(draw.integers(_BLOCK_BYTES, size - 2 * _BLOCK_BYTES, size=_BLOCKS).tolist())
        starts = [0, *inner, size - _BLOCK_BYTES]
        length = _BLOCK_BYTES
    found = hashlib.sha256()
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            found.update(file.read(length))
    return found.hexdigest()


def _remote_identity(path: str) -> dict[str, Any]:
    url = display_name(path)
    try:
        if s3.is_object(url):
            found = s3.find(url)
        else:
            signed = path.removeprefix("/vsicurl/")
            found = http.find(signed)
            if found.etag is None and found.modified is None:
                start = hashlib.sha256(http.fetch_start(signed, _BLOCK_BYTES)).hexdigest()
                return {"href": url, "bytes": found.bytes, "sha256": start}
    except PermissionError as error:
        # Credentials that only GDAL knows may be enough.
        if any(name.startswith(_GDAL_KEYS) for name in os.environ):
            return {"href": url}
        raise SceneError(str(error)) from error
    except OSError as error:
        raise SceneError(str(error)) from error
    # The query of a signed URL changes with every signature; the content is known by its tag.
    if found.etag is not None:
        return {"href": url, "bytes": found.bytes, "etag": found.etag}
    return {"href": url, "bytes": found.bytes, "modified": found.modified}
