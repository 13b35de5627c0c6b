"""What cannot be a scene, refused by its name and header: before anything blocks or fills the memory."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np

from sar2eo.errors import SceneError

__all__ = ["check_readable", "check_size"]

# Far beyond any SAR scene (a strip once around the Earth at 10 m; a million square kilometres at 4 m), and
# within what coordinates and windows can be counted for: more is a header that was damaged or made up.
MAX_SIDE = 1 << 22
MAX_PIXELS = 1 << 36
# A block is decoded as one. Programs write a whole image as one strip, and then every window costs all of it.
MAX_BLOCK_BYTES = 1 << 30


def check_readable(path: str) -> None:
    """Refuse what would block a reader for ever, or cannot be named to GDAL at all.

    Parameters
    ----------
    path : str
        As GDAL opens it; what does not exist may still be something that a driver knows.

    Raises
    ------
    SceneError
        For a pipe, a socket, a device or standard input, and for names that the system refuses.
    """
    if path.startswith("/vsistdin"):
        raise SceneError(f"{path}: a scene is read in pieces and more than once, so not from standard input")
    try:
        path.encode()
        kind = Path(path).stat().st_mode
    except UnicodeEncodeError as error:
        raise SceneError(
            f"{path!r}: the name is not valid UTF-8, and GDAL takes no other: rename it"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # too long, a loop of links, no right to look, a null character
        reason = getattr(error, "strerror", None) or error
        raise SceneError(f"{path}: cannot be looked up ({reason})") from error
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise SceneError(
            f"{path}: neither a file nor a folder, but a pipe, a socket or a device: give a file"
        )


def check_size(dataset: Any, path: str) -> None:
    """Refuse a raster of more pixels than can be meant, or in blocks that no memory should hold.

    Parameters
    ----------
    dataset : DatasetReader
        Open, with a band.
    path : str
        Names it in messages.

    Raises
    ------
    SceneError
    """
    rows, cols = dataset.shape
    if max(rows, cols) > MAX_SIDE or rows * cols > MAX_PIXELS:
        raise SceneError(
            f"{path}: its header claims {rows} x {cols} pixels, more than any SAR scene has (at most "
            f"{MAX_SIDE} along a side and {MAX_PIXELS:.2g} in all): is the file damaged?"
        )
    high, wide = dataset.block_shapes[0]
    size = high * wide * np.dtype(_NUMPY_NAMES.get(dataset.dtypes[0], dataset.dtypes[0])).itemsize
    if size > MAX_BLOCK_BYTES:
        raise SceneError(
            f"{path}: stored in blocks of {high} x {wide} pixels, {size / 2**30:.1f} GiB each, and none can "
            "be read in part: rewrite it with gdal_translate -co TILED=YES"
        )


_NUMPY_NAMES = {"complex_int16": "complex64"}  # which NumPy does not have
