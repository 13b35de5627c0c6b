"""Documents that others wrote: JSON and XML, read with limits on their size and depth.

What is not regular is never read: a pipe may have no end. Failures are `OSError` and `ValueError`, with a
message of one line.
"""

from __future__ import annotations

import io
import json
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RECORD_BYTES = 16 * 2**20
"""Most that an item or a report of sar2eo may have."""

DOCUMENT_BYTES = 64 * 2**20
"""Most that a document may have: annotations have 5 MB, item collections of thousands of scenes 50."""

# Objects in memory take twenty times as much.
_XML_BYTES = 32 * 2**20
_DEPTH = 100
_PIECE = 2**16


def read_file(path: Path, most: int = DOCUMENT_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path}: not a file, but a folder, a pipe or a device")
    with path.open("rb") as file:
        return join_pieces(iter(lambda: file.read(_PIECE), b""), str(path), most)


def read_start(path: Path, size: int = 4096) -> bytes:
    """Read the first bytes of a regular file."""
    with path.open("rb") as file:
        return file.read(size)


def read_member(archive: Path, name: str) -> bytes:
    """Read a member of a zip, which may claim another size than it unpacks to."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(name) as file:
            return join_pieces(iter(lambda: file.read(_PIECE), b""), f"{archive}: {name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise OSError(f"{archive}: {name}: cannot be unpacked ({error})") from error


def join_pieces(pieces: Iterable[bytes], name: str, most: int = DOCUMENT_BYTES) -> bytes:
    """Join the pieces of a document; `OSError` as soon as they are more than `most` bytes."""
    whole = bytearray()
    for piece in pieces:
        whole += piece
        if len(whole) > most:
            raise OSError(f"{name}: larger than {most >> 20} MiB: is it the right file?")
    return bytes(whole)


def parse_json(text: bytes | str) -> Any:
    """Parse JSON; `ValueError` if it is none, or nested too deep."""
    try:
        return json.loads(text.removeprefix(b"\xef\xbb\xbf") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("nested too deep to be what it should be") from error


def parse_xml(text: bytes) -> ElementTree.Element:
    """Parse XML; `ValueError` if it is none, is too large, or is nested deeper than 100 elements."""
    if len(text) > _XML_BYTES:
        raise ValueError(f"larger than {_XML_BYTES >> 20} MiB")
    depth = 0
    root: ElementTree.Element | None = None
    try:
        # Entities are limited by expat itself.
        for event, element in ElementTree.iterparse(io.BytesIO(text), ("start", "end")):  # noqa: S314
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            if depth > _DEPTH:
                raise ValueError(f"nested deeper than {_DEPTH} elements")
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    if root is None:
        raise ValueError("no element")
    return root
