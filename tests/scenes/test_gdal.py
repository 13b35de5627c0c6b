import time
import zipfile

import numpy as np
import pytest
import rasterio.shutil
from support.scene_fixtures import speckle, write_raster
from support.servers import PROXIES, serving

from sar2eo.errors import SceneError
from sar2eo.geo.windows import Window
from sar2eo.scenes import find_reader, open_scene
from sar2eo.scenes.gdal import gdal_path, is_remote


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path) as server:
        yield server


def test_a_small_window_of_a_remote_file_needs_a_small_part_of_it(server, tmp_path):
    values = speckle((2560, 2560))
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    path = write_raster(tmp_path / "vv.tif", values, **tiled)
    size = path.stat().st_size
    scene = open_scene(server.url("vv.tif") + "?token=secret")
    assert "secret" not in scene.attrs["source"]
    part = scene.isel(y=slice(700, 760), x=slice(900, 950))
    reader, window = find_reader(part)
    assert window == Window(700, 900, 60, 50)
    np.testing.assert_array_equal(reader.read(window)[0], values[700:760, 900:950])
    assert size > 4_000_000
    assert server.sent < size / 8
    assert {asked.partition("?")[0] for asked in server.asked} == {"/vv.tif"}  # no listing, no side files


def test_a_changed_remote_file_has_another_name(server, tmp_path):
    write_raster(tmp_path / "vv.tif", speckle((20, 30)))
    first = open_scene(server.url("vv.tif"))
    assert open_scene(server.url("vv.tif?again")).data.name == first.data.name
    write_raster(tmp_path / "vv.tif", speckle((20, 30), seed=2))
    assert open_scene(server.url("vv.tif?later")).data.name != first.data.name


def test_a_missing_remote_file(server):
    with pytest.raises(SceneError, match=r"nothing_vv\.tif: no such file"):
        open_scene(server.url("nothing_vv.tif"))


def test_a_remote_stac_item(server, tmp_path):
    from support.stac_items import TIFF, write_item

    write_raster(tmp_path / "a.tif", speckle((20, 30)))
    write_item(tmp_path, {"vv": {"href": "a.tif", "type": TIFF, "roles": ["data"]}})
    scene = open_scene(server.url("item.json"))
    np.testing.assert_array_equal(scene.values[0], speckle((20, 30)))


@pytest.mark.parametrize(
    ("source", "path", "remote"),
    [
        ("https://host/a.tif", "/vsicurl/https://host/a.tif", True),
        ("s3://bucket/key.tif", "/vsis3/bucket/key.tif", True),
        ("/vsis3/bucket/key.tif", "/vsis3/bucket/key.tif", True),
        ("file:///data/a.tif", "/data/a.tif", False),
        ("/vsizip/a.zip/b.tif", "/vsizip/a.zip/b.tif", False),
        ("a.tif", "a.tif", False),
    ],
)
def test_urls_are_put_as_gdal_wants_them(source, path, remote):
    assert gdal_path(source) == path
    assert is_remote(path) is remote


def rename_over(path, values):
    write_raster(path.with_suffix(".new"), values, driver="GTiff")
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [write_raster, rename_over])
@pytest.mark.parametrize("via", ["file", "vrt", "vrt of a vrt", "zip"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change, via):
    file = source = tmp_path / "a_vv.tif"
    write_raster(file, speckle((64, 64)))
    for name in {"vrt": ["b_vv.vrt"], "vrt of a vrt": ["b_vv.vrt", "c_vv.vrt"]}.get(via, []):
        rasterio.shutil.copy(source, tmp_path / name, driver="VRT")
        source = tmp_path / name
    if via == "zip":
        source = f"/vsizip/{tmp_path}/a.zip/a_vv.tif"

    def pack():
        with zipfile.ZipFile(tmp_path / "new", "w") as archive:
            archive.write(file, "a_vv.tif")
        (tmp_path / "new").replace(tmp_path / "a.zip")

    pack()
    scene = open_scene(source, datetime="2020-01-01")
    first = scene.isel(y=slice(0, 32)).values
    time.sleep(0.02)
    change(file, speckle((64, 64), seed=2))
    pack()
    with pytest.raises(SceneError, match="has changed since it was opened"):
        scene.isel(y=slice(32, 64)).values  # noqa: B018
    again = open_scene(source, datetime="2020-01-01").values[0]
    np.testing.assert_array_equal(again, speckle((64, 64), seed=2))
    assert not np.array_equal(first[0], again[:32])


WMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:1/${z}/${x}/${y}.png</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>9</UpperLeftY><LowerRightX>9</LowerRightX>
<LowerRightY>0</LowerRightY><TileLevel>1</TileLevel></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>"""


@pytest.mark.parametrize("name", ["vv.tif", "vv.tiff", "vv", "vv.img", "vv.TIF"])
@pytest.mark.parametrize("kind", ["vrt", "wms"])
def test_text_that_leads_elsewhere_is_no_scene_unless_it_is_called_so(tmp_path, name, kind):
    folder = tmp_path / "given"
    folder.mkdir()
    write_raster(tmp_path / "private_vv.tif", speckle((20, 30)))
    rasterio.shutil.copy(tmp_path / "private_vv.tif", folder / "vv.vrt", driver="VRT")
    (folder / name).write_text((folder / "vv.vrt").read_text() if kind == "vrt" else WMS)
    with pytest.raises(SceneError, match="text that may lead elsewhere"):
        open_scene(folder / name, polarisations="VV")
    assert open_scene(folder / "vv.vrt").shape == (1, 20, 30)


def test_code_in_a_vrt_never_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    write_raster(tmp_path / "a_vv.tif", speckle((20, 30)))
    rasterio.shutil.copy(tmp_path / "a_vv.tif", tmp_path / "vv.vrt", driver="VRT")
    code = (
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f'<PixelFunctionCode>def f(*a, **k): open("{tmp_path}/ran", "w")</PixelFunctionCode>'
    )
    text = (tmp_path / "vv.vrt").read_text().replace("<SimpleSource", f"{code}<SimpleSource", 1)
    (tmp_path / "vv.vrt").write_text(text.replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"'))
    with pytest.raises(SceneError):
        open_scene(tmp_path / "vv.vrt", quantity="amplitude").values  # noqa: B018
    assert not (tmp_path / "ran").exists()


def test_a_header_of_thousands_of_bands_is_refused_at_once(tmp_path):
    write_raster(tmp_path / "vv.tif", np.ones((2001, 1, 1), np.uint8))
    with pytest.raises(SceneError, match="2001 bands"):
        open_scene(tmp_path / "vv.tif")


def test_a_remote_file_that_changes_is_refused_by_the_server_or_told(server, tmp_path):
    write_raster(tmp_path / "vv.tif", speckle((600, 600)), tiled=True, blockxsize=128, blockysize=128)
    scene = open_scene(server.url("vv.tif"), quantity="amplitude")
    scene.isel(y=slice(0, 100)).compute()
    assert {match for match in server.matches if match} == {server.etag("vv.tif")}
    write_raster(tmp_path / "vv.tif", speckle((600, 600), seed=2), tiled=True, blockxsize=128, blockysize=128)
    with pytest.raises(SceneError, match="vv"):
        scene.isel(y=slice(400, 600)).compute()
