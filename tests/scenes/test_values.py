"""What the values of a scene say: fill that no header declares, quantities, and layers that are no radar."""

import warnings

import numpy as np
import pytest
from support.scene_fixtures import curved_control, speckle, write_raster

from sar2eo.errors import FitWarning, PolarisationError, RadiometryError, RadiometryWarning, SceneError
from sar2eo.scenes import open_scene

SHAPE = (300, 400)


def intensity(shape=SHAPE, seed=1):
    """Speckle of four looks over bright and dark fields."""
    draw = np.random.default_rng(seed)
    rows, cols = np.indices(shape)
    return (np.where((rows // 40 + cols // 50) % 2, 0.02, 0.1) * draw.gamma(4, 0.25, shape)).astype("float32")


def decibels(seed=1):
    return 10 * np.log10(intensity(seed=seed))


def wedge(shape=SHAPE):
    """Where a swath that lies across a north-up grid has pixels."""
    rows, cols = np.indices(shape)
    return (cols > 20 + 0.3 * rows) & (cols < shape[1] - 120 + 0.3 * rows)


def dn(dtype):
    return (300 * np.sqrt(intensity()) + 1).astype(dtype)


KINDS = [
    pytest.param(intensity(), 0, "intensity", id="linear"),
    pytest.param(intensity().astype("float64"), -9999, "intensity", id="float64"),
    pytest.param(dn("uint16"), 0, None, id="uint16"),
    pytest.param(dn("uint16"), 65535, None, id="uint16-bright"),
    pytest.param(dn("uint8"), 0, None, id="uint8"),
    pytest.param(dn("int16"), -1, None, id="int16"),
    pytest.param(decibels(), -99, None, id="db"),
    pytest.param(decibels(), 0, None, id="db-zero"),
    pytest.param(np.rint(decibels()).astype("int16"), -32768, None, id="db-int16"),
    pytest.param(intensity().astype("complex64"), 0, None, id="complex"),
]


@pytest.mark.parametrize(("values", "fill", "quantity"), KINDS)
def test_a_constant_from_the_border_inwards_is_no_data(tmp_path, values, fill, quantity):
    path = write_raster(tmp_path / "vv.tif", np.where(wedge(), values, values.dtype.type(fill)))
    with pytest.warns(RadiometryWarning, match=rf"vv\.tif: {fill} fills it .*--nodata none") as told:
        scene = open_scene(path, quantity=quantity)
    assert len(told) == 1
    np.testing.assert_array_equal(np.isfinite(scene.values[0]), wedge())
    # The same ground has the same mask, whatever is read of it.
    part = scene.isel(y=slice(120, 150), x=slice(40, 90))
    np.testing.assert_array_equal(np.isfinite(part.values[0]), wedge()[120:150, 40:90])
    declared = open_scene(path, quantity=quantity, nodata=fill)
    np.testing.assert_array_equal(scene.values, declared.values)
    if quantity and fill >= 0:
        kept = open_scene(path, quantity=quantity, nodata="none")
        assert (kept.values[0][~wedge()] == fill).all()


def test_fill_beside_declared_nodata_and_in_one_of_two_bands(tmp_path):
    values = np.stack([intensity(), np.where(wedge(), intensity(seed=2), 0)])
    values[:, :, :10] = -9999
    path = write_raster(tmp_path / "a.tif", values, names=("VV", "VH"), nodata=-9999)
    with pytest.warns(RadiometryWarning, match="0 fills it"):
        scene = open_scene(path, quantity="intensity")
    assert np.isnan(scene.values[:, :, :10]).all()
    assert np.isfinite(scene.values[0, :, 10:]).all()
    np.testing.assert_array_equal(np.isfinite(scene.values[1]), wedge())


def test_fill_of_a_small_scene_in_a_large_frame(tmp_path):
    values = np.zeros((2000, 2000), "uint16")
    values[900:1100, 700:1000] = speckle((200, 300))
    with pytest.warns(RadiometryWarning, match="0 fills it"):
        scene = open_scene(write_raster(tmp_path / "vv.tif", values))
    assert np.isfinite(scene.values).sum() == 60_000


def test_fill_of_a_swath_that_is_warped(tmp_path):
    values = np.where(wedge(), dn("uint16"), 0).astype("uint16")
    control = curved_control(*SHAPE)
    path = write_raster(tmp_path / "vv.tif", values, crs=None, transform=None, gcps=control)
    with pytest.warns(RadiometryWarning, match="0 fills it"):
        scene = open_scene(path)
    np.testing.assert_array_equal(scene.values, open_scene(path, nodata=0).values)


def clipped_sea():
    values = dn("uint8")
    values[:, :150] = np.random.default_rng(3).random((300, 150)) > 0.99
    return values


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(dn("uint8"), id="radar"),
        pytest.param(clipped_sea(), id="a sea, dark but for some speckle"),
        pytest.param(np.minimum(dn("uint8"), 40), id="clipped where it is bright"),
        pytest.param(np.full(SHAPE, 7, "uint8"), id="one value"),
        pytest.param(np.where(speckle(SHAPE) > 900, 0, dn("uint8")).astype("uint8"), id="single zeros"),
    ],
)
def test_what_is_no_fill_stays(tmp_path, values):
    scene = open_scene(write_raster(tmp_path / "vv.tif", values))
    np.testing.assert_array_equal(scene.values[0], values)


def test_a_value_that_may_be_fill_or_measured_is_asked_about(tmp_path):
    values = np.where(wedge() & (speckle(SHAPE) < 900), dn("uint16"), 0)
    path = write_raster(tmp_path / "vv.tif", values.astype("uint16"))
    with pytest.raises(RadiometryError, match=r"0 fills it .*--nodata 0 .*--nodata none"):
        open_scene(path)
    for nodata, expected in ((0, (values > 0).sum()), ("none", values.size)):
        assert np.isfinite(open_scene(path, nodata=nodata).values).sum() == expected


@pytest.mark.parametrize(
    ("name", "values", "stated", "truth"),
    [
        ("vv_db.tif", intensity(), None, "intensity or amplitude"),
        ("vv.tif", intensity(), "db", "intensity or amplitude"),
        ("vv.tif", decibels(), "intensity", "dB: --quantity db"),
        ("vv_sigma0_power.tif", decibels(), None, "dB: --quantity db"),
        ("vv.tif", np.rint(decibels() * 10).astype("int16"), "db", r"dB times 10: .*-a_scale 0\.1 "),
        ("vv.tif", np.rint(decibels() * 100).astype("int16"), None, r"dB times 100: .*-a_scale 0\.01 "),
        ("vv_db.tif", np.rint(decibels() * 100).astype("float32"), None, r"dB times 100: .*-a_scale 0\.01 "),
        ("vv.tif", np.rint(decibels() * 100).astype("int16"), "amplitude", r"dB times 100"),
        ("vv.tif", speckle(SHAPE), "db", "unsigned integers .*--quantity dn"),
        ("vv.tif", speckle(SHAPE, dtype="float32"), "db", r"--quantity dn\|amplitude\|intensity"),
    ],
)
def test_a_quantity_that_values_contradict_is_refused_with_the_likely_truth(
    tmp_path, name, values, stated, truth
):
    path = write_raster(tmp_path / name, values)
    with pytest.raises(RadiometryError, match=truth):
        open_scene(path, quantity=stated)
    if stated:
        with pytest.warns(FitWarning, match=truth):
            assert open_scene(path, quantity=stated, force=True).attrs["quantity"] == stated


@pytest.mark.parametrize("stated", ["dn", "amplitude", "intensity"])
def test_a_hint_leads_to_no_other_error(tmp_path, stated):
    path = write_raster(tmp_path / "vv.tif", intensity())
    with pytest.raises(RadiometryError, match=r"--quantity dn\|amplitude\|intensity$"):
        open_scene(path)
    assert open_scene(path, quantity=stated).attrs["quantity"] == stated


def test_fill_of_scaled_numbers(tmp_path):
    stored = np.where(wedge(), np.rint(decibels() * 100), -32768).astype("int16")
    with pytest.warns(RadiometryWarning, match="-32768 fills it"):
        scene = open_scene(write_raster(tmp_path / "vv.tif", stored, scale=0.01))
    assert scene.attrs["quantity"] == "db"
    np.testing.assert_allclose(scene.values[0][wedge()], decibels()[wedge()], atol=0.006)


def test_db_of_digital_numbers_are_db(tmp_path):
    values = 20 * np.log10(speckle(SHAPE, dtype="float32"))
    assert open_scene(write_raster(tmp_path / "vv_db.tif", values)).attrs["quantity"] == "db"


@pytest.mark.parametrize("tags", [{"scale_factor": "0.01", "add_offset": "-50"}, {"scale_factor": "-0.01"}])
def test_a_scale_that_only_tags_state_is_told(tmp_path, tags):
    path = write_raster(tmp_path / "vv.tif", speckle(SHAPE), tags=tags)
    with pytest.raises(RadiometryError, match=rf"-a_scale {tags['scale_factor']} -a_offset"):
        open_scene(path)
    with pytest.warns(FitWarning):
        assert open_scene(path, force=True).attrs["quantity"] == "dn"


def smooth():
    rows, cols = np.indices(SHAPE)
    return (500 + 40 * np.sin(rows / 60) + cols / 5).astype("float32")


@pytest.mark.parametrize(
    "values", [smooth(), smooth().astype("int16"), (smooth() > 540).astype("uint8"), np.full(SHAPE, 500)]
)
def test_what_has_no_speckle_is_not_named_radar(tmp_path, values):
    path = write_raster(tmp_path / "unnamed.tif", values.astype("int16"))
    with pytest.raises(SceneError, match="DEM, an angle or a mask"):
        open_scene(path, polarisations="VH", nodata="none")
    with pytest.warns(FitWarning):
        open_scene(path, polarisations="VH", nodata="none", force=True)


@pytest.mark.parametrize(
    "name", ["a_dem.tif", "a_inc_map.tif", "VV_incidence_angle.tif", "a_VV_coherence.tif", "a_vv_mask.tif"]
)
def test_what_is_named_as_a_layer_is_no_radar(tmp_path, name):
    path = write_raster(tmp_path / name, speckle(SHAPE))
    with pytest.raises(SceneError, match="stands beside radar"):
        open_scene(path, polarisations="VV")
    with pytest.warns(FitWarning):
        assert open_scene(path, polarisations="VV", force=True).attrs["polarisations"] == ("VV",)


@pytest.mark.parametrize("name", ["study_area_vv.tif", "vv_masked.tif", "power_mask.tif", "incident_vv.tif"])
def test_words_that_may_mean_something_else_are_no_layer(tmp_path, name):
    assert open_scene(write_raster(tmp_path / name, speckle(SHAPE)), polarisations="VV").shape == (1, *SHAPE)


def parts():
    return np.random.default_rng(1).normal(scale=200, size=(2, *SHAPE)).astype("int16")


@pytest.mark.parametrize(
    ("name", "bands", "error", "text"),
    [
        ("slc_HH.tif", None, SceneError, "real and imaginary"),
        ("a.tif", ("i_HH", "q_HH"), SceneError, "real and imaginary"),
        ("a.tif", ("RH", "RV"), PolarisationError, r"compact polarimetry \(RH, RV\)"),
        ("RCM1_SC50MB_CH_CV_GRD.tif", None, PolarisationError, r"compact polarimetry \(CH, CV\)"),
        ("S1A_IW_GRDH_1SDV_20230612T054021_TC.tif", None, SceneError, "real and imaginary"),
    ],
)
def test_two_bands_that_are_no_two_linear_polarisations(tmp_path, name, bands, error, text):
    path = write_raster(tmp_path / name, parts(), names=bands)
    for given in (None, "VV,VH"):
        with pytest.raises(error, match=text):
            open_scene(path, polarisations=given)


def test_the_order_of_snap_is_told(tmp_path):
    path = write_raster(
        tmp_path / "S1A_IW_GRDH_1SDV_20230612T054021_TC.tif", np.stack([intensity(), intensity(seed=2)])
    )
    with pytest.raises(PolarisationError, match=r"--pol VH,VV .SNAP's order"):
        open_scene(path)


def test_a_scene_with_declared_nodata_is_opened_without_a_word(tmp_path):
    path = write_raster(tmp_path / "vv.tif", np.where(wedge(), dn("uint16"), 0).astype("uint16"), nodata=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.isfinite(open_scene(path).values[0]), wedge())
