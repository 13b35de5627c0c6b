"""Whole real scenes, and every odd file, through the command line."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate
from support.command_line import run

import sar2eo

pytestmark = pytest.mark.realdata

IDENTITY = ("--model", "identity")

# File, options, exit code, words of the error or None, polarisations of the result.
ODD = [
    ("capella_hh_complex64.tif", (), 0, None, "HH"),
    ("capella_quadpol_float32_4band.tif", (), 1, ("4 bands", "--pol"), None),
    ("capella_quadpol_float32_4band.tif", ("--pol", "HH,HV,VH,VV"), 0, None, "HH,HV,VH,VV"),
    ("s1_iw_grdh_annotation_vv.xml", (), 1, (".SAFE",), None),
    ("s1_vv_db_nodata_minus99_utm31n.tif", (), 0, None, "VV"),
    ("s1_vv_vh_db_float32_utm.tif", (), 0, None, "VV,VH"),
    ("s1_vv_vh_db_float32_utm.tif", ("--pol", "HH,HV,VV"), 1, ("no HH, HV", "VV, VH"), None),
    ("s1rtc_vv_vh_db_float64_282D_485L_3_3.tif", (), 0, None, "VV,VH"),
    ("s1rtc_vv_vh_db_float64_38D_378R_2_3.tif", (), 0, None, "VV,VH"),
    ("s1rtc_vv_vh_db_float64_637U_59R_1_3.tif", (), 0, None, "VV,VH"),
    ("s2_13band_uint16_utm.tif", (), 1, ("13 bands", "optical"), None),
    ("s2rgb_282D_485L_3_3.tif", (), 1, ("optical",), None),
    ("s2rgb_38D_378R_2_3.tif", (), 1, ("optical",), None),
    ("s2rgb_637U_59R_1_3.tif", (), 1, ("optical",), None),
    ("worldview_rgb_of_capella.tif", (), 1, ("optical",), None),
]


def test_the_table_has_every_odd_file(real_data: Path) -> None:
    assert {row[0] for row in ODD} == {path.name for path in (real_data / "odd").iterdir()}


@pytest.mark.parametrize(("name", "options", "code", "words", "polarisations"), ODD)
def test_odd_files_translate_or_say_why_not(
    real_data: Path,
    tmp_path: Path,
    name: str,
    options: tuple[str, ...],
    code: int,
    words: tuple[str, ...] | None,
    polarisations: str | None,
) -> None:
    out = tmp_path / "eo.tif"
    done = run("translate", real_data / "odd" / name, "--out", out, *IDENTITY, *options)
    assert done.exit_code == code, done.output
    if words is not None:
        assert all(word in done.stderr for word in words), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not list(tmp_path.iterdir())
        return
    with rasterio.open(out) as raster:
        assert raster.tags()["polarisations"] == polarisations
        valid = raster.read_masks(1) > 0
        image = raster.read()[:, valid]
    assert valid.mean() > 0.5
    # Scaled by its own 99th percentile, a scene fills the range without drowning in either end.
    assert 20 < image.mean() < 160
    assert (image == 255).mean() < 0.05
    assert cog_validate(out, strict=True)[0]


def test_a_real_scene_of_92_megapixels_comes_back_as_it_was(real_data: Path, tmp_path: Path) -> None:
    source, out = real_data / "scenes/la_west_sar.tif", tmp_path / "eo.tif"
    done = run("translate", source, "--out", out, *IDENTITY, "--tile", "512")
    assert done.exit_code == 0, done.output
    assert cog_validate(out, strict=True)[0]
    with rasterio.open(source) as sar, rasterio.open(out) as eo:
        assert (eo.crs, eo.transform, eo.shape) == (sar.crs, sar.transform, sar.shape)
        scaled = sar.read(1)  # its 99th percentile is 255: scaling it changes nothing
        valid = eo.read_masks(1) > 0
        np.testing.assert_array_equal(valid, scaled > 0)
        for band in eo.read():
            np.testing.assert_array_equal(band, scaled)
        assert eo.tags()["TIFFTAG_DATETIME"] == "2020:11:07 13:52:41"
        assert len(eo.overviews(1)) >= 4
    check_overview(out, scaled, 8)


def check_overview(path: Path, image: np.ndarray, factor: int) -> None:
    """An overview's pixels are means of valid pixels: none is darker than what lies under it."""
    with rasterio.open(path, overview_level=int(np.log2(factor)) - 1) as overview:
        small, valid = overview.read(1), overview.read_masks(1) > 0
    rows, cols = (n // factor * factor for n in image.shape)
    blocks = image[:rows, :cols].reshape(rows // factor, factor, cols // factor, factor).astype(float)
    count = (blocks > 0).sum(axis=(1, 3))
    darkest = np.where(blocks > 0, blocks, 255).min(axis=(1, 3))
    partly = (count > 0) & (count < factor**2) & valid[: rows // factor, : cols // factor]
    whole = count == factor**2
    mean = blocks.mean(axis=(1, 3))
    assert (small[: rows // factor, : cols // factor][partly] >= darkest[partly]).all()
    assert np.abs(small[: rows // factor, : cols // factor][whole] - mean[whole]).mean() < 1
    assert valid[: rows // factor, : cols // factor][whole].all()
    assert not valid[: rows // factor, : cols // factor][count == 0].any()


@pytest.mark.parametrize("name", ["la_east", "san_antonio_west", "la_west"])
def test_scaling_is_within_one_percent_of_exact(real_data: Path, name: str) -> None:
    scene = sar2eo.open_scene(real_data / f"scenes/{name}_sar.tif")
    eo = sar2eo.translate(scene, "identity")
    found = float(eo.amplitude_divisor.values[0])
    with rasterio.open(real_data / f"scenes/{name}_sar.tif") as raster:
        counts = np.bincount(raster.read(1).ravel(), minlength=256)[1:]
    exact = 1 + int(np.searchsorted(counts.cumsum(), 0.99 * counts.sum()))
    assert found == pytest.approx(exact, rel=0.01)
