"""Small requests over HTTP: size and version of a file, or its content; GDAL reads the pixels.

Failures are the built-in errors of files (`FileNotFoundError`, `PermissionError`, `ConnectionError`,
`OSError`), with a message of one line that names the URL; requests that fail for a moment are repeated.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import requests

from sar2eo.errors import hide_secrets, one_line
from sar2eo.store.documents import join_pieces

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_SECONDS = 10
READ_SECONDS = 20
RETRIES = 4
"""After dropped and stalled connections, answers 429 and 5xx."""
DELAY_SECONDS = 0.5
"""Before the first retry; each further one waits twice as long."""
DEADLINE_SECONDS = 60
"""For one request as a whole, however steadily it drips."""

_PASSING = (429, 500, 502, 503, 504)
_PATIENCE = 2
_PIECE = 2**16


def _timely(work: Callable[P, T]) -> Callable[P, T]:
    """Let a function of a URL raise `ConnectionError` at the deadline; what it does then ends unseen."""

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(work(*args, **kwargs))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=run, daemon=True, name="sar2eo-http").start()
        try:
            return answer.result(DEADLINE_SECONDS)
        except TimeoutError as error:
            raise ConnectionError(
                f"{hide_secrets(str(args[0]))}: no whole answer in {DEADLINE_SECONDS} s: is the server well?"
            ) from error

    return call


@dataclass(frozen=True)
class Found:
    """Size and version of a file, as a server writes them; None where it does not say."""

    bytes: int | None
    etag: str | None
    modified: str | None


@_timely
def find(url: str) -> Found:
    """Ask for size and version of a file, by one request; `OSError` if it cannot be had.

    Not by HEAD, which signed URLs and some servers refuse.
    """
    with _request(url, {"Range": "bytes=0-0"}) as answer:
        headers = answer.headers
        total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
        size = int(total) if total.isdigit() else None
        return Found(size, headers.get("ETag"), headers.get("Last-Modified"))


@_timely
def fetch_start(url: str, size: int) -> bytes:
    """Return the first bytes of a file, at most `size`; `OSError` if they cannot be had."""
    import requests

    with _request(url, {"Range": f"bytes=0-{size - 1}"}) as answer:
        try:
            data = bytearray()
            for piece in answer.iter_content(_PIECE):
                data += piece
                if len(data) >= size:
                    break
            return bytes(data[:size])
        except requests.RequestException as error:
            raise _transfer_error(url, error) from error


@_timely
def fetch(url: str) -> bytes:
    """Return the content of a small file; `OSError` if it cannot be had whole, or is not small."""
    import requests

    for attempt in range(RETRIES + 1):
        with _request(url, {}) as answer:
            try:  # what a server claims of size and packing is no bound
                return join_pieces(answer.iter_content(_PIECE), hide_secrets(url))
            except requests.RequestException as error:  # it was cut short
                if attempt == RETRIES:
                    raise _transfer_error(url, error) from error
        time.sleep(DELAY_SECONDS * 2**attempt)
    raise AssertionError  # the last attempt returns or raises


@contextmanager
def _request(url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
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
            raise _transfer_error(url, error) from error
        with answer:
            # A range of an empty file cannot be satisfied.
            if not answer.ok and answer.status_code != requests.codes.requested_range_not_satisfiable:
                raise _status_error(url, answer.status_code, answer.reason)
            yield answer


def _session() -> requests.Session:
    """Create a session with retries; proxies and passwords are those of the environment."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=RETRIES,
        # Nobody wants to wait for time limits many times.
        connect=_PATIENCE,
        read=_PATIENCE,
        backoff_factor=DELAY_SECONDS,
        status_forcelist=_PASSING,
        # A server may ask for hours.
        respect_retry_after_header=False,
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _status_error(url: str, status: int, reason: str) -> OSError:
    name = hide_secrets(url)
    if status in (404, 410):
        return FileNotFoundError(f"{name}: no such file there ({status} {reason})")
    if status in (401, 403):
        return PermissionError(
            f"{name}: refused ({status} {reason}): may you read it, is a signature too old?"
        )
    return OSError(f"{name}: the server answers {status} {reason}")


def _transfer_error(url: str, error: Exception) -> OSError:
    import requests

    text = one_line(error)
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return ConnectionError(f"{hide_secrets(url)}: cannot be reached ({text})")
    return OSError(f"{hide_secrets(url)}: cannot be read ({text})")
