"""A STAC item that tells catalogues what lies beside it, and that its pixels were generated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterBand, RasterExtension
from pystac.extensions.raster import Sampling as RasterSampling
from shapely.geometry import MultiPolygon, Polygon, mapping

from sar2eo._version import __version__
from sar2eo.durable import write_atomically
from sar2eo.errors import SettingsError
from sar2eo.footprint import lonlat_bounds, to_lonlat
from sar2eo.grid import Grid
from sar2eo.layers import LAYERS

__all__ = ["stac_item", "write_stac_item"]

_PROCESSING = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"
_TEXTS: Mapping[str, tuple[str, list[str]]] = {
    "eo": ("EO image generated from SAR", ["data", "visual"]),
    "confidence": ("Confidence of the generated image: 1 / variance", ["metadata", "confidence"]),
    "spread": ("Standard deviation over generated samples", ["metadata", "uncertainty"]),
}
# A ten-millionth of a degree is a centimetre.
_DECIMALS = 7


def stac_item(
    rasters: Mapping[str, Path],
    grid: Grid,
    footprint: Polygon | MultiPolygon,
    when: datetime | str,
    *,
    tags: Mapping[str, str],
    quicklook: Path | None = None,
) -> pystac.Item:
    """Describe published COGs, for a file beside the EO image.

    Parameters
    ----------
    rasters : mapping of str to Path
        Where the COGs are, or will be, by variable of `sar2eo.layers.LAYERS`; "eo" is among them and
        gives the item its name.
    grid : Grid
        Of all of them.
    footprint : Polygon or MultiPolygon
        Of the valid pixels, in the CRS of `grid`; if empty, the item has no geometry.
    when : datetime or str
        Acquisition of the SAR scene; ISO 8601 if text, UTC unless it says otherwise.
    tags : mapping
        Provenance, as in the files; kept under ``sar2eo:``, without the ``TIFFTAG_`` ones.
    quicklook : Path, optional
        A PNG.

    Returns
    -------
    pystac.Item
        With the projection, raster and processing extensions.

    Raises
    ------
    GeoreferenceError
        If the grid has no CRS: an item needs a place.
    SettingsError
        If `when` is not a time.
    """
    home = rasters["eo"].absolute().parent
    geometry = None if footprint.is_empty else to_lonlat(footprint, grid.pyproj_crs)
    resolution = sum(grid.ground_sample_distance_m()) / 2
    item = pystac.Item(
        id=rasters["eo"].stem,
        geometry=None if geometry is None else _rounded(mapping(geometry)),
        bbox=None if geometry is None else _rounded(lonlat_bounds(geometry)),
        datetime=_utc(when),
        properties={
            "title": "Synthetic EO image",
            "description": "Pixels generated from a SAR scene by a model; no optical sensor saw them.",
            "gsd": round(resolution, 3),
            "processing:level": "L4",
            "processing:software": {"sar2eo": __version__},
            "processing:lineage": "SAR-to-EO translation with a confidence-guided latent diffusion model",
            **{f"sar2eo:{name}": text for name, text in tags.items() if not name.startswith("TIFFTAG_")},
            "sar2eo:synthetic": True,
        },
    )
    item.stac_extensions.append(_PROCESSING)
    _add_projection(item, grid)
    for variable, path in rasters.items():
        item.add_asset(variable, _asset(variable, path, home))
        layer = LAYERS[variable]
        band = RasterBand.create(
            nodata=None if layer.masked else "nan",  # type: ignore[arg-type]
            sampling=RasterSampling.AREA,
            data_type=layer.dtype,  # type: ignore[arg-type]
            spatial_resolution=round(resolution, 3),
        )
        RasterExtension.ext(item.assets[variable], add_if_missing=True).bands = [band] * len(layer.bands)
    if quicklook is not None:
        item.add_asset(
            "quicklook",
            pystac.Asset(_relative(quicklook, home), media_type=pystac.MediaType.PNG, roles=["overview"]),
        )
    return item


def write_stac_item(item: pystac.Item, path: Path) -> None:
    """Write an item as JSON; the file appears whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode())


def _utc(when: datetime | str) -> datetime:
    try:
        time = datetime.fromisoformat(when) if isinstance(when, str) else when
    except ValueError as error:
        raise SettingsError(f"datetime={when!r}: must be ISO 8601, such as 2020-11-07T13:52:41Z") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _add_projection(item: pystac.Item, grid: Grid) -> None:
    named = grid.crs is not None and ":" in grid.crs and len(grid.crs) < 30
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=grid.crs if named else None,
        wkt2=None if named else grid.pyproj_crs.to_wkt("WKT2_2019"),
        shape=list(grid.shape),
        transform=list(grid.transform),
        bbox=list(grid.bounds),
    )


def _asset(variable: str, path: Path, home: Path) -> pystac.Asset:
    title, roles = _TEXTS[variable]
    written = datetime.now(UTC).replace(microsecond=0)
    return pystac.Asset(
        _relative(path, home),
        title=title,
        media_type=pystac.MediaType.COG,
        roles=roles,
        extra_fields={
            "created": written.isoformat().replace("+00:00", "Z"),
            "bands": [{"name": name} for name in LAYERS[variable].bands],
        },
    )


def _relative(path: Path, home: Path) -> str:
    href = Path(os.path.relpath(path.absolute(), home)).as_posix()
    return href if href.startswith("../") else f"./{href}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, _DECIMALS) if isinstance(value, float) else value
