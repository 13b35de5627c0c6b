"""Which polarisation each band of a raster is."""

from __future__ import annotations

import warnings

from sar2eo.errors import PolarisationError, RadiometryWarning, SceneError
from sar2eo.radiometry import POLARISATIONS
from sar2eo.scene.handles import shown
from sar2eo.scene.raster import Band, Raster

__all__ = ["choose_bands"]

_MOST = len(POLARISATIONS)


def choose_bands(raster: Raster, wanted: tuple[str, ...] | None) -> tuple[tuple[Band, ...], tuple[str, ...]]:
    """Pair bands with polarisations.

    Parameters
    ----------
    raster : Raster
        A file.
    wanted : tuple of str or None
        Names for all bands in their order; or, where the bands carry names of their own, those to
        take. None takes all.

    Raises
    ------
    SceneError
        If it looks like an optical image.
    PolarisationError
        If names are missing, or do not fit the number of bands.

    Warns
    -----
    RadiometryWarning
        If the file gives other names than the caller.
    """
    bands, names, count = raster.bands, raster.names, len(raster.bands)
    if count > _MOST:
        raise SceneError(
            f"{shown(raster.path)}: {count} bands, and a SAR scene has 1 to {_MOST} "
            "polarisations: is this an optical image?"
        )
    if wanted is not None and names is not None and set(wanted) <= set(names):
        if raster.named_by_band or len(wanted) < count:
            return tuple(bands[names.index(name)] for name in wanted), wanted
        return bands, wanted
    if wanted is not None:
        if len(wanted) != count:
            known = f" ({', '.join(names)})" if names else ""
            raise PolarisationError(
                f"{shown(raster.path)}: --pol {','.join(wanted)} names {len(wanted)} polarisations, "
                f"and the file has {count} bands{known}"
            )
        if names is not None:
            warnings.warn(
                f"{shown(raster.path)}: says that it has {','.join(names)}, and is read as "
                f"{','.join(wanted)}, as --pol says",
                RadiometryWarning,
                stacklevel=2,
            )
        return bands, wanted
    if names is not None:
        return bands, names
    if raster.optical:
        raise SceneError(
            f"{shown(raster.path)}: its bands are marked red, green, blue: is this an optical image? "
            "If not, name its polarisations with --pol"
        )
    raise PolarisationError(f"{shown(raster.path)}: {_ask_for_names(count)}")


def _ask_for_names(count: int) -> str:
    if count == 1:
        return (
            "which polarisation its band is, neither the file nor its name says, and a model is trained "
            "for certain ones; give --pol VV (or VH, HH, HV)"
        )
    example = ",".join(("VV", "VH", "HH", "HV")[:count])
    return (
        f"which polarisations its {count} bands are is not known; give them in order, such as --pol {example}"
    )
