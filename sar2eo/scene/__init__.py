"""SAR scenes of every kind, opened as one lazy DataArray."""

from sar2eo.scene.arrays import settled
from sar2eo.scene.lazy import describe_scene, reader_of, window_in
from sar2eo.scene.opening import open_scene, parse_source, shown_source
from sar2eo.scene.reader import SceneReader

__all__ = [
    "SceneReader",
    "describe_scene",
    "open_scene",
    "parse_source",
    "reader_of",
    "settled",
    "shown_source",
    "window_in",
]
