"""Results of tasks, kept as small files until a run is whole."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo.store.atomic import write_durably
from sar2eo.store.fingerprint import checksum

__all__ = ["PartStore"]
_READERS = 4
_PART = re.compile(r"([a-z0-9-]+)\.([0-9a-f]{8})\.json")


@dataclass(frozen=True)
class PartStore:
    """Chips and results of tasks, written from any thread, process or machine that sees the folder.

    Parameters
    ----------
    folder : str
        ``blocks-...`` of the journal; never created here, so that a worker that outlives its run does not
        write into the next.
    """

    folder: str

    @property
    def chips(self) -> Path:
        """Folder of chips."""
        return Path(self.folder) / "chips"

    def save(self, name: str, value: Any) -> None:
        """Keep the result of a task.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        data = json.dumps(value, separators=(",", ":")).encode()
        parts = Path(self.folder) / "parts"
        final = parts / f"{name}.{checksum(data)}.json"
        write_durably(parts / f".{uuid.uuid4().hex}.tmp", final, data)

    def load(self) -> dict[str, Any]:
        """Return the results that are there and whole, by task; what is damaged is deleted."""
        paths = sorted((Path(self.folder) / "parts").iterdir())
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(filter(None, pool.map(self._part, paths)))

    def _part(self, path: Path) -> tuple[str, Any] | None:
        match = _PART.fullmatch(path.name)
        data = path.read_bytes() if match else b""
        if match and checksum(data) == match[2]:
            value = json.loads(data)
            rows = value["rows"] if isinstance(value, dict) else ()
            if all(map(self._has_chips, rows)):
                return match[1], value
        # A thread of a call that was interrupted may be just giving a file its final name.
        path.unlink(missing_ok=True)
        return None

    def _has_chips(self, row: Mapping[str, Any]) -> bool:
        paths = (self.chips / Path(row[name]).name for name in ("sar_chip", "eo_chip"))
        try:
            return [checksum(path.read_bytes()) for path in paths] == list(row["checksums"])
        except OSError:
            return False
