"""Folders of reports, whole or not at all, and what is written into them."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo.durable import refuse, sync_file, sync_folder
from sar2eo.errors import OutputError

__all__ = ["ReportKind", "markdown_table", "plain_values"]


@dataclass(frozen=True)
class ReportKind:
    """A kind of report: a folder with ``report.md``, results as JSON, and perhaps pictures.

    Parameters
    ----------
    results : str
        The file of the results, by which a report of this kind is known.
    command : str
        That makes them.
    """

    results: str
    command: str

    def check_target(self, out: Path, *, overwrite: bool) -> None:
        """Refuse a folder that may not be written.

        Parameters
        ----------
        out : Path
        overwrite : bool
            Whether an existing report may be replaced.

        Raises
        ------
        OutputError
            If it exists and is not to be replaced, or is no report of this kind, or cannot be made there.
        """
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
        if there != out and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise OutputError(f"{out}: {there} is no folder that can be written to")
        if not out.exists():
            return
        if not (out / self.results).is_file():
            raise OutputError(
                f"{out} exists and is not a report of sar2eo {self.command}: choose another folder"
            )
        if not overwrite:
            raise OutputError(f"{out} exists already: choose another folder, or --overwrite it")

    def write(
        self,
        out: Path,
        results: dict[str, Any],
        describe: Callable[[Path, dict[str, Any]], str],
        *,
        overwrite: bool,
    ) -> dict[str, Any]:
        """Write a report beside its place, then rename it.

        Parameters
        ----------
        out : Path
        results : dict
        describe : callable
            Returns the report for people; draws its pictures into the folder that it is given, beside the
            results as plain JSON values.
        overwrite : bool
            As of `check_target`, which is asked once more before the rename.

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
        partial, old = (out.with_name(f".{out.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
            (partial / "report.md").write_text(describe(partial, plain), encoding="utf-8")
            text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
            (partial / self.results).write_text(text, encoding="utf-8")
            for path in partial.iterdir():
                sync_file(path)
            sync_folder(partial)
            self.check_target(out, overwrite=overwrite)
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
