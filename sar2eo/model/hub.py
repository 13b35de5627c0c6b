"""A folder of weights: the package's own, one on this machine, or one fetched from the hub by its id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sar2eo.errors import CheckpointError, one_line

__all__ = ["BUNDLED", "BUNDLED_MATCHER", "find_folder"]

BUNDLED = "bundled"
"""Name of the model that comes with the package, and of its folder there."""

BUNDLED_MATCHER = "bundled_matcher"
"""Folder of the matcher that comes with the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    allow: Sequence[str],
    ignore: Sequence[str] = (),
    own: str = BUNDLED,
) -> Path:
    """Return a local folder, or fetch one where the source is no folder but looks like a hub id.

    Parameters
    ----------
    source : str or Path
        "bundled", a folder, or "owner/name". (A folder that is called bundled is ``./bundled``.)
    revision : str or None
        Branch, tag or commit of a hub id.
    allow, ignore : sequence of str
        Patterns of the files to fetch and not to fetch.
    own : str
        Folder in the package that "bundled" stands for.

    Raises
    ------
    CheckpointError
        If there is no such folder and no such id, or the hub cannot be reached (offline mode, set by
        ``HF_HUB_OFFLINE=1``, uses what was fetched before).
    """
    if source == BUNDLED:
        return _bundled(own)
    path = Path(source)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise CheckpointError(f"{source} is a file: give the folder that holds it")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(
            source, revision=revision, allow_patterns=list(allow), ignore_patterns=list(ignore)
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no such folder here, and fetching it from the hub failed: {one_line(error, 200)}"
        ) from error
    return Path(found)


def _bundled(own: str) -> Path:
    """Return where the package keeps a model; in another process perhaps elsewhere."""
    folder = Path(__file__).parents[1] / own
    if not folder.is_dir():
        raise CheckpointError(
            f"this installation has no {'model' if own == BUNDLED else 'matcher'} of its own: name a "
            "checkpoint folder (see 'sar2eo model' and 'sar2eo train-matcher') or an id on a hub with --model"
        )
    return folder
