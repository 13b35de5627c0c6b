"""Records as JSON that every reader takes: the format knows neither infinity nor NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sar2eo.durable import write_atomically

__all__ = ["plain", "write_record"]


def plain(value: Any) -> Any:
    """Return a record as JSON values; numbers that are not finite as text: "inf", "-inf", "nan"."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def write_record(path: Path, record: Any) -> None:
    """Write a record, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_atomically(path, (json.dumps(plain(record), indent=2, allow_nan=False) + "\n").encode())
