import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given
from support.scene_fixtures import windows_of, write_safe, zip_safe

from sar2eo.errors import GeoreferenceError, PolarisationError, SceneError, SettingsError
from sar2eo.geo.windows import Window
from sar2eo.scenes import find_reader, open_scene
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.sentinel1 import CalibratedReader, CalibrationTable, open_sentinel1


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return write_safe(tmp_path_factory.mktemp("safe"))


def test_a_product_folder(product):
    folder, numbers = product
    scene = open_scene(folder)
    assert scene.attrs["polarisations"] == ("VV", "VH")
    assert (scene.attrs["quantity"], scene.attrs["calibration"]) == ("dn", "none")
    assert scene.attrs["datetime"] == "2019-03-04T05:06:07Z"
    assert scene.attrs["platform"] == "Sentinel-1B"
    assert scene.attrs["orbit_direction"] == "descending"
    assert decode_attributes(scene)["terrain_corrected"] is False
    assert scene.attrs["geolocation"] == "warped from 42 ground control points"
    assert decode_attributes(scene)["scene_grid"].crs == "EPSG:32633"
    source = find_reader(scene)[0].source
    expected = np.stack([numbers["VV"], numbers["VH"]]).astype("float32")
    expected[expected == 0] = np.nan
    np.testing.assert_array_equal(source.read(Window(0, 0, 60, 80)), expected)
    # A swath of 60 x 80 pixels less its black border of three, on pixels of about its own size.
    assert np.isfinite(scene.values[0]).sum() == pytest.approx(60 * 77, rel=0.1)


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("backslashes", [True, False])
def test_a_zip_holds_the_same_scene(product, tmp_path, top, backslashes):
    folder, _ = product
    archive = zip_safe(folder, tmp_path / "any name.zip", top=top, backslashes=backslashes)
    zipped, plain = open_scene(archive, calibrate="sigma0"), open_scene(folder, calibrate="sigma0")
    assert decode_attributes(zipped)["scene_grid"] == decode_attributes(plain)["scene_grid"]
    np.testing.assert_array_equal(zipped.values, plain.values)
    assert zipped.data.name == open_scene(archive, calibrate="sigma0").data.name


def test_what_macos_leaves_beside_files_is_no_measurement(product, tmp_path):
    folder, _ = product
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    for file in list(copy.glob("measurement/*")):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    np.testing.assert_array_equal(open_scene(copy).values, open_scene(folder).values)
    archive = zip_safe(copy, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as members:
        for name in members.namelist():
            members.writestr(f"__MACOSX/{name}", b"\0\5\x16\7")
    np.testing.assert_array_equal(open_scene(archive).values, open_scene(folder).values)


def test_the_manifest_stands_for_its_folder(product):
    folder, _ = product
    assert open_scene(folder / "manifest.safe").data.name == open_scene(folder).data.name


def test_polarisations_are_chosen_in_order(product):
    folder, numbers = product
    source = find_reader(open_scene(folder, polarisations="VH,VV"))[0].source
    np.testing.assert_array_equal(source.read(Window(9, 9, 5, 5))[0], numbers["VH"][9:14, 9:14])
    with pytest.raises(PolarisationError, match="has VV, VH"):
        open_scene(folder, polarisations="HH")


# Calibration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calibrate", "tag"), [("sigma0", "sigmaNought"), ("beta0", "betaNought"), ("gamma0", "gamma")]
)
def test_calibration_divides_by_the_table(tmp_path, calibrate, tag):
    folder, numbers = write_safe(tmp_path, tag=tag)
    scene = open_scene(folder, calibrate=calibrate)
    assert (scene.attrs["quantity"], scene.attrs["calibration"]) == ("amplitude", calibrate)
    reader = find_reader(scene)[0].source
    found = reader.read(Window(0, 0, 60, 80))
    row, col = np.mgrid[:60, :80]
    expected = numbers["VV"] / (100.0 + col + 2 * row)  # A of the fixture, at every pixel
    expected[numbers["VV"] == 0] = np.nan
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_calibration_by_hand():
    table = CalibrationTable(
        lines=np.array([0.0, 10.0]),
        pixels=(np.array([0.0, 20.0]), np.array([0.0, 10.0, 20.0])),
        values=(np.array([100.0, 200.0]), np.array([300.0, 300.0, 500.0])),
    )
    found = table.at(Window(0, 0, 13, 23))
    assert found[0, 0] == 100
    assert found[0, 5] == 125
    assert found[10, 15] == 400
    assert found[5, 15] == (175 + 400) / 2
    assert found[12, 22] == 500  # constant past the last line and pixel
    np.testing.assert_array_equal(table.at(Window(3, 4, 5, 6)), found[3:8, 4:10])


def test_one_vector_is_enough():
    table = CalibrationTable(np.array([7.0]), (np.array([0.0, 10.0]),), (np.array([1.0, 2.0]),))
    np.testing.assert_array_equal(table.at(Window(0, 0, 20, 6))[:, 5], np.full(20, 1.5))


@given(windows_of((60, 80)))
def test_calibrated_pieces_equal_the_whole(product, window):
    safe = open_sentinel1(product[0], calibrate="sigma0")
    assert isinstance(safe.reader, CalibratedReader)
    whole = safe.reader.read(Window(0, 0, 60, 80))
    rows, cols = window.slices
    assert safe.reader.read(window).tobytes() == whole[:, rows, cols].tobytes()


def test_calibration_changes_the_identity(product):
    folder, _ = product
    assert open_scene(folder).data.name != open_scene(folder, calibrate="sigma0").data.name
    assert open_scene(folder, calibrate="beta0").data.name != open_scene(folder, calibrate="sigma0").data.name


# Refusals ----------------------------------------------------------------------------------------


def test_what_is_missing_is_named(tmp_path):
    folder, _ = write_safe(tmp_path)
    with pytest.raises(SettingsError, match="sigma0, beta0, gamma0"):
        open_scene(folder, calibrate="rtc")
    with pytest.raises(SettingsError, match="leave out"):
        open_scene(folder, calibrate="sigma0", quantity="dn")
    with pytest.raises(SettingsError, match="0 by definition"):
        open_scene(folder, nodata=1)
    shutil.rmtree(folder / "annotation/calibration")
    with pytest.raises(SceneError, match=r"calibration-s1b.*is missing"):
        open_scene(folder, calibrate="sigma0")
    open_scene(folder)
    next((folder / "annotation").glob("*-vh-*.xml")).write_text("<product>")
    with pytest.raises(SceneError, match="not readable XML"):
        open_scene(folder)
    shutil.rmtree(folder / "measurement")
    with pytest.raises(SceneError, match=r"no measurement/\*\.tiff"):
        open_scene(folder)


def test_calibration_without_vectors(tmp_path):
    folder, _ = write_safe(tmp_path)
    for file in (folder / "annotation/calibration").iterdir():
        file.write_text("<calibration/>")
    with pytest.raises(SceneError, match="no usable sigmaNought"):
        open_scene(folder, calibrate="sigma0")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<line>20</line>", "<line>nan</line>"),
        ("<line>20</line>", "<line>-10</line>"),
        ("<pixel>0 15 40 90</pixel>", "<pixel>0 40 15 90</pixel>"),
        ("<pixel>0 15 40 90</pixel>", "<pixel>0 15 inf 90</pixel>"),
        ("<sigmaNought>1", "<sigmaNought>nan 1"),
        ("<sigmaNought>1", "<sigmaNought>99999991"),
        ("<sigmaNought>", "<sigmaNought>-"),
    ],
)
def test_absurd_calibration_vectors_are_refused(tmp_path, before, after):
    folder, _ = write_safe(tmp_path)
    for file in (folder / "annotation/calibration").iterdir():
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
    with pytest.raises(SceneError, match="no usable sigmaNought"):
        open_scene(folder, calibrate="sigma0")


def test_an_annotation_that_is_deep_or_large_is_refused(tmp_path):
    folder, _ = write_safe(tmp_path)
    annotation = next((folder / "annotation").glob("*-vh-*.xml"))
    annotation.write_text("<a>" * 100_000 + "</a>" * 100_000)
    with pytest.raises(SceneError, match="not readable XML"):
        open_scene(folder)
    annotation.write_bytes(b" " * (65 * 2**20))
    with pytest.raises(SceneError, match="larger than 64 MiB"):
        open_scene(folder)


def test_an_annotation_with_broken_numbers(tmp_path):
    folder, _ = write_safe(tmp_path)
    for file in (folder / "annotation").glob("*.xml"):
        file.write_text(file.read_text().replace("<line>0.0</line>", "<line>zero</line>"))
    with pytest.raises(SceneError, match="in place of a number"):
        open_scene(folder)


def test_only_grd_products(tmp_path):
    folder, _ = write_safe(tmp_path, kind="SLC")
    with pytest.raises(SceneError, match="type SLC"):
        open_scene(folder)


def test_a_product_without_geolocation(tmp_path):
    folder, _ = write_safe(tmp_path, control=False)
    with pytest.raises(GeoreferenceError):
        open_scene(folder)


def test_a_zip_that_is_no_product_or_broken(tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SceneError, match="cut short"):
        open_scene(tmp_path / "cut.zip")
