"""Sources: scenes named by files, folders, globs, STAC and footprint tables, as one list."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pystac
import shapely
from pyproj import CRS

from sar2eo.errors import (
    GeoreferenceError,
    PairsError,
    RadiometryWarning,
    SceneError,
    SettingsError,
    one_line,
)
from sar2eo.geo.footprint import to_lonlat
from sar2eo.geo.radiometry import POLARISATIONS
from sar2eo.scenes.band_names import COLOURS, BandText, choose_named, find_band_file, rank_cloud_rule
from sar2eo.scenes.gdal import gdal_path, is_remote, parse_source
from sar2eo.scenes.metadata import is_layer, iso_datetime, polarisation_words, read_optical_facts
from sar2eo.scenes.sentinel1 import is_sentinel1
from sar2eo.scenes.sentinel2 import is_sentinel2
from sar2eo.scenes.stac_input import choose_eo_assets, is_stac, read_item, read_item_facts, read_sar_assets
from sar2eo.store.documents import parse_json, read_file

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Role = Literal["sar", "eo"]
"""What the scenes are."""

_SHOWN = 5  # names in a message
_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img")
_TABLES = (".gpkg", ".parquet", ".geoparquet", ".geojson", ".json", ".fgb", ".shp")
_HREF, _TIMES = "href", ("datetime", "acquisition_datetime", "start_datetime")


_PARQUET = (".parquet", ".geoparquet")
# Usable data masks of Planet, and the masks of other optical products.
_MASKS = re.compile(r"_(?:udm2?|fmask|qa_\w+|scl|cldprb|cloud_?mask)$", re.I)


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


def expand_sources(given: Sequence[str], role: Role, eo_bands: tuple[int, ...] | None = None) -> list[Source]:
    """List the scenes that paths name; no pixels are read.

    Parameters
    ----------
    given : sequence of str
        Rasters, Sentinel-1 and 2 products, URLs; folders (all rasters, and products of the role, in them and
        their folders, hidden ones left out); globs (``**`` for folders in folders); STAC items; item
        collections (the items that have assets of this role); tables of footprints with a column ``href``,
        and ``datetime``, ``platform``, ``orbit_direction`` where known, as GeoPackage, GeoParquet or GeoJSON.
        Relative hrefs start from the file that holds them. In folders and zips, files of one scene that hold
        one polarisation or one band each are put together.
    role : {"sar", "eo"}
        Which assets of STAC items count.
    eo_bands : tuple of int, optional
        Numbers of red, green and blue in the names of files of one band each.

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
        sources = list(_expand(str(text), role, eo_bands))
        if not sources:
            raise PairsError(f"{text}: no {role.upper()} scene there")
        for source in sources:
            key = scene_key(source.href)
            found[key] = found[key].over(source) if key in found else source
    if not found:
        raise PairsError(f"no {role.upper()} scenes were given")
    return list(found.values())


def _expand(text: str, role: Role, eo_bands: tuple[int, ...] | None) -> Iterator[Source]:
    local = _file(text)
    if isinstance(parse_source(text), dict) or is_remote(gdal_path(text)):
        yield from [_of_item(text, role, eo_bands)] if is_stac(text) else [Source(text)]
    elif holds_scenes(local):
        yield from _inside(local, role, eo_bands)
    elif local.exists():
        yield from _in_file(text, local, role, eo_bands)
    elif glob.has_magic(text):
        for path in expand_glob(text):
            yield from _expand(path, role, eo_bands)
    elif text.startswith("/vsi") or ":" in text:
        yield Source(text)
    else:
        raise PairsError(f"{text}: no such file or folder")


def expand_glob(text: str) -> list[str]:
    """Return the files that a glob matches, without files that belong to others; anything else is itself."""
    if not glob.has_magic(text) or _file(text).exists() or is_remote(gdal_path(text)):
        return [text]
    # The module glob follows links in circles; Path.glob does not, but it takes no absolute patterns.
    anchor = Path(text).anchor
    found = sorted(Path(anchor).glob(text.removeprefix(anchor)))
    hidden = text.startswith(".") or "/." in text
    return [str(p) for p in found if not _is_sidecar(p) and (hidden or "/." not in f"/{p}")]


def _inside(
    path: Path, role: Role, eo_bands: tuple[int, ...] | None, seen: set[Path] | None = None
) -> list[Source]:
    """List the scenes in a folder or an archive; `seen` are listed folders: links make circles."""
    seen = set() if seen is None else seen
    if path.resolve() in seen:
        return []
    seen.add(path.resolve())
    if path.suffix.lower() == ".zip" and path.is_file():
        with zipfile.ZipFile(path) as archive:
            return _in_archive("/vsizip", path, archive.namelist(), role, eo_bands)
    if path.is_file():
        with tarfile.open(path) as tar:
            return _in_archive("/vsitar", path, tar.getnames(), role, eo_bands)
    names = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    rasters, others = [], []
    for each in (path / name for name in names):
        # What lies beside measurements only belongs to them, and a zip that was unpacked lies there twice.
        belongs = "measurement" in names and each.name != "measurement" and each.is_dir()
        if belongs or _is_sidecar(each) or (each.suffix.lower() in (".zip", ".tar") and each.stem in names):
            continue
        if _is_product(each):
            others += [Source(str(each))] if is_sentinel2(each) == (role == "eo") else []
        elif holds_scenes(each):
            others += _inside(each, role, eo_bands, seen)
        elif _is_raster(each):
            rasters.append(str(each))
        elif each.suffix.lower() in (".dim", ".zarr") and role == "sar":
            others.append(Source(str(each)))
    # By the name of the first file, where there are several.
    return sorted([*_join(rasters, role, eo_bands), *others], key=lambda s: re.sub(r"^\w+=", "", s.href))


def _in_archive(
    driver: str, path: Path, names: list[str], role: Role, eo_bands: tuple[int, ...] | None
) -> list[Source]:
    rasters = (name.removeprefix("./") for name in sorted(names) if _is_raster(Path(name)))
    paths = [f"{driver}/{{{path.resolve()}}}/{name}" for name in rasters]
    return _join(paths, role, eo_bands)


def _is_raster(path: Path) -> bool:
    return path.suffix.lower() in _RASTERS and not _is_sidecar(path)


def holds_scenes(path: Path) -> bool:
    """Whether a path is a folder, a zip or a tar of any files, and not of one product."""
    if os.path.isdir(path):  # noqa: PTH112 (any text is safe)
        single = path.suffix.lower() == ".zarr" or path.parent.joinpath(f"{path.stem}.dim").is_file()
        return not single and not _is_product(path)
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return path.is_file() and tarfile.is_tarfile(path)
    return suffix == ".zip" and zipfile.is_zipfile(path) and not _is_product(path)


def _join(paths: list[str], role: Role, eo_bands: tuple[int, ...] | None) -> list[Source]:
    """Put files together that hold one polarisation or one band of a scene each; leave out other layers."""
    if role == "sar":
        return _join_polarisations(paths)
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        scene, band, _ = find_band_file(name)
        if band is not None:
            groups.setdefault((folder, scene), {}).setdefault(band, path)
    found = []
    for (folder, scene), files in groups.items():
        if len(files) >= len(COLOURS):
            inside = [path for path in paths if path.rpartition("/")[0] == folder]
            source, mine = _join_bands(folder, scene, files, inside, eo_bands)
            found.append(source)
            paths = [path for path in paths if path not in mine]
    # A mask that belongs to no scene found is none.
    return [*found, *(Source(path) for path in paths if not _MASKS.search(PurePosixPath(path).stem))]


def _join_bands(
    folder: str, scene: str, files: dict[str, str], inside: list[str], eo_bands: tuple[int, ...] | None
) -> tuple[Source, set[str]]:
    """Make a scene of the files of its bands; return it and all files of the folder that belong to it."""
    named = read_optical_facts(scene, {})
    facts = named.over(read_optical_facts(folder.rpartition("/")[2], {}))
    chosen = choose_named([BandText(0, (band,)) for band in files], facts.platform or "", eo_bands)
    if chosen is None:
        raise PairsError(
            f"{folder}: which of {', '.join(files)} are red, green and blue is not known: give their "
            "numbers with --eo-bands R,G,B"
        )
    parts = {colour: list(files.values())[place] for colour, place in zip(COLOURS, chosen, strict=True)}
    masks = {path: rule for path in inside if (rule := find_band_file(path.rpartition("/")[2]).cloud)}
    shared = re.compile(rf"{re.escape(f'{folder}/{scene}')}(?![A-Za-z0-9])")
    mine = {path for path in inside if shared.match(path)} if scene else {*masks}
    ranked = sorted((rank_cloud_rule(masks[path]), path) for path in mine & masks.keys())
    parts |= {"cloud": ranked[0][1]} if ranked else {}
    href = ",".join(f"{name}={path}" for name, path in parts.items())
    # The time in the files' own names is read with their tags.
    return Source(href, None if named.datetime else facts.datetime, facts.platform), {*mine, *files.values()}


def _join_polarisations(paths: list[str]) -> list[Source]:
    stems = {path: PurePosixPath(path).stem for path in paths}
    radar = {path.rpartition("/")[0] for path, stem in stems.items() if polarisation_words(stem)}
    layers = {path: stem for path, stem in stems.items() if is_layer(stem, path.rpartition("/")[0] in radar)}
    if layers:
        shown = ", ".join(PurePosixPath(path).name for path in [*layers][:_SHOWN])
        more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
        warnings.warn(f"left out {shown}{more}: no radar, by their names", RadiometryWarning, stacklevel=2)
    groups: dict[str, dict[str, str]] = {}
    for path, stem in stems.items():
        if path in layers or _is_derived(path):
            continue
        names = polarisation_words(stem)
        key = without_polarisation(path) if len(names) == 1 else path
        group = groups.setdefault(key, {})
        group[names[0] if len(names) == 1 and names[0] not in group else path] = path
    found = []
    for files in groups.values():
        names = sorted(
            (name for name in files if name in POLARISATIONS), key=lambda name: (name[0] != name[1], name)
        )
        found += [Source(path) for name, path in files.items() if len(names) < 2 or name not in names]
        found += [Source(",".join(f"{name}={files[name]}" for name in names))] if len(names) > 1 else []
    return found


def without_polarisation(name: str) -> str:
    """Return a name without its polarisation: that of a scene of which there is one file for each."""
    return re.sub(rf"(?i)[^a-z0-9/]?(?<![a-z0-9])(?:{'|'.join(POLARISATIONS)})(?![a-z0-9])", "", name)


def _is_derived(path: str) -> bool:
    """Whether a file is a VRT that computes its pixels from other files."""
    if not path.lower().endswith(".vrt") or path.startswith("/vsi"):
        return False
    with Path(path).open(errors="replace") as file:
        return "VRTDerivedRasterBand" in file.read(1 << 16)


def _is_product(path: Path) -> bool:
    """Whether a path is a product of Sentinel-1 or 2."""
    return is_sentinel1(path) or is_sentinel2(path)


def _is_sidecar(path: Path) -> bool:
    """Whether a file only belongs to another (mask, overviews, metadata, world file), or is unfinished."""
    name = path.name.lower()
    return ".partial" in {p.suffix for p in (path, *path.parents)} or name.endswith(
        (".msk", ".ovr", ".aux.xml", ".tfw", ".prj", ".wld", ".md5", ".sha256")
    )


def _in_file(text: str, path: Path, role: Role, eo_bands: tuple[int, ...] | None) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        yield Source(text)
    elif suffix in (".json", ".geojson"):
        yield from _in_json(text, path, role, eo_bands)
    else:
        yield from _in_table(path)


def _in_json(text: str, path: Path, role: Role, eo_bands: tuple[int, ...] | None) -> Iterator[Source]:
    if "#" in text:
        yield _of_item(text, role, eo_bands)
        return
    try:
        content = parse_json(read_file(path))
        kind = content["type"]
        of_items = any("assets" in feature for feature in content.get("features", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairsError(f"{path}: neither STAC nor GeoJSON that can be read ({one_line(error)})") from error
    if kind == "Feature":
        yield _of_item(text, role, eo_bands)
    elif kind != "FeatureCollection":
        raise PairsError(f"{path}: a {kind}: give a STAC item, an item collection, or a table of footprints")
    elif of_items:
        yield from _in_collection(text, path, role, eo_bands)
    else:
        yield from _in_table(path)


def _in_collection(text: str, path: Path, role: Role, eo_bands: tuple[int, ...] | None) -> Iterator[Source]:
    try:
        names = [item.id for item in pystac.ItemCollection.from_file(str(path))]
    except (OSError, pystac.STACError, pystac.STACTypeError, KeyError, TypeError, ValueError) as error:
        raise PairsError(f"{path}: an item collection that cannot be read ({one_line(error)})") from error
    for name in names:
        href = f"{text}#{name}"
        if _fits(href, role, eo_bands):
            yield _of_item(href, role, eo_bands)


def _fits(href: str, role: Role, eo_bands: tuple[int, ...] | None) -> bool:
    if role == "eo":
        return choose_eo_assets(read_item(href), eo_bands) is not None
    try:
        read_sar_assets(href)
    except SceneError:
        return False
    return True


def _of_item(href: str, role: Role, eo_bands: tuple[int, ...] | None) -> Source:
    item = read_item(href)
    if role == "eo" and choose_eo_assets(item, eo_bands) is None:
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
