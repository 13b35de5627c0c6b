"""SAR scenes of every kind, opened as one lazy DataArray."""

from sar2eo.scenes.lazy_array import describe_scene, reader_of, settled, window_in
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.sar import open_scene, parse_source, shown_source

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
