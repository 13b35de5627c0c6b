"""What names and times in metadata mean."""

import pytest

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
