"""Two SAR scenes of one pass that overlap, each with an EO scene that shows the same thing."""

from pathlib import Path

import numpy as np
from affine import Affine
from support.scene_fixtures import write_raster

SIDE = 256
CORNERS = {"a": (500_003.0, 5_000_004.0), "b": (501_603.0, 4_999_044.0)}
SETTINGS = {"size": 32, "stride": 32, "block": 1000.0, "buffer": 100.0, "val": 0.2, "test": 0.3}


def world(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Amplitude of a place on the ground, 1 to 255; so that any pixel can be told from any other."""
    return np.rint(128 + 60 * np.sin(x / 97) + 60 * np.cos(y / 131)).clip(1, 255)


def ground(corner: tuple[float, float], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = np.indices(shape)
    return corner[0] + 10 * (cols + 0.5), corner[1] - 10 * (rows + 0.5)


def write_scenes(folder: Path) -> Path:
    """Write ``sar/a.tif``, ``sar/b.tif``, ``eo/a.tif``, ``eo/b.tif``; the first has a hole."""
    for role in ("sar", "eo"):
        (folder / role).mkdir(parents=True)
    for name, corner in CORNERS.items():
        values = world(*ground(corner, (SIDE, SIDE))).astype(np.uint8)
        valid = np.ones_like(values, bool)
        if name == "a":
            valid[100:140, 100:180] = False
        minute = 7 if name == "a" else 8
        transform = Affine(10, 0, corner[0], 0, -10, corner[1])
        write_raster(
            folder / f"sar/{name}.tif", np.where(valid, values, 0), transform=transform, nodata=0,
            names=("VV",), tags={"ACQUISITION_DATETIME": f"2024:05:06 07:0{minute}:09"}, tiled=True,
            blockxsize=64, blockysize=64,
        )  # fmt: skip
        write_raster(
            folder / f"eo/{name}.tif", np.stack([values // 2, values, 255 - values]), transform=transform,
            names=("red", "green", "blue"), tags={"ACQUISITION_DATETIME": "2024:05:04 19:08:09"},
            mask=np.ones_like(valid), tiled=True, blockxsize=64, blockysize=64,
        )  # fmt: skip
    return folder
