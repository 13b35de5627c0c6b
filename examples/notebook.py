# %% [markdown]
# # From a notebook
# A scene is a lazy `DataArray`, its translation a lazy `Dataset`: nothing is read before it is asked for,
# and only the parts that are looked at are translated. (Cells are marked by `# %%`.)

# %%
import tempfile
from pathlib import Path

import sar2eo
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

folder = Path(tempfile.mkdtemp())
paths = write_pair(simulate_pair(SimulationSettings(size=512, seed=3)), folder)

# %%
scene = sar2eo.open_scene(paths["sar"])
print(scene.attrs["quantity"], scene.attrs["polarisations"], scene.sar2eo.grid.crs)

# %% [markdown]
# `identity` returns its input; give a checkpoint folder instead to see an EO image.

# %%
eo = scene.sar2eo.translate("identity", tile=128, overlap=16)
corner = eo.eo.isel(y=slice(0, 100), x=slice(100, 200)).compute()  # runs only the tiles it needs
print(corner.shape, corner.dtype)

# %% [markdown]
# A slice of the scene keeps its place in the whole, so its translation holds the same pixels.

# %%
part = scene.isel(y=slice(0, 100), x=slice(100, 200)).sar2eo.translate("identity", tile=128, overlap=16)
assert (part.eo.values == corner.values).all()

# %%
report = sar2eo.write_cog(eo, folder / "translated.tif")
print(report["tiles"])
