"""Simulate a small SAR scene, translate it, and say where the result lies: ``make demo``.

Until a trained model comes with the package, the model is ``identity``, which returns its input: the
picture is the radar image on a georeferenced EO grid, and everything around the model has run.
"""

import sys
from pathlib import Path

import sar2eo
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_pair(simulate_pair(SimulationSettings(size=1024, seed=7)), folder)
    scene = sar2eo.open_scene(paths["sar"])
    eo = sar2eo.translate(scene, model="identity", tile=256, overlap=32)
    out = folder / "translated.tif"
    report = sar2eo.write_cog(eo, out, quicklook=out.with_suffix(".png"), overwrite=True)
    print(f"scene    {paths['sar']}  (simulated, {'x'.join(map(str, report['grid']['shape']))} pixels)")
    print(f"result   {out}  ({report['windows']['translated']} windows, identity model)")
    print(f"picture  {out.with_suffix('.png')}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
