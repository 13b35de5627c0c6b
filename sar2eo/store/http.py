"""Small requests over HTTP: what a file is, and the text of a small one; its pixels are read by GDAL.

Failures are the built-in errors of files (`FileNotFoundError`, `PermissionError`, `ConnectionError`,
`OSError`), with a message of one line that names the URL; what may pass is tried again before that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

from sar2eo.errors import one_line

__all__ = [
    "CONNECT_SECONDS",
    "DELAY_SECONDS",
    "READ_SECONDS",
    "RETRIES",
    "Found",
    "beginning",
    "fetch",
    "find",
]

CONNECT_SECONDS = 10
READ_SECONDS = 20
RETRIES = 4
"""Of what may pass: dropped and stalled connections, answers 429 and 5xx."""
DELAY_SECONDS = 0.5
"""Before the first retry; each further one waits twice as long."""
SMALL_BYTES = 256 * 2**20

_PASSING = (429, 500, 502, 503, 504)
_PATIENCE = 2


@dataclass(frozen=True)
class Found:
    """What a server says of a file.

    Parameters
    ----------
    bytes : int or None
        Size.
    etag, modified : str or None
        Version, and time of modification, as the server writes them.
    """

    bytes: int | None
    etag: str | None
    modified: str | None


def find(url: str) -> Found:
    """Ask what a file is: one request, and a byte of it at most.

    Not by HEAD, which signed URLs and some servers refuse.

    Raises
    ------
    OSError
        If it is not there, refused, or cannot be reached.
    """
    with _asked(url, {"Range": "bytes=0-0"}) as answer:
        headers = answer.headers
        total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
        size = int(total) if total.isdigit() else None
        return Found(size, headers.get("ETag"), headers.get("Last-Modified"))


def beginning(url: str, size: int) -> bytes:
    """Return the first bytes of a file, at most `size`.

    Raises
    ------
    OSError
        As of `find`.
    """
    with _asked(url, {"Range": f"bytes=0-{size - 1}"}) as answer:
        return bytes(answer.raw.read(size))


def fetch(url: str) -> bytes:
    """Return the content of a small file.

    Raises
    ------
    OSError
        If it cannot be had whole, or is not small.
    """
    import requests

    for attempt in range(RETRIES + 1):
        with _asked(url, {}) as answer:
            if int(answer.headers.get("Content-Length", 0)) > SMALL_BYTES:
                raise OSError(f"{_shown(url)}: larger than {SMALL_BYTES >> 20} MiB, which this cannot be")
            try:
                return bytes(answer.content)
            except requests.RequestException as error:  # it was cut short
                if attempt == RETRIES:
                    raise _broken(url, error) from error
        time.sleep(DELAY_SECONDS * 2**attempt)
    raise AssertionError  # the last attempt returns or raises


@contextmanager
def _asked(url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    import requests

    with _session() as session:
        try:
            answer = session.get(
                url,
                headers={"Accept-Encoding": "identity", **headers},
                stream=True,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
            )
        except (requests.RequestException, ValueError) as error:
            raise _broken(url, error) from error
        with answer:
            # A range of an empty file cannot be satisfied.
            if not answer.ok and answer.status_code != requests.codes.requested_range_not_satisfiable:
                raise _refused(url, answer.status_code, answer.reason)
            yield answer


def _session() -> requests.Session:
    """Return a session that tries again; proxies and passwords are those of the environment."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    settings: dict[str, Any] = {
        "total": RETRIES,
        # Those that run into the time limits, nobody wants to wait for many times.
        "connect": _PATIENCE,
        "read": _PATIENCE,
        "backoff_factor": DELAY_SECONDS,
        "status_forcelist": _PASSING,
        # A server may ask for hours.
        "respect_retry_after_header": False,
        "raise_on_status": False,
    }
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=Retry(**settings)))
    return session


def _refused(url: str, status: int, reason: str) -> OSError:
    name = _shown(url)
    if status in (404, 410):
        return FileNotFoundError(f"{name}: no such file there ({status} {reason})")
    if status in (401, 403):
        return PermissionError(
            f"{name}: refused ({status} {reason}): may you read it, is a signature too old?"
        )
    return OSError(f"{name}: the server answers {status} {reason}")


def _broken(url: str, error: Exception) -> OSError:
    import requests

    text = one_line(error)
    query = url.partition("?")[2]
    text = text.replace(f"?{query}", "") if query else text
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return ConnectionError(f"{_shown(url)}: cannot be reached ({text})")
    return OSError(f"{_shown(url)}: cannot be read ({text})")


def _shown(url: str) -> str:
    """Leave out the query, which in a signed URL is a secret."""
    return url.partition("?")[0]
