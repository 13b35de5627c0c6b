"""The plan of an archive: names of results."""

from sar2eo.translation.plan import read_name_fields


def test_a_manifest_is_named_after_its_product() -> None:
    product = "S1A_IW_GRDH_1SDV_20201107T135241"
    assert read_name_fields(f"scenes/{product}.SAFE/manifest.safe", {})["id"] == product
