"""A model's variance over a whole pair of scenes, window by window, at latent resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sar2eo.errors import PairsError, PolarisationError, SettingsError, one_line
from sar2eo.evaluation.model_probe import Probe
from sar2eo.geo.blending import gather_block
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import (
    FloatArray,
    amplitude_percentiles,
    fill_invalid,
    to_amplitude,
    to_model_range,
)
from sar2eo.geo.windows import Lattice, Window
from sar2eo.model.card import TranslatorCard
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import ModelSpec
from sar2eo.model.translator import DiffusionTranslator
from sar2eo.scenes.metadata import attributes_of

__all__ = ["ScenePair", "VarianceMaps", "map_variance", "open_scene_pair"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScenePair:
    """A SAR and an EO scene on one grid, as a model sees them.

    Parameters
    ----------
    sar, eo : ndarray of float32, shape (3, H, W)
        In [-1, 1]; invalid pixels have the value of their nearest valid one.
    valid : ndarray of bool, shape (H, W)
        Where both have data.
    """

    sar: FloatArray
    eo: FloatArray
    valid: BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class VarianceMaps:
    """What a model says of a pair of scenes; all of shape (h, w), at latent resolution.

    Parameters
    ----------
    forced : dict of int to ndarray of float32
        By timestep the variance given the SAR image and the noised truth (C-DiffSET, Fig. 7).
    error : dict of int to ndarray of float32
        Squared error of the prediction whose variance that is, mean over the latent's channels.
    sampled : ndarray of float32
        The variance that the translator gives, which does not know the truth.
    valid : ndarray of bool
        Where every pixel under the latent pixel is valid.
    """

    forced: dict[int, FloatArray]
    error: dict[int, FloatArray]
    sampled: FloatArray
    valid: BoolArray

    def surprise(self, timestep: int) -> FloatArray:
        """Return how much more wrong a prediction is than it says: squared error over variance.

        About 1 where the EO image is as the SAR image lets expect; above it where it shows what the SAR image
        does not, below it where it is plain and the SAR image is not; the more so the more the timestep hides
        of it: at 999 the SAR image alone is known. 0 where nothing was run.
        """
        variance = self.forced[timestep]
        return np.divide(self.error[timestep], variance, out=np.zeros_like(variance), where=variance > 0)

    @property
    def constant(self) -> bool:
        """Whether no variance varies, as of a model that was trained without it."""
        return all(np.ptp(found[self.valid]) == 0 for found in (*self.forced.values(), self.sampled))


def open_scene_pair(sar: Path, eo: Path, card: TranslatorCard, window: Window | None = None) -> ScenePair:
    """Open two scenes of one place, the SAR scaled as the model's card says.

    Parameters
    ----------
    sar, eo : Path
        Files; EO of three bands of bytes.
    card : TranslatorCard
    window : Window, optional
        The part of them to take; by default all. The scaling is the whole scene's.

    Raises
    ------
    PairsError
        If the two do not lie on one grid, EO is not RGB in bytes, or no pixel is valid in both.
    PolarisationError
        If the SAR scene lacks a polarisation of the card.
    SettingsError
        If the window does not lie in the scene.
    """
    from sar2eo.scenes import open_scene

    scene = open_scene(sar)
    grid: Grid = attributes_of(scene)["scene_grid"]
    window = window or grid.window
    if min(window) < 0 or window.intersection(grid.window) != window:
        raise SettingsError(
            f"window={','.join(map(str, window))}: must lie in the {grid.shape[0]} x {grid.shape[1]} pixels "
            f"of {sar} (ROW,COL,HEIGHT,WIDTH)"
        )
    colour, eo_valid = _read_eo(eo, grid, window, sar)
    found = tuple(map(str, np.atleast_1d(scene["band"].values)))
    missing = [name for name in card.polarisations if name not in found]
    if missing:
        raise PolarisationError(
            f"{sar} has {', '.join(found)}, the model was trained on {', '.join(card.polarisations)}"
        )
    bands = [found.index(name) for name in card.polarisations]

    def amplitude(part: Window) -> FloatArray:
        return to_amplitude(scene[(bands, *part.slices)].values, scene.attrs["quantity"])

    divisors = (
        amplitude_percentiles(amplitude, grid.shape)
        if card.scaling == "p99"
        else (float(card.scaling),) * len(bands)
    )
    values = amplitude(window)
    valid = np.isfinite(values).all(axis=0) & eo_valid
    if not valid.any():
        raise PairsError(f"{sar} and {eo} have no pixel that is valid in both")
    return ScenePair(
        sar=to_model_range(fill_invalid(values, valid), divisors, card.polarisations, card.channels),
        eo=fill_invalid(colour.astype(np.float32) / np.float32(127.5) - np.float32(1), valid),
        valid=valid,
    )


def _read_eo(path: Path, grid: Grid, window: Window, sar: Path) -> tuple[npt.NDArray[np.uint8], BoolArray]:
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.windows import Window as Part

    part = Part(window.col, window.row, window.width, window.height)
    try:
        with rasterio.open(path) as file:
            if file.count != 3 or set(file.dtypes) != {"uint8"}:
                raise PairsError(
                    f"{path}: {file.count} bands of {file.dtypes[0]}: must be red, green, blue in bytes"
                )
            if Grid.create(file.crs, file.transform, file.shape) != grid:
                raise PairsError(f"{path} does not lie on the grid of {sar}: warp one to the other first")
            return file.read(window=part), file.dataset_mask(window=part) > 0
    except (RasterioError, OSError) as error:
        raise PairsError(f"{path}: cannot be read: {one_line(error)}") from error


def map_variance(
    pair: ScenePair,
    spec: ModelSpec,
    *,
    timesteps: tuple[int, ...],
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VarianceMaps:
    """Run a model over a pair of scenes, and blend its variance as the translation is blended.

    Parameters
    ----------
    pair : ScenePair
    spec : ModelSpec
        Of a checkpoint, not of identity.
    timesteps : tuple of int
        At which the noised truth is looked at.
    tile, overlap : int
        Of the windows, in pixels, multiples of the model's factor.
    progress : callable, optional
        Called with how many windows are done, and how many there are.
    """
    translator: Any = load_translator(spec)
    assert isinstance(translator, DiffusionTranslator)  # noqa: S101  (callers refuse identity)
    probe, factor = Probe(translator.checkpoint, spec), spec.factor
    lattice = Lattice(pair.valid.shape, tile, overlap, factor)
    sar, eo, valid = _padded(pair, lattice)
    wanted = [index for index in range(len(lattice)) if valid[lattice[index].slices].any()]
    layers = ["sampled", *(f"{name} {t}" for t in timesteps for name in ("variance", "error"))]
    found: dict[str, dict[int, FloatArray]] = {layer: {} for layer in layers}
    for first in range(0, len(wanted), spec.batch):
        progress(first, len(wanted))
        indices = wanted[first : first + spec.batch]
        windows = [lattice[index] for index in indices]
        parts = np.stack([sar[:, *window.slices] for window in windows])
        sampled = translator.translate(parts, [(window.row, window.col) for window in windows]).variance
        assert sampled is not None  # noqa: S101  (checkpoints have one)
        batch = {
            "sar": torch.from_numpy(parts),
            "eo": torch.from_numpy(np.stack([eo[:, *window.slices] for window in windows])),
            "valid": torch.from_numpy(np.stack([valid[None, *window.slices] for window in windows])).float(),
            "index": indices,
        }
        found["sampled"].update(zip(indices, sampled, strict=True))
        for timestep in timesteps:
            forced = probe.teacher_forced(batch, timestep)
            found[f"variance {timestep}"].update(zip(indices, forced.variance.numpy(), strict=True))
            found[f"error {timestep}"].update(zip(indices, forced.error.numpy(), strict=True))
    progress(len(wanted), len(wanted))
    maps = {layer: _gathered(windows_of, lattice) for layer, windows_of in found.items()}
    height, width = maps["sampled"].shape
    blocks = valid[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return VarianceMaps(
        forced={timestep: maps[f"variance {timestep}"] for timestep in timesteps},
        error={timestep: maps[f"error {timestep}"] for timestep in timesteps},
        sampled=maps["sampled"],
        valid=np.asarray(blocks.all(axis=(1, 3))),
    )


def _padded(pair: ScenePair, lattice: Lattice) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Extend a pair by reflection as far as the windows reach; what is added is not valid."""
    height, width = pair.valid.shape
    margins = (
        (0, max(0, lattice.rows[-1] + lattice.tile - height)),
        (0, max(0, lattice.cols[-1] + lattice.tile - width)),
    )
    sar, eo = (np.pad(image, ((0, 0), *margins), mode="reflect") for image in (pair.sar, pair.eo))
    return sar, eo, np.pad(pair.valid, margins)


def _gathered(windows: dict[int, FloatArray], lattice: Lattice) -> FloatArray:
    """Blend maps of windows over the scene; 0 where no window was run."""
    factor = lattice.factor
    rows, cols = (-(-side // factor) for side in lattice.shape)
    coarse = Lattice((rows, cols), lattice.tile // factor, lattice.overlap // factor)

    def fetch(index: int, inner_rows: slice, inner_cols: slice) -> FloatArray | None:
        found = windows.get(index)
        return None if found is None else found[None, inner_rows, inner_cols]

    blended: FloatArray = gather_block(coarse.scene, coarse, 1, np.float32, fetch)[0]
    return blended
