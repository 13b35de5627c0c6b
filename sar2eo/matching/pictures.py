"""Pictures of a match: where it was found, the similarity map, and what DCDM saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["attention_picture", "place_picture", "save_grey", "similarity_picture"]

FloatArray = npt.NDArray[np.float32]

_INCH = 4.0
_DECADES = 3.0  # of attention that are drawn
_SHOWN_PERCENTILE = 99.0


def save_grey(image: npt.NDArray[np.uint8], path: Path) -> None:
    """Save an image, shape (row, col, 3), pixel by pixel."""
    from PIL import Image

    Image.fromarray(image).save(path)


def similarity_picture(surface: FloatArray, origin: tuple[int, int], mark: Any, path: Path) -> None:
    """Draw a similarity map over shifts; `mark` is the shift that was found, or None."""
    figure, (axes,) = _figure(1)
    rows, cols = surface.shape
    extent = (origin[1] - 0.5, origin[1] + cols - 0.5, origin[0] + rows - 0.5, origin[0] - 0.5)
    drawn = axes.imshow(surface, extent=extent, interpolation="nearest")
    if mark is not None:
        axes.plot([mark[1]], [mark[0]], "r+", markersize=14)
    axes.set(title="similarity", xlabel="shift in columns", ylabel="shift in rows")
    figure.colorbar(drawn, ax=axes, shrink=0.8)
    figure.savefig(path)


def attention_picture(before: FloatArray, after: FloatArray, path: Path) -> None:
    """Draw attention before and after calibration, each template token a row, each search token a column.

    Where neighbours stay neighbours the maps are sparse along diagonals (supplement, section 2.2).
    """
    figure, both = _figure(2)
    for axes, title, attention in zip(both, ("before calibration", "after"), (before, after), strict=True):
        matrix = attention.reshape(attention.shape[0] * attention.shape[1], -1)
        logs = np.log10(np.maximum(matrix / matrix.max(), 10.0**-_DECADES))
        axes.imshow(logs, aspect="auto", interpolation="nearest", vmin=-_DECADES, vmax=0)
        axes.set(title=f"attention {title}", xlabel="search token", ylabel="template token")
    figure.savefig(path)


def place_picture(
    search: FloatArray, template: npt.NDArray[np.uint8], shift: tuple[float, float] | None, path: Path
) -> None:
    """Draw the template, and the search image with the place where it was found.

    Parameters
    ----------
    search : ndarray of float32, shape (row, col)
        Amplitude.
    template : ndarray of uint8, shape (row, col, 3)
    shift : tuple of float or None
    path : Path
    """
    figure, (left, right) = _figure(2)
    left.imshow(template, interpolation="nearest")
    left.set(title="template")
    bright = np.nanpercentile(search, _SHOWN_PERCENTILE)
    right.imshow(search, cmap="gray", vmin=0, vmax=bright, interpolation="nearest")
    right.set(title="cannot be matched" if shift is None else f"found at {shift[0]:.2f}, {shift[1]:.2f}")
    if shift is not None:
        from matplotlib.patches import Rectangle

        rows, cols = template.shape[:2]
        right.add_patch(Rectangle((shift[1] - 0.5, shift[0] - 0.5), cols, rows, fill=False, color="red"))
    figure.savefig(path)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panels * _INCH, _INCH), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, panels)))
