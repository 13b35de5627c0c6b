"""Folders of reports, whole or not at all, and what is written into them."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sar2eo.durable import refuse, sync_file, sync_folder
from sar2eo.errors import OutputError

__all__ = ["check_target", "markdown_table", "plain_values", "write_results", "write_whole"]


def check_target(out: Path, marker: str, command: str, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written.

    Parameters
    ----------
    out : Path
    marker : str
        The file by which a report of this kind is known.
    command : str
        That makes them.
    overwrite : bool
        Whether an existing report may be replaced.

    Raises
    ------
    OutputError
        If it exists and is not to be replaced, or is no report.
    """
    if not out.exists():
        return
    if not (out / marker).is_file():
        raise OutputError(f"{out} exists and is not a report of sar2eo {command}: choose another folder")
    if not overwrite:
        raise OutputError(f"{out} exists already: choose another folder, or --overwrite it")


def write_whole(out: Path, fill: Callable[[Path], None], check: Callable[[], None]) -> None:
    """Write a folder beside its place, then rename it.

    Parameters
    ----------
    out : Path
    fill : callable
        Writes all files into the new folder that it is given.
    check : callable
        Asked once more, before the rename, whether `out` may be written.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before then stays.
    """
    partial, old = (out.with_name(f".{out.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        fill(partial)
        for path in partial.iterdir():
            sync_file(path)
        sync_folder(partial)
        check()
        if out.exists():
            out.rename(old)
        partial.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        refuse(error, out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_results(
    out: Path,
    results: dict[str, Any],
    name: str,
    draw: Callable[[Path], dict[str, str]],
    describe: Callable[[dict[str, str]], str],
    check: Callable[[], None],
) -> dict[str, Any]:
    """Write a report whole: pictures, ``report.md``, and the results as JSON.

    Parameters
    ----------
    out : Path
    results : dict
    name : str
        Of the JSON file.
    draw : callable
        Draws pictures into a folder; returns their file names and what they show.
    describe : callable
        Returns the report for people, given those names.
    check : callable
        As of `write_whole`.

    Returns
    -------
    dict
        The results as plain JSON values; what is not a finite number is None.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before then stays.
    """
    plain: dict[str, Any] = plain_values(results)

    def fill(folder: Path) -> None:
        (folder / "report.md").write_text(describe(draw(folder)), encoding="utf-8")
        text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")

    write_whole(out, fill, check)
    return plain


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain_values(value: Any) -> Any:
    """Return JSON values; what is not finite becomes null, which JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
