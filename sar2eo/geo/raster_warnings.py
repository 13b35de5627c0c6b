"""Silence for rasterio where a lack of georeference is expected, from any thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["unplaced_is_fine"]

_filters = threading.RLock()


@contextmanager
def unplaced_is_fine() -> Iterator[None]:
    """Say nothing of rasters without a georeference.

    Also around functions of `rasterio.features`, which set the same warning aside about their own image in
    memory: filters belong to the process, not to a thread, so whoever changes them has to be alone
    (https://docs.python.org/3.11/library/warnings.html#warnings.catch_warnings). Keep what is within short.

    Yields
    ------
    None
        While no other thread is within.
    """
    # Not at the top: it is slow to import, and there are commands without a raster.
    from rasterio.errors import NotGeoreferencedWarning

    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
