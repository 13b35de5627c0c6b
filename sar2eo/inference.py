"""The translation graph: a scene in, a lazy EO Dataset out.

One graph: sample the scaling, translate a batch of windows, gather a block. Tasks are few and fat:
one for each batch, or for a run of batches where there are tens of thousands; one for each variable of
each block. A scene that was opened by `sar2eo.open_scene`, or a slice of one, is read by the batch that
needs it; what was computed from a scene is taken from the chunks of its Dask array. The model stands in
the graph by path and options.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize

from sar2eo._version import __version__
from sar2eo.attributes import attributes_of, to_attributes
from sar2eo.card import Card
from sar2eo.errors import FitWarning, PolarisationError, RadiometryError, SceneError, SettingsError
from sar2eo.graph import TranslationGraph
from sar2eo.grid import Grid
from sar2eo.models import BUNDLED, ModelSpec, resolve_model
from sar2eo.radiometry import POLARISATIONS, Channels, default_channels
from sar2eo.recipe import TranslateSettings, checked
from sar2eo.scene import reader_of
from sar2eo.tasks import Plan
from sar2eo.windows import Lattice, Window

__all__ = ["EO_BANDS", "place_of", "spec_of", "translate"]

EO_BANDS = ("red", "green", "blue")

_BLOCK = (512, 1024)
_MOST_TASKS = 2**14  # a task of one batch takes 12 kB of Dask's scheduler
_LARGEST_TILE = 4096  # of which a batch of four takes a gigabyte before the model sees it
_REPORTED = (
    "steps",
    "sampler",
    "spacing",
    "temperature",
    "seed",
    "samples",
    "device",
    "dtype",
    "batch",
    "compile",
    "threads",
)


def translate(
    scene: xr.DataArray,
    model: str | Path | ModelSpec = BUNDLED,
    *,
    settings: TranslateSettings | None = None,
    block: tuple[int, int] = _BLOCK,
    **options: Any,
) -> xr.Dataset:
    """Translate a SAR scene into an EO image, lazily.

    Parameters
    ----------
    scene : DataArray, dims (band, y, x)
        As `sar2eo.open_scene` returns it, or a slice or a function of that. A slice keeps its place in
        the whole scene: windows, noise and scaling are those of the whole, and so are the pixels. (A
        slice of a function, say of ``2 * scene``, keeps windows and noise only: nothing outside of it
        is known, so scaling and borders are its own. Slice the result instead.)
    model : str, Path or ModelSpec
        "bundled", "identity", a checkpoint folder, or a hub id.
    settings : TranslateSettings, optional
        All settings at once.
    block : tuple of int
        Rows and columns of the result's chunks; rows a multiple of 512 suit COGs.
    **options
        Fields of `TranslateSettings`: tile, overlap, steps, sampler, seed, samples, scaling, device,
        dtype, batch, compile, threads, revision, force.

    Returns
    -------
    Dataset
        Lazy: ``eo`` (band, y, x) uint8, 0 where there is no data; ``valid`` (y, x) bool;
        ``amplitude_divisor`` (polarisation), the amplitude that was mapped to 1. Where the model has a
        confidence channel ``confidence`` (y, x) float32, 1 / variance (C-DiffSET, section 3.3 and Fig.
        7). With ``samples`` above 1 ``eo`` is their mean and ``spread`` (y, x) float32 their standard
        deviation in levels. Computing a slice runs whole batches: all those whose windows touch the
        chunks of the slice (of a very large scene, whole runs of them).

    Raises
    ------
    SettingsError, SceneError, CheckpointError
        If settings, scene and model do not fit each other; before any pixel is read.
    """
    if not isinstance(scene, xr.DataArray):
        raise SceneError(f"{type(scene).__name__} is not a scene: open it with sar2eo.open_scene first")
    settings = checked(dataclasses.replace(settings or TranslateSettings(), **options))
    if settings.tile > _LARGEST_TILE:
        raise SettingsError(f"tile={settings.tile}: must be at most {_LARGEST_TILE}")
    spec = model if isinstance(model, ModelSpec) else spec_of(model, settings)
    whole, region = place_of(scene)
    _check_gsd(whole, spec.card, force=settings.force)
    plan = _plan(scene, whole, region, spec, settings)
    scaling = _fixed_scaling(settings, spec.card, plan)
    token = tokenize(_identity(scene, plan), scaling, block)
    arrays = TranslationGraph(plan, scene, scaling, block, token).arrays()
    dims = {"eo": ("band", "y", "x"), "amplitude_divisor": ("polarisation",)}
    return xr.Dataset(
        {name: (dims.get(name, ("y", "x")), array) for name, array in arrays.items()},
        _coordinates(scene, plan),
        to_attributes(_provenance(scene, plan, settings) | {"grid": whole.crop(region)}),
    )


def place_of(scene: xr.DataArray) -> tuple[Grid, Window]:
    """Return the grid of the whole scene, and the window of it that this array is.

    An array that does not lie on the grid in its attributes (say, a resampled one) is a whole scene
    of its own.

    Raises
    ------
    SceneError
        If the array does not have the dims (band, y, x), in this order.
    """
    import rioxarray  # noqa: F401  (gives the accessor .rio)

    if scene.dims != ("band", "y", "x") or min(scene.shape) < 1:
        raise SceneError(f"scene dims={scene.dims}, shape={scene.shape}: must be (band, y, x) and not empty")
    for name in ("y", "x"):
        steps = np.diff(scene[name].values.astype(float))
        if steps.size and np.ptp(steps) > 1e-3 * abs(steps).max():
            raise SceneError(f"{name} coordinates are not evenly spaced: select slices, or reproject first")
    shape = (scene.sizes["y"], scene.sizes["x"])
    whole = attributes_of(scene).get("scene_grid")
    if isinstance(whole, Grid):
        to_pixel = ~whole.affine
        x, y = scene["x"].values, scene["y"].values
        (left, top), (right, bottom) = to_pixel @ (x[0], y[0]), to_pixel @ (x[-1], y[-1])
        window = Window(round(top - 0.5), round(left - 0.5), *shape)
        ends = (window.row + 0.5, window.col + 0.5, window.stop_row - 0.5, window.stop_col - 0.5)
        off = max(abs(a - b) for a, b in zip(ends, (top, left, bottom, right), strict=True))
        if _same_crs(scene.rio.crs, whole) and off < 1e-2 and whole.window.intersection(window) == window:
            return whole, window
    own = Grid.create(scene.rio.crs, scene.rio.transform(recalc=True), shape)
    return own, own.window


def _same_crs(own: Any, whole: Grid) -> bool:
    """Tell whether a slice's CRS is the whole scene's: also one without a code, whose text xarray changes."""
    if own is None or whole.crs is None:
        return own is None
    from rasterio.crs import CRS

    return bool(own == CRS.from_wkt(CRS.from_user_input(whole.crs).to_wkt()))


def spec_of(model: str | Path, settings: TranslateSettings) -> ModelSpec:
    """Settle a model by name and the settings that concern it."""
    return resolve_model(
        model,
        revision=settings.revision,
        steps=settings.steps,
        sampler=settings.sampler,
        seed=settings.seed,
        samples=settings.samples,
        device=settings.device,
        dtype=settings.dtype,
        batch=settings.batch,
        compile=settings.compile,
        threads=settings.threads,
    )


def _check_gsd(grid: Grid, card: Card | None, *, force: bool) -> None:
    if card is None or card.gsd_m is None or grid.crs is None:
        return
    ground = grid.ground_sample_distance_m()
    if not card.fits_gsd(*ground):
        _misfit(
            f"the scene's pixels are {ground[0]:.3g} x {ground[1]:.3g} m on the ground, the model was "
            f"trained at {card.gsd_m:g} m: resample with --resolution, or use a model for this resolution",
            SceneError,
            force=force,
        )


def _misfit(message: str, error: type[SceneError], *, force: bool) -> None:
    if not force:
        raise error(f"{message} (--force translates all the same)")
    warnings.warn(message, FitWarning, stacklevel=4)


def _plan(
    scene: xr.DataArray, whole: Grid, region: Window, spec: ModelSpec, settings: TranslateSettings
) -> Plan:
    found = _polarisations(scene)
    quantity = scene.attrs.get("quantity")
    if quantity is None:
        raise RadiometryError(
            "the scene's attrs name no quantity: set attrs['quantity'] to dn, amplitude, ..."
        )
    polarisations, channels = _choose(found, spec.card, force=settings.force)
    _check_radiometry(spec.card, scene.attrs.get("calibration") or "unknown", force=settings.force)
    read = reader_of(scene)
    if read is not None and (read[0].grid.shape, read[1]) != (whole.shape, region):
        read = None  # the reader's pixels are counted from another corner
    rows, cols = ((n,) for n in scene.shape[1:]) if scene.chunks is None else scene.chunks[1:]
    lattice = Lattice(whole.shape, settings.tile, settings.overlap, spec.factor)
    return Plan(
        lattice=lattice,
        region=region,
        reader=None if read is None else read[0],
        row_edges=tuple(np.cumsum((region.row, *rows)).tolist()),
        col_edges=tuple(np.cumsum((region.col, *cols)).tolist()),
        bands=tuple(found.index(name) for name in polarisations),
        polarisations=polarisations,
        channels=channels,
        quantity=str(quantity),
        spec=spec,
        run=-(-len(lattice.touching(region)) // (spec.batch * _MOST_TASKS)),
    )


def _polarisations(scene: xr.DataArray) -> tuple[str, ...]:
    """Return the names of the bands: their labels, which follow every selection, else the attribute."""
    labels = tuple(map(str, np.atleast_1d(scene["band"].values)))
    if set(labels) <= set(POLARISATIONS):
        return labels
    named = tuple(scene.attrs.get("polarisations") or labels)
    if len(named) != len(labels):
        raise PolarisationError(
            f"the scene has {len(labels)} bands, and its attrs name {', '.join(named)}: label them, as in "
            "scene.assign_coords(band=['VV', 'VH'])"
        )
    return named


def _choose(found: tuple[str, ...], card: Card | None, *, force: bool) -> tuple[tuple[str, ...], Channels]:
    """Return the scene's polarisations that the model takes, and what its channels average."""
    if card is None:
        return found, default_channels(found)
    missing = [name for name in card.polarisations if name not in found]
    if not missing:
        return card.polarisations, card.channels
    _misfit(
        f"the scene has {', '.join(found)}, the model was trained on {', '.join(card.polarisations)}",
        PolarisationError,
        force=force,
    )
    used = {name: _nearest(name, found) for name in card.polarisations}
    channels = tuple(tuple(used[name] for name in names) for names in card.channels)
    return tuple(dict.fromkeys(used.values())), channels


def _nearest(wanted: str, found: tuple[str, ...]) -> str:
    """Return the polarisation itself, else one of its kind (co or cross), else any."""
    return min(found, key=lambda name: (name != wanted, (name[0] == name[1]) != (wanted[0] == wanted[1])))


def _check_radiometry(card: Card | None, calibration: str, *, force: bool) -> None:
    if card is None:
        return
    if card.quantity not in ("dn", "amplitude"):
        raise RadiometryError(
            f"the model's card asks for {card.quantity}, and scenes are given to models as amplitude"
        )
    # A scaling by the scene's own percentile does not care about the calibration's factor.
    if card.scaling != "p99" and card.calibration != calibration:
        _misfit(
            f"the scene's calibration is {calibration}, the model's fixed scaling is for {card.calibration}",
            RadiometryError,
            force=force,
        )


def _fixed_scaling(settings: TranslateSettings, card: Card | None, plan: Plan) -> tuple[float, ...] | None:
    scaling, names = settings.scaling, plan.polarisations
    if scaling is None:
        return None if card is None or card.scaling == "p99" else (float(card.scaling),) * len(names)
    if isinstance(scaling, dict):
        missing = [name for name in names if name not in scaling]
        if missing:
            raise SettingsError(
                f"scaling of {', '.join(scaling)}: the model takes {', '.join(names)}, and "
                f"{', '.join(missing)} is not among them"
            )
        values = tuple(scaling[name] for name in names)
    else:
        values = scaling
    if len(values) not in (1, len(names)) or not all(0 < v < np.inf for v in values):
        raise SettingsError(
            f"scaling={scaling}: must be positive, one for all or one for each of {', '.join(names)}"
        )
    return values * (len(names) // len(values))


def _identity(scene: xr.DataArray, plan: Plan) -> list[Any]:
    """Return what decides the pixels, for a name that is the same on every machine and day."""
    source = plan.reader.identity() if plan.reader is not None else tokenize(scene.data)
    layout = [plan.row_edges, plan.col_edges] if plan.reader is None else []
    kept = [
        plan.lattice,
        plan.region,
        plan.bands,
        plan.polarisations,
        plan.channels,
        plan.quantity,
        plan.spec.batch,
    ]
    return [
        json.dumps(source, sort_keys=True),
        json.dumps(plan.spec.fingerprint(), sort_keys=True),
        layout,
        kept,
    ]


def _coordinates(scene: xr.DataArray, plan: Plan) -> dict[str, Any]:
    kept = {name: scene.coords[name] for name in ("y", "x", "spatial_ref") if name in scene.coords}
    return kept | {"band": list(EO_BANDS), "polarisation": list(plan.polarisations)}


def _provenance(scene: xr.DataArray, plan: Plan, settings: TranslateSettings) -> dict[str, Any]:
    spec = plan.spec
    return {
        "software": f"sar2eo {__version__}",
        "synthetic": "true: generated by a model from SAR; never measure from these pixels",
        "source": str(scene.attrs.get("source", "array")),
        "datetime": scene.attrs.get("datetime"),
        "platform": scene.attrs.get("platform"),
        "geolocation": scene.attrs.get("geolocation"),
        "model": spec.path if spec.card is None else spec.card.name,
        "model_sha256": spec.sha256,
        "card": None if spec.card is None else spec.card.to_dict(),
        "model_parameters": spec.parameters,
        "input": plan.reader.identity() if plan.reader is not None else {"dask": tokenize(scene.data)},
        "quantity": plan.quantity,
        "polarisations": list(plan.polarisations),
        "tile": settings.tile,
        "overlap": settings.overlap,
        "fingerprint": spec.fingerprint(),
        "settings": {name: getattr(spec, name) for name in _REPORTED},
        "region": list(plan.region),
        "scene_shape": list(plan.lattice.shape),
    }
