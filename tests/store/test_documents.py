import gzip
import json
import os
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sar2eo.store import documents, http
from sar2eo.store.documents import parse_json, parse_xml, read_file, read_member


def test_documents_are_read_up_to_a_size_and_a_depth(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert parse_json(read_file(path)) == {"a": 1}
    with pytest.raises(OSError, match="larger than"):
        read_file(path, 5)
    with pytest.raises(ValueError, match="too deep"):
        parse_json(b"[" * 100_000 + b"]" * 100_000)
    assert parse_xml(b"<a><b>1</b></a>").findtext("b") == "1"
    for text in (b"<a>" * 200_000 + b"</a>" * 200_000, b"", b"<a>"):
        with pytest.raises(ValueError, match=r"deeper|no element"):
            parse_xml(text)
    monkeypatch.setattr(documents, "_XML_BYTES", 10)
    with pytest.raises(ValueError, match="larger"):
        parse_xml(b"<a>12345678</a>")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(OSError, match="not a file"):
        read_file(path)


def test_a_member_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", b" " * (documents.DOCUMENT_BYTES + 1))
        archive.writestr("b.xml", b"<b/>")
    assert read_member(tmp_path / "a.zip", "b.xml") == b"<b/>"
    with pytest.raises(OSError, match="larger than 64 MiB"):
        read_member(tmp_path / "a.zip", "a.xml")


class _Hostile(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        kind = self.path.strip("/")
        self.send_header(*{"gzip": ("Content-Encoding", "gzip")}.get(kind, ("Transfer-Encoding", "chunked")))
        bomb = gzip.compress(b" " * 3_000_000)
        self.send_header("Content-Length", str(len(bomb))) if kind == "gzip" else None
        self.end_headers()
        try:
            self.wfile.write(bomb if kind == "gzip" else b"")
            while kind != "gzip":
                self.wfile.write(
                    b"10000\r\n" + b" " * 2**16 + b"\r\n" if kind == "endless" else b"1\r\n \r\n"
                )
                time.sleep(0 if kind == "endless" else 0.05)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("kind", "words"), [("gzip", "larger"), ("endless", "larger"), ("drip", "no whole answer")]
)
def test_a_server_decides_neither_on_size_nor_on_time(kind: str, words: str, monkeypatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 2)
    monkeypatch.setattr(http.join_pieces, "__defaults__", (1_000_000,))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hostile) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(OSError, match=words):
            http.fetch(f"http://127.0.0.1:{server.server_address[1]}/{kind}")
        assert time.monotonic() - started < 20
        server.shutdown()
