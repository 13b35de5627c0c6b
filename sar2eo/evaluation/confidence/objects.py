"""Objects of simulated scenes, and a number for each from maps and images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sar2eo.errors import SceneError
from sar2eo.evaluation.confidence.variance_maps import ScenePair, VarianceMaps
from sar2eo.geo.radiometry import FloatArray
from sar2eo.simulation import SETTINGS_TAG, ObjectKind, ObjectState

__all__ = ["Truth", "contrasts", "enlarged", "read_truth", "score_objects"]

IntArray = npt.NDArray[np.intp]

GUARD_PX, RING_PX = 2, 8
"""The ring around an object that its contrast is taken against: farther than the one, as far as the other."""

_LEAST_AMPLITUDE = 1e-3
_LEAST = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is true of a simulated scene.

    Parameters
    ----------
    settings : dict
        It was simulated with.
    label : ndarray of uint16, shape (H, W)
        Number of the object at each pixel, 0 for none.
    numbers, kinds, states : ndarray of int, shape (N,)
        Of the objects: their number in `label`, `ObjectKind` and `ObjectState`.
    """

    settings: dict[str, Any]
    label: npt.NDArray[np.uint16]
    numbers: IntArray
    kinds: IntArray
    states: IntArray

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """Which objects are discrepancies."""
        return np.asarray(self.states != ObjectState.UNCHANGED)


def read_truth(folder: Path) -> Truth:
    """Read the truth of a folder of ``sar2eo simulate``.

    Raises
    ------
    SceneError
        If it has none, or its SAR is shifted against it.
    """
    import rasterio
    from rasterio.errors import RasterioError

    path = folder / "truth.tif"
    try:
        with rasterio.open(path) as file:
            tags, bands = file.tags(), file.read()
    except (RasterioError, OSError) as error:
        raise SceneError(
            f"{folder} has no truth.tif that can be read: must be a folder of sar2eo simulate"
        ) from error
    if SETTINGS_TAG not in tags or len(bands) != 4:
        raise SceneError(f"{path}: is not the truth of a scene of sar2eo simulate")
    settings = json.loads(tags[SETTINGS_TAG])
    if any(settings["shift"]):
        raise SceneError(
            f"{folder}: its SAR is shifted by {settings['shift']} against its truth: simulate without --shift"
        )
    _, kind, state, label = bands
    numbers, at = np.unique(label, return_index=True)
    planted = numbers > 0
    at = at[planted]
    return Truth(
        settings=settings,
        label=label,
        numbers=numbers[planted].astype(np.intp),
        kinds=kind.ravel()[at].astype(np.intp),
        states=state.ravel()[at].astype(np.intp),
    )


def score_objects(truth: Truth, pair: ScenePair, maps: VarianceMaps, factor: int) -> list[dict[str, Any]]:
    """Give each object a number by every detector.

    Returns
    -------
    list of dict
        Of the objects whose latent pixels are all valid, and that have ground around them: "number",
        "kind", "state", "pixels", and "scores" by detector. "forced T mean", "sampled mean": log10 of
        the variance, mean over the object's pixels, each with the value of its latent pixel; "... max":
        the largest. "surprise T mean" and "max": the same of squared error over variance. "sar contrast":
        mean amplitude over that of the ring, in dB. "eo contrast": distance of the mean colours, in
        levels. "size": pixels.
    """
    shape, label = truth.label.shape, truth.label
    layers = {"sampled": maps.sampled}
    for timestep, variance in maps.forced.items():
        layers[f"forced {timestep}"] = variance
        layers[f"surprise {timestep}"] = maps.surprise(timestep)
    # Where nothing was run there is no variance; no object that counts lies there.
    logarithms = {name: np.log10(np.maximum(found, _LEAST)) for name, found in layers.items()}
    columns: dict[str, Any] = {}
    for name, found in logarithms.items():
        full = enlarged(found, factor, shape)
        columns[f"{name} mean"] = ndimage.mean(full, label, truth.numbers)
        columns[f"{name} max"] = ndimage.maximum(full, label, truth.numbers)
    columns["sar contrast"], columns["eo contrast"] = contrasts(truth, pair)
    whole = ndimage.minimum(enlarged(maps.valid, factor, shape), label, truth.numbers)
    pixels = np.bincount(label.ravel(), minlength=int(truth.numbers.max(initial=0)) + 1)[truth.numbers]
    columns["size"] = pixels
    return [
        {
            "number": int(truth.numbers[i]),
            "kind": ObjectKind(int(truth.kinds[i])).name.lower(),
            "state": ObjectState(int(truth.states[i])).name.lower().replace("_", "-"),
            "pixels": int(pixels[i]),
            "scores": {name: float(values[i]) for name, values in columns.items()},
        }
        for i in np.flatnonzero((whole > 0) & np.isfinite(columns["sar contrast"]))
    ]


def contrasts(truth: Truth, pair: ScenePair) -> tuple[FloatArray, FloatArray]:
    """Hold each object against the valid ground around it that belongs to no other object.

    Returns
    -------
    sar : ndarray, shape (N,)
        Of amplitude as the model receives it (clipped at the scene's percentile), in dB.
    eo : ndarray, shape (N,)
        Euclidean distance of the mean colours, in levels of bytes.
    """
    amplitude, colour = (pair.sar.mean(axis=0) + 1) / 2, (pair.eo + 1) * 127.5
    found = np.full((2, len(truth.numbers)), np.nan)
    boxes = ndimage.find_objects(truth.label)
    for i, number in enumerate(truth.numbers):
        rows, cols = (slice(max(0, s.start - RING_PX), s.stop + RING_PX) for s in boxes[number - 1])
        label, valid = truth.label[rows, cols], pair.valid[rows, cols]
        inside = (label == number) & valid
        distance = ndimage.distance_transform_edt(label != number)
        ring = (distance > GUARD_PX) & (distance <= RING_PX) & (label == 0) & valid
        if inside.any() and ring.any():
            part = amplitude[rows, cols]
            levels = [max(float(part[mask].mean()), _LEAST_AMPLITUDE) for mask in (inside, ring)]
            shades = [colour[:, rows, cols][:, mask].mean(axis=1) for mask in (inside, ring)]
            found[:, i] = 20 * np.log10(levels[0] / levels[1]), np.linalg.norm(shades[0] - shades[1])
    return found[0], found[1]


def enlarged(coarse: npt.NDArray[Any], factor: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Give every pixel the value of its latent pixel."""
    return coarse.repeat(factor, axis=0).repeat(factor, axis=1)[: shape[0], : shape[1]]
