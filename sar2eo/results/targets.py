"""Files to be written: what may be replaced, checked before work, and reports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sar2eo._version import __version__
from sar2eo.errors import OutputError, SettingsError
from sar2eo.scenes.identity import is_part
from sar2eo.store.atomic import write_json
from sar2eo.store.documents import RECORD_BYTES, parse_json, read_file

SIDECARS = (".aux.xml", ".ovr", ".msk")
"""What GDAL takes for a part of the raster that it stands beside."""


def check_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that could not be written in the end, or that may not be replaced.

    Raises
    ------
    OutputError
        If the name is not valid UTF-8, the folder is missing or not writable, it is a folder or a link, or it
        exists and `overwrite` is False.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{str(path)!r}: the name is not valid UTF-8, and GDAL takes no other: give another --out"
        ) from error
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}: make it first, or check the spelling")
    if path.is_symlink():
        raise OutputError(f"{path} is a link, and links are not written through: name {path.resolve()}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: pass overwrite=True to replace it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: its folder is not writable")


def check_raster(path: Path, *, overwrite: bool) -> None:
    """Refuse a GeoTIFF as `check_file` does, also for its name, and for files that would pass for its parts.

    Raises
    ------
    OutputError
        As `check_file`; or if the name does not end in .tif or .tiff.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"{path}: the result is a GeoTIFF, its name must end in .tif or .tiff")
    check_file(path, overwrite=overwrite)
    for suffix in SIDECARS:
        check_file(path.with_name(path.name + suffix), overwrite=overwrite)


def check_report(
    path: Path | None,
    *,
    overwrite: bool,
    inputs: Iterable[Path] = (),
    outputs: Iterable[Path] = (),
    identity: Any = None,
) -> None:
    """Refuse a ``--report`` that could not be written, or would replace what is no report of sar2eo.

    Parameters
    ----------
    path : Path or None
        None: there is none.
    overwrite : bool
        Whether another file may be replaced; never one of the run's own.
    inputs, outputs : iterable of Path
        Files of the run.
    identity : optional
        Identities of the files that are read (`sar2eo.scenes.identity.identify_file`), as JSON values.

    Raises
    ------
    SettingsError
        If it is a file of the run.
    OutputError
        If it cannot be written, or may not be replaced.
    """
    if path is None:
        return
    place = path.resolve()
    if any(place == each.resolve() for each in outputs):
        raise SettingsError(
            f"--report {path}: another output goes there (a STAC item, say): choose another name"
        )
    if any(place == each.resolve() for each in inputs) or is_part(path, identity):
        raise SettingsError(
            f"--report {path} is one of the scenes, or another file that the run reads: choose another name"
        )
    try:
        check_file(path, overwrite=overwrite or read_report(path) is not None)
    except OutputError as error:
        raise OutputError(f"--report {error}") from error


def read_report(path: Path) -> dict[str, Any] | None:
    """Read a report that sar2eo has written; None for any other file, or none."""
    try:
        content = parse_json(read_file(path, RECORD_BYTES))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and str(content.get("software", "")).startswith("sar2eo ")
    return content if ours else None


def write_report(path: Path | None, values: Mapping[str, Any]) -> None:
    """Write a report as JSON, with the version of sar2eo, by which `read_report` knows it."""
    if path is not None:
        write_json(path, {"software": f"sar2eo {__version__}", **values})
