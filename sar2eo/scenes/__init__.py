"""SAR and optical scenes: opened by path or URL, and read lazily onto a grid."""

from sar2eo.scenes.gdal import display_name, parse_source
from sar2eo.scenes.lazy_array import describe_scene, find_reader, find_window
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.sar import open_scene
from sar2eo.scenes.user_arrays import normalise_array
