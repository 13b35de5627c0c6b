"""Simulate a SAR scene, translate it with the bundled model, and look at it: ``make demo``.

The scene is simulated, so that the demo needs no data; the model has seen real Sentinel-1 scenes only.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import rasterio

import sar2eo
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

mpl.use("agg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side (default: %(default)s)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_pair(simulate_pair(SimulationSettings(size=arguments.size, seed=7)), folder)
    eo, confidence, picture = (folder / name for name in ("translated.tif", "confidence.tif", "demo.png"))
    translated = sar2eo.translate(sar2eo.open_scene(paths["sar"]))
    sar2eo.write_cog(translated, eo, confidence=confidence, overwrite=True)
    draw(picture, paths["sar"], eo, confidence, paths["eo"])
    print(f"image       {eo}")
    print(f"confidence  {confidence}")
    print(f"picture     {picture}")


def draw(picture: Path, sar: Path, eo: Path, confidence: Path, truth: Path) -> None:
    """Draw radar image, translation, confidence and what an optical camera would have seen."""
    from matplotlib import pyplot as plt

    amplitude, valid = read(sar)
    variance = np.where(valid, 1 / np.where(valid, read(confidence)[0][0], 1), np.nan)
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.4), dpi=100, layout="constrained")
    axes[0].imshow(amplitude[0], cmap="gray", vmax=np.percentile(amplitude[0][valid], 99))
    axes[1].imshow(np.moveaxis(read(eo)[0], 0, -1))
    axes[2].imshow(-np.log10(variance), cmap="magma")
    axes[3].imshow(np.moveaxis(read(truth)[0][:3], 0, -1))
    titles = ("SAR amplitude (simulated)", "translated: generated", "log confidence", "simulated EO image")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(picture)
    plt.close(figure)


def read(path: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    with rasterio.open(path) as raster:
        return raster.read(), raster.dataset_mask() > 0


if __name__ == "__main__":
    main()
