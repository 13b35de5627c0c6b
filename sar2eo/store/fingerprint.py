"""Fingerprints: nested mappings of JSON values that say all that a result depends on."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sar2eo.store.atomic import write_atomically

__all__ = ["MANIFEST", "canonical", "checksum", "differences", "differs", "plain", "write_record"]

MANIFEST = "manifest.json"
"""The file of a journal that holds the fingerprint of its work."""

_NAMED = 5
_LONGEST = 60


def canonical(fingerprint: Mapping[str, Any]) -> str:
    """Return the one JSON text of a fingerprint."""
    return json.dumps(fingerprint, sort_keys=True, default=str)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two fingerprints, briefly; empty if nothing does."""
    old_leaves, new_leaves = _leaves(old), _leaves(json.loads(canonical(new)))
    keys = [key for key in {**old_leaves, **new_leaves} if old_leaves.get(key) != new_leaves.get(key)]
    # The graph's names differ whenever anything does: they matter where nothing else tells.
    keys = [key for key in keys if not key.startswith("graph.")] or keys
    named = [f"{key} {_short(old_leaves, key)} -> {_short(new_leaves, key)}" for key in keys]
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(named[:_NAMED])}{more}"


def differs(journal: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Tell whether the folder of a journal is there, and is not known to be of this fingerprint."""
    try:
        made = json.loads((journal / MANIFEST).read_bytes())["fingerprint"]
        return bool(differences(made, fingerprint))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return journal.exists()


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted keys and JSON texts (so that NaN equals NaN)."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: json.dumps(value, sort_keys=True)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _short(leaves: Mapping[str, str], key: str) -> str:
    text = leaves.get(key, "(nothing)")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


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


def checksum(data: bytes) -> str:
    """Return the CRC-32 of a file's bytes as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"
