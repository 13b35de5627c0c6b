"""Object stores on the loopback interface: HTTP with ranges and with faults to order, and S3 by moto."""

import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        return self.stop - self.start


@dataclass
class Fault:
    """What goes wrong with some of the requests: those that `matches`, the first `times` of them.

    ``status`` answers with an error; ``drop`` closes the connection without an answer; ``truncate`` promises
    the whole and sends that share of it; ``stall`` waits so many seconds
    before it answers.
    """

    matches: Callable[[Request], bool] = lambda request: True
    times: int = 1
    status: int | None = None
    drop: bool = False
    truncate: float | None = None
    stall: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class RangeServer(ThreadingHTTPServer):
    """Serves the files of one folder, ranges included, and remembers what was asked and sent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[Request] = []
        self.matches: list[str | None] = []
        self.sent = 0
        self.faults: list[Fault] = []
        self.tagged = True
        self.dated = False
        self.ranged = True
        self._lock = threading.Lock()

    @property
    def asked(self) -> list[str]:
        return [request.path for request in self.requests]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def etag(self, name: str) -> str:
        return f'"{zlib.crc32((self.folder / name).read_bytes()):08x}"'

    def forget(self) -> None:
        """Count from here."""
        with self._lock:
            self.requests.clear()
            self.sent = 0

    def note(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and fault.matches(request):
                    fault.times -= 1
                    return fault
        return None

    def count(self, size: int) -> None:
        with self._lock:
            self.sent += size

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.server.folder / unquote(self.path.partition("?")[0]).strip("/")
        data = path.read_bytes() if path.is_file() else None
        size = len(data or b"")
        wanted = (
            re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", "")) if self.server.ranged else None
        )
        start = int(wanted[1]) if wanted else 0
        stop = min(int(wanted[2]) + 1 if wanted and wanted[2] else size, size)
        self.server.matches.append(self.headers.get("If-Match"))
        fault = self.server.note(Request(self.command, self.path, start, stop))
        time.sleep(fault.stall if fault else 0.0)
        if fault and fault.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault and fault.status:
            self._refuse(fault.status, fault.headers)
        elif data is None:
            self._refuse(404, {})
        elif self.headers.get("If-Match") not in (None, f'"{zlib.crc32(data):08x}"'):
            self._refuse(412, {})
        elif start >= max(size, 1):
            self._refuse(416, {"Content-Range": f"bytes */{size}"})
        else:
            self._send(data, start, stop, partial=wanted is not None, body=body, fault=fault)

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(
        self, data: bytes, start: int, stop: int, *, partial: bool, body: bool, fault: Fault | None
    ) -> None:
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        if self.server.ranged:
            self.send_header("Accept-Ranges", "bytes")
        if self.server.tagged:
            self.send_header("ETag", f'"{zlib.crc32(data):08x}"')
        if self.server.dated:
            self.send_header("Last-Modified", "Wed, 06 May 2026 07:08:09 GMT")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if not body:
            return
        if fault and fault.truncate is not None:
            stop = start + int((stop - start) * fault.truncate)
            self.close_connection = True
        self.server.count(stop - start)
        self.wfile.write(data[start:stop])
        if self.close_connection:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Run a server on a port of its own."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def storing(environment: Callable[[str, str | None], None], *buckets: str) -> Iterator[Any]:
    """Run an S3-compatible store with some buckets, and point the environment to it.

    Parameters
    ----------
    environment : callable
        Sets a variable, or with None deletes it.
    buckets : str
        To be made.

    Yields
    ------
    boto3 client
        Of the store.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    for name in [*PROXIES, *(name for name in os.environ if name.startswith("AWS_"))]:
        environment(name, None)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    environment("AWS_ACCESS_KEY_ID", "someone")
    environment("AWS_SECRET_ACCESS_KEY", "secret")
    environment("AWS_REGION", "us-east-1")
    client = boto3.client("s3", region_name="us-east-1")
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    try:
        yield client
    finally:
        server.stop()
