"""Sources: scenes named by files, folders, globs, STAC and footprint tables, as one list."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pystac
import shapely
from pyproj import CRS

from sar2eo.errors import GeoreferenceError, PairsError, SceneError, SettingsError, one_line
from sar2eo.geo.footprint import to_lonlat
from sar2eo.scenes.gdal import gdal_path, is_remote, parse_source
from sar2eo.scenes.metadata import iso_datetime
from sar2eo.scenes.sentinel1 import is_sentinel1
from sar2eo.scenes.sentinel2 import is_sentinel2
from sar2eo.scenes.stac_input import choose_eo_assets, is_stac, read_item, read_item_facts, read_sar_assets

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Role = Literal["sar", "eo"]
"""What the scenes are."""

_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img")
_TABLES = (".gpkg", ".parquet", ".geoparquet", ".geojson", ".json", ".fgb", ".shp")
_HREF, _TIMES = "href", ("datetime", "acquisition_datetime", "start_datetime")


_PARQUET = (".parquet", ".geoparquet")


@dataclass(frozen=True)
class Source:
    """A scene that is not opened yet, and what is known of it."""

    href: str  # what `sar2eo.open_scene` or `sar2eo.scenes.optical.open_eo_scene` opens
    datetime: str | None = None  # acquisition, ISO 8601, UTC
    platform: str | None = None  # from STAC or a table
    orbit_direction: str | None = None
    footprint: Any = None  # in longitude and latitude (EPSG:4326), split at the antimeridian

    def over(self, other: Source) -> Source:
        """Return this source, with what `other` knows where this one does not."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in mine.items() if value is not None})


def expand_sources(given: Sequence[str], role: Role) -> list[Source]:
    """List the scenes that paths name; no pixels are read.

    Parameters
    ----------
    given : sequence of str
        Rasters, Sentinel-1 and 2 products, URLs; folders (all rasters, and products of the role, in them and
        their folders, hidden ones left out); globs (``**`` for folders in folders); STAC items; item
        collections (the items that have assets of this role); tables of footprints with a column ``href``,
        and ``datetime``, ``platform``, ``orbit_direction`` where known, as GeoPackage, GeoParquet or GeoJSON.
        Relative hrefs start from the file that holds them.
    role : {"sar", "eo"}
        Which assets of STAC items count.

    Returns
    -------
    list of Source
        In the order given, sorted within folders and globs; each scene once, with all that is known of it.

    Raises
    ------
    PairsError
        If a path names nothing, or a table or collection cannot be read.
    """
    found: dict[str, Source] = {}
    for text in given:
        sources = list(_expand(str(text), role))
        if not sources:
            raise PairsError(f"{text}: no {role.upper()} scene there")
        for source in sources:
            key = scene_key(source.href)
            found[key] = found[key].over(source) if key in found else source
    if not found:
        raise PairsError(f"no {role.upper()} scenes were given")
    return list(found.values())


def _expand(text: str, role: Role) -> Iterator[Source]:
    local = _file(text)
    if isinstance(parse_source(text), dict) or is_remote(gdal_path(text)):
        yield from [_of_item(text, role)] if is_stac(text) else [Source(text)]
    elif local.is_dir() and not _is_product(local):
        yield from (Source(str(path)) for path in _in_folder(local, role))
    elif local.exists():
        yield from _in_file(text, local, role)
    elif glob.has_magic(text):
        for path in expand_glob(text):
            yield from _expand(path, role)
    elif text.startswith("/vsi") or ":" in text:
        yield Source(text)
    else:
        raise PairsError(f"{text}: no such file or folder")


def expand_glob(text: str) -> list[str]:
    """Return the files that a glob matches, without files that belong to others; anything else is itself."""
    if not glob.has_magic(text) or _file(text).exists() or is_remote(gdal_path(text)):
        return [text]
    # Path.glob takes no absolute patterns.
    found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
    return [path for path in found if not _is_sidecar(Path(path))]


def _in_folder(folder: Path, role: Role) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or _is_sidecar(path):
            continue
        if _is_product(path):
            if is_sentinel2(path) == (role == "eo"):
                yield path
        elif path.is_dir():
            yield from _in_folder(path, role)
        elif path.suffix.lower() in _RASTERS:
            yield path


def _is_product(path: Path) -> bool:
    """Whether a path is a product of Sentinel-1 or 2."""
    return is_sentinel1(path) or is_sentinel2(path)


def _is_sidecar(path: Path) -> bool:
    """Whether a file only belongs to another (mask, overviews, metadata, world file), or is unfinished."""
    name = path.name.lower()
    return ".partial" in {p.suffix for p in (path, *path.parents)} or name.endswith(
        (".msk", ".ovr", ".aux.xml", ".tfw", ".prj", ".wld", ".md5", ".sha256")
    )


def _in_file(text: str, path: Path, role: Role) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        yield Source(text)
    elif suffix in (".json", ".geojson"):
        yield from _in_json(text, path, role)
    else:
        yield from _in_table(path)


def _in_json(text: str, path: Path, role: Role) -> Iterator[Source]:
    if "#" in text:
        yield _of_item(text, role)
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        kind = content["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairsError(f"{path}: neither STAC nor GeoJSON that can be read ({one_line(error)})") from error
    if kind == "Feature":
        yield _of_item(text, role)
    elif kind != "FeatureCollection":
        raise PairsError(f"{path}: a {kind}: give a STAC item, an item collection, or a table of footprints")
    elif any("assets" in feature for feature in content.get("features", ())):
        yield from _in_collection(text, path, role)
    else:
        yield from _in_table(path)


def _in_collection(text: str, path: Path, role: Role) -> Iterator[Source]:
    try:
        names = [item.id for item in pystac.ItemCollection.from_file(str(path))]
    except (OSError, pystac.STACError, pystac.STACTypeError, KeyError, TypeError, ValueError) as error:
        raise PairsError(f"{path}: an item collection that cannot be read ({one_line(error)})") from error
    for name in names:
        href = f"{text}#{name}"
        if _fits(href, role):
            yield _of_item(href, role)


def _fits(href: str, role: Role) -> bool:
    if role == "eo":
        return choose_eo_assets(read_item(href)) is not None
    try:
        read_sar_assets(href)
    except SceneError:
        return False
    return True


def _of_item(href: str, role: Role) -> Source:
    item = read_item(href)
    if role == "sar":
        facts = read_sar_assets(href).facts
    else:
        if choose_eo_assets(item) is None:
            assets = ", ".join(item.assets) or "none"
            raise PairsError(f"{href}: no EO asset (visual, or red, green and blue) among {assets}")
        facts = read_item_facts(item)
    area = shapely.from_geojson(json.dumps(item.geometry)) if item.geometry else None
    placed = _area(area, "EPSG:4326")
    return Source(href, facts.datetime, facts.platform, facts.orbit_direction, placed)


def _in_table(path: Path) -> Iterator[Source]:
    try:
        table = read_vectors(path)
    except SettingsError as error:
        raise PairsError(str(error)) from error
    if _HREF not in table.columns:
        columns = ", ".join(map(str, table.columns))
        raise PairsError(f"{path}: a table of footprints has a column {_HREF}, and this one has {columns}")
    time = next((name for name in _TIMES if name in table.columns), None)
    for number, row in enumerate(table.to_dict("records"), start=1):
        href = row[_HREF]
        if not isinstance(href, str) or not href:
            raise PairsError(f"{path}: row {number} has no {_HREF}")
        try:
            yield Source(
                _relative_to(href, path),
                _time(row.get(time) if time else None),
                _text(row.get("platform")),
                _text(row.get("orbit_direction")),
                _area(row[table.geometry.name], table.crs),
            )
        except (SettingsError, GeoreferenceError) as error:
            raise PairsError(f"{path}: row {number}: {error}") from error


def _relative_to(href: str, path: Path) -> str:
    """Resolve an href against the folder of the file it stands in."""
    pairs = parse_source(href)
    if isinstance(pairs, dict):
        return ",".join(f"{name}={_relative_to(file, path)}" for name, file in pairs.items())
    if "://" in href or href.startswith("/") or gdal_path(href).startswith("/vsi"):
        return href
    return str(path.parent / href)


def _area(area: Any, crs: Any) -> Any:
    """Transform a polygon to longitude and latitude; None for what has no area."""
    if area is None or area.geom_type not in ("Polygon", "MultiPolygon") or area.is_empty:
        return None
    parts = shapely.get_parts(area)
    if CRS.from_user_input(crs).is_geographic:
        # Wider than half the globe: it crosses the antimeridian, and was not split there.
        parts = [_unroll(part) if part.bounds[2] - part.bounds[0] > 180 else part for part in parts]
    return to_lonlat(shapely.multipolygons(shapely.get_parts(shapely.make_valid(parts))), crs)


def _unroll(polygon: Any) -> Any:
    return shapely.transform(polygon, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))


def _time(value: Any) -> str | None:
    if value is None or value != value:  # NaN and NaT are not equal to themselves
        return None
    return iso_datetime(value.to_pydatetime() if hasattr(value, "to_pydatetime") else str(value))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _file(href: str) -> Path:
    """Return the file of an href, which may name an item in it."""
    return Path(gdal_path(href).partition("#")[0] if is_stac(href) else gdal_path(href))


def scene_key(href: str) -> str:
    """Return a key of a scene that is equal for two spellings of one path."""
    path = _file(href)
    if not path.exists():
        return href
    real = path.resolve()
    if _is_product(real) and not real.is_dir() and real.suffix.lower() != ".zip":
        real = real.parent  # the manifest and its folder are one product
    return f"{real}#{href.partition('#')[2]}"


def read_vectors(path: Path) -> GeoDataFrame:
    """Read a table of geometries with a CRS: GeoJSON, GeoPackage, GeoParquet and what else GDAL reads.

    GeoJSON without a CRS is in degrees, longitude before latitude (RFC 7946, section 4). A `SettingsError` is
    raised where there is no such file, it cannot be read, has several layers, or no CRS.
    """
    import geopandas

    if not path.exists():
        raise SettingsError(f"{path}: no such file")
    parquet = path.suffix.lower() in _PARQUET
    try:
        layers = [] if parquet else geopandas.list_layers(path)["name"].to_list()
        if len(layers) > 1:
            raise SettingsError(f"{path}: has {len(layers)} layers ({', '.join(layers)}), must have one")
        table = geopandas.read_parquet(path) if parquet else geopandas.read_file(path)
    except SettingsError:
        raise
    except Exception as error:  # drivers raise errors of their own
        raise SettingsError(
            f"{path}: not a file of geometries that can be read ({one_line(error)})"
        ) from error
    if not isinstance(table, geopandas.GeoDataFrame):
        raise SettingsError(f"{path}: a table without geometries")
    if table.crs is None:
        raise SettingsError(f"{path}: its geometries have no CRS (a shapefile needs its .prj)")
    return table
