"""STAC items: they tell catalogues what lies beside them, and that its pixels were generated."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterBand, RasterExtension
from pystac.extensions.raster import Sampling as RasterSampling
from shapely.geometry import MultiPolygon, Polygon, mapping

from sar2eo._version import __version__
from sar2eo.errors import Sar2eoWarning, SettingsError
from sar2eo.geo.footprint import lonlat_bounds, to_lonlat
from sar2eo.geo.grid import Grid
from sar2eo.results.cog import LAYERS
from sar2eo.store.atomic import write_file

__all__ = [
    "COLLECTION",
    "is_item_of_result",
    "stac_collection",
    "stac_item",
    "write_stac_collection",
    "write_stac_item",
]

_PROCESSING = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"
_TEXTS: Mapping[str, tuple[str, list[str]]] = {
    "eo": ("EO image generated from SAR", ["data", "visual"]),
    "confidence": ("Confidence of the generated image: 1 / variance", ["metadata", "confidence"]),
    "spread": ("Standard deviation over generated samples", ["metadata", "uncertainty"]),
}
_NOT_TOLD = ("TIFFTAG_", "fingerprint")
COLLECTION = "collection.json"
"""The STAC collection in a folder of results."""

_COLLECTION_TITLE = "Synthetic EO images"
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
    collection: str | None = None,
) -> pystac.Item:
    """Describe published COGs, for a file beside the EO image.

    Parameters
    ----------
    rasters : mapping of str to Path
        Where the COGs are, or will be, by variable of `sar2eo.results.cog.LAYERS`; "eo" is among them and
        gives the item its name.
    grid : Grid
        Of all of them.
    footprint : Polygon or MultiPolygon
        Of the valid pixels, in the CRS of `grid`; if empty, the item has no geometry.
    when : datetime or str
        Acquisition of the SAR scene; ISO 8601 if text, UTC unless it says otherwise.
    tags : mapping
        Provenance, as in the files; kept under ``sar2eo:``, without the ``TIFFTAG_`` ones and what only
        another run wants to know.
    quicklook : Path, optional
        A PNG.
    collection : str, optional
        Id of the collection beside the item (`write_stac_collection`).

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
            **{f"sar2eo:{name}": text for name, text in tags.items() if not name.startswith(_NOT_TOLD)},
            "sar2eo:synthetic": True,
        },
    )
    item.stac_extensions.append(_PROCESSING)
    if collection is not None:
        item.collection_id = collection
        item.add_links([_link(rel, COLLECTION) for rel in ("collection", "parent", "root")])
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
    write_file(path, json.dumps(content, indent=2, allow_nan=False).encode())


def write_stac_collection(folder: Path, name: str) -> Path | None:
    """Write the collection of all results in a folder, beside them; all links are relative.

    Parameters
    ----------
    folder : Path
        Its items are found by what they say of themselves, so that results of several runs belong together.
    name : str
        Id of the collection.

    Returns
    -------
    Path or None
        ``collection.json``; None where no result has an item.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    texts = {}
    for path in folder.glob("*.json"):
        with suppress(OSError):  # a folder, a broken link, another user's
            texts[path.name] = path.read_bytes()
    content = stac_collection(texts, {path.name for path in folder.iterdir()}, name)
    if content is None:
        return None
    path = folder / COLLECTION
    write_file(path, content)
    return path


def stac_collection(texts: Mapping[str, bytes], present: Collection[str], name: str) -> bytes | None:
    """Return the collection of results that lie beside each other, as JSON.

    Parameters
    ----------
    texts : mapping of str to bytes
        JSON files by name, items of results among them.
    present : collection of str
        Names of all files: an item without its EO image does not count.
    name : str
        Id of the collection.

    Returns
    -------
    bytes or None
        None where no result has an item, or another's collection has the place.

    Warns
    -----
    Sar2eoWarning
        Of another's collection.
    """
    if COLLECTION in texts and not _is_ours(texts[COLLECTION]):
        warnings.warn(
            f"{COLLECTION} in the folder of results was not written by sar2eo, and is left as it is: "
            "results have their items, but no collection",
            Sar2eoWarning,
            stacklevel=3,
        )
        return None
    found = {file: _result(texts[file], present) for file in sorted(texts)}
    items = {file: item for file, item in found.items() if item is not None}
    if not items:
        return None
    times = [_utc(item["properties"]["datetime"]) for item in items.values()]
    boxes = [item["bbox"] for item in items.values() if item.get("bbox")]
    collection = pystac.Collection(
        id=name,
        title=_COLLECTION_TITLE,
        description="Images generated from SAR scenes by a model; no optical sensor saw them.",
        extent=pystac.Extent(
            pystac.SpatialExtent([_around(boxes)]), pystac.TemporalExtent([[min(times), max(times)]])
        ),
        license="other",
        summaries=pystac.Summaries(
            {"sar2eo:model": sorted({str(item["properties"].get("sar2eo:model")) for item in items.values()})}
        ),
    )
    collection.clear_links()
    collection.add_link(_link("root", COLLECTION))
    collection.add_links([_link("item", href) for href in items])
    content = collection.to_dict(include_self_link=False, transform_hrefs=False)
    return json.dumps(content, indent=2, allow_nan=False).encode()


def is_item_of_result(text: bytes) -> bool:
    """Tell the item of a result from other JSON, and from what is none."""
    try:
        return bool(json.loads(text)["properties"]["sar2eo:synthetic"] is True)
    except (ValueError, KeyError, TypeError):
        return False


def _is_ours(collection: bytes) -> bool:
    try:
        return bool(json.loads(collection)["title"] == _COLLECTION_TITLE)
    except (ValueError, KeyError, TypeError):
        return False


def _result(text: bytes, present: Collection[str]) -> dict[str, Any] | None:
    """Read the item of a result that is there; None for other files."""
    try:
        item: dict[str, Any] = json.loads(text)
        said = item["properties"]["sar2eo:synthetic"] is True and _utc(item["properties"]["datetime"])
        return item if said and item["assets"]["eo"]["href"].removeprefix("./") in present else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _around(boxes: list[list[float]]) -> list[float]:
    """Return the box around others: all longitudes where one crosses the antimeridian."""
    if not boxes:
        return [-180.0, -90.0, 180.0, 90.0]
    west, south, east, north = zip(*boxes, strict=True)
    if any(left > right for left, right in zip(west, east, strict=True)):
        return [-180.0, min(south), 180.0, max(north)]
    return [min(west), min(south), max(east), max(north)]


def _link(rel: str, name: str) -> pystac.Link:
    media = pystac.MediaType.GEOJSON if rel == "item" else pystac.MediaType.JSON
    return pystac.Link(rel, f"./{name}", media_type=media)


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
