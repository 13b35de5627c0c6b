"""Match files: find an optical template in a SAR image, by any method, with one kind of report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sar2eo._version import __version__
from sar2eo.errors import OutputError, PolarisationError, SceneError, SettingsError, one_line
from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.matching.structure import Method, StructuralAligner, match
from sar2eo.model.folder import BUNDLED
from sar2eo.scenes.gdal import display_name
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.store.atomic import write_json

FileMethod = Literal["dcdm", "structure", "phase", "ncc"]
"""Translation into the SAR domain, or one of `sar2eo.matching.structure`."""

METHODS: tuple[str, ...] = get_args(FileMethod)
_REPORT = "match.json"
_PIXEL_TOLERANCE = 1e-3
_LARGEST_PX = 1024  # of a search image for dcdm, whose attention sees all of it at once

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Inputs:
    """Search image and template in memory.

    `amplitude` has shape (polarisation, row, col), `template` (row, col, 3) of float32 from 0 to 255; NaN
    where there is no data. `expected` is the shift by georeference, in pixels, `pixel` its size (y, x).
    """

    amplitude: FloatArray
    polarisations: tuple[str, ...]
    template: FloatArray
    expected: tuple[float, float] | None
    pixel: tuple[float, float] | None


def match_files(
    search: str | Path,
    template: str | Path,
    *,
    method: FileMethod = "structure",
    model: str | Path | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    seed: int = 2025,
    scaling: float | None = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    **scene: Any,
) -> dict[str, Any]:
    """Find an optical template in a SAR image.

    Parameters
    ----------
    search : str or Path
        Anything `sar2eo.open_scene` opens, with a georeference or without. Only dcdm must know which
        polarisations it has, and of what quantity its values are.
    template : str or Path
        Raster of bytes with one or three bands; for dcdm smaller than the search image. If both are
        georeferenced they must share CRS and pixel size.
    method : {"dcdm", "structure", "phase", "ncc"}
    model : str, Path or None
        Matcher for dcdm; None: the package's own.
    out : str, Path or None
        New folder for ``match.json`` and pictures.
    steps, seed, scaling
        For dcdm; see `sar2eo.matching.dcdm.matcher.match_dcdm`.
    device, threads
        For dcdm.
    overwrite : bool
        Overwrite the match in a folder.
    **scene
        Options of `sar2eo.open_scene`.

    Returns
    -------
    dict
        JSON values: ``matched``; ``shift`` (rows, cols), null if it cannot be matched; ``score`` and
        threshold; by georeference the ``expected`` shift and the ``displacement``, found minus expected, in
        pixels and in units of the CRS (y, x).

    Raises
    ------
    SettingsError
        For settings or images that do not fit each other.
    SceneError, CheckpointError, OutputError
        If something cannot be read or written.
    """
    if method not in METHODS:
        raise SettingsError(f"method={method!r}: must be one of {', '.join(METHODS)}")
    for name, value in {"model": model, "steps": steps, "scaling": scaling}.items():
        if method != "dcdm" and value is not None:
            raise SettingsError(f"{name}={value}: goes with method dcdm, not with {method}")
    folder = None if out is None else _new_folder(Path(out), overwrite)
    inputs = _read(search, template, scene, learned=method == "dcdm")
    started = time.perf_counter()
    if method == "dcdm":
        options = {"steps": steps, "seed": seed, "scaling": scaling}
        answer, pictures = _by_dcdm(inputs, str(model or BUNDLED), device, threads, options)
    else:
        answer, pictures = _by_structure(inputs, method)
    report = {
        "software": f"sar2eo {__version__}",
        "search": display_name(str(search)),
        "template": display_name(str(template)),
        "method": method,
        **answer,
        **_displacement(inputs, answer["shift"]),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if folder is not None:
        _write(folder, report, inputs, pictures)
    return report


def merge_polarisations(amplitude: FloatArray) -> FloatArray:
    """Average polarisations, each divided by its 99th percentile: VV is several times VH.

    Parameters
    ----------
    amplitude : ndarray of float32, shape (polarisation, row, col)
        NaN where invalid; a single polarisation is returned unchanged.
    """
    if len(amplitude) == 1 or not np.isfinite(amplitude).any(axis=(1, 2)).all():
        return np.asarray(amplitude.mean(axis=0))
    scaled = amplitude / np.nanpercentile(amplitude, 99, axis=(1, 2), keepdims=True).clip(1e-30)
    return np.asarray(scaled.mean(axis=0), np.float32)


def _by_structure(inputs: _Inputs, method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """Match by a method that is not learned, with the limits of `StructuralAligner`."""
    rows, cols = (a - b for a, b in zip(inputs.amplitude.shape[1:], inputs.template.shape[:2], strict=True))
    radius = (max(rows, cols) + 1) // 2 if min(rows, cols) > 0 else None
    found = match(merge_polarisations(inputs.amplitude), inputs.template, method=method, radius_px=radius)
    limits = StructuralAligner()
    least = limits.min_score if method == "structure" else None
    matched = limits.is_sure(found, method)
    answer = {
        "matched": matched,
        "shift": [found.rows, found.cols] if matched else None,
        "score": found.score,
        "threshold": least,
        "ratio": found.ratio,
        "ratio_threshold": limits.min_ratio,
    }
    return answer, {"surface": found.surface, "origin": found.origin}


def _by_dcdm(
    inputs: _Inputs, model: str, device: str, threads: int | None, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    from sar2eo.matching.dcdm.matcher import Matcher, match_dcdm

    if max(inputs.amplitude.shape[1:]) > _LARGEST_PX:
        raise SettingsError(
            f"search image of {inputs.amplitude.shape[1]} x {inputs.amplitude.shape[2]} pixels: dcdm takes "
            f"{_LARGEST_PX} at the most, cut out where the template should be"
        )
    matcher = Matcher(model, device=device, threads=threads)
    wanted = matcher.card.polarisations
    missing = [name for name in wanted if name not in inputs.polarisations]
    if missing:
        raise PolarisationError(
            f"the search image has {', '.join(inputs.polarisations)}, the matcher was trained on "
            f"{', '.join(wanted)}: name its bands with --pol"
        )
    amplitude = inputs.amplitude[[inputs.polarisations.index(name) for name in wanted]]
    found = match_dcdm(inputs.template, amplitude, model=matcher, **options)
    answer = {
        "matched": found.matched,
        "shift": None if found.shift is None else list(found.shift),
        "score": found.score,
        "threshold": found.threshold,
        "false_accepts": matcher.card.false_accepts,
        "steps": options["steps"] or matcher.card.steps,
        "model": matcher.card.name,
    }
    return answer, {
        "surface": found.surface,
        "origin": (0, 0),
        "translated": found.translated,
        "attention": (found.before, found.after),
    }


def _read(search: str | Path, template: str | Path, options: dict[str, Any], *, learned: bool) -> _Inputs:
    from sar2eo.scenes import open_scene
    from sar2eo.scenes.sar_scene import fill_unknown

    options = {**options, "allow_ungeoreferenced": True}
    scene = open_scene(search, **(options if learned else fill_unknown(search, options)))
    amplitude = to_amplitude(scene.values, str(scene.attrs["quantity"]))
    values, grid = _read_template(Path(template))
    expected, pixel = _expected(decode_attributes(scene)["scene_grid"], grid)
    names = tuple(scene.attrs.get("polarisations") or ())
    return _Inputs(amplitude, names, values, expected, pixel)


def _read_template(path: Path) -> tuple[FloatArray, Grid]:
    """Read a template, shape (row, col, 3), 0 to 255, NaN where there is no data, and its grid."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with ignore_missing_georeference(), rasterio.open(path) as file:
            values, valid = file.read(), file.dataset_mask() > 0
            grid = Grid.create(file.crs, file.transform, file.shape)
    except (RasterioError, OSError) as error:
        raise SceneError(f"{path}: cannot be read: {one_line(error)}") from error
    if values.dtype != np.uint8 or len(values) not in (1, 3):
        raise SettingsError(
            f"{path}: {len(values)} bands of {values.dtype}: a template must have one or three bands of bytes"
        )
    image = np.repeat(values, 3 // len(values), axis=0).astype(np.float32)
    image[:, ~valid] = np.nan
    return np.moveaxis(image, 0, -1), grid


def _expected(search: Grid, template: Grid) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Return the shift by georeference, (rows, cols) in pixels, and the pixel's size (y, x); or None."""
    if search.crs is None or template.crs is None:
        return None, None
    a, b = search.affine, template.affine
    sizes = np.array([[a.a, a.e], [b.a, b.e]])
    alike = np.allclose(sizes[0], sizes[1], rtol=_PIXEL_TOLERANCE)
    if search.pyproj_crs != template.pyproj_crs or not alike or any([b.b, b.d]):
        raise SettingsError(
            f"search image in {search.crs} with pixels of {a.a:g} x {a.e:g}, template in {template.crs} with "
            f"{b.a:g} x {b.e:g}: must be the same; warp one onto the other's grid"
        )
    col, row = ~a * (b.c, b.f)
    return (float(row), float(col)), (float(a.e), float(a.a))


def _displacement(inputs: _Inputs, shift: list[float] | None) -> dict[str, Any]:
    """Compare a shift with the georeference, as JSON values."""
    expected = None if inputs.expected is None else list(inputs.expected)
    if expected is None or inputs.pixel is None or shift is None:
        return {"expected": expected, "displacement": None, "displacement_crs": None}
    pixels = [found - due for found, due in zip(shift, expected, strict=True)]
    moved = [value * size for value, size in zip(pixels, inputs.pixel, strict=True)]
    return {"expected": expected, "displacement": pixels, "displacement_crs": moved}


def _new_folder(out: Path, overwrite: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()) and not (overwrite and (out / _REPORT).is_file()):
        raise OutputError(
            f"{out} is not empty: choose another folder, or overwrite=True for an earlier match"
        )
    return out


def _write(folder: Path, report: dict[str, Any], inputs: _Inputs, pictures: dict[str, Any]) -> None:
    """Write pictures, then the report, which marks the folder as complete."""
    shift = report["shift"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown = np.nan_to_num(inputs.template).astype(np.uint8)
        draw_place(inputs.amplitude.mean(axis=0), shown, shift, folder / "place.png")
        draw_similarity(pictures["surface"], pictures["origin"], shift, folder / "similarity.png")
        if "translated" in pictures:
            save_picture(pictures["translated"], folder / "translated.png")
            before, after = pictures["attention"]
            draw_attention(before, after, folder / "attention.png")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    write_json(folder / _REPORT, report)


_INCH = 4.0
_DECADES = 3.0  # of attention that are drawn
_SHOWN_PERCENTILE = 99.0


def save_picture(image: npt.NDArray[np.uint8], path: Path) -> None:
    """Save an image, shape (row, col, 3), without resampling."""
    from PIL import Image

    Image.fromarray(image).save(path)


def draw_similarity(surface: FloatArray, origin: tuple[int, int], mark: Any, path: Path) -> None:
    """Draw a similarity map over shifts; `mark` is the shift that was found, or None."""
    figure, (axes,) = _figure(1)
    rows, cols = surface.shape
    extent = (origin[1] - 0.5, origin[1] + cols - 0.5, origin[0] + rows - 0.5, origin[0] - 0.5)
    drawn = axes.imshow(surface, extent=extent, interpolation="nearest")
    if mark is not None:
        axes.plot([mark[1]], [mark[0]], "r+", markersize=14)
    axes.set(title="similarity", xlabel="shift in columns", ylabel="shift in rows")
    figure.colorbar(drawn, ax=axes, shrink=0.8)
    figure.savefig(path)


def draw_attention(before: FloatArray, after: FloatArray, path: Path) -> None:
    """Draw attention before and after calibration, each template token a row, each search token a column.

    Where neighbours stay neighbours the maps are sparse along diagonals (supplement, section 2.2).
    """
    figure, both = _figure(2)
    for axes, title, attention in zip(both, ("before calibration", "after"), (before, after), strict=True):
        matrix = attention.reshape(attention.shape[0] * attention.shape[1], -1)
        logs = np.log10(np.maximum(matrix / matrix.max(), 10.0**-_DECADES))
        axes.imshow(logs, aspect="auto", interpolation="nearest", vmin=-_DECADES, vmax=0)
        axes.set(title=f"attention {title}", xlabel="search token", ylabel="template token")
    figure.savefig(path)


def draw_place(
    search: FloatArray, template: npt.NDArray[np.uint8], shift: tuple[float, float] | None, path: Path
) -> None:
    """Draw the template, and the search image with the place where it was found.

    Parameters
    ----------
    search : ndarray of float32, shape (row, col)
        Amplitude.
    template : ndarray of uint8, shape (row, col, 3)
    """
    figure, (left, right) = _figure(2)
    left.imshow(template, interpolation="nearest")
    left.set(title="template")
    bright = np.nanpercentile(search, _SHOWN_PERCENTILE)
    right.imshow(search, cmap="gray", vmin=0, vmax=bright, interpolation="nearest")
    right.set(title="cannot be matched" if shift is None else f"found at {shift[0]:.2f}, {shift[1]:.2f}")
    if shift is not None:
        from matplotlib.patches import Rectangle

        rows, cols = template.shape[:2]
        right.add_patch(Rectangle((shift[1] - 0.5, shift[0] - 0.5), cols, rows, fill=False, color="red"))
    figure.savefig(path)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panels * _INCH, _INCH), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, panels)))
