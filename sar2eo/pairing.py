"""`build_pairs`: paired chips from scenes, aligned by the classical matcher, or by a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sar2eo.computing import Progress
from sar2eo.errors import SettingsError
from sar2eo.pairs.alignment import Aligner
from sar2eo.pairs.building import build, plan
from sar2eo.recipe import PairsSettings, SceneSettings
from sar2eo.recipe.tables import changed

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["build_pairs"]


def build_pairs(
    sar: str | Path | Sequence[str | Path],
    eo: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    settings: PairsSettings | None = None,
    scene: SceneSettings | None = None,
    matcher: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> GeoDataFrame:
    """Cut SAR and EO scenes into paired chips, split by place for training.

    The work runs on Dask's scheduler in force. The same call goes on where a stopped one was, and returns
    what is there when all is done.

    Parameters
    ----------
    sar, eo : path or sequence of paths
        Rasters, Sentinel-1 products, folders, globs, STAC items and item collections, footprint tables
        (GeoPackage, GeoParquet, GeoJSON) with a column ``href``. EO scenes are RGB bytes or reflectance.
    out : path
        Folder of ``pairs.parquet`` (the index), ``chips/``, ``audit.json`` and ``pairs.json``; see
        `sar2eo.pairs.index.COLUMNS`.
    settings : PairsSettings, optional
        Sizes, limits, alignment and splits.
    scene : SceneSettings, optional
        How SAR scenes are opened.
    matcher : path, optional
        Folder of a trained matcher to align with (see `sar2eo.train_matcher`); by default structure is
        matched. Pairs built with another one are other pairs.
    overwrite : bool, optional (default: False)
        Replace pairs, or unfinished work, of other settings.
    dry_run : bool, optional (default: False)
        Write nothing; return a row for each scene pair with the number of cells to try.
    report : path, optional
        JSON file of what was done.
    progress : callable, optional
        Called about once a second with counters: cells_total, cells_resumed, cells_done, chips_written;
        before that neighbourhoods_total and neighbourhoods_done.
    **changes
        Fields of `settings` to change, as in ``size=512``.

    Returns
    -------
    GeoDataFrame
        One row for each chip pair, in EPSG:4326; ``attrs["report"]`` says what was done (each local
        shift is in ``pairs.json`` only). Where
        ``align="shift"``, chips show the same place pixel by pixel, and shift_rows and shift_cols say how
        far the SAR was moved for it; where "score", they say how far it would have to be.

    Raises
    ------
    SettingsError
        For settings that are not allowed.
    CheckpointError
        If the matcher is none, or not calibrated.
    PairsError, SceneError
        If there are no scenes, they cannot be opened, or do not meet.
    OutputError
        If `out` cannot be written, or holds something else.

    Warns
    -----
    PairsWarning
        If scenes are not terrain-corrected, scene pairs are left out for want of evidence of their
        alignment, or a split is empty.

    Examples
    --------
    >>> import sar2eo
    >>> pairs = sar2eo.build_pairs("sar/", "eo/", "pairs", align="shift")  # doctest: +SKIP
    """
    settings = changed(settings or PairsSettings(), changes)
    scene = changed(scene or SceneSettings(), {})
    if scene.resolution is not None:
        raise SettingsError(
            f"scene.resolution={scene.resolution:g}: the pixel size of chips is a setting of the pairs"
        )
    if scene.allow_ungeoreferenced:
        raise SettingsError("allow_ungeoreferenced: scenes without a georeference cannot be paired")
    sources = _several(sar), _several(eo)
    aligner = _aligner(settings, matcher)
    if dry_run:
        return plan(*sources, Path(out), settings=settings, scene=scene)
    return build(
        *sources,
        Path(out),
        settings=settings,
        scene=scene,
        aligner=aligner,
        overwrite=overwrite,
        report=None if report is None else Path(report),
        progress=progress,
    )


def _aligner(settings: PairsSettings, matcher: str | Path | None) -> Aligner | None:
    if settings.align == "off":
        if matcher is not None:
            raise SettingsError(f"matcher={str(matcher)!r}: goes with align score or shift, not with off")
        return None
    aligner: Aligner
    if matcher is not None:
        from sar2eo.matching.dcdm.aligner import DcdmAligner

        aligner = DcdmAligner(matcher)
    else:
        from sar2eo.matching.aligner import StructuralAligner

        aligner = StructuralAligner()
    return aligner


def _several(paths: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
