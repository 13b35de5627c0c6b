"""Containers of rasters of one polarisation each: SNAP's BEAM-DIMAP, HDF5, netCDF and Zarr."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sar2eo.errors import SceneError
from sar2eo.scenes.gdal import open_dataset
from sar2eo.scenes.metadata import Facts, is_layer, polarisation_words, read_facts
from sar2eo.scenes.snap import read_snap_product
from sar2eo.scenes.stac_input import SarAssets
from sar2eo.store.documents import parse_xml, read_file

_ARRAYS = (".h5", ".hdf5", ".he5", ".nc", ".nc4", ".cdf")


def read_container(path: Path) -> SarAssets | None:
    """Find the rasters in a container that hold a polarisation each; None where the path is no container.

    Parameters
    ----------
    path : Path
        A BEAM-DIMAP product (the ``.dim``, its ``.data`` folder, or an ``.img`` in that); a HDF5 or netCDF
        file with several rasters; or a Zarr folder.

    Raises
    ------
    SceneError
        If no raster names a polarisation, or several name the same.
    """
    folder = path.parent if path.suffix.lower() == ".img" else path
    dim = folder.with_suffix(".dim") if folder.suffix.lower() == ".data" else path
    if dim.suffix.lower() == ".dim" and dim.is_file():
        return _read_dimap(dim, path if folder != path else None)
    if not (path.is_file() and path.suffix.lower() in _ARRAYS) and path.suffix.lower() != ".zarr":
        return None
    with open_dataset(str(path)) as dataset:
        if dataset.count > 0 and 0 not in dataset.shape:
            return None
        found = [_placed(name) for name in dataset.subdatasets]
        tags = dataset.tags()
    files = _choose(path, {re.split(r"[:/]", name)[-1]: name for name in found}, found)
    return SarAssets(files, None, False, read_facts(path.name, tags))


def _placed(name: str) -> str:
    """Name an array of HDF5 for GDAL's driver of netCDF, which reads coordinates, where that takes it."""
    placed = re.sub(r"^HDF5:(.*?):/+", r"netcdf:\1:/", name)
    with suppress(SceneError), open_dataset(placed):
        return placed
    return name


def _choose(path: Path, named: Mapping[str, str], every: list[str]) -> dict[tuple[str, ...], str]:
    """Return the rasters that hold a polarisation each, co-polarisation first."""
    files: dict[str, list[str]] = {}
    for name, file in named.items():
        words = polarisation_words(name)
        if len(words) == 1 and not is_layer(name):
            files.setdefault(words[0], []).append(file)
    twice = next((several for several in files.values() if len(several) > 1), None)
    if not files or twice:
        what = f"several rasters of {', '.join(files)}" if twice else "no raster that names a polarisation"
        raise SceneError(f"{path}: holds {what}: name one, such as {' or '.join((twice or every)[:6])}")
    return {(name,): files[name][0] for name in sorted(files, key=lambda name: (name[0] != name[1], name))}


def _read_dimap(dim: Path, only: Path | None) -> SarAssets:
    try:
        root = parse_xml(read_file(dim))
    except (OSError, ValueError) as error:
        raise SceneError(f"{dim}: not readable XML ({error})") from error
    hrefs = {e.findtext("BAND_INDEX"): e.find("DATA_FILE_PATH") for e in root.iter("Data_File")}
    product = read_snap_product(root)
    paths, nodata, units = {}, set(), set()
    for band in product.bands:
        href = hrefs.get(band.number)
        if href is None or not polarisation_words(band.name):
            continue
        path = (dim.parent / href.get("href", "")).with_suffix(".img")
        if only in (None, path):
            paths[band.name] = str(path)
            units.add(band.unit)
            nodata.add(band.nodata)
    files = _choose(dim, paths, [str(path) for path in sorted(dim.with_suffix(".data").glob("*.img"))])
    facts = read_facts(dim.name, product.tags, list(paths), units)
    corrected = {"1": True, "0": False}.get(product.tags.get("is_terrain_corrected", ""))
    return SarAssets(
        files,
        nodata.pop() if len(nodata) == 1 else None,
        False,
        facts.over(Facts(terrain_corrected=corrected)),
    )
