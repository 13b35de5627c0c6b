"""Settings of `sar2eo.coregister` and of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sar2eo.errors import SettingsError
from sar2eo.settings.translation import SceneSettings

__all__ = ["CoregisterRecipe", "CoregisterSettings", "TieMethod", "Transform"]

TieMethod = Literal["structure", "phase", "ncc", "dcdm"]
"""How tie points are matched; dcdm is learned."""

Transform = Literal["shift", "affine", "local"]
"""One shift for all, an affine transform, or a smooth field of shifts."""

_LEAST_GRID = 32


@dataclass(frozen=True, kw_only=True)
class CoregisterSettings:
    """How two scenes are matched, and by what one is moved.

    Parameters
    ----------
    method : {"structure", "phase", "ncc", "dcdm"}
    model : str or None
        Matcher, for dcdm; None: the package's own.
    transform : {"local", "affine", "shift"}
        Local lets the evidence choose between polynomials of order 0 to 2 and thin-plate splines (see
        `sar2eo.matching.shifts`).
    grid : int
        Distance of tie points in pixels of the reference, and side of their templates (dcdm takes the side
        it was trained with, where that is smaller): templates share no pixel.
    points : int
        Tie points at the most, spread evenly.
    radius : int or None
        Largest shift that is searched for, in pixels of the reference; None: 24, and for dcdm as trained.
    tolerance : float
        Distance from the fit, in pixels, up to which a tie point bears it out.
    eo_range : tuple of float
        Reflectance, in the scene's own digital numbers, between black and white; bytes stay as they are.
    steps : int or None
        Of dcdm; None: as the card says.
    seed : int
        Of what is drawn: samples of a fit, folds, and dcdm's noise.
    device : str
        Of dcdm.
    threads : int or None
        Torch threads of each process; None: all cores.
    force : bool
        Use a matcher on scenes that its card does not fit, and a disk that may be too small.
    """

    method: TieMethod = "structure"
    model: str | None = None
    transform: Transform = "local"
    grid: int = 512
    points: int = 600
    radius: int | None = None
    tolerance: float = 3.0
    eo_range: tuple[float, ...] = (0.0, 3000.0)
    steps: int | None = None
    seed: int = 2025
    device: str = "auto"
    threads: int | None = None
    force: bool = False

    @property
    def matcher(self) -> str | None:
        """The matcher of dcdm; None where nothing is learned."""
        return (self.model or "bundled") if self.method == "dcdm" else None

    def __post_init__(self) -> None:
        if self.method != "dcdm" and self.model is not None:
            raise SettingsError(f"model={self.model!r}: goes with method dcdm, not with {self.method}")
        if self.grid < _LEAST_GRID:
            raise SettingsError(f"grid={self.grid}: must be at least {_LEAST_GRID} pixels")
        if self.points < 1 or (self.radius is not None and self.radius < 2):
            raise SettingsError(
                f"points={self.points}, radius={self.radius}: must be at least 1 point and 2 pixels"
            )
        if not 0 < self.tolerance < float("inf"):
            raise SettingsError(f"tolerance={self.tolerance:g}: must be pixels above 0")
        if len(self.eo_range) != 2 or not self.eo_range[0] < self.eo_range[1]:
            raise SettingsError(f"eo_range={self.eo_range}: must be LOW,HIGH with LOW below HIGH")
        if self.threads is not None and self.threads < 1:
            raise SettingsError(f"threads={self.threads}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CoregisterRecipe:
    """One scene moved onto another: the table ``[coregister]`` of a TOML recipe.

    Parameters
    ----------
    reference, moving : str
        One of them SAR, the other optical.
    out : str
        A ``.tif``: the moving scene on the reference's grid.
    scene, settings
        The tables ``[coregister.scene]``, how the SAR scene is opened, and ``[coregister.settings]``.
    overwrite : bool
        Replace an earlier result.
    report : str or None
        JSON file of what was found, written also where the evidence is too thin.
    """

    reference: str
    moving: str
    out: str
    scene: SceneSettings = field(default_factory=SceneSettings)
    settings: CoregisterSettings = field(default_factory=CoregisterSettings)
    overwrite: bool = False
    report: str | None = None
