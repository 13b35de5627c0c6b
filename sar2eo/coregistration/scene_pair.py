"""The two scenes of a coregistration: opened, compared, and read onto one grid for matching."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import xarray as xr

from sar2eo.errors import (
    CoregistrationError,
    GeoreferenceError,
    PairsError,
    PolarisationError,
    RadiometryError,
    SceneError,
    SettingsError,
    refuse_misfit,
)
from sar2eo.geo.chip_lattice import Cell, cell_boxes, project_to_grid
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import nearest_polarisation, to_amplitude
from sar2eo.model.card import MatcherCard
from sar2eo.scenes.extent import read_footprint
from sar2eo.scenes.gdal import gdal_path
from sar2eo.scenes.optical import EoScene, open_eo_scene
from sar2eo.scenes.raster import Raster, open_raster
from sar2eo.scenes.sar_scene import SarScene, fill_unknown, open_sar_scene
from sar2eo.scenes.sources import Source
from sar2eo.scenes.stac_input import is_stac
from sar2eo.scenes.warp import read_onto
from sar2eo.settings import PairsSettings, SceneSettings

FloatArray = npt.NDArray[np.float32]
Scene = SarScene | EoScene

# Valid share of a template, in both scenes, that a tie point needs.
LEAST_VALID = 0.5
# Outlines come from decimated reads: with this share of what they need, cells are left to the pixels.
_COARSE = 0.5


@dataclass(frozen=True, eq=False)
class RadarView:
    """A SAR scene, read onto any grid for matching, by some of its `bands` in order, or all.

    `divisors` are the amplitudes of each polarisation that count as 1.
    """

    scene: SarScene
    divisors: tuple[float, ...]
    bands: tuple[int, ...] | None = None

    def read(self, grid: Grid) -> FloatArray:
        """Return amplitude over the divisors, (polarisation, row, col); NaN where there is no data.

        A copy where pixels coincide, else interpolated in intensity; `grid` may reach past the scene.
        """
        quantity = self.scene.quantity
        values = read_onto(self.scene.reader, grid, quantity)
        amplitude = to_amplitude(values, quantity) / np.asarray(self.divisors, np.float32)[:, None, None]
        return amplitude if self.bands is None else amplitude[list(self.bands)]


def read_optical(scene: EoScene, grid: Grid) -> FloatArray:
    """Read red, green and blue from 0 to 255, (row, col, 3), onto any grid; NaN without data, or in cloud."""
    patch = scene.read_onto(grid)
    clear = patch.valid if patch.cloud is None else patch.valid & ~patch.cloud
    return np.where(clear[..., None], np.moveaxis(patch.rgb, 0, -1).astype(np.float32), np.float32(np.nan))


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes, one SAR and one optical; they overlap in `overlap`, in the CRS of the reference's grid."""

    reference: Scene
    moving: Scene
    overlap: Any

    @property
    def sar(self) -> SarScene:
        """The SAR scene."""
        return self.reference if isinstance(self.reference, SarScene) else self.moving  # type: ignore[return-value]

    @property
    def eo(self) -> EoScene:
        """The optical scene."""
        return self.reference if isinstance(self.reference, EoScene) else self.moving  # type: ignore[return-value]

    @property
    def grid(self) -> Grid:
        """Grid of the reference."""
        return self.reference.grid


def open_pair(
    reference: str,
    moving: str,
    *,
    scene: SceneSettings,
    eo_range: tuple[float, float],
    eo_bands: tuple[int, ...] | None,
    learned: bool,
) -> ScenePair:
    """Open two scenes, find out which is SAR and which optical, and where they overlap.

    What names polarisations is SAR; what has red, green and blue is optical; anything else is opened as SAR.

    Raises `SceneError` if one cannot be opened, or is neither; `SettingsError` if both are SAR, or both
    optical: thresholds are known for SAR against optical alone; `GeoreferenceError` if the reference is not
    north-up; `CoregistrationError` if they share no place.
    """
    (first, first_outline), (second, second_outline) = (
        _open_scene(href, scene, eo_range, eo_bands, own_grid=href == reference, learned=learned)
        for href in (reference, moving)
    )
    if isinstance(first, SarScene) == isinstance(second, SarScene):
        kind = "SAR" if isinstance(first, SarScene) else "optical"
        raise SettingsError(
            f"{reference} and {moving} are both {kind}: one must be SAR and the other optical, which is what "
            "the matchers' thresholds were measured on (name a SAR scene's bands with --pol)"
        )
    if not first.grid.north_up:
        raise GeoreferenceError(f"{reference}: its grid is not north-up: warp it first, or let it be moved")
    areas = [
        read_footprint(Source(one.href), outline).area
        for one, outline in ((first, first_outline), (second, second_outline))
    ]
    shared = shapely.intersection(*areas)
    if shared.area == 0:
        places = " and ".join(
            "no data" if area.is_empty else ", ".join(f"{v:.4f}" for v in area.bounds) for area in areas
        )
        raise CoregistrationError(
            f"{reference} and {moving} share no place (west, south, east, north: {places}): is a CRS wrong?"
        )
    return ScenePair(first, second, project_to_grid(shared, first.grid))


def _open_scene(
    href: str,
    scene: SceneSettings,
    eo_range: tuple[float, float],
    eo_bands: tuple[int, ...] | None,
    *,
    own_grid: bool,
    learned: bool,
) -> tuple[Scene, EoScene | xr.DataArray]:
    """Open a SAR or optical scene; return it, and what `read_footprint` takes for it."""
    refused, plain = None, _open_plain(href)
    if plain is None or plain.names is None:
        try:
            found = open_eo_scene(href, eo_range=eo_range, eo_bands=eo_bands)
            return found, found
        except (PairsError, SceneError) as error:
            refused = error
    try:
        if not learned and plain is not None and len(plain.bands) == 1:
            scene = SceneSettings(**fill_unknown(href, dataclasses.asdict(scene)))
        sar, array = open_sar_scene(href, PairsSettings(), scene)
    except SceneError as error:
        if refused is None or str(refused) == str(error) or not _exists(href):
            raise
        raise SceneError(f"{href}: neither optical ({refused}) nor SAR ({error})") from error
    if (
        own_grid
        and scene.crs is None
        and str(array.attrs["geolocation"]).startswith("warped from a geographic")
    ):
        return open_sar_scene(href, PairsSettings(), dataclasses.replace(scene, crs="source"))
    return sar, array


def _open_plain(href: str) -> Raster | None:
    """Open the header of a plain raster; None for anything else."""
    path = gdal_path(href)
    if is_stac(href) or path.endswith(".zip") or not (path.startswith("/vsi") or Path(path).is_file()):
        return None
    try:
        return open_raster(path)
    except SceneError:
        return None


def _exists(href: str) -> bool:
    return gdal_path(href).startswith("/vsi") or Path(href.partition("#")[0]).exists()


def place_templates(pair: ScenePair, side: int, most: int) -> list[Cell]:
    """Lay a lattice of templates over the overlap: those of which about half may be valid.

    `side` is that of a template and the distance of neighbours, in pixels of the reference. At most `most`
    are taken, spread evenly.
    """
    grid = pair.grid
    box = grid.window_of(pair.overlap.bounds)
    down, across = box.height // side, box.width // side
    top, left = box.row + (box.height - down * side) // 2, box.col + (box.width - across * side) // 2
    cells = [Cell(i, j, top + i * side, left + j * side) for i in range(down) for j in range(across)]
    if not cells:
        return []
    boxes = cell_boxes(cells, grid, side)
    shares = shapely.area(shapely.intersection(pair.overlap, boxes)) / shapely.area(boxes)
    found = [cell for cell, share in zip(cells, shares, strict=True) if share > _COARSE * LEAST_VALID]
    if len(found) > most:
        found = [found[at] for at in np.linspace(0, len(found) - 1, most).round().astype(int)]
    return found


_misfit = partial(refuse_misfit, verb="matches")


def check_fit(pair: ScenePair, card: MatcherCard, *, force: bool) -> None:
    """Refuse scenes that a matcher's card does not fit; with `force`, warn instead.

    Compared are what it was trained on and the reference's pixels, which both scenes are read onto; the
    moving scene's, which may be smaller, not larger; polarisations; and for a fixed scaling, calibration.
    """
    _check_gsd(pair, card, force=force)
    sar = pair.sar
    names = sar.reader.polarisations
    if not set(card.polarisations) <= set(names):
        _misfit(
            f"{sar.href}: has {', '.join(names)}, and the matcher was trained on "
            f"{', '.join(card.polarisations)}: name its bands with --pol",
            PolarisationError,
            force=force,
        )
    calibration = sar.calibration or "unknown"
    # A scaling by the scene's own percentile does not depend on the calibration's factor.
    if card.scaling != "p99" and card.calibration != calibration:
        _misfit(
            f"{sar.href}: its calibration is {calibration}, and the matcher's fixed scaling is for "
            f"{card.calibration}: name it with --calibration",
            RadiometryError,
            force=force,
        )


def choose_bands(sar: SarScene, card: MatcherCard) -> tuple[int, ...]:
    """Return the numbers of the bands for a matcher: its polarisations, or the nearest ones."""
    names = sar.reader.polarisations
    return tuple(names.index(nearest_polarisation(wanted, names)) for wanted in card.polarisations)


def _check_gsd(pair: ScenePair, card: MatcherCard, *, force: bool) -> None:
    if card.gsd_m is None:
        return
    trained = f"and the matcher was trained at {card.gsd_m:g} m"
    ground = pair.grid.ground_sample_distance_m()
    if not card.fits_gsd(*ground):
        _misfit(
            f"{pair.reference.href}: the reference's pixels are {ground[0]:.3g} x {ground[1]:.3g} m on the "
            f"ground, {trained}: resample it, let the other scene be the reference, or match by structure",
            SceneError,
            force=force,
        )
        return
    ground = pair.moving.grid.ground_sample_distance_m()
    if not card.fits_gsd(max(card.gsd_m, *ground)):  # smaller ones are read at the reference's
        _misfit(
            f"{pair.moving.href}: its pixels are {ground[0]:.3g} x {ground[1]:.3g} m on the ground, "
            f"{trained}: it shows less than that; match by structure",
            SceneError,
            force=force,
        )
