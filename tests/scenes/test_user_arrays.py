"""Arrays that users made: opened with other tools, computed, joined, or changed since."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from PIL import Image
from support.scenes import amplitude, write_scene

import sar2eo
from sar2eo.errors import GeoreferenceError, PolarisationError, RadiometryError, Sar2eoWarning, SceneError
from sar2eo.scenes.user_arrays import normalise_array

SMALL = {"tile": 64, "overlap": 16}


@pytest.fixture
def scene(tmp_path: Path) -> xr.DataArray:
    """VV dark with a bright corner of 4 %, VH; without data in the uppermost rows."""
    values = amplitude((320, 300), seed=2, bands=2) * [[[0.3]], [[0.2]]]
    values[:, 200:260, 100:160] *= 3
    valid = np.ones((320, 300), bool)
    valid[:40] = False
    path = write_scene(tmp_path / "scene.tif", np.clip(np.rint(values), 1, 255), valid, names=("VV", "VH"))
    return sar2eo.open_scene(path)


def divisors(array: xr.DataArray) -> list[float]:
    return list(map(float, sar2eo.translate(array, "identity", **SMALL).amplitude_divisor.values))


def test_the_scaling_is_that_of_all_valid_pixels_however_the_array_came_about(scene: xr.DataArray) -> None:
    values = scene.values.reshape(2, -1)
    exact = [float(np.percentile(band[np.isfinite(band)], 99)) for band in values]
    same = scene.copy(data=scene.data * 1)
    for array in (scene.compute(), same, same.chunk(y=64, x=50), same.chunk(y=7, x=300)):
        assert divisors(array) == pytest.approx(exact, rel=1e-6 if array.chunks is None else 0.03)


def test_a_scene_with_data_in_none_of_the_chunks_that_are_looked_at_asks_for_a_scaling() -> None:
    sparse = np.full((1, 640, 640), np.nan, np.float32)
    sparse[:, :10, :10] = 5
    array = (
        xr.DataArray(
            sparse,
            dims=("band", "y", "x"),
            coords={"band": ["VV"], "y": np.arange(640.0)[::-1], "x": np.arange(640.0)},
            attrs={"quantity": "amplitude"},
        )
        .chunk(y=32, x=32)
        .rio.write_crs(32611)
    )
    with pytest.raises(RadiometryError, match=r"in 64 sampled chunks of 400: .* scaling"):
        divisors(array)
    eo = sar2eo.translate(array, "identity", scaling=(5.0,), **SMALL)
    assert int(eo.valid.sum()) == 100


def test_bands_may_lie_in_chunks_of_their_own(scene: xr.DataArray) -> None:
    expected = sar2eo.translate(scene, "identity", scaling=(200.0, 90.0), **SMALL).eo.values
    joined = xr.concat([scene.sel(band=["VV"]), scene.sel(band=["VH"])], dim="band")
    assert len(joined.chunks[0]) == 2
    for array in (joined, scene.chunk(band=1), scene.chunk(band=1).rio.write_crs(32612)):
        eo = sar2eo.translate(array, "identity", scaling=(200.0, 90.0), **SMALL).eo.values
        np.testing.assert_array_equal(eo, expected)


def test_declared_nodata_is_not_valid(scene: xr.DataArray) -> None:
    opened = rioxarray.open_rasterio(scene.attrs["source"]).assign_coords(band=["VV", "VH"])
    opened = opened.assign_attrs(quantity="dn")
    filled = scene.fillna(-9999).rio.write_nodata(-9999)
    expected = sar2eo.translate(scene, "identity", **SMALL).compute()
    assert not expected.valid[:40].any()
    for array in (opened, filled, opened.chunk(y=100)):
        found = sar2eo.translate(array, "identity", **SMALL).compute()
        np.testing.assert_array_equal(found.valid, expected.valid)
        np.testing.assert_allclose(found.amplitude_divisor, expected.amplitude_divisor, rtol=0.02)


def test_declared_scale_and_offset_are_applied(tmp_path: Path) -> None:
    stored = amplitude((96, 128), 5).astype("uint16") + 100
    path = tmp_path / "scaled_vv.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "height": 96, "width": 128, "nodata": 100}
    place = {"crs": "EPSG:32611", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)}
    with rasterio.open(path, "w", **profile, **place) as raster:
        raster.write(stored)
        raster.scales, raster.offsets = (0.5,), (-50.0,)
    expected = sar2eo.translate(sar2eo.open_scene(path, quantity="amplitude"), "identity", **SMALL).compute()
    for opened in (rioxarray.open_rasterio(path), rioxarray.open_rasterio(path, mask_and_scale=True)):
        scene = opened.assign_coords(band=["VV"]).assign_attrs(quantity="amplitude")
        found = sar2eo.translate(scene, "identity", **SMALL).compute()
        np.testing.assert_allclose(found.amplitude_divisor, expected.amplitude_divisor, rtol=1e-6)
        np.testing.assert_array_equal(found.eo, expected.eo)
        np.testing.assert_array_equal(found.valid, expected.valid)
    for attrs, words in (({"scale_factor": "much"}, "no number"), ({"scales": (1.0, 2.0)}, "mask_and_scale")):
        with pytest.raises(SceneError, match=words):
            sar2eo.translate(scene.assign_attrs(attrs), "identity", **SMALL)


def test_bytes_are_known_as_such_whether_or_not_nodata_is_masked(scene: xr.DataArray) -> None:
    bytes_ = scene.fillna(0).astype("uint8").assign_attrs(quantity="dn")
    for array in (bytes_, bytes_.rio.write_nodata(0)):
        assert normalise_array(array).attrs["stored_as"] == "bytes"


def test_nodata_that_no_value_can_have_is_none(scene: xr.DataArray) -> None:
    bytes_ = scene.fillna(0).astype("uint8").assign_attrs(_FillValue=-9999)
    assert sar2eo.translate(bytes_, "identity", **SMALL).valid.all()
    low = scene.fillna(5).assign_attrs(_FillValue=-1.8e308)
    assert sar2eo.translate(low, "identity", **SMALL).valid.all()
    with pytest.raises(SceneError, match="nodata is no number"):
        sar2eo.translate(scene.fillna(5).assign_attrs(_FillValue=[1.0, 2.0]), "identity", **SMALL)
    turned = (scene.fillna(-1).compute() * (1 + 0j)).assign_attrs(quantity="amplitude", _FillValue=-1.0)
    assert not sar2eo.translate(turned, "identity", **SMALL).valid[:40].any()


def test_complex_samples_are_their_magnitude(scene: xr.DataArray) -> None:
    turned = scene.compute() * np.exp(1j * np.arange(scene.sizes["x"]))
    turned = turned.assign_attrs(scene.attrs | {"quantity": "amplitude"})
    values = {"scaling": (200.0, 90.0), **SMALL}
    expected = sar2eo.translate(scene.assign_attrs(quantity="amplitude"), "identity", **values).eo.values
    found = sar2eo.translate(turned, "identity", **values).eo.values
    assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(RadiometryError, match="magnitude is amplitude"):
        sar2eo.translate(turned.assign_attrs(quantity="dn"), "identity", **values)


@pytest.mark.parametrize(
    ("attrs", "error", "words"),
    [
        ({"quantity": "Intensity"}, RadiometryError, "'Intensity'.*dn, amplitude"),
        ({"datetime": "07.11.2020"}, SceneError, "07.11.2020.*ISO 8601"),
        ({"datetime": np.datetime64("2020-11-07")}, SceneError, "ISO 8601"),
    ],
)
def test_what_an_array_says_of_itself_is_checked_before_anything_is_computed(
    scene: xr.DataArray, attrs: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        sar2eo.translate(scene.assign_attrs(attrs), "identity", **SMALL)


def test_degrees_in_32_bits_are_evenly_spaced() -> None:
    array = xr.DataArray(
        np.ones((1, 256, 256), np.float32),
        dims=("band", "y", "x"),
        coords={
            "band": ["VV"],
            "y": (34 - 1e-4 * np.arange(256)).astype("f4"),
            "x": (-118 + 1e-4 * np.arange(256)).astype("f4"),
        },
        attrs={"quantity": "amplitude"},
    ).rio.write_crs(4326)
    assert sar2eo.translate(array, "identity", **SMALL).eo.shape == (3, 256, 256)
    bent = array.assign_coords(x=np.linspace(0, 1, 256) ** 2)
    with pytest.raises(SceneError, match="not evenly spaced"):
        sar2eo.translate(bent, "identity", **SMALL)


def test_files_have_rows_and_columns_and_colours_in_order_whatever_the_arrays_have(
    scene: xr.DataArray, tmp_path: Path
) -> None:
    dataset = sar2eo.translate(scene, "identity", scaling=(200.0, 90.0), **SMALL)
    plain, turned = tmp_path / "plain.tif", tmp_path / "turned.tif"
    sar2eo.write_cog(dataset, plain)
    everywhere = xr.DataArray(np.ones(300, bool), dims="x", coords={"x": dataset.x})
    changed = dataset.isel(band=[2, 0, 1]).assign(valid=everywhere & dataset.valid)
    assert changed.valid.dims == ("x", "y")
    sar2eo.write_cog(changed.transpose("x", "y", ...).chunk(band=1), turned)
    with rasterio.open(plain) as expected, rasterio.open(turned) as found:
        np.testing.assert_array_equal(found.read(), expected.read())
        np.testing.assert_array_equal(found.dataset_mask(), expected.dataset_mask())
        assert found.transform == expected.transform


def test_every_file_says_that_it_is_synthetic(scene: xr.DataArray, tmp_path: Path) -> None:
    dataset = sar2eo.translate(scene, "identity", scaling=(200.0, 90.0), **SMALL)
    bare = xr.Dataset({"eo": dataset.eo, "valid": dataset.valid})
    sar2eo.write_cog(bare, tmp_path / "eo.tif", quicklook=tmp_path / "eo.png")
    with rasterio.open(tmp_path / "eo.tif") as written:
        assert written.tags()["synthetic"].startswith("true")
        assert written.tags()["TIFFTAG_SOFTWARE"].startswith("sar2eo ")
    with Image.open(tmp_path / "eo.png") as picture:
        assert "synthetic=true" in str(picture.info)


def test_a_slice_is_described_as_such_also_after_netcdf(scene: xr.DataArray, tmp_path: Path) -> None:
    told = sar2eo.describe_scene(scene.isel(y=slice(10, 30), x=slice(5, 45)))
    assert told["shape"] == [20, 40]
    assert told["transform"][2::3] == [500_050.0, 3_999_900.0]
    assert sar2eo.describe_scene(scene.isel(y=slice(10, 30), x=slice(5, 45)).compute())["shape"] == [20, 40]
    single = scene.sel(band=["VH"]).assign_attrs(polarisations=["VH"])
    single.to_netcdf(tmp_path / "scene.nc", engine="h5netcdf")
    with xr.open_dataarray(tmp_path / "scene.nc", decode_coords="all", engine="h5netcdf") as kept:
        assert sar2eo.describe_scene(kept)["polarisations"] == ["VH"]


def test_statistics_that_another_program_left_beside_a_scene_do_not_make_it_another(
    scene: xr.DataArray, tmp_path: Path
) -> None:
    source = Path(scene.attrs["source"])

    def name() -> str:
        return str(sar2eo.translate(sar2eo.open_scene(source), "identity", **SMALL).eo.data.name)

    before, sidecar = name(), source.with_name(f"{source.name}.aux.xml")

    def leave(*said: str, more: str = "") -> None:
        told = f"<Metadata>{''.join(said)}</Metadata>" if said else ""
        band = f'<PAMRasterBand band="1">{more}<Histograms><HistItem/></Histograms>{told}</PAMRasterBand>'
        sidecar.write_text(f"<PAMDataset>{told}{band}</PAMDataset>")

    statistics, beam = '<MDI key="STATISTICS_MEAN">5</MDI>', '<MDI key="beam">IW</MDI>'
    leave(statistics)
    assert name() == before
    leave(statistics, beam)
    after = name()
    assert after != before
    leave(beam)
    assert name() == after
    leave(more="<Description>VV</Description>")
    described = name()
    leave(statistics, more="<Description>VV</Description>")
    assert name() == described


DATE = np.datetime64("2023-06-12T05:40:21")
SCALED = {"scaling": (200.0, 90.0), **SMALL}


def stack(scene: xr.DataArray) -> xr.DataArray:
    """As stackstac makes it: coordinates of pixel corners, and the transform among the attributes."""
    corners = scene.assign_coords(band=["vv", "vh"], y=scene.y + 5, x=scene.x - 5).drop_vars("spatial_ref")
    attrs = {"transform": scene.rio.transform(), "crs": "epsg:32611", "quantity": "dn"}
    return corners.drop_attrs(deep=False).assign_attrs(attrs).expand_dims(time=[DATE])


def variables(scene: xr.DataArray, names: tuple[str, str] = ("vv", "vh")) -> xr.Dataset:
    """As odc-stac makes it: a Dataset of polarisations, with a time."""
    arrays = {name: scene.isel(band=i, drop=True).drop_attrs(deep=False) for i, name in enumerate(names)}
    arrays = {name: array.fillna(-9).assign_attrs(nodata=-9) for name, array in arrays.items()}
    return xr.Dataset(arrays, attrs={"quantity": "dn"}).expand_dims(time=[DATE])


@pytest.mark.parametrize(
    "made",
    [
        stack,
        variables,
        lambda s: variables(s, ("Gamma0_VV", "Gamma0_VH")).assign(angle=s[0], number=3),
        lambda s: variables(s).isel(time=0).to_array("polarization").assign_attrs(quantity="dn", nodata=-9),
        lambda s: s.rename(y="lat", x="lon", band="variable").rio.set_spatial_dims("lon", "lat"),
        lambda s: s.rename(y="Northing", x="Easting").transpose("Easting", "Northing", "band"),
        lambda s: (
            s.assign_coords(band=[1, 2])
            .drop_attrs(deep=False)
            .assign_attrs(long_name=("VV", "VH"), quantity="dn")
        ),
        lambda s: s.drop_vars(["y", "x"]).rio.write_transform(s.rio.transform()),
        lambda s: s.isel(y=slice(None, None, -1), x=slice(None, None, -1)),
        lambda s: s.to_dataset(name="measurement"),
        lambda s: s.to_dataset("band").assign_attrs(quantity="dn"),
    ],
)
def test_arrays_of_other_libraries_are_taken(scene: xr.DataArray, made: object) -> None:
    expected = sar2eo.translate(scene, "identity", **SCALED).compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Sar2eoWarning)
        found = sar2eo.translate(made(scene.compute()), "identity", **SCALED).compute()
    xr.testing.assert_equal(found, expected)
    if "time" in made(scene).coords:
        assert found.attrs["datetime"] == "2023-06-12T05:40:21Z"


def test_one_polarisation_may_have_no_dim_of_its_own(scene: xr.DataArray) -> None:
    expected = sar2eo.translate(scene.sel(band=["VH"]), "identity", **SMALL).compute()
    for array in (scene.sel(band="VH"), scene.to_dataset("band").VH.assign_attrs(scene.attrs)):
        found = sar2eo.translate(array, "identity", **SMALL).compute()
        xr.testing.assert_equal(found, expected)


def test_layers_beside_the_polarisations_are_left_out_and_listed(scene: xr.DataArray) -> None:
    labelled = scene.compute().assign_coords(band=["vv", "angle"])
    with pytest.warns(Sar2eoWarning, match="^angle: left out"):
        found = sar2eo.translate(labelled, "identity", **SMALL)
    assert found.polarisation.values.tolist() == ["VV"]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (
            lambda s: s.drop_vars("spatial_ref").drop_attrs(deep=False),
            GeoreferenceError,
            r"rio\.write_crs\('EPSG:",
        ),
        (lambda s: s.drop_vars(["y", "x"]), GeoreferenceError, r"rio\.write_transform\("),
        (
            lambda s: s.drop_vars(["y", "x"]).rio.write_transform(rasterio.Affine(9, 4, 5e5, 4, -9, 4e6)),
            GeoreferenceError,
            r"rio\.reproject\(",
        ),
        (lambda s: xr.concat([s, s], "time"), SceneError, r"time has 2 steps.*isel\(time=0\)"),
        (lambda s: s.rename(y="azimuth", x="range"), SceneError, r"rename\(azimuth='y', range='x'\)"),
        (
            lambda s: s.assign_coords(band=["a", "b"]).drop_attrs(deep=False),
            PolarisationError,
            r"assign_attrs\(pol",
        ),
        (lambda s: s.assign_coords(band=["vv", "VV"]), PolarisationError, "one for each polarisation"),
        (lambda s: variables(s, ("a", "b")), PolarisationError, r"dataset\.rename\(NAME='VV'\)"),
        (
            lambda s: variables(s).drop_attrs(deep=False),
            RadiometryError,
            r"assign_attrs\(quantity='intensity'\)",
        ),
    ],
)
def test_arrays_that_cannot_be_taken_name_the_code_that_mends_them(
    scene: xr.DataArray, changed: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        sar2eo.translate(changed(scene.compute()), "identity", **SMALL)


def test_a_result_whose_rows_were_turned_is_written_north_up(scene: xr.DataArray, tmp_path: Path) -> None:
    dataset = sar2eo.translate(scene, "identity", **SCALED)
    sar2eo.write_cog(dataset, tmp_path / "plain.tif")
    sar2eo.write_cog(dataset.isel(y=slice(None, None, -1)), tmp_path / "turned.tif")
    with rasterio.open(tmp_path / "plain.tif") as expected, rasterio.open(tmp_path / "turned.tif") as found:
        assert found.transform == expected.transform
        np.testing.assert_array_equal(found.read(), expected.read())
