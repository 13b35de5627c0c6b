"""What the moving scene's file looks like, so that the moved one looks alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo.errors import RadiometryError
from sar2eo.scenes.band_names import BandText, choose_cloud
from sar2eo.scenes.gdal import open_dataset
from sar2eo.scenes.optical import EoScene, PictureReader
from sar2eo.scenes.raster import Band, RasterReader, open_raster
from sar2eo.scenes.reader import FloatArray, SceneReader
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.scenes.warp import WarpedReader

__all__ = ["Layout", "layout_of"]

# Of band and file tags: what would be wrong of other pixels.
_STALE = ("STATISTICS_", "AREA_OR_POINT", "OVR_RESAMPLING_ALG")


@dataclass(frozen=True, eq=False)
class Layout:
    """How values are stored.

    Parameters
    ----------
    dtype : str
    nodata : float or None
        None: an internal mask says which pixels are valid.
    together : bool
        Whether nodata means nodata only where all bands have it, as in pictures of bytes.
    bands : tuple of dict
        Of each: description, role (colour interpretation), unit, tags, scale, offset.
    tags : dict
        Of the file.
    nearest : tuple of bool
        Of each band: whether it holds classes.
    """

    dtype: str
    nodata: float | None
    together: bool
    bands: tuple[dict[str, Any], ...]
    tags: dict[str, str]
    nearest: tuple[bool, ...]

    def stored(self, values: FloatArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Turn values into what is stored, and say which pixels are valid.

        Parameters
        ----------
        values : ndarray of float32, shape (band, row, col)
            In the scene's quantity; NaN where there is no data.

        Returns
        -------
        tuple of ndarray, shapes (band, row, col) and (row, col)
        """
        valid = np.isfinite(values)
        plain = np.where(valid, values, 0).astype(np.float64)
        for band, facts in zip(plain, self.bands, strict=True):
            if facts["scale"] != 1 or facts["offset"] != 0:
                band -= facts["offset"]
                band /= facts["scale"]
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            info = np.iinfo(kind)
            plain = np.clip(np.rint(plain), info.min, info.max)
            if self.nodata is not None:
                _keep_apart(plain, valid, self.nodata, together=self.together, step=info.max)
        filled = np.where(valid, plain, 0.0 if self.nodata is None else self.nodata)
        return filled.astype(kind), np.asarray(valid.all(axis=0))


def _keep_apart(
    plain: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_], nodata: float, *, together: bool, step: int
) -> None:
    """Let no valid pixel become nodata by rounding: it takes the number beside it."""
    same = valid & (plain == nodata)
    if together:
        same &= same.all(axis=0)
    plain[same] = nodata + 1 if nodata < step else nodata - 1


def layout_of(scene: SarScene | EoScene) -> tuple[SceneReader, Layout]:
    """Return the reader of all bands of a scene as they lie in its file, and how to store them.

    Of scenes that are no single raster: of the bands that were opened.

    Parameters
    ----------
    scene : SarScene or EoScene

    Returns
    -------
    tuple of SceneReader and Layout
        The reader is in the frame of the file; values of SAR are in the scene's quantity, those of an
        optical scene as stored.

    Raises
    ------
    RadiometryError
        For complex samples.
    """
    reader: SceneReader
    if isinstance(scene, EoScene):
        bands = _all_bands(scene.reader.source.bands, 0)
        plain = RasterReader(
            tuple(replace(band, scale=1.0, offset=0.0) for band in bands),
            tuple(f"band {number}" for number in range(1, len(bands) + 1)),
            scene.grid,
            scene.reader.block_shape,
            scene.reader.source.files,
        )
        together = scene.kind == "rgb"
        reader = PictureReader(plain, "rgb") if together else plain
        return reader, _described(bands, together=together, optical=True)
    reader = scene.reader.source if isinstance(scene.reader, WarpedReader) else scene.reader
    if not isinstance(reader, RasterReader):
        names = [{**_PLAIN, "description": name} for name in reader.polarisations]
        return reader, Layout("float32", float("nan"), False, tuple(names), {}, (False,) * len(names))
    bands = _all_bands(reader.bands, len(reader.polarisations))
    if bands != reader.bands:
        names_of = tuple(f"band {band.index}" for band in bands)
        reader = RasterReader(bands, names_of, reader.grid, reader.block_shape, reader.files)
    return reader, _described(bands, together=False, optical=False)


_PLAIN: dict[str, Any] = {
    "description": None, "role": "undefined", "unit": None, "tags": {}, "scale": 1.0, "offset": 0.0,
}  # fmt: skip


def _all_bands(bands: tuple[Band, ...], named: int) -> tuple[Band, ...]:
    """Return all bands of the file that some bands are in; the bands themselves where these are several."""
    if len({band.path for band in bands}) > 1:
        return bands
    known = {band.index: band for band in bands}
    everything = open_raster(bands[0].path, names=named).bands
    first = bands[0]
    filled = [
        replace(band, nodata=first.nodata) if band.nodata is None and not band.masked else band
        for band in everything
    ]
    return tuple(known.get(band.index, band) for band in filled)


def _described(bands: tuple[Band, ...], *, together: bool, optical: bool) -> Layout:
    facts, dtypes, texts, tags = [], [], [], None
    for band in bands:
        with open_dataset(band.path) as dataset:
            tags = _fresh(dataset.tags()) if tags is None else tags
            dtypes.append(np.dtype(dataset.dtypes[band.index - 1]))
            texts.append(BandText.read(dataset, band.index))
            facts.append(
                {
                    "description": dataset.descriptions[band.index - 1],
                    "role": dataset.colorinterp[band.index - 1].name,
                    "unit": dataset.units[band.index - 1],
                    "tags": _fresh(dataset.tags(band.index)),
                    # Of optical scenes what is stored is read, and declared again.
                    "scale": 1.0 if optical else band.scale,
                    "offset": 0.0 if optical else band.offset,
                    "declared": (dataset.scales[band.index - 1], dataset.offsets[band.index - 1]),
                }
            )
    dtype = np.result_type(*dtypes)
    if dtype.kind == "c":
        raise RadiometryError(
            f"{bands[0].path}: complex samples cannot be moved without spoiling their phase: give amplitude"
        )
    cloud = choose_cloud(texts) if optical else None
    classes = None if cloud is None or cloud[1].kind == "percent" else cloud[0]
    return Layout(
        dtype=dtype.name,
        nodata=_nodata(bands, dtype),
        together=together,
        bands=tuple(facts),
        tags=tags or {},
        nearest=tuple(band.index == classes for band in bands),
    )


def _nodata(bands: tuple[Band, ...], dtype: np.dtype[Any]) -> float | None:
    declared = next((band.nodata for band in bands if band.nodata is not None), None)
    if dtype.kind == "f":
        return float("nan") if declared is None else declared
    if declared is None or not float(declared).is_integer():
        return None
    info = np.iinfo(dtype)
    return declared if info.min <= declared <= info.max else None


def _fresh(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if not name.startswith(_STALE)}
