"""Which number of an EO scene means which reflectance, where metadata say so.

Values are brought to one scale: reflectance times 10000 where a file or item declares a scale, the stored
numbers themselves where not (which is the same for Sentinel-2). Products of Sentinel-2 since processing
baseline 04.00 store 1000 more than before: ``reflectance = (DN + ADD_OFFSET) / 10000``
(https://sentiwiki.copernicus.eu/web/s2-products).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["REFLECTANCE_1", "Coding", "coding_of_item", "coding_of_tags"]

REFLECTANCE_1 = 10_000.0
"""Number that stands for a reflectance of 1."""

_OFFSET_SINCE_0400 = -1000.0
_ADD_OFFSET = re.compile(r"^(?:boa|radio)_add_offset(?:_values?_list)?(?:_|$)", re.I)
_BASELINE_TAGS = ("s2:processing_baseline", "sentinel:processing_baseline", "processing_baseline")
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")


@dataclass(frozen=True)
class Coding:
    """How stored numbers become values: ``number * factor + offset``.

    Parameters
    ----------
    factor, offset : float
        Of the values on the scale of `REFLECTANCE_1`.
    origin : str
        What says so.
    """

    factor: float = 1.0
    offset: float = 0.0
    origin: str = "numbers as stored"

    @classmethod
    def declared(cls, scale: float, offset: float, origin: str) -> Coding:
        """Read a scale and an offset that give reflectance; a scale of 1 leaves stored numbers."""
        unit = 1.0 if scale == 1.0 else REFLECTANCE_1
        return cls(scale * unit, offset * unit, origin)


def coding_of_tags(tags: Mapping[str, str], scale: float, offset: float) -> Coding:
    """Read what a file says: GDAL's scale and offset, or else the offset of a Sentinel-2 product.

    Parameters
    ----------
    tags : mapping
        Of the file.
    scale, offset : float
        GDAL's, of the band.
    """
    if (scale, offset) != (1.0, 0.0):
        return Coding.declared(scale, offset, "scale and offset of the file")
    offsets = {float(text) for key, text in tags.items() if _ADD_OFFSET.match(key) and _is_number(text)}
    # Red, green and blue have always had the same; a product with several is not read by guessing.
    return Coding(1.0, offsets.pop(), "ADD_OFFSET of the product") if len(offsets) == 1 else Coding()


def coding_of_item(properties: Mapping[str, Any], said: Mapping[str, float], stored: Coding) -> Coding:
    """Read what a STAC item says of a band.

    Parameters
    ----------
    properties : mapping
        Of the item.
    said : mapping
        ``scale`` and ``offset`` of the band in the item.
    stored : Coding
        What the file says.

    Returns
    -------
    Coding
        The item's scale and offset, without the offset if the item says that it is applied already; else
        the file's; else by the processing baseline.
    """
    applied = any(properties.get(name) is True for name in _APPLIED)
    if "scale" in said or "offset" in said:
        offset = 0.0 if applied else said.get("offset", 0.0)
        origin = (
            "scale of the item, its offset applied already" if applied else "scale and offset of the item"
        )
        return Coding.declared(said.get("scale", 1.0), offset, origin)
    if stored != Coding() or applied:
        return stored
    baseline = next((str(properties[name]) for name in _BASELINE_TAGS if name in properties), "")
    if re.match(r"0[4-9]\.\d+|[1-9]\d\.\d+", baseline):
        return Coding(1.0, _OFFSET_SINCE_0400, f"processing baseline {baseline} of the item")
    return stored


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", str(text)) is not None
