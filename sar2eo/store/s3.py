"""Objects in S3, and in stores that speak like it: by boto3, an optional extra, which finds the credentials.

GDAL, which reads the pixels, is told the same endpoint, region and credentials (`gdal_options`). Failures are
the built-in errors of files (`FileNotFoundError`, `PermissionError`, `ConnectionError`, `OSError`), with a
message of one line that names the URL; what may pass is tried again before that.
"""

from __future__ import annotations

import base64
import functools
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo.errors import one_line
from sar2eo.store.http import CONNECT_SECONDS, DELAY_SECONDS, RETRIES, SMALL_BYTES, Found

__all__ = [
    "check_writable",
    "delete",
    "fetch",
    "find",
    "gdal_options",
    "is_object",
    "listed",
    "parted",
    "upload",
]

_SCHEME = "s3://"
_CHUNK = 2**20
# A store takes a while to put an object together from its parts.
_ANSWER_SECONDS = 60
_MEDIA = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".tiff": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".json": "application/json",
    ".png": "image/png",
}
_making = threading.Lock()


def is_object(url: str) -> bool:
    """Whether a text names an object, or a prefix of objects: ``s3://bucket/key``."""
    return url[: len(_SCHEME)].lower() == _SCHEME


def parted(url: str) -> tuple[str, str]:
    """Return the bucket and the key of a URL."""
    bucket, _, key = url[len(_SCHEME) :].partition("/")
    return bucket, key


def find(url: str) -> Found:
    """Ask what an object is, by one request.

    Raises
    ------
    OSError
        If it is not there, refused, or the store cannot be reached.
    """
    with _told(url):
        head = _client().head_object(**_place(url), **_payer())
    return Found(head["ContentLength"], head.get("ETag"), str(head.get("LastModified")))


def fetch(url: str) -> bytes:
    """Return the content of a small object.

    Raises
    ------
    OSError
        As of `find`, or if it is not small.
    """
    for attempt in range(RETRIES + 1):
        try:
            return _fetched(url)
        except ConnectionError:  # cut short, where the client itself does not try again
            if attempt == RETRIES:
                raise
        time.sleep(DELAY_SECONDS * 2**attempt)
    raise AssertionError  # the last attempt returns or raises


def _fetched(url: str) -> bytes:
    with _told(url):
        answer = _client().get_object(**_place(url), **_payer())
        with answer["Body"] as body:
            if answer["ContentLength"] > SMALL_BYTES:
                raise OSError(f"{url}: larger than {SMALL_BYTES >> 20} MiB, which this cannot be")
            return bytes(body.read())


def listed(url: str) -> dict[str, Found]:
    """Return the objects right under a prefix that ends in ``/``, by name.

    Raises
    ------
    OSError
        If that is refused, or the store cannot be reached.
    """
    bucket, prefix = parted(url)
    with _told(url):
        pages = (
            _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        )
        return {
            each["Key"][len(prefix) :]: Found(each["Size"], each.get("ETag"), str(each.get("LastModified")))
            for page in pages
            for each in page.get("Contents", ())
        }


def check_writable(url: str) -> None:
    """Refuse a place where no object may be made, without making one: an upload is begun and given up.

    Raises
    ------
    OSError
        If it is refused, there is no such bucket, or the store cannot be reached.
    """
    with _told(url):
        begun = _client().create_multipart_upload(**_place(url))
        _client().abort_multipart_upload(**_place(url), UploadId=begun["UploadId"])


def upload(path: Path, url: str) -> None:
    """Upload a file; the object appears whole or not at all, and is compared with the file.

    The store checks each part by its checksum; afterwards the size of the object is asked for, and the
    checksum of the whole where the store offers one.

    Raises
    ------
    OSError
        If it cannot be uploaded, or what arrived is not the file.
    """
    checksum = _crc32(path)
    extra = {"ChecksumCRC32": checksum, "ContentType": _MEDIA.get(path.suffix.lower(), "binary/octet-stream")}
    with _told(url):
        client = _client()
        client.upload_file(str(path), *parted(url), ExtraArgs=extra)
        head = client.head_object(**_place(url), ChecksumMode="ENABLED")
    size = path.stat().st_size
    if head["ContentLength"] != size:
        raise OSError(f"{url}: {head['ContentLength']} of {size} bytes arrived")
    found = head.get("ChecksumCRC32")
    # Of several parts some stores tell a checksum of their checksums, which ends in their number.
    if (
        found is not None
        and "-" not in found
        and head.get("ChecksumType") != "COMPOSITE"
        and found != checksum
    ):
        raise OSError(f"{url}: what arrived has the checksum {found}, and the file {checksum}")


def delete(url: str) -> None:
    """Delete an object, if it is there.

    Raises
    ------
    OSError
        If that is refused, or the store cannot be reached.
    """
    with _told(url):
        _client().delete_object(**_place(url))


def gdal_options() -> dict[str, str]:
    """Return GDAL's configuration for ``/vsis3/``: the endpoint, region and credentials of this module.

    Raises
    ------
    OSError
        If there are no credentials, or boto3 is not installed.
    """
    with _told("s3://"):
        store = _store()
        options = {
            "AWS_REGION": str(store.client.meta.region_name),
            "AWS_VIRTUAL_HOSTING": "TRUE" if store.virtual else "FALSE",
        }
        if store.endpoint is not None:
            scheme, _, host = store.endpoint.partition("://")
            options |= {
                "AWS_S3_ENDPOINT": host.rstrip("/"),
                "AWS_HTTPS": "YES" if scheme == "https" else "NO",
            }
        if _flag("AWS_NO_SIGN_REQUEST"):
            return options | {"AWS_NO_SIGN_REQUEST": "YES"}
        keys = store.keys()
    named = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
    }
    return options | {name: value for name, value in named.items() if value}


def _place(url: str) -> dict[str, str]:
    bucket, key = parted(url)
    return {"Bucket": bucket, "Key": key}


def _payer() -> dict[str, str]:
    payer = os.environ.get("AWS_REQUEST_PAYER")
    return {"RequestPayer": payer} if payer else {}


def _crc32(path: Path) -> str:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return base64.b64encode(found.to_bytes(4, "big")).decode()


@dataclass(frozen=True)
class _Store:
    """A client, and how it was told to reach the store."""

    session: Any
    client: Any
    endpoint: str | None
    virtual: bool

    def keys(self) -> Any:
        from botocore.exceptions import NoCredentialsError

        found = self.session.get_credentials()
        if found is None:
            raise NoCredentialsError
        return found.get_frozen_credentials()


def _client() -> Any:
    return _store().client


def _store() -> _Store:
    """Return the store of the environment's settings; they are read anew when they change."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:
        return _made(settings, os.getpid())


@functools.lru_cache(maxsize=4)
def _made(settings: tuple[tuple[str, str], ...], process: int) -> _Store:
    try:
        import boto3
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise OSError("s3:// needs boto3, the extra s3: pip install boto3") from error
    core = botocore.session.get_session()
    session = boto3.Session(botocore_session=core, region_name=os.environ.get("AWS_REGION") or None)
    endpoint = _endpoint() or core.get_scoped_config().get("endpoint_url")
    # The bucket is part of the host's name with Amazon; elsewhere that takes a domain of many names.
    virtual = _flag("AWS_VIRTUAL_HOSTING", default=endpoint is None or _is_amazon(endpoint))
    config = Config(
        retries={"mode": "standard", "total_max_attempts": RETRIES + 1},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        signature_version=UNSIGNED if _flag("AWS_NO_SIGN_REQUEST") else None,
        s3={"addressing_style": "virtual" if virtual else "path"},
    )
    region = session.region_name or "us-east-1"
    client = session.client("s3", region_name=region, endpoint_url=endpoint, config=config)
    return _Store(session, client, endpoint, virtual)


def _endpoint() -> str | None:
    """Return the endpoint that boto3's variables name, or else GDAL's."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT"):
        found = os.environ.get(name)
        if found:
            scheme = "https" if _flag("AWS_HTTPS", default=True) else "http"
            return found if "://" in found else f"{scheme}://{found}"
    return None


def _is_amazon(endpoint: str) -> bool:
    host = endpoint.partition("://")[2].partition("/")[0].partition(":")[0]
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _flag(name: str, *, default: bool = False) -> bool:
    text = os.environ.get(name)
    return default if text is None else text.strip().lower() in ("yes", "true", "on", "1")


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn boto3's errors into those of files."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise _as_file_error(error, url) from error


def _as_file_error(error: Exception, url: str) -> OSError:
    from boto3.exceptions import Boto3Error
    from botocore import exceptions

    while isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
        error = error.__context__  # which tells more than its text
    text = one_line(error)
    if isinstance(error, exceptions.NoCredentialsError):
        return PermissionError(
            f"{url}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or AWS_NO_SIGN_REQUEST=YES for what is public"
        )
    if isinstance(
        error, exceptions.ConnectionError | exceptions.HTTPClientError | exceptions.IncompleteReadError
    ):
        return ConnectionError(f"{url}: the store cannot be reached ({text}): is AWS_ENDPOINT_URL right?")
    if isinstance(error, exceptions.ClientError):
        return _refused(error, url)
    if isinstance(error, exceptions.BotoCoreError | Boto3Error):
        return OSError(f"{url}: {text}")
    raise error


def _refused(error: Any, url: str) -> OSError:
    said = error.response.get("Error", {})
    status, code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"), said.get("Code")
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{url}: there is no bucket {parted(url)[0]}")
    if status == 404:
        return FileNotFoundError(f"{url}: no such object, or no such bucket")
    if status in (401, 403):
        return PermissionError(
            f"{url}: refused ({status} {code}): are the credentials right, and may they read, write and list "
            "there?"
        )
    return OSError(f"{url}: the store answers {status} {code} ({said.get('Message', 'without a message')})")
