"""Objects in S3 and compatible stores, through boto3, an optional extra that finds the credentials.

GDAL, which reads the pixels, gets the same endpoint, region and credentials (`gdal_environment`). Failures
are the built-in errors of files (`FileNotFoundError`, `PermissionError`, `ConnectionError`, `OSError`), with
a message of one line that names the URL; boto3 repeats requests that fail for a moment.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasterio.session import AWSSession

from sar2eo.errors import one_line
from sar2eo.store.documents import DOCUMENT_BYTES
from sar2eo.store.http import CONNECT_SECONDS, RETRIES, Found

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


def split_url(url: str) -> tuple[str, str]:
    """Return the bucket and the key of a URL."""
    bucket, _, key = url[len(_SCHEME) :].partition("/")
    return bucket, key


def find(url: str) -> Found:
    """Ask for size and version of an object; `OSError` if it cannot be had."""
    with _file_errors(url):
        head = _client().head_object(**_place(url), **_payer())
    return Found(head["ContentLength"], head.get("ETag"), str(head.get("LastModified")))


def fetch(url: str) -> bytes:
    """Return the content of a small object; `OSError` if it cannot be had, or is not small."""
    if (find(url).bytes or 0) > DOCUMENT_BYTES:
        raise OSError(f"{url}: larger than {DOCUMENT_BYTES >> 20} MiB: is it the right file?")
    content = io.BytesIO()
    with _file_errors(url):
        _client().download_fileobj(*split_url(url), content, ExtraArgs=_payer())
    return content.getvalue()


def list_objects(url: str) -> dict[str, Found]:
    """Return the objects right under a prefix that ends in ``/``, by name; `OSError` if refused."""
    bucket, prefix = split_url(url)
    with _file_errors(url):
        pages = (
            _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        )
        return {
            each["Key"][len(prefix) :]: Found(each["Size"], each.get("ETag"), str(each.get("LastModified")))
            for page in pages
            for each in page.get("Contents", ())
        }


def check_writable(url: str) -> None:
    """Raise `OSError` where no object may be made; none is made: an upload is begun and given up."""
    with _file_errors(url):
        begun = _client().create_multipart_upload(**_place(url))
        _client().abort_multipart_upload(**_place(url), UploadId=begun["UploadId"])


def upload(path: Path, url: str) -> None:
    """Upload a file; the object appears whole or not at all, and is compared with the file.

    The store checks each part by its checksum. Compared are the size, and the checksum of the whole where the
    store has one; `OSError` if they differ, or it cannot be uploaded.
    """
    checksum = _crc32(path)
    extra = {"ChecksumCRC32": checksum, "ContentType": _MEDIA.get(path.suffix.lower(), "binary/octet-stream")}
    with _file_errors(url):
        client = _client()
        client.upload_file(str(path), *split_url(url), ExtraArgs=extra)
        head = client.head_object(**_place(url), ChecksumMode="ENABLED")
    size = path.stat().st_size
    if head["ContentLength"] != size:
        raise OSError(f"{url}: {head['ContentLength']} of {size} bytes arrived")
    found = head.get("ChecksumCRC32")
    # Of several parts some stores return a checksum of checksums, which ends in their number.
    if (
        found is not None
        and "-" not in found
        and head.get("ChecksumType") != "COMPOSITE"
        and found != checksum
    ):
        raise OSError(f"{url}: what arrived has the checksum {found}, and the file {checksum}")


def delete(url: str) -> None:
    """Delete an object, if it is there; `OSError` if that is refused."""
    with _file_errors(url):
        _client().delete_object(**_place(url))


def gdal_environment() -> tuple[AWSSession, dict[str, str]]:
    """Return rasterio's session and GDAL's options for S3; `OSError` without credentials or boto3."""
    with _file_errors("s3://"):
        from botocore.exceptions import NoCredentialsError

        store, unsigned = _store(), _flag("AWS_NO_SIGN_REQUEST")
        if not unsigned and store.session.get_credentials() is None:
            raise NoCredentialsError
    scheme, _, host = (store.endpoint or "").partition("://")
    session = AWSSession(store.session, aws_unsigned=unsigned, endpoint_url=host.rstrip("/") or None)
    options = {"AWS_VIRTUAL_HOSTING": "TRUE" if store.virtual else "FALSE"}
    return session, options | ({"AWS_HTTPS": "YES" if scheme == "https" else "NO"} if host else {})


def _place(url: str) -> dict[str, str]:
    bucket, key = split_url(url)
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
    """A client, and how it reaches the store."""

    session: Any
    client: Any
    endpoint: str | None
    virtual: bool


def _client() -> Any:
    return _store().client


def _store() -> _Store:
    """Return the store of the environment's settings; they are read anew when they change."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:
        return _create_store(settings, os.getpid())


@functools.lru_cache(maxsize=4)
def _create_store(settings: tuple[tuple[str, str], ...], process: int) -> _Store:
    try:
        import boto3
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise OSError("s3:// needs boto3, the extra s3: pip install boto3") from error
    core = botocore.session.get_session()
    region = os.environ.get("AWS_REGION") or core.get_config_variable("region") or "us-east-1"
    session = boto3.Session(botocore_session=core, region_name=region)
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
    client = session.client("s3", endpoint_url=endpoint, config=config)
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
def _file_errors(url: str) -> Iterator[None]:
    """Turn boto3's errors into the built-in errors of files."""
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
        error = error.__context__  # it says more
    text = one_line(error)
    if isinstance(error, exceptions.NoCredentialsError):
        return PermissionError(
            f"{url}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or AWS_NO_SIGN_REQUEST=YES for public objects"
        )
    if isinstance(
        error, exceptions.ConnectionError | exceptions.HTTPClientError | exceptions.IncompleteReadError
    ):
        return ConnectionError(f"{url}: the store cannot be reached ({text}): is AWS_ENDPOINT_URL right?")
    if isinstance(error, exceptions.ClientError):
        return _client_error(error, url)
    if isinstance(error, exceptions.BotoCoreError | Boto3Error):
        return OSError(f"{url}: {text}")
    raise error


def _client_error(error: Any, url: str) -> OSError:
    said = error.response.get("Error", {})
    status, code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"), said.get("Code")
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{url}: there is no bucket {split_url(url)[0]}")
    if status == 404:
        return FileNotFoundError(f"{url}: no such object, or no such bucket")
    if status in (401, 403):
        return PermissionError(
            f"{url}: refused ({status} {code}): are the credentials right, and may they read, write and list "
            "there?"
        )
    return OSError(f"{url}: the store answers {status} {code} ({said.get('Message', 'without a message')})")
