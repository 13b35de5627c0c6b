"""Times in metadata."""

from sar2eo.scenes.metadata import iso_datetime


def test_years_have_four_digits() -> None:
    assert iso_datetime("0001-01-01") == "0001-01-01T00:00:00Z"
