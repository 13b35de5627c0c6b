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


@pytest.mark.parametrize(
    ("name", "platform", "time"),
    [
        ("ICEYE_X7_GRD_SM_59797_20210620T052843_VV_edited.tif", "ICEYE-X7", "2021-06-20T05:28:43Z"),
        ("CAPELLA_C02_SM_GEO_HH_20201209213329_20201209213332.tif", "Capella-2", "2020-12-09T21:33:29Z"),
        ("2023-02-12-21-33-56_UMBRA-04_GEC.tif", "Umbra-04", "2023-02-12T21:33:56Z"),
        ("TSX1_SAR__MGD_SE___SM_S_SRA_20210620T052843_20210620T052851_VV.tif", "TerraSAR-X",
         "2021-06-20T05:28:43Z"),
        ("RS2_OK12345_PK123_DK123_F2_20080415_143807_HH_HV_SLC.tif", "RADARSAT-2", "2008-04-15T14:38:07Z"),
        ("RCM1_OK1050603_PK1_1_SC30MCPB_20200303_235120_CH_CV_GRD.tif", "RCM-1", "2020-03-03T23:51:20Z"),
        ("IMG-HH-ALOS2014410740-140829-FBDR1.5RUD.tif", "ALOS-2", "2014-08-29T00:00:00Z"),
        ("S1A_OPER_SAR_EOSSP__CORE_L1A_OLVF_20210620T052843.tif", "SAOCOM-1A", "2021-06-20T05:28:43Z"),
        ("CSKS1_SCS_B_HI_12_HH_RA_SF_20110105051004_20110105051011.h5", "COSMO-SkyMed-1",
         "2011-01-05T05:10:04Z"),
        ("NISAR_L2_PR_GCOV_002_109_D_063_4005_DHDH_A_20251012T182508_20251012T182531_X05010.h5", "NISAR",
         "2025-10-12T18:25:08Z"),
        ("GF3_SAY_QPSI_011444_E118.9_N31.4_20181012_L1A_HH_L10003517422.tiff", "Gaofen-3",
         "2018-10-12T00:00:00Z"),
        ("OPERA_L2_RTC-S1_T069-147170-IW3_20231217T135241Z_20231218T010203Z_S1A_30_v1.0_VV.tif",
         "Sentinel-1A", "2023-12-17T13:52:41Z"),
        ("2021-06-20_VV.tif", None, "2021-06-20T00:00:00Z"),
        ("S1_VV_20210620.tif", None, "2021-06-20T00:00:00Z"),
        ("S1_20200604_20200616_VV.tif", None, "2020-06-04T00:00:00Z"),
        ("Sigma0_VV_mst_12Jun2023.tif", None, "2023-06-12T00:00:00Z"),
        ("scene_12345678_20211399_VV.tif", None, None),
    ],
)  # fmt: skip
def test_names_of_agencies_say_when_and_by_what(name: str, platform: str | None, time: str | None) -> None:
    found = read_facts(name, {"TIFFTAG_DATETIME": "2024:01:01 00:00:00"})
    assert (found.platform, found.datetime, found.written) == (platform, time, "2024-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("name", "platform", "time"),
    [
        ("LC08_L2SP_193028_20230610_20230620_02_T1_SR_B2.TIF", "Landsat-8", "2023-06-10T00:00:00Z"),
        ("LC81930282023161LGN00_B4.TIF", "Landsat-8", "2023-06-10T00:00:00Z"),
        ("LM05_L1TP_193028_19840610_20200620_02_T2_B1.TIF", "Landsat-5 MSS", "1984-06-10T00:00:00Z"),
        ("HLS.S30.T32TNT.2023161T102601.v2.0.B04.tif", "HLS-S30", "2023-06-10T10:26:01Z"),
        ("MOD09GA.A2023161.h18v04.061.2023163041512.hdf", "MODIS", "2023-06-10T00:00:00Z"),
        ("20170831_172754_101c_3B_AnalyticMS.tif", "PlanetScope", "2017-08-31T17:27:54Z"),
        ("SkySat_20210620T195552Z_RGB.tif", "SkySat", "2021-06-20T19:55:52Z"),
        ("20191014_083416_ssc9d1_0018_analytic.tif", "SkySat", "2019-10-14T08:34:16Z"),
        ("1056417_2010-02-18_RE3_3A_Analytic_298213.tif", "RapidEye", "2010-02-18T00:00:00Z"),
        ("GF2_PMS1_E116.5_N39.4_20160827_L1A0001793003-MSS1.tiff", "Gaofen-2", "2016-08-27T00:00:00Z"),
        ("23JUN12054021-M2AS-012345678010_01_P001.TIF", None, "2023-06-12T05:40:21Z"),
        ("IMG_PHR1A_PMS_201206181035409_ORT_1234.TIF", None, "2012-06-18T10:35:40Z"),
        ("S2A_OPER_PRD_MSIL1C_PDMC_20160307T190003_R108_V20160306T102603_20160306T102603.tif",
         "Sentinel-2A", "2016-03-06T10:26:03Z"),
    ],
)  # fmt: skip
def test_names_of_optical_agencies(name: str, platform: str | None, time: str) -> None:
    found = read_optical_facts(name, {"TIFFTAG_DATETIME": "2024:01:01 00:00:00"})
    assert (found.platform, found.datetime) == (platform, time)


@pytest.mark.parametrize(
    ("tags", "time"),
    [
        ({"SENSING_TIME": "2023-06-10T10:26:01Z"}, "2023-06-10T10:26:01Z"),
        ({"DATE_ACQUIRED": "2023-06-10", "SCENE_CENTER_TIME": "10:02:33.1234560Z"}, "2023-06-10T10:02:33Z"),
        ({"FIRST_LINE_TIME": "12-JUN-2023 05:40:21.000000"}, "2023-06-12T05:40:21Z"),
        ({"NC_GLOBAL#time_coverage_start": "2023-06-12T05:40:21Z"}, "2023-06-12T05:40:21Z"),
        ({"X": '{"processing_time": "2020-12-10T03:00:00Z", "collect": {"start_timestamp": "2020-12-09"}}'},
         "2020-12-09T00:00:00Z"),
        ({"PROCESSING_START_TIME": "2023-06-12T05:40:21Z", "CREATED": "2023-06-12"}, None),
    ],
)  # fmt: skip
def test_tags_that_mean_the_acquisition(tags: dict[str, str], time: str | None) -> None:
    assert read_facts("vv.tif", tags).datetime == time
    same_day = "vv_20230610T010203.tif"
    assert read_facts(same_day, tags).datetime == (time or "2023-06-10T01:02:03Z")


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
