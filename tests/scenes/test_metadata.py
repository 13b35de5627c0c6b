"""What names and times in metadata mean."""

import numpy as np
import pytest
import tifffile

from sar2eo.scenes import open_scene
from sar2eo.scenes.metadata import (
    Facts,
    iso_datetime,
    polarisation_names,
    read_facts,
    read_optical_facts,
    zero_is_nodata,
)

NOVEMBER = "2020-11-07T13:52:41Z"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "S1A_IW_GRDH_1SDV_20201107T135241_20201107T135306_035150_041A53_5F3A.tif",
            ("Sentinel-1A", NOVEMBER),
        ),
        ("s1b-iw-grd-vv-20201107t135241-20201107t135306-035150-041a53-001.tiff", ("Sentinel-1B", NOVEMBER)),
        ("S1C_vv_20201107T135241.tif", ("Sentinel-1C", NOVEMBER)),
        ("S1A_OPER_AUX_POEORB_OPOD_20201127T121442.tif", (None, None)),
        ("S2A_MSIL2A_20201107T135241_N0214_R067_T32TQM_20201107T170000.tif", (None, None)),
        ("NovaSAR_01_12345_slc_11_221015_091530_HH_1.tif", ("NovaSAR-1", "2022-10-15T09:15:30Z")),
        ("novasar_01_12345_slc_11_221315_091530_hh_1.tif", ("NovaSAR-1", None)),  # no month 13
        ("vv_20201107T135241.tif", (None, NOVEMBER)),
    ],
)
def test_names_of_sar_products(name: str, expected: tuple[str | None, str | None]) -> None:
    found = read_facts(name, {})
    assert (found.platform, found.datetime) == expected


def test_names_of_novasar_products_say_the_polarisation() -> None:
    name = "NovaSAR_01_12345_slc_11_221015_091530_HH_1.tif"
    assert polarisation_names([None], [{}], {}, name) == (("HH",), False)


def test_names_of_terrain_corrected_products_say_what_the_values_are() -> None:
    found = read_facts("S1A_IW_20201107T135241_DVP_RTC30_G_gpuned_1B4C_VV.tif", {})
    expected = Facts("intensity", "rtc", NOVEMBER, "Sentinel-1A", None, terrain_corrected=True)
    assert found == expected
    # Of a source named in a tag, the acquisition alone: the values may have been changed since.
    tagged = read_facts("vv.tif", {"SOURCE": "S1A_IW_20201107T135241_DVP_RTC30_G_gpuned_1B4C_VV.tif"})
    assert tagged == Facts(datetime=NOVEMBER, platform="Sentinel-1A")


def test_names_of_optical_products() -> None:
    product = "S2B_MSIL2A_20201107T135241_N0214_R067_T32TQM_20201107T170000"
    for name, tags in ((f"{product}.tif", {}), ("rgb.tif", {"PRODUCT_URI": f"{product}.SAFE"})):
        found = read_optical_facts(name, tags)
        assert (found.platform, found.datetime) == ("Sentinel-2B", NOVEMBER)
    assert read_optical_facts("T32TQM_20201107T135241_B04.jp2", {}).datetime == NOVEMBER


def test_zero_is_nodata_in_some_products() -> None:
    assert zero_is_nodata("s1b-iw-grd-vv-20201107t135241.tiff", {})
    assert zero_is_nodata("vv.tif", {"TIFFTAG_IMAGEDESCRIPTION": "Sentinel-1A IW GRD HR L1"})
    assert not zero_is_nodata("S1A_IW_SLC__1SDV_20201107T135241.tif", {})
    assert zero_is_nodata("T32TQM_20201107T135241_TCI_10m.jp2", {}, optical=True)
    assert not zero_is_nodata("T32TQM_20201107T135241_TCI_10m.jp2", {})


def test_years_have_four_digits() -> None:
    assert iso_datetime("0001-01-01") == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("tags", "quantity", "calibration", "orbit", "platform", "time"),
    [
        (
            {
                "PLATFORM": "Sentinel-1A",
                "PRODUCT_TYPE": "RTC-S1",
                "ORBIT_PASS_DIRECTION": "descending",
                "ZERO_DOPPLER_START_TIME": "2020-11-07T13:52:41.123456Z",
                "PROCESSING_DATETIME": "2023-09-05T02:41:02Z",
                "X_OUTPUT_BACKSCATTER_EXPRESSION_CONVENTION": "linear backscatter intensity",
                "X_OUTPUT_BACKSCATTER_NORMALIZATION_CONVENTION": "gamma0",
                "X_OUTPUT_BACKSCATTER_DECIBEL_CONVERSION_EQUATION": "10*log10(backscatter_linear)",
            },
            *("intensity", "rtc", "descending", "Sentinel-1A", NOVEMBER),
        ),
        (  # CARD4L
            {
                "card4l:specification": "NRB",
                "card4l:backscatter_measurement": "gamma0",
                "card4l:backscatter_convention": "linear power",
                "card4l:conversion_eq": "10*log10(DN)",
                "sat:orbit_state": "ascending",
                "start_datetime": "2020-11-07T13:52:41Z",
            },
            *("intensity", "rtc", "ascending", None, NOVEMBER),
        ),
        (
            {
                "TIFFTAG_IMAGEDESCRIPTION": """{"processing_time": "2020-12-10T03:00:00Z", "collect": {
                    "start_timestamp": "2020-11-07T13:52:41.0Z", "platform": "capella-2",
                    "state": {"direction": "ascending"}, "image": {"radiometry": "sigma_nought"}}}"""
            },
            *(None, "sigma0", "ascending", "capella-2", NOVEMBER),
        ),
        (
            {
                "SATELLITE_IDENTIFIER": "RADARSAT-2",
                "ACQUISITION_START_TIME": "2020-11-07T13:52:41.000000Z",
                "ORBIT_DIRECTION": "Ascending",
                "PRODUCT_TYPE": "SGF",
            },
            *(None, None, "ascending", "RADARSAT-2", NOVEMBER),
        ),
        (
            {
                "MISSION": "SENTINEL-1A",
                "PASS": "DESCENDING",
                "first_line_time": "07-NOV-2020 13:52:41.500000",
            },
            *(None, None, "descending", "Sentinel-1A", NOVEMBER),
        ),
        ({"measurementType": "Sigma Naught", "unit": "decibel"}, "db", "sigma0", None, None, None),
        ({"look_direction": "right", "calibration": "full", "unit": "m"}, None, None, None, None, None),
    ],
)
def test_facts_in_the_words_of_agencies(tags, quantity, calibration, orbit, platform, time) -> None:
    found = read_facts("vv.tif", tags)
    assert (found.quantity, found.calibration) == (quantity, calibration)
    assert (found.orbit_direction, found.platform, found.datetime) == (orbit, platform, time)


@pytest.mark.parametrize(
    ("name", "tags", "expected"),
    [
        ("a.tif", {"transmitPolarization": "H", "receive_polarization": "V"}, ("HV",)),
        ("S1A_IW_GRDH_1SSV_20201107T135241_TC.tif", {}, ("VV",)),
        ("S1A_IW_GRDH_1SDV_20201107T135241_TC.tif", {}, None),
        ("a_vh.tif", {"LIST_OF_POLARIZATIONS": "VV VH"}, ("VH",)),
    ],
)
def test_polarisations_in_other_words(name, tags, expected) -> None:
    assert polarisation_names([None], [{}], tags, name) == (expected, False)


SNAP = """<Dimap_Document><Image_Interpretation>{bands}</Image_Interpretation>
<MDElem name="Abstracted_Metadata"><MDATTR name="PASS">DESCENDING</MDATTR><MDATTR name="MISSION">SENTINEL-1A
</MDATTR><MDATTR name="first_line_time">07-NOV-2020 13:52:41.500000</MDATTR></MDElem></Dimap_Document>"""
SNAP_BAND = """<Spectral_Band_Info><BAND_INDEX>{}</BAND_INDEX><BAND_NAME>{}</BAND_NAME><PHYSICAL_UNIT>{}
</PHYSICAL_UNIT><NO_DATA_VALUE_USED>true</NO_DATA_VALUE_USED><NO_DATA_VALUE>0.0</NO_DATA_VALUE>
</Spectral_Band_Info>"""


def test_a_geotiff_of_snap_says_what_its_bands_are(tmp_path) -> None:
    values = np.random.default_rng(1).gamma(4, 0.02, (2, 40, 60)).astype("float32")
    values[:, 10:20, 10:20] = 0
    names = ("Sigma0_VH", "intensity"), ("Sigma0_VV", "intensity")
    text = SNAP.format(bands="".join(SNAP_BAND.format(i, *each) for i, each in enumerate(names)))
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632)
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
    tags += [(34735, "H", len(keys), keys, True), (65000, "s", 0, text, True)]
    path = tmp_path / "product.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", extratags=tags)
    scene = open_scene(path)
    assert scene.attrs["polarisations"] == ("VH", "VV")
    assert (scene.attrs["quantity"], scene.attrs["calibration"]) == ("intensity", "sigma0")
    assert (scene.attrs["platform"], scene.attrs["orbit_direction"]) == ("Sentinel-1A", "descending")
    assert scene.attrs["datetime"] == NOVEMBER
    assert np.isnan(scene.values).sum() == 200
