"""Files of geometries: GeoJSON, GeoPackage, Shapefile, FlatGeobuf, GeoParquet and what else GDAL reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sar2eo.errors import SettingsError, one_line

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["read_vectors"]

_PARQUET = (".parquet", ".geoparquet")


def read_vectors(path: Path) -> GeoDataFrame:
    """Read a table of geometries with a CRS.

    Parameters
    ----------
    path : Path
        GeoJSON without a CRS is in degrees, longitude before latitude (RFC 7946, section 4).

    Raises
    ------
    SettingsError
        If there is no such file, it cannot be read, has several layers, or says no CRS.
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
