"""Arrays of other libraries, brought into the form of `sar2eo.open_scene`."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr
from affine import Affine
from rioxarray.exceptions import MissingSpatialDimensionError

from sar2eo.errors import (
    GeoreferenceError,
    PolarisationError,
    RadiometryError,
    Sar2eoWarning,
    SceneError,
    SettingsError,
    one_line,
)
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import QUANTITIES
from sar2eo.scenes.lazy_array import decode_attributes, find_reader, pixel_centres
from sar2eo.scenes.metadata import iso_datetime, polarisation_words

Array = TypeVar("Array", xr.DataArray, xr.Dataset)

_ROWS_AND_COLUMNS = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"))
_TIMES = ("time", "datetime")
_CORNER = 0.01  # of a pixel


def normalise_array(scene: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Bring an array of a SAR scene into the form that `open_scene` returns.

    Taken are arrays as rioxarray, odc-stac, stackstac and others make them; see `arrange_array`, of which a
    Dataset may hold one for each polarisation. Declared nodata (``scene.rio.nodata``) becomes NaN, complex
    samples become amplitude, declared scale and offset are applied, and all bands go into one chunk. Values
    over a reader stay as they are.

    Raises
    ------
    RadiometryError
        If attrs["quantity"] is unknown, or complex samples are declared other than amplitude.
    SceneError
        If it is no scene, attrs["datetime"] is no time, or scale and offset are no numbers or differ between
        bands; as `GeoreferenceError` or `PolarisationError` where that says more.
    """
    if isinstance(scene, xr.Dataset):
        return _join_variables(scene)
    scene = arrange_array(scene)
    quantity, acquired = scene.attrs.get("quantity"), scene.attrs.get("datetime")
    if quantity is None:
        quantity = {"u": "dn", "c": "amplitude"}.get(scene.dtype.kind)
        scene = scene.assign_attrs(quantity=quantity)
    if quantity not in QUANTITIES:
        raise RadiometryError(
            f"the scene's attrs['quantity']={quantity!r}: must be one of {', '.join(QUANTITIES)}, as in "
            "scene.assign_attrs(quantity='intensity')"
        )
    try:
        known = acquired is None or (isinstance(acquired, str) and bool(iso_datetime(acquired)))
    except SettingsError:
        known = False
    if not known:
        raise SceneError(
            f"the scene's attrs['datetime']={acquired!r}: must be ISO 8601 text, as 2020-11-07T13:52:41Z"
        )
    if scene.dtype == np.uint8:  # which nodata, masked, would hide
        scene = scene.assign_attrs(stored_as="bytes")
    scene = scene if find_reader(scene) is not None else _values(scene, str(quantity))
    return scene if scene.chunks is None or len(scene.chunks[0]) == 1 else scene.chunk(band=-1)


def arrange_array(scene: xr.DataArray) -> xr.DataArray:
    """Give an array the dims (band, y, x), polarisations as labels, and rows that run from north to south.

    Rows and columns may have any usual name; other dims must have length 1. What says polarisations are the
    labels of the bands, ``attrs["long_name"]``, ``attrs["polarisations"]``, or the array's name; bands that
    are none are left out, with a warning. A scalar coordinate ``time`` becomes attrs["datetime"].
    """
    if not isinstance(scene, xr.DataArray):
        raise SceneError(f"{type(scene).__name__} is not a scene: open it with sar2eo.open_scene first")
    return _name_bands(face_north(_place(_name_dims(scene))))


def face_north(array: Array) -> Array:
    """Turn a georeferenced array so that rows run from north to south, and columns from west to east."""
    for name, sign in (("y", -1), ("x", 1)):
        ends = array[name].values[[0, -1]]
        if array.rio.crs is not None and name in array.coords and (ends[1] - ends[0]) * sign < 0:
            array = array.isel({name: slice(None, None, -1)})
    return array


def _join_variables(scenes: xr.Dataset) -> xr.DataArray:
    """Join the variables of a Dataset that are polarisations; a single one may hold them all."""
    scenes = scenes.set_coords([name for name, array in scenes.data_vars.items() if not array.dims])
    scenes = scenes.drop_vars({"band"} & set(scenes.coords) - set(scenes.dims))
    variables = {name: array for name, array in scenes.data_vars.items() if array.ndim > 1}
    texts = {name: [str(name), str(array.attrs.get("long_name"))] for name, array in variables.items()}
    words = {name: next(filter(None, map(polarisation_words, text)), []) for name, text in texts.items()}
    found = {name: of_name[0] for name, of_name in words.items() if len(of_name) == 1}
    plain = {name: word for name, word in found.items() if str(name).upper() == word}
    chosen = list(plain or found or variables)
    if not (plain or found) and len(variables) != 1:
        raise PolarisationError(
            f"a Dataset of {', '.join(map(str, variables)) or 'no variable with rows and columns'}: none is "
            "named as a polarisation; name them, as in dataset.rename(NAME='VV')"
        )
    _warn_of_others([name for name in variables if name not in chosen])
    parts = [
        normalise_array(variables[name].assign_attrs(scenes.attrs | variables[name].attrs)) for name in chosen
    ]
    if len(parts) == 1:
        return parts[0]
    names = [str(part["band"].values[0]) for part in parts]
    _check_different(names, chosen)
    joined = xr.concat(
        parts, "band", join="exact", coords="minimal", compat="override", combine_attrs="drop_conflicts"
    )
    if {part.attrs["quantity"] for part in parts} != {joined.attrs.get("quantity")}:
        raise RadiometryError(f"{', '.join(map(str, chosen))}: they differ in attrs['quantity']")
    return joined.assign_attrs(polarisations=names).chunk(band=-1)


def _warn_of_others(names: list[Any]) -> None:
    if names:
        warnings.warn(
            f"{', '.join(map(str, names))}: left out, as not named as a polarisation",
            Sar2eoWarning,
            stacklevel=4,
        )


def _check_different(names: list[str], labels: list[Any]) -> None:
    if len(set(names)) < len(names):
        raise PolarisationError(
            f"{', '.join(map(str, labels))} are {', '.join(names)}: select one for each polarisation"
        )


def _name_dims(scene: xr.DataArray) -> xr.DataArray:
    """Bring the dims into the form (band, y, x)."""
    lower = {str(name).lower(): name for name in scene.dims}
    pairs = ((lower.get(y), lower.get(x)) for y, x in _ROWS_AND_COLUMNS)
    try:
        rows, cols = scene.rio.y_dim, scene.rio.x_dim
    except MissingSpatialDimensionError:
        rows, cols = next((pair for pair in pairs if None not in pair), (None, None))
    if rows is None or 0 in scene.shape:
        y, x = ("rows", "columns", *scene.dims)[-2:]
        raise SceneError(
            f"scene dims={scene.dims}, shape={scene.shape}: must be (band, y, x) and not empty; rename what "
            f"is on a map, as in scene.rename({y}='y', {x}='x'), and open a product in the radar's own "
            "geometry with sar2eo.open_scene"
        )
    others = [name for name in scene.dims if name not in (rows, cols)]
    labelled = [name for name in others if any(map(polarisation_words, _labels(scene, name)))]
    several = [name for name in others if scene.sizes[name] > 1]
    band = next(iter([*labelled, *({"band"} & set(others)), *several]), None)
    many = [name for name in several if name != band or scene[name].dtype.kind == "M"]
    if many:
        raise SceneError(
            f"{many[0]} has {scene.sizes[many[0]]} steps: select one, as in scene.isel({many[0]}=0), or join "
            f"them, as in scene.median({many[0]!r}, keep_attrs=True)"
        )
    scene = scene.isel({name: 0 for name in others if name != band})
    new = {old: name for old, name in ((band, "band"), (rows, "y"), (cols, "x")) if old not in (None, name)}
    if rows != "y" and str(rows).lower().startswith("lat") and scene.rio.crs is None:
        scene = scene.rio.write_crs("EPSG:4326")
    scene = scene.drop_vars(set(new.values()) & set(scene.coords)).rename(new) if new else scene
    if band is None:
        scene = scene.expand_dims("band")
    if scene.dims != ("band", "y", "x"):
        scene = scene.transpose("band", "y", "x")
    for time in (scene[name].values for name in _TIMES if name in scene.coords):
        known = time.ndim == 0 and time.dtype.kind == "M" and not np.isnat(time)
        if known and scene.attrs.get("datetime") is None:
            scene = scene.assign_attrs(datetime=f"{np.datetime_as_string(time, unit='s')}Z")
    return scene


def _labels(scene: xr.DataArray, name: Any) -> list[str]:
    return list(map(str, np.atleast_1d(scene[name].values))) if name in scene.coords else []


def _place(scene: xr.DataArray) -> xr.DataArray:
    """Check that an array has a place on Earth, and bring its coordinates to pixel centres.

    What was opened without a georeference by request stays as it is.
    """
    crs, missing = scene.rio.crs, not {"y", "x"} <= set(scene.coords)
    if crs is None and not isinstance(decode_attributes(scene).get("scene_grid"), Grid):
        raise GeoreferenceError(
            "the scene has no CRS (scene.rio.crs): give it the one it is in, as in "
            "scene.rio.write_crs('EPSG:32632')"
        )
    transform = scene.rio.transform() if missing else None
    if transform == Affine.identity():
        raise GeoreferenceError(
            "the scene has no coordinates y and x: give it its geotransform, as in "
            "scene.rio.write_transform(Affine(10, 0, 500000, 0, -10, 5200000))"
        )
    if transform is not None:
        if transform.b or transform.d:
            raise GeoreferenceError(
                "the scene's rows and columns do not run along the axes of its CRS: warp it first, as in "
                "scene.rio.reproject(scene.rio.crs)"
            )
        y, x = pixel_centres(Grid.create(crs, transform, (scene.sizes["y"], scene.sizes["x"])))
        scene = scene.assign_coords(y=y, x=x)
    if crs is not None and "spatial_ref" not in scene.coords:
        scene = scene.copy(deep=False).rio.write_crs(crs, grid_mapping_name="spatial_ref", inplace=True)
    return _to_centres(scene)


def _to_centres(scene: xr.DataArray) -> xr.DataArray:
    """Move coordinates of the upper left corners of pixels, as stackstac gives them, to the centres."""
    try:
        transform = Affine(*tuple(scene.attrs["transform"])[:6])
    except (KeyError, TypeError):
        return scene
    for name, size, origin in (("y", transform.e, transform.f), ("x", transform.a, transform.c)):
        values = scene[name].values
        place = (values[0] - origin) / size
        spaced = len(values) < 2 or abs((values[1] - values[0]) / size - 1) < _CORNER
        if spaced and abs(place - round(place)) < _CORNER:
            scene = scene.assign_coords({name: values + size / 2})
    return scene


def _name_bands(scene: xr.DataArray) -> xr.DataArray:
    """Label the bands by their polarisations; leave out those that are none."""
    labels, count = _labels(scene, "band"), scene.sizes["band"]
    ways: Any = (
        labels,
        scene.attrs.get("long_name"),
        decode_attributes(scene).get("polarisations"),
        scene.name,
    )
    for said in ways:
        texts: list[Any] = np.atleast_1d([] if said is None else said).tolist()
        found = [polarisation_words(str(text)) for text in texts]
        if len(texts) == count and any(len(words) == 1 for words in found):
            break
    else:
        raise PolarisationError(
            f"the polarisations of the scene's bands ({', '.join(labels) or count}) are unknown: say them as "
            f"in scene.assign_attrs(polarisations={['VV', 'VH', 'HH', 'HV'][:count]})"
        )
    names = [words[0] if len(words) == 1 else None for words in found]
    if names == labels:
        return scene
    kept = [number for number, name in enumerate(names) if name is not None]
    _warn_of_others([texts[number] for number in range(count) if number not in kept])
    chosen = [str(names[number]) for number in kept]
    _check_different(chosen, [texts[number] for number in kept])
    scene = scene if len(kept) == count else scene.isel(band=kept)
    return scene.assign_coords(band=chosen).assign_attrs(polarisations=chosen)


def _values(scene: xr.DataArray, quantity: str) -> xr.DataArray:
    nodata = _nodata(scene)
    if nodata is not None:
        scene = scene.where(scene != nodata)
    if scene.dtype.kind == "c":
        if quantity != "amplitude":
            raise RadiometryError(
                f"complex samples, and attrs['quantity']={quantity!r}: their magnitude is amplitude"
            )
        scene = scene.copy(data=abs(scene.data))
    return _unpack(scene)


def _unpack(scene: xr.DataArray) -> xr.DataArray:
    """Apply the declared scale and offset, as `open_scene` does.

    rioxarray leaves them as attributes where it does not apply them (``mask_and_scale=False``, its default).
    """
    if "scales" in scene.attrs or "offsets" in scene.attrs:
        raise SceneError(
            "the scene's attrs say that its bands differ in scale or offset: open it with "
            "mask_and_scale=True, or by sar2eo.open_scene"
        )
    try:
        scale = float(scene.attrs.get("scale_factor", 1))
        offset = float(scene.attrs.get("add_offset", 0))
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scene's scale or offset is no number: {one_line(error, 200)}") from error
    if (scale, offset) == (1.0, 0.0):
        return scene
    kept = {name: value for name, value in scene.attrs.items() if name not in ("scale_factor", "add_offset")}
    values: xr.DataArray = scene.astype(np.float64) * scale + offset
    return values.astype(np.float32).assign_attrs(kept)


def _nodata(scene: xr.DataArray) -> Any:
    """Return the declared nodata value in the type of the array, or None."""
    try:
        found = scene.rio.nodata
        if found is None or np.isnan(found):
            return None
        with np.errstate(over="ignore"):  # 32 bits know no -1.8e308
            return np.asarray(found).astype(scene.dtype) if scene.dtype.kind in "fc" else found
    except OverflowError:  # it does not fit into the type of the values, so none of them is nodata
        return None
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scene's nodata is no number: {one_line(error, 200)}") from error
