import numpy as np
import pytest
from support.scene_fixtures import speckle, write_raster
from support.stac_items import TIFF, write_item

from sar2eo.errors import PolarisationError, SceneError
from sar2eo.scenes import open_scene
from sar2eo.scenes.lazy_array import decode_attributes


@pytest.fixture
def files(tmp_path):
    (tmp_path / "data").mkdir()
    for i, name in enumerate(("a", "b")):
        write_raster(tmp_path / f"data/{name}.tif", speckle((20, 30), seed=i))
    write_raster(tmp_path / "data/both.tif", speckle((2, 20, 30)))
    return tmp_path


def test_assets_by_key(files):
    item = write_item(
        files,
        {
            "thumbnail": {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]},
            "schema-product-vv": {"href": "vv.xml", "type": "application/xml", "roles": ["metadata"]},
            "vv": {"href": "./data/a.tif", "type": TIFF, "roles": ["data"]},
            "vh": {"href": "data/b.tif", "type": TIFF, "roles": ["data"]},
        },
    )
    scene = open_scene(item)
    assert scene.attrs["polarisations"] == ("VV", "VH")
    assert scene.attrs["datetime"] == "2022-03-04T05:06:07Z"
    assert scene.attrs["platform"] == "Sentinel-1A"
    assert scene.attrs["orbit_direction"] == "ascending"
    assert scene.attrs["quantity"] == "dn"
    np.testing.assert_array_equal(scene.values, [speckle((20, 30), 0), speckle((20, 30), 1)])
    np.testing.assert_array_equal(open_scene(str(item), polarisations="VH").values[0], speckle((20, 30), 1))
    with pytest.raises(PolarisationError, match="item has VV, VH"):
        open_scene(item, polarisations="HH")


def test_hrefs_are_uris_and_may_say_blanks_as_such(files):
    write_raster(files / "data/a scene.tif", speckle((20, 30)))
    for href in ("./data/a%20scene.tif", "data/a scene.tif"):
        scene = open_scene(write_item(files, {"vv": {"href": href, "type": TIFF, "roles": ["data"]}}))
        np.testing.assert_array_equal(scene.values[0], speckle((20, 30)))


def test_assets_by_polarisations(files):
    one = {"grd": {"href": "data/both.tif", "type": TIFF, "sar:polarizations": ["VV", "VH"]}}
    scene = open_scene(write_item(files, one))
    assert scene.attrs["polarisations"] == ("VV", "VH")
    np.testing.assert_array_equal(scene.values, speckle((2, 20, 30)))
    only = open_scene(files / "item.json", polarisations="VH")
    np.testing.assert_array_equal(only.values, speckle((2, 20, 30))[1:])


def test_among_data_assets_that_name_no_polarisation_one_is_chosen(files):
    pictures = {
        f"{name}.tif": {"href": f"data/{file}.tif", "type": TIFF, "roles": ["data"]}
        for name, file in (("2023_UMBRA-04_GEC", "a"), ("2023_UMBRA-04_CSI", "b"))
    }
    known = {"sar:polarizations": ["VV"], "sar:product_type": "GEC"}
    scene = open_scene(write_item(files, pictures, **known))
    np.testing.assert_array_equal(scene.values[0], speckle((20, 30), 0))
    other = open_scene(files / "item.json", asset="2023_UMBRA-04_CSI.tif")
    np.testing.assert_array_equal(other.values[0], speckle((20, 30), 1))
    with pytest.raises(SceneError, match="no asset GEC, the item has 2023_UMBRA-04_GEC"):
        open_scene(files / "item.json", asset="GEC")
    item = write_item(files, pictures)
    with pytest.raises(SceneError, match="choose one with --asset"):
        open_scene(item)
    with pytest.raises(PolarisationError, match="give --pol"):
        open_scene(item, asset="2023_UMBRA-04_CSI.tif")
    assert open_scene(item, asset="2023_UMBRA-04_CSI.tif", polarisations="HH").attrs["polarisations"] == (
        "HH",
    )


def test_the_only_data_asset_has_the_polarisations_of_the_item(files):
    one = {"image": {"href": "data/both.tif", "type": TIFF, "roles": ["data"]}}
    scene = open_scene(write_item(files, one, **{"sar:polarizations": ["HH", "HV"]}))
    assert scene.attrs["polarisations"] == ("HH", "HV")


def test_quantity_nodata_and_calibration_of_the_item(files):
    values = -speckle((20, 30), dtype="float32", scale=9)
    values[0, 0] = -32768
    write_raster(files / "data/c.tif", values)
    bands = [{"nodata": -32768, "unit": "dB"}]
    vv = {"href": "data/c.tif", "type": TIFF, "roles": ["data"], "raster:bands": bands}
    scene = open_scene(write_item(files, {"vv": vv}, **{"sar:product_type": "RTC"}))
    assert (scene.attrs["quantity"], scene.attrs["calibration"]) == ("db", "rtc")
    assert decode_attributes(scene)["terrain_corrected"] is True
    assert np.isnan(scene.values[0, 0, 0])
    assert np.isfinite(scene.values).sum() == values.size - 1


def test_the_digital_number_0_of_a_grd_item_is_nodata(files):
    values = speckle((20, 30))
    values[8:11, 2:28] = 0
    write_raster(files / "data/iw-vv.tif", values)
    vv = {"vv": {"href": "data/iw-vv.tif", "type": TIFF, "roles": ["data"]}}
    scene = open_scene(write_item(files, vv, **{"sar:product_type": "GRD"}))
    assert np.isnan(scene.values[0, 8:11, 2:28]).all()
    assert np.isfinite(scene.values).sum() == values.size - 78
    assert (open_scene(write_item(files, vv)).values[0, 8:11, 2:28] == 0).all()
    # Calibrated since, and so of another type: what 0 is there, nobody knows.
    write_raster(files / "data/iw-vv.tif", values.astype("float32"))
    scene = open_scene(write_item(files, vv, **{"sar:product_type": "GRD"}), quantity="amplitude")
    assert (scene.values[0, 8:11, 2:28] == 0).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a STAC item"),
        ("{}", "not a STAC item"),
        ('{"type": "FeatureCollection"}', "not a STAC item"),
    ],
)
def test_what_is_no_item(tmp_path, text, reason):
    (tmp_path / "item.json").write_text(text)
    with pytest.raises(SceneError, match=reason):
        open_scene(tmp_path / "item.json")


def test_an_item_without_sar(files):
    item = write_item(files, {"red": {"href": "data/a.tif", "type": TIFF, "roles": ["data"]}})
    with pytest.raises(SceneError, match="no SAR asset among red"):
        open_scene(item)
    with pytest.raises(SceneError, match="no such file"):
        open_scene(files / "other.json")
