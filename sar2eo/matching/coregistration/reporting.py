"""What is told of a coregistration: tie points as GeoJSON, a picture of their shifts, JSON values."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from sar2eo._version import __version__
from sar2eo.grid import Grid
from sar2eo.matching.coregistration.evidence import Evidence
from sar2eo.pairs.alignment import Displacement

__all__ = ["geojson_of", "quiver_picture", "tie_rows", "versions"]

Points = npt.NDArray[np.float64]

# Coordinates in degrees; a millionth is 0.1 m.
_DEGREES = 7
_LIBRARIES = ("numpy", "scipy", "scikit-image", "rasterio")
_INCH = 5.0
# Arrows are drawn so long, as a share of the distance of tie points.
_ARROW = 0.8


def versions(*, learned: bool) -> dict[str, str]:
    """Return versions of what the result depends on."""
    from rasterio import __gdal_version__

    names = (*_LIBRARIES, "torch") if learned else _LIBRARIES
    found = {name: importlib.metadata.version(name) for name in names}
    return {"sar2eo": __version__, "python": platform.python_version(), **found, "gdal": __gdal_version__}


def tie_rows(
    ties: Sequence[Displacement], evidence: Evidence, size: tuple[float, float]
) -> list[dict[str, Any]]:
    """Return every tie point as JSON values.

    Parameters
    ----------
    ties : sequence of Displacement
    evidence : Evidence
        Of them.
    size : tuple of float
        Height and width of a pixel in metres.

    Returns
    -------
    list of dict
        row and col of the reference; shift_rows, shift_cols and shift_m; score; accepted, by the method;
        inlier, by the fit; residual_rows, residual_cols, residual_px and residual_m, against a fit that did
        not see the point. Null is not known.
    """
    sure = iter(zip(evidence.shifts - evidence.predicted, evidence.inlier, strict=True))
    rows = []
    for tie in ties:
        accepted = tie.sure and bool(np.isfinite([tie.rows, tie.cols]).all())
        residual, inlier = next(sure) if accepted else (np.array([np.nan, np.nan]), False)
        shift = np.array([tie.rows, tie.cols])
        row = {
            "row": tie.row,
            "col": tie.col,
            "shift_rows": tie.rows,
            "shift_cols": tie.cols,
            "shift_m": np.hypot(*(shift * size)),
            "score": tie.score,
            "residual_rows": residual[0],
            "residual_cols": residual[1],
            "residual_px": np.hypot(*residual),
            "residual_m": np.hypot(*(residual * size)),
        }
        told = {name: round(float(v), 4) if np.isfinite(v) else None for name, v in row.items()}
        rows.append({**told, "accepted": accepted, "inlier": bool(inlier)})
    return rows


def geojson_of(rows: Sequence[dict[str, Any]], grid: Grid) -> bytes:
    """Return tie points as GeoJSON (RFC 7946, so in longitude and latitude), with the fields of `tie_rows`.

    Parameters
    ----------
    rows : sequence of dict
    grid : Grid
        Of the reference.
    """
    places = np.array([(row["row"], row["col"]) for row in rows], float).reshape(-1, 2)
    a, b, c, d, e, f = grid.transform
    row, col = places.T
    x, y = a * col + b * row + c, d * col + e * row + f
    lon, lat = Transformer.from_crs(grid.pyproj_crs, "EPSG:4326", always_xy=True).transform(x, y)
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Point",
                "coordinates": [round(float(east), _DEGREES), round(float(north), _DEGREES)],
            },
            "properties": told,
        }
        for east, north, told in zip(np.atleast_1d(lon), np.atleast_1d(lat), rows, strict=True)
    ]
    return (json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False) + "\n").encode()


def quiver_picture(rows: Sequence[dict[str, Any]], grid: Grid, spacing: int, path: Path) -> None:
    """Draw the shifts of tie points, and what is left of them, as arrows over the reference's grid.

    Parameters
    ----------
    rows : sequence of dict
        From `tie_rows`.
    grid : Grid
        Of the reference.
    spacing : int
        Distance of tie points, in pixels.
    path : Path
        PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * _INCH, 1.15 * _INCH), layout="constrained")
    for axes, title, prefix in zip(
        figure.subplots(1, 2),
        ("shifts", "held-out residuals"),
        ("shift", "residual"),
        strict=True,
    ):
        drawn = [row for row in rows if row[f"{prefix}_rows"] is not None and row["accepted"]]
        refused = [row for row in rows if not row["accepted"]]
        axes.plot(_of(refused, "col"), _of(refused, "row"), ".", color="0.7", markersize=3, label="refused")
        inliers = [row for row in drawn if row["inlier"]]
        lengths = np.hypot(_of(inliers, f"{prefix}_rows"), _of(inliers, f"{prefix}_cols"))
        longest = max(float(np.quantile(lengths, 0.95)) if len(lengths) else 0.0, 0.1)
        for chosen, colour, label in (
            (inliers, "tab:blue", "agree"),
            ([row for row in drawn if not row["inlier"]], "tab:red", "disagree"),
        ):
            axes.quiver(
                _of(chosen, "col"), _of(chosen, "row"),
                _of(chosen, f"{prefix}_cols"), _of(chosen, f"{prefix}_rows"),
                color=colour, label=label, angles="xy", scale_units="xy", width=0.004,
                scale=longest / (_ARROW * spacing),
            )  # fmt: skip
        axes.set(
            title=f"{title} (one spacing: {longest / _ARROW:.2g} px)",
            xlabel="column", ylabel="row", xlim=(0, grid.shape[1]), ylim=(grid.shape[0], 0), aspect="equal",
        )  # fmt: skip
    # Beside the axes: there is no corner without tie points.
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(path)


def _of(rows: Sequence[dict[str, Any]], name: str) -> Points:
    return np.array([row[name] for row in rows], float)
