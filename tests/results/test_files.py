"""Result files: what is written, and what is never replaced."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from support.scenes import CRS, TRANSFORM, amplitude, write_scene

import sar2eo
from sar2eo.errors import OutputError, SettingsError
from sar2eo.results.files import Outputs


@pytest.mark.parametrize("shape", [(600, 1), (1, 600), (1, 1), (2100, 2)])
def test_scenes_of_one_row_or_column_are_written(shape: tuple[int, int], tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene.tif", amplitude(shape, 3))
    eo = sar2eo.translate(sar2eo.open_scene(source), "identity", scaling=(255.0,))
    sar2eo.write_cog(eo, tmp_path / "eo.tif")
    with rasterio.open(tmp_path / "eo.tif") as raster, rasterio.open(source) as scene:
        assert (raster.shape, raster.transform, raster.crs) == (
            shape,
            TRANSFORM,
            rasterio.CRS.from_string(CRS),
        )
        np.testing.assert_array_equal(raster.read(1), scene.read(1))


@pytest.mark.parametrize("name", ["plain", "url", "link", "warped", "vrt"])
def test_a_file_of_the_scene_is_never_replaced(name: str, tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene_vv.tif", amplitude((60, 70), 3))
    (tmp_path / "link_vv.tif").symlink_to(source)
    rasterio.shutil.copy(source, tmp_path / "scene_vv.vrt", driver="VRT")
    named = {"url": f"file://{source}", "link": tmp_path / "link_vv.tif", "vrt": tmp_path / "scene_vv.vrt"}
    crs = "EPSG:3857" if name == "warped" else None
    scene = sar2eo.open_scene(named.get(name, source), crs=crs)
    before = source.read_bytes()
    with pytest.raises(OutputError, match="the scene itself"):
        sar2eo.write_cog(sar2eo.translate(scene, "identity"), source, overwrite=True)
    assert source.read_bytes() == before


def test_a_quicklook_is_a_png_and_says_so(tmp_path: Path) -> None:
    asked = Outputs(eo=tmp_path / "eo.tif", quicklook=tmp_path / "eo.jpg")
    with pytest.raises(SettingsError, match=r"eo\.jpg: must end with \.png"):
        asked.check(overwrite=False)
