"""STAC items and collections of results, which say that the pixels were generated."""

from __future__ import annotations

import json
import math
import os
import re
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
from sar2eo.store.documents import RECORD_BYTES, parse_json, read_file

_PROCESSING = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"
_TEXTS: Mapping[str, tuple[str, list[str]]] = {
    "eo": ("EO image generated from SAR", ["data", "visual"]),
    "confidence": ("Confidence of the generated image: 1 / variance", ["metadata", "confidence"]),
    "spread": ("Standard deviation over generated samples", ["metadata", "uncertainty"]),
}
_SAT = "https://stac-extensions.github.io/sat/v1.0.0/schema.json"
_NOT_IN_ITEMS = ("TIFFTAG_", "fingerprint", "source", "platform", "orbit_direction")
_PARTS = re.compile(r"(?:^|,)((?:[HV]{2}\+?)+=)?(.+?)(?=,(?:[HV]{2}\+?)+=|$)", re.I)
COLLECTION = "collection.json"
"""The STAC collection in a folder of results."""

_COLLECTION_TITLE = "Synthetic EO images"
# A ten-millionth of a degree is a centimetre.
_DECIMALS = 7
# Of the longer side of a footprint: half a pixel of what it is traced from.
_TOLERANCE = 1 / 2048


def make_stac_item(
    rasters: Mapping[str, Path],
    grid: Grid,
    footprint: Polygon | MultiPolygon,
    when: datetime | str,
    *,
    tags: Mapping[str, str],
    quicklook: Path | None = None,
    collection: str | None = None,
    away: bool = False,
) -> pystac.Item:
    """Describe published COGs, for a file beside the EO image.

    Parameters
    ----------
    rasters : mapping of str to Path
        Paths of the COGs, by variable of `sar2eo.results.cog.LAYERS`; the id of the item is the stem of "eo".
    grid : Grid
    footprint : Polygon or MultiPolygon
        Outline of the valid pixels in the CRS of `grid`; the item of an empty one has no geometry.
    when : datetime or str
        Acquisition time of the SAR scene; ISO 8601 if text, UTC unless it says otherwise.
    tags : mapping
        Provenance, as in the files; stored under ``sar2eo:``, without TIFF tags and fingerprint, or as what
        STAC calls it. Local scenes are named by paths from the item.
    quicklook : Path, optional
    collection : str, optional
        Id of the collection beside the item (`write_stac_collection`).
    away : bool, optional (default: False)
        Whether the item goes where no local scene can be reached from.

    Raises
    ------
    GeoreferenceError
        If the grid has no CRS.
    SettingsError
        If `when` is not a time.
    """
    home = rasters["eo"].absolute().parent
    geometry = None if footprint.is_empty else to_lonlat(footprint, grid.pyproj_crs)
    geometry = None if geometry is None else _simplify(geometry)
    parts = [
        (name, _relative_href(text, home, away)) for name, text in _PARTS.findall(tags.get("source", ""))
    ]
    facts = {"platform": tags.get("platform"), "sat:orbit_state": tags.get("orbit_direction")}
    facts |= {"sar2eo:source": ",".join(map("".join, parts))}
    resolution = round(sum(grid.ground_sample_distance_m()) / 2, 3)
    item = pystac.Item(
        id=rasters["eo"].stem,
        geometry=None if geometry is None else _round_numbers(mapping(geometry)),
        bbox=None if geometry is None else _round_numbers(lonlat_bounds(geometry)),
        datetime=_to_utc(when),
        properties={
            "title": "Synthetic EO image",
            "description": "Pixels generated from a SAR scene by a model; no optical sensor saw them.",
            "gsd": resolution,
            "processing:level": "L4",
            "processing:software": {"sar2eo": __version__},
            "processing:lineage": "SAR-to-EO translation with a confidence-guided latent diffusion model",
            **{f"sar2eo:{name}": text for name, text in tags.items() if not name.startswith(_NOT_IN_ITEMS)},
            **{name: text for name, text in facts.items() if text},
            # Without the extension, which asks for more than is known.
            **({"sar:polarizations": tags["polarisations"].split(",")} if "polarisations" in tags else {}),
            "sar2eo:synthetic": True,
        },
    )
    item.stac_extensions += [_PROCESSING, *([_SAT] if facts["sat:orbit_state"] else [])]
    item.add_links([pystac.Link("derived_from", href) for _, href in parts if not away or "://" in href])
    if collection is not None:
        item.collection_id = collection
        item.add_links([_make_link(rel, COLLECTION) for rel in ("collection", "parent", "root")])
    coded = grid.crs is not None and ":" in grid.crs and len(grid.crs) < 30
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=grid.crs if coded else None,
        wkt2=None if coded else grid.pyproj_crs.to_wkt("WKT2_2019"),
        shape=list(grid.shape),
        transform=list(grid.transform),
        bbox=list(grid.bounds),
    )
    created = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
    for variable, path in rasters.items():
        layer, (title, roles) = LAYERS[variable], _TEXTS[variable]
        asset = pystac.Asset(
            _make_relative(path, home),
            title=title,
            media_type=pystac.MediaType.COG,
            roles=roles,
            extra_fields={"created": created, "bands": [{"name": name} for name in layer.bands]},
        )
        item.add_asset(variable, asset)
        band = RasterBand.create(
            nodata=None if layer.masked else "nan",  # type: ignore[arg-type]
            sampling=RasterSampling.AREA,
            data_type=layer.dtype,  # type: ignore[arg-type]
            spatial_resolution=resolution,
        )
        RasterExtension.ext(item.assets[variable], add_if_missing=True).bands = [band] * len(layer.bands)
    if quicklook is not None:
        item.add_asset(
            "quicklook",
            pystac.Asset(
                _make_relative(quicklook, home), media_type=pystac.MediaType.PNG, roles=["overview"]
            ),
        )
    return item


def write_stac_item(item: pystac.Item, path: Path) -> None:
    """Write an item as JSON; the file appears whole or not at all."""
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    write_file(path, json.dumps(content, indent=2, allow_nan=False).encode())


def write_stac_collection(folder: Path, name: str) -> Path | None:
    """Write the collection of all results in a folder, with relative links.

    Items of results are recognised by their content, so that the results of several runs belong together.
    Returns the path of ``collection.json``, or None if no result has an item. `name` is the collection's id.
    """
    texts = {}
    for path in folder.glob("*.json"):
        with suppress(OSError):  # a folder, a pipe, a broken link, another user's, larger than any item
            texts[path.name] = read_file(path, RECORD_BYTES)
    content = make_stac_collection(texts, {path.name for path in folder.iterdir()}, name)
    if content is None:
        return None
    path = folder / COLLECTION
    write_file(path, content)
    return path


def make_stac_collection(texts: Mapping[str, bytes], present: Collection[str], name: str) -> bytes | None:
    """Return the collection of results in one folder or under one prefix, as JSON.

    Parameters
    ----------
    texts : mapping of str to bytes
        JSON files by name, items of results among them.
    present : collection of str
        Names of all files: an item whose EO image is missing does not count.
    name : str
        Id of the collection.

    Returns
    -------
    bytes or None
        None if no result has an item, or (with a warning) if ``collection.json`` was not written by sar2eo.
    """
    title = None
    with suppress(ValueError, KeyError, TypeError):
        title = parse_json(texts[COLLECTION])["title"]
    if COLLECTION in texts and title != _COLLECTION_TITLE:
        warnings.warn(
            f"{COLLECTION} in the folder of results was not written by sar2eo and is kept: "
            "results have STAC items, but no collection",
            Sar2eoWarning,
            stacklevel=3,
        )
        return None
    found = {file: _parse_item(texts[file], present) for file in sorted(texts)}
    items = {file: item for file, item in found.items() if item is not None}
    if not items:
        return None
    times = [_to_utc(item["properties"]["datetime"]) for item in items.values()]
    boxes = [box for item in items.values() if (box := _flat_box(item.get("bbox"))) is not None]
    collection = pystac.Collection(
        id=name,
        title=_COLLECTION_TITLE,
        description="Images generated from SAR scenes by a model; no optical sensor saw them.",
        extent=pystac.Extent(
            pystac.SpatialExtent([_join_boxes(boxes)]), pystac.TemporalExtent([[min(times), max(times)]])
        ),
        license="other",
        summaries=pystac.Summaries(
            {"sar2eo:model": sorted({str(item["properties"].get("sar2eo:model")) for item in items.values()})}
        ),
    )
    collection.clear_links()
    collection.add_link(_make_link("root", COLLECTION))
    collection.add_links([_make_link("item", href) for href in items])
    content = collection.to_dict(include_self_link=False, transform_hrefs=False)
    return json.dumps(content, indent=2, allow_nan=False).encode()


def is_item_of_result(text: bytes) -> bool:
    """Whether a text is the STAC item of a result."""
    with suppress(ValueError, KeyError, TypeError):
        return bool(parse_json(text)["properties"]["sar2eo:synthetic"] is True)
    return False


def _parse_item(text: bytes, present: Collection[str]) -> dict[str, Any] | None:
    """Return the item of a result whose EO image is present; None for other files."""
    try:
        item: dict[str, Any] = parse_json(text)
        ours = item["properties"]["sar2eo:synthetic"] is True and _to_utc(item["properties"]["datetime"])
        return item if ours and item["assets"]["eo"]["href"].removeprefix("./") in present else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _flat_box(box: Any) -> list[float] | None:
    """Return west, south, east, north of a bbox, which may have heights; None of what is none."""
    if not isinstance(box, list) or len(box) not in (4, 6):
        return None
    found = [*box[:2], *box[len(box) // 2 :][:2]]
    return found if all(isinstance(n, int | float) and math.isfinite(n) for n in found) else None


def _join_boxes(boxes: list[list[float]]) -> list[float]:
    """Return the box around boxes; all longitudes if one of them crosses the antimeridian."""
    if not boxes:
        return [-180.0, -90.0, 180.0, 90.0]
    west, south, east, north = zip(*boxes, strict=True)
    if any(left > right for left, right in zip(west, east, strict=True)):
        return [-180.0, min(south), 180.0, max(north)]
    return [min(west), min(south), max(east), max(north)]


def _make_link(rel: str, name: str) -> pystac.Link:
    media = pystac.MediaType.GEOJSON if rel == "item" else pystac.MediaType.JSON
    return pystac.Link(rel, f"./{name}", media_type=media)


def _to_utc(when: datetime | str) -> datetime:
    try:
        time = datetime.fromisoformat(when) if isinstance(when, str) else when
    except ValueError as error:
        raise SettingsError(f"datetime={when!r}: must be ISO 8601, such as 2020-11-07T13:52:41Z") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _simplify(area: Polygon | MultiPolygon) -> Polygon | MultiPolygon:
    """Leave out vertices that an edge does not need: most rectangles stay rectangles on the globe."""
    parts = []
    for part in getattr(area, "geoms", [area]):
        west, south, east, north = part.bounds
        parts.append(part.simplify(_TOLERANCE * max(east - west, north - south)))
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _relative_href(source: str, home: Path, away: bool) -> str:
    """Return a URL as it is, and the path of a local file from `home`; where that is no help, its name."""
    if "://" in source:
        return source
    file, mark, item = source.partition("#")
    if away or not os.path.exists(file):  # noqa: PTH110  (any text is safe)
        return source.rpartition("/")[2]
    return _make_relative(Path(file), home) + mark + item


def _make_relative(path: Path, home: Path) -> str:
    href = Path(os.path.relpath(path.absolute(), home)).as_posix()
    return href if href.startswith("../") else f"./{href}"


def _round_numbers(value: Any) -> Any:
    """Return JSON values with every number rounded."""
    return json.loads(json.dumps(value), parse_float=lambda number: round(float(number), _DECIMALS))
