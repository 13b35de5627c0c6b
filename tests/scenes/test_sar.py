import numpy as np
import pytest
from affine import Affine
from support.scene_fixtures import NORTH_UP, UTM, speckle, write_raster

from sar2eo.errors import (
    GeoreferenceError,
    PolarisationError,
    RadiometryError,
    RadiometryWarning,
    Sar2eoWarning,
    SceneError,
    SettingsError,
)
from sar2eo.geo.grid import Grid
from sar2eo.scenes import describe_scene, open_scene, parse_source
from sar2eo.scenes.lazy_array import decode_attributes


def decibels(shape, seed=3):
    return (20 * np.log10(speckle(shape, seed, "float64", 0.2) - 1 + 1e-3)).astype("float32")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_values_and_grid_are_those_of_the_file(tmp_path, dtype):
    values = speckle((2, 37, 53), dtype=dtype, scale=40)
    path = write_raster(tmp_path / "s1_vv_vh.tif", values)
    scene = open_scene(path, quantity="dn")
    assert scene.dims == ("band", "y", "x")
    assert scene.name == "sar"
    assert scene.dtype == np.float32
    assert scene.chunks is not None
    assert decode_attributes(scene)["scene_grid"] == Grid.create(UTM, NORTH_UP, (37, 53))
    assert scene.rio.crs == UTM
    assert scene.rio.transform() == NORTH_UP
    assert scene.band.values.tolist() == ["VV", "VH"]
    np.testing.assert_array_equal(scene.values, values.astype("float32"))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_samples_become_amplitude(tmp_path, dtype):
    values = (speckle((20, 30), 1, "float32") + 1j * speckle((20, 30), 2, "float32")).astype(dtype)
    scene = open_scene(write_raster(tmp_path / "hh.tif", values))
    assert scene.attrs["quantity"] == "amplitude"
    np.testing.assert_allclose(scene.values[0], np.abs(values), rtol=1e-6)
    with pytest.raises(RadiometryError, match="complex samples"):
        open_scene(tmp_path / "hh.tif", quantity="db")


def test_gdal_scale_and_offset_are_applied(tmp_path):
    stored = np.arange(20 * 30, dtype="uint16").reshape(20, 30)
    path = write_raster(tmp_path / "vv.tif", stored, scale=0.05, offset=-40.0)
    scene = open_scene(path)
    assert scene.attrs["quantity"] == "db"  # -40 to -10: certain after scaling, not before
    np.testing.assert_allclose(scene.values[0], stored * 0.05 - 40, rtol=1e-6)


# Nodata ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("uint16", 65535), ("int16", -9999), ("float32", -9999.0),
     ("float32", -3.4028234663852886e38),
     ("float64", -1.7976931348623157e308), ("float32", float("nan")), ("float64", float("-inf"))],
)  # fmt: skip
def test_nodata_that_the_file_declares_becomes_nan(tmp_path, dtype, nodata):
    values = speckle((20, 30), dtype=dtype, scale=30)
    values[3:9, 4:20] = nodata
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, nodata=nodata), quantity="amplitude")
    expected = values.astype("float64")
    expected[3:9, 4:20] = np.nan
    np.testing.assert_array_equal(scene.values[0], expected.astype("float32"))


def test_nodata_that_nobody_declares_stays_where_it_does_not_fill_the_border(tmp_path):
    values = speckle((20, 30), dtype="int16")
    values[5:10, 2:28] = -99
    path = write_raster(tmp_path / "vv.tif", values)
    assert (open_scene(path, quantity="dn").values[0, 5:10, 2:28] == -99).all()
    assert np.isnan(open_scene(path, quantity="dn", nodata=-99).values[0, 5:10, 2:28]).all()


def test_given_nodata_replaces_that_of_the_file(tmp_path):
    values = np.array([[0, 7, 9], [1, 2, 3]], dtype="uint8")
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, nodata=0), nodata=7)
    np.testing.assert_array_equal(scene.values[0], [[0, np.nan, 9], [1, 2, 3]])


def test_internal_mask_and_alpha_say_what_is_valid(tmp_path):
    values = speckle((20, 30), dtype="uint8", scale=30)
    values[0, 0] = 0  # a valid dark pixel
    valid = np.full((20, 30), 255, dtype="uint8")
    valid[10:, :7] = 0
    masked = open_scene(write_raster(tmp_path / "vv.tif", values, mask=valid))
    alpha = write_raster(tmp_path / "alpha_vv.tif", np.stack([values, valid]), roles=("gray", "alpha"))
    for scene in (masked, open_scene(alpha)):
        assert scene.attrs["polarisations"] == ("VV",)
        np.testing.assert_array_equal(scene.values[0], np.where(valid, values.astype("float32"), np.nan))


def test_non_finite_values_are_nodata(tmp_path):
    values = decibels((20, 30))
    values[0, :3] = -np.inf, np.inf, np.nan
    found = open_scene(write_raster(tmp_path / "vv_db.tif", values)).values[0]
    assert np.isnan(found[0, :3]).all()
    assert np.isfinite(found).sum() == values.size - 3


# Polarisations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_name", "names", "tags", "expected"),
    [
        ("a.tif", ("VV", "VH"), None, ("VV", "VH")),
        ("a.tif", ("Sigma0_VH_db", "Sigma0_VV_db"), None, ("VH", "VV")),
        ("a.tif", None, {"POLARIZATION": "HH HV"}, ("HH", "HV")),
        ("S1A_20200101-vh.VV.tif", None, None, ("VH", "VV")),
        ("hh_hv.tif", ("VV", "VH"), None, ("VV", "VH")),
    ],
)
def test_polarisations_are_found(tmp_path, file_name, names, tags, expected):
    path = write_raster(tmp_path / file_name, speckle((2, 9, 9)), names=names, tags=tags)
    assert open_scene(path, quantity="dn").attrs["polarisations"] == expected


@pytest.mark.parametrize("file_name", ["scene.tif", "vv.tif", "vv_vh_hh.tif", "savvy_vhs.tif"])
def test_polarisations_that_are_not_said_are_asked_for(tmp_path, file_name):
    path = write_raster(tmp_path / file_name, speckle((2, 9, 9)))
    with pytest.raises(PolarisationError, match="--pol VV,VH"):
        open_scene(path)
    assert open_scene(path, polarisations="hh, hv").attrs["polarisations"] == ("HH", "HV")


def test_a_single_band_needs_a_name_as_well(tmp_path):
    path = write_raster(tmp_path / "scene.tif", speckle((9, 9)))
    with pytest.raises(PolarisationError, match=r"trained.*--pol VV"):
        open_scene(path)


def test_given_polarisations_select_named_bands_and_name_others(tmp_path):
    values = speckle((2, 9, 9))
    by_band = write_raster(tmp_path / "a.tif", values, names=("VV", "VH"))
    np.testing.assert_array_equal(open_scene(by_band, polarisations=["VH"]).values, values[1:])
    np.testing.assert_array_equal(open_scene(by_band, polarisations=["VH", "VV"]).values, values[::-1])
    by_file = write_raster(tmp_path / "vv_vh.tif", values)
    # What says that it is VV is not HH.
    for path in (by_band, by_file, write_raster(tmp_path / "vv.tif", values[:1])):
        with pytest.raises(PolarisationError, match="no HH, the file says that it has VV"):
            open_scene(path, polarisations=["HH"])
    # A file name's order is a convention, and the caller's word is better.
    swapped = open_scene(by_file, polarisations=["VH", "VV"])
    np.testing.assert_array_equal(swapped.values, values)
    assert swapped.band.values.tolist() == ["VH", "VV"]


@pytest.mark.parametrize("given", ["VV", "VV,VH,HH", "VV,VV", "XX", ""])
def test_polarisations_that_do_not_fit_are_refused(tmp_path, given):
    path = write_raster(tmp_path / "a.tif", speckle((2, 9, 9)))
    with pytest.raises(PolarisationError):
        open_scene(path, polarisations=given)


def test_four_byte_bands_are_polarisations_where_they_are_named(tmp_path):
    values = speckle((4, 9, 9), dtype="uint8", scale=30)
    roles = ("red", "green", "blue", "alpha")  # what GDAL marks them as, unasked
    path = write_raster(tmp_path / "a.tif", values, roles=roles)
    with pytest.raises(SceneError, match="optical"):
        open_scene(path)
    scene = open_scene(path, polarisations="HH,HV,VH,VV")
    np.testing.assert_array_equal(scene.values, values)
    named = write_raster(tmp_path / "b.tif", values, roles=roles, names=("HH", "HV", "VH", "VV"))
    np.testing.assert_array_equal(open_scene(named).values, values)


def test_described_bands_beside_polarisations_are_left_out(tmp_path):
    values = speckle((3, 9, 9), scale=30)
    path = write_raster(
        tmp_path / "a.tif", values, names=("VV", "VH", "angle"), tags={"QUANTITY": "amplitude"}
    )
    for names in (("VV", "VH", "angle"), ("VV", "VH", "VV/VH"), ("VV", "VH", "VV_VH_ratio")):
        write_raster(path, values, names=names)
        for given in (None, "VV,VH"):
            with pytest.warns(RadiometryWarning, match=f"left out {names[2]}"):
                scene = open_scene(path, polarisations=given, quantity="amplitude")
            assert scene.attrs["polarisations"] == ("VV", "VH")
            np.testing.assert_array_equal(scene.values, values[:2])
        with pytest.warns(RadiometryWarning, match="left out"):
            assert open_scene(path, polarisations="VH", quantity="amplitude").shape[0] == 1
    # Where the others say nothing, which is which stays a question.
    write_raster(path, values, names=("VV", "VH", None))
    with pytest.raises(PolarisationError, match="--band"):
        open_scene(path, quantity="amplitude")
    np.testing.assert_array_equal(open_scene(path, bands=[2, 1], quantity="amplitude").values, values[1::-1])
    for bands in ([0], [4]):
        with pytest.raises(SettingsError, match=r"no band .*it has 3"):
            open_scene(path, bands=bands)


# One file per polarisation -----------------------------------------------------------------------


def test_one_file_per_polarisation(tmp_path):
    vv = write_raster(tmp_path / "a,1.tif", speckle((20, 30), 1))
    vh = write_raster(tmp_path / "b.tif", speckle((20, 30), 2))
    mapped = open_scene({"VV": vv, "vh": vh})
    text = open_scene(f"VV={vv},vh={vh}")
    np.testing.assert_array_equal(mapped.values, np.stack([speckle((20, 30), 1), speckle((20, 30), 2)]))
    assert mapped.data.name == text.data.name
    assert text.attrs["polarisations"] == ("VV", "VH")
    only = open_scene({"VV": vv, "VH": vh}, polarisations="VH")
    np.testing.assert_array_equal(only.values[0], speckle((20, 30), 2))
    with pytest.raises(PolarisationError, match="no file for HH"):
        open_scene({"VV": vv, "VH": vh}, polarisations="HH")


def test_source_text_is_read_as_pairs_only_where_it_is_pairs():
    assert parse_source("VV=a.tif,VH=b,c.tif") == {"VV": "a.tif", "VH": "b,c.tif"}
    assert parse_source("/data/VV=a.tif") == "/data/VV=a.tif"
    assert parse_source("vv.tif") == "vv.tif"
    with pytest.raises(PolarisationError):
        parse_source("VV=a.tif,VV=b.tif")


@pytest.mark.parametrize(
    "other",
    [{"crs": "EPSG:32632"}, {"transform": NORTH_UP @ Affine.translation(1, 0)}, {"shape": (20, 31)}],
)
def test_files_on_different_grids_are_refused_naming_both(tmp_path, other):
    shape = other.pop("shape", (20, 30))
    vv = write_raster(tmp_path / "one.tif", speckle((20, 30)))
    vh = write_raster(tmp_path / "two.tif", speckle(shape), **other)
    with pytest.raises(SceneError, match=r"one\.tif and .*two\.tif"):
        open_scene({"VV": vv, "VH": vh})


def test_files_of_different_quantities_are_refused(tmp_path):
    vv = write_raster(tmp_path / "vv.tif", speckle((20, 30)))
    vh = write_raster(tmp_path / "vh_db.tif", decibels((20, 30)))
    with pytest.raises(SceneError, match="different quantities"):
        open_scene({"VV": vv, "VH": vh})


def test_files_of_different_calibrations_are_refused_of_different_days_warned_of(tmp_path):
    def written(name, **tags):
        return write_raster(tmp_path / name, speckle((20, 30), dtype="uint16", scale=90), tags=tags)

    with pytest.raises(SceneError, match="sigma0 and gamma0"):
        open_scene({"VV": written("sigma0_vv.tif"), "VH": written("gamma0_vh.tif")})
    first = written("vv.tif", ACQUISITION_TIME="2020:01:01 01:02:03")
    with pytest.warns(Sar2eoWarning, match="another acquisition"):
        scene = open_scene({"VV": first, "VH": written("vh.tif", ACQUISITION_TIME="2021:07:01 01:02:03")})
    assert scene.attrs["datetime"].startswith("2020-01-01")
    open_scene({"VV": first, "VH": written("vh.tif", ACQUISITION_TIME="2020:01:01 01:02:28")})


# Quantity and metadata ---------------------------------------------------------------------------


def test_quantity_where_values_leave_no_doubt(tmp_path):
    def opened(values, **how):
        return open_scene(write_raster(tmp_path / "vv.tif", values, **how)).attrs["quantity"]

    assert opened(speckle((20, 30))) == "dn"
    assert opened(speckle((20, 30), dtype="int16")) == "dn"
    assert opened(decibels((20, 30))) == "db"
    border = decibels((300, 300))
    border[:, :170] = 0
    assert opened(border, nodata=0) == "db"
    with pytest.warns(RadiometryWarning, match="0 fills it from the border inwards"):
        opened(border)
    inner = decibels((300, 300))
    inner[100:200, 100:200] = 0
    with pytest.raises(RadiometryError, match=r"exactly 0, .* if 0 means nodata, give --nodata 0"):
        opened(inner)
    border[:, :299] = -99
    assert opened(border, nodata=-99) == "db"


def test_quantity_in_doubt_is_asked_for(tmp_path):
    positive = write_raster(tmp_path / "vv.tif", speckle((20, 30), dtype="float32", scale=0.3))
    with pytest.raises(RadiometryError, match=r"--quantity dn\|amplitude\|intensity$"):
        open_scene(positive)
    assert open_scene(positive, quantity="intensity").attrs["quantity"] == "intensity"
    undeclared = decibels((20, 30))
    undeclared[:2] = -9999
    with pytest.raises(RadiometryError, match="--nodata -9999"):
        open_scene(write_raster(tmp_path / "hh.tif", undeclared))
    empty = np.full((20, 30), np.nan, dtype="float32")
    with pytest.raises(RadiometryError, match="no valid pixel"):
        open_scene(write_raster(tmp_path / "hv.tif", empty))


@pytest.mark.parametrize(
    ("file_name", "tags", "quantity", "calibration"),
    [
        ("vv_amplitude.tif", {}, "amplitude", None),
        ("x_vv.tif", {"UNITS": "intensity", "CALIBRATION": "sigma0"}, "intensity", "sigma0"),
        ("gamma0-rtc_vv_power.tif", {}, "intensity", "gamma0"),
        ("power_plant_vv.tif", {"UNITS": "amplitude"}, "amplitude", None),
        ("S1A_IW_20200203T135241_DVP_RTC30_G_gpuned_6A2B_VV.tif", {}, "intensity", "rtc"),
        ("amplitude_vv.tif", {"UNITS": "intensity"}, "intensity", None),
    ],
)
def test_quantity_and_calibration_as_metadata_say(tmp_path, file_name, tags, quantity, calibration):
    values = speckle((20, 30), dtype="float32", scale=0.3)
    scene = open_scene(write_raster(tmp_path / file_name, values, tags=tags))
    assert (scene.attrs["quantity"], scene.attrs.get("calibration")) == (quantity, calibration)


@pytest.mark.parametrize(
    ("file_name", "description"),
    [("vv.tif", "Intensity_VV_db"), ("amp_db_vv.tif", None), ("dB_power_rtc_vv.tif", None)],
)
def test_decibels_say_how_a_number_is_written_whatever_it_is_of(tmp_path, file_name, description):
    names = None if description is None else [description]
    path = write_raster(tmp_path / file_name, decibels((20, 30)), names=names)
    assert open_scene(path, polarisations="VV").attrs["quantity"] == "db"


@pytest.mark.parametrize(
    ("file_name", "tags"),
    [
        ("s1a-iw-grd-vv-20201107t135241-20201107t135306-035143-041a16-001.tiff", {}),
        ("S1A_IW_GRDH_1SDV_20201107T135241_20201107T135306_035143_041A16_322B_VV.tif", {}),
        ("vv.tif", {"TIFFTAG_IMAGEDESCRIPTION": "Sentinel-1A IW GRD HR L1"}),
    ],
)
def test_a_grd_measurement_has_no_data_where_it_is_0(tmp_path, file_name, tags):
    values = speckle((20, 30))
    values[4:8, 2:28] = 0
    scene = open_scene(write_raster(tmp_path / file_name, values, tags=tags), polarisations="VV")
    assert np.isnan(scene.values[0, 4:8, 2:28]).all()
    np.testing.assert_array_equal(scene.values[0, 8:], values[8:])
    # What a file says itself is believed, and floating point may hold a 0 of its own.
    said = open_scene(write_raster(tmp_path / file_name, values, tags=tags, nodata=65535), polarisations="VV")
    assert (said.values[0, 4:8, 2:28] == 0).all()
    floats = write_raster(tmp_path / file_name, values.astype("float32"), tags=tags)
    assert (open_scene(floats, polarisations="VV", quantity="amplitude").values[0, 4:8, 2:28] == 0).all()


def test_a_question_mark_is_part_of_a_local_files_name(tmp_path):
    path = write_raster(tmp_path / "what?x_vv.tif", speckle((20, 30)))
    assert open_scene(path).attrs["polarisations"] == ("VV",)


def test_a_plants_power_is_no_intensity(tmp_path):
    assert (
        open_scene(write_raster(tmp_path / "power_plant_vv.tif", speckle((20, 30)))).attrs["quantity"] == "dn"
    )


def test_a_rotation_of_rounding_size_is_none(tmp_path):
    values = speckle((20, 30))
    tilted = Affine(10, 1e-13, 500_000, 1e-13, -10, 4_000_000)
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, transform=tilted))
    assert scene.attrs["geolocation"] == "source grid"
    np.testing.assert_array_equal(scene.values[0], values)


def test_metadata_that_values_contradict_are_not_believed(tmp_path):
    with pytest.raises(RadiometryError, match="unsigned integers"):
        open_scene(write_raster(tmp_path / "vv_db.tif", speckle((20, 30))))
    with pytest.raises(RadiometryError, match="do not look like amplitude"):
        open_scene(write_raster(tmp_path / "vv_amplitude.tif", decibels((20, 30))))


@pytest.mark.parametrize(
    ("file_name", "tags", "expected"),
    [
        (
            "2020-11-07_vv.tif", {"TIFFTAG_DATETIME": "2024:01:01 00:00:00"},
            ("2020-11-07T00:00:00Z", None, None),
        ),
        ("vv.tif", {"datetime": "2021-07-21T08:40:10.000000000"}, ("2021-07-21T08:40:10Z", None, None)),
        ("vv.tif", {"TIFFTAG_DATETIME": "yesterday"}, (None, None, None)),
        (
            "vv.tif",
            {
                "TIFFTAG_DATETIME": "2024:01:01 00:00:00",
                "PRODUCT": "S1A_IW_GRDH_1SDV_20201107T135241_20201107T135306_035143_041A16_322B.SAFE",
                "ORBIT_DIRECTION": "DESCENDING",
            },
            ("2020-11-07T13:52:41Z", "Sentinel-1A", "descending"),
        ),
        ("s1b-iw-grd-vv-20190304t050607-20190304t050632-015205-01c6f5-001.tif", {},
         ("2019-03-04T05:06:07Z", "Sentinel-1B", None)),
        (
            "vv_20190304t050607.tif", {"PLATFORM": "capella-2"},
            ("2019-03-04T05:06:07Z", "capella-2", None),
        ),
        (
            "S1A_IW_GRDH_1SDV_20201107T135241_20201107T135306_035143_041A16_322B_vv.tif",
            {"A_ORBIT_FILE": "S1B_OPER_AUX_POEORB_OPOD_20201127T121633_V20201106T225942.EOF"},
            ("2020-11-07T13:52:41Z", "Sentinel-1A", None),
        ),
        (
            "vv.tif",
            {
                "A_ORBIT_FILE": "S1A_OPER_AUX_POEORB_OPOD_20201127T121633_V20201106T225942.EOF",
                "ACQUISITION_DATETIME": "2020-11-07T13:52:41Z",
            },
            ("2020-11-07T13:52:41Z", None, None),
        ),
    ],
)  # fmt: skip
def test_acquisition(tmp_path, file_name, tags, expected):
    attrs = open_scene(write_raster(tmp_path / file_name, speckle((9, 9)), tags=tags)).attrs
    assert tuple(map(attrs.get, ("datetime", "platform", "orbit_direction"))) == expected


def test_the_time_a_file_was_written_is_the_last_resort_and_told(tmp_path):
    path = write_raster(
        tmp_path / "vv.tif", speckle((9, 9)), tags={"TIFFTAG_DATETIME": "2020:11:07 13:52:41"}
    )
    with pytest.warns(Sar2eoWarning, match=r"vv.tif: nothing says when .* TIFFTAG_DATETIME"):
        assert open_scene(path).attrs["datetime"] == "2020-11-07T13:52:41Z"
    assert open_scene(path, datetime="2020-11-06").attrs["datetime"] == "2020-11-06T00:00:00Z"


def test_given_metadata_win(tmp_path):
    path = write_raster(tmp_path / "vv.tif", speckle((9, 9)), tags={"datetime": "2021-07-21"})
    attrs = open_scene(
        path, datetime="2022-02-03T04:05:06+01:00", quantity="amplitude", calibration="rtc"
    ).attrs
    assert attrs["datetime"] == "2022-02-03T03:05:06Z"
    assert (attrs["quantity"], attrs["calibration"]) == ("amplitude", "rtc")


# Refusals ----------------------------------------------------------------------------------------


def _one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_optical_images_are_refused(tmp_path):
    many = write_raster(tmp_path / "many.tif", speckle((13, 9, 9)))
    with pytest.raises(SceneError) as error:
        open_scene(many)
    assert "13 bands" in _one_line(error)
    rgb = write_raster(
        tmp_path / "rgb.tif", speckle((3, 9, 9), dtype="uint8"), roles=("red", "green", "blue")
    )
    with pytest.raises(SceneError, match="optical"):
        open_scene(rgb)


def test_a_source_without_georeference_is_opened_only_on_request(tmp_path):
    values = speckle((20, 30))
    path = write_raster(tmp_path / "vv.tif", values, crs=None, transform=None)
    with pytest.raises(GeoreferenceError, match="--allow-ungeoreferenced"):
        open_scene(path)
    scene = open_scene(path, allow_ungeoreferenced=True)
    assert decode_attributes(scene)["scene_grid"].crs is None
    np.testing.assert_array_equal(scene.values[0], values)
    assert describe_scene(scene)["crs"] is None
    with pytest.raises(SettingsError, match="nothing to warp"):
        open_scene(path, allow_ungeoreferenced=True, crs=UTM)


def test_what_is_no_raster_is_refused(tmp_path):
    with pytest.raises(SceneError, match="no such file"):
        open_scene(tmp_path / "missing.tif")
    with pytest.raises(SceneError, match="a folder"):
        open_scene(tmp_path)
    (tmp_path / "vv.tif").write_bytes(b"II*\0 but nothing more")
    with pytest.raises(SceneError) as error:
        open_scene(tmp_path / "vv.tif")
    assert "GDAL cannot open" in _one_line(error)
    (tmp_path / "a.xml").write_text("<product><adsHeader></adsHeader></product>")
    with pytest.raises(SceneError, match=r"\.SAFE folder"):
        open_scene(tmp_path / "a.xml")


def test_a_file_damaged_after_its_header(tmp_path):
    path = write_raster(tmp_path / "vv.tif", speckle((200, 300)), compress="deflate")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SceneError, match="damaged"):
        open_scene(path)


@pytest.mark.parametrize(
    "option",
    [{"quantity": "dB"}, {"calibration": "sigma"}, {"datetime": "last week"}, {"resolution": -10},
     {"resolution": (10, 10, 10)}, {"resolution": float("nan")}, {"resolution": 1e6},
     {"calibrate": "sigma0"}],
)  # fmt: skip
def test_settings_that_are_not_allowed(tmp_path, option):
    path = write_raster(tmp_path / "vv.tif", speckle((20, 30)))
    with pytest.raises(SettingsError):
        open_scene(path, **option)


def test_a_crs_that_cannot_be_read(tmp_path):
    with pytest.raises(GeoreferenceError):
        open_scene(write_raster(tmp_path / "vv.tif", speckle((20, 30))), crs="EPSG:99999999")


def test_a_vrt_is_opened_and_its_sources_are_part_of_its_identity(tmp_path):
    import rasterio.shutil

    path = write_raster(tmp_path / "a.tif", speckle((20, 30)), names=("VV",))
    rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
    scene = open_scene(tmp_path / "a.vrt")
    np.testing.assert_array_equal(scene.values[0], speckle((20, 30)))
    write_raster(tmp_path / "a.tif", speckle((20, 30), seed=9), names=("VV",))
    assert open_scene(tmp_path / "a.vrt").data.name != scene.data.name


def test_what_is_two_levels_down_is_part_of_the_identity(tmp_path):
    import rasterio.shutil

    path = write_raster(tmp_path / "a.tif", speckle((20, 30)), names=("VV",))
    rasterio.shutil.copy(path, tmp_path / "inner.vrt", driver="VRT")
    text = (tmp_path / "inner.vrt").read_text()
    (tmp_path / "outer.vrt").write_text(text.replace("a.tif", "inner.vrt"))
    first = open_scene(tmp_path / "outer.vrt")
    np.testing.assert_array_equal(first.values[0], speckle((20, 30)))
    assert open_scene(tmp_path / "outer.vrt").data.name == first.data.name
    write_raster(tmp_path / "a.tif", speckle((20, 30), seed=9), names=("VV",))
    assert open_scene(tmp_path / "outer.vrt").data.name != first.data.name


def test_the_chunks_of_a_zarr_array_are_part_of_its_identity(tmp_path):
    import rasterio.shutil

    path = write_raster(tmp_path / "a.tif", speckle((300, 300)))
    rasterio.shutil.copy(path, tmp_path / "a.zarr", driver="Zarr")
    name = f'ZARR:"{tmp_path / "a.zarr"}"'
    options = {"polarisations": ["VV"], "quantity": "dn", "nodata": "none"}
    first = open_scene(name, **options, allow_ungeoreferenced=True)
    np.testing.assert_array_equal(first.values[0], speckle((300, 300)))
    chunk, other = (tmp_path / "a.zarr" / "a" / number for number in ("0.0", "0.1"))
    chunk.write_bytes(other.read_bytes())
    assert open_scene(name, **options, allow_ungeoreferenced=True).data.name != first.data.name


def test_a_relative_name_is_that_of_the_folder_it_was_opened_in(tmp_path, monkeypatch):
    for number, folder in enumerate(("here", "there"), start=1):
        (tmp_path / folder).mkdir()
        for name in ("VV", "VH"):
            write_raster(tmp_path / folder / f"{name}.tif", speckle((20, 30), seed=number), names=(name,))
    monkeypatch.chdir(tmp_path / "here")
    single, both = open_scene("VV.tif"), open_scene("VV=VV.tif,VH=VH.tif")
    monkeypatch.chdir(tmp_path / "there")
    np.testing.assert_array_equal(single.values[0], speckle((20, 30), seed=1))
    np.testing.assert_array_equal(both.values[1], speckle((20, 30), seed=1))


def test_overviews_are_not_read(tmp_path):
    import rasterio

    values = speckle((256, 256))
    path = write_raster(tmp_path / "vv.tif", values, tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    np.testing.assert_array_equal(open_scene(path).values[0], values)


def test_description_is_json_and_says_true_ground_metres(tmp_path):
    import json

    grid = Affine(10.0, 0.0, -13_255_424.0, 0.0, -10.0, 4_048_140.0)
    path = write_raster(tmp_path / "vv.tif", speckle((20, 30)), crs="EPSG:3395", transform=grid)
    said = json.loads(json.dumps(describe_scene(open_scene(path))))
    assert said["crs"] == "EPSG:3395"
    assert said["shape"] == [20, 30]
    assert said["ground_sample_distance_m"] == pytest.approx([8.27, 8.27], abs=0.05)
    assert said["geolocation"] == "source grid"
