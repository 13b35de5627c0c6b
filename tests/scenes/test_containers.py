"""Folders, archives and containers are opened as the scene they hold, or say what they hold."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from support.scene_fixtures import speckle, write_raster

from sar2eo.errors import RadiometryWarning, SceneError, SettingsError
from sar2eo.scenes import open_scene
from sar2eo.scenes.sources import expand_sources

SHAPE = (20, 30)
STEM = "S1A_IW_20230612T054021_DVP_RTC30_G_gpuned_1A2B"


def decibels(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(-12, 4, shape).astype(np.float32)


def write(path: Path, seed: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, speckle(SHAPE, seed, dtype="float32"))


def hyp3(folder: Path) -> Path:
    for seed, name in enumerate(("VV", "VH", "dem", "inc_map", "ls_map", "area", "rgb")):
        write(folder / f"{STEM}_{name}.tif", seed)
    (folder / f"{STEM}.README.md.txt").touch()
    return folder


def nrb(folder: Path) -> Path:
    stem = "s1a-iw-nrb-20230612t054021-030639-0382d5-32tps"
    for seed, pol in enumerate(("vv", "vh")):
        write(folder / f"measurement/{stem}-{pol}-g-lin.tif", seed)
        write(folder / f"annotation/{stem}-np-{pol}.tif")
        view = '<VRTDataset><VRTRasterBand subClass="VRTDerivedRasterBand"/></VRTDataset>'
        (folder / f"measurement/{stem}-{pol}-g-log.vrt").write_text(view)
    (folder / "source/6A12").mkdir(parents=True)
    (folder / "source/6A12/manifest.safe").touch()
    return folder


def indigo(folder: Path) -> Path:
    for seed, name in enumerate(("Gamma0_VV", "Gamma0_VH", "local_incident_angle")):
        write(folder / f"{name}.tif", seed)
    return folder


def test_what_is_left_out_of_a_folder_is_listed(tmp_path: Path) -> None:
    with pytest.warns(RadiometryWarning, match=rf"left out {STEM}_area\.tif, .*_dem\.tif, .* no radar"):
        open_scene(hyp3(tmp_path / "product"))


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(("make", "zipped"), [(hyp3, False), (hyp3, True), (nrb, False), (indigo, False)])
def test_a_folder_of_one_scene_is_that_scene(tmp_path: Path, make, zipped: bool) -> None:
    folder = make(tmp_path / "product")
    path = folder
    if zipped:
        path = tmp_path / "product.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, f"product/{file.relative_to(folder)}")
    scene = open_scene(path, quantity="intensity")
    assert scene.attrs["polarisations"] == ("VV", "VH")
    np.testing.assert_array_equal(scene.values, [speckle(SHAPE, seed, "float32") for seed in (0, 1)])
    only = open_scene(path, polarisations="VH", quantity="intensity")
    np.testing.assert_array_equal(only.values, scene.values[1:])
    if make is hyp3:
        assert scene.attrs["datetime"] == "2023-06-12T05:40:21Z"
        assert open_scene(path).attrs["quantity"] == "intensity"
    (source,) = expand_sources([str(tmp_path)], "sar")
    assert source.href.startswith("VV="), "an archive beside what was unpacked of it is no second scene"


def test_folders_of_several_scenes_or_none_say_what_they_hold(tmp_path: Path) -> None:
    for name in ("a_VV", "a_VH", "b_VV"):
        write(tmp_path / "many" / f"{name}.tif")
    assert [Path(s.href).name for s in expand_sources([str(tmp_path)], "sar")] == ["a_VH.tif", "b_VV.tif"]
    with pytest.raises(SceneError, match=r"many: holds 2 scenes, name one: a_VH\.tif, b_VV\.tif"):
        open_scene(tmp_path / "many")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/readme.txt").touch()
    with pytest.raises(SceneError, match=r"none: a folder without a SAR scene, but with readme\.txt"):
        open_scene(tmp_path / "none")


def dimap(folder: Path) -> Path:
    """Write what SNAP writes: an index beside a folder of big-endian images, 0 where nothing was measured."""
    stem = "S1A_IW_GRDH_1SDV_20230612T054021_20230612T054046_048950_05E2F1_1A2B_TC"
    data = folder / f"{stem}.data"
    (data / "tie_point_grids").mkdir(parents=True)
    bands = files = ""
    for index, pol in enumerate(("VH", "VV")):
        values = speckle(SHAPE, index)
        values[:3] = 0
        header = (
            "ENVI\nsamples = 30\nlines = 20\nbands = 1\nfile type = ENVI Standard\ndata type = 4\n"
            "byte order = 1\nmap info = {UTM, 1, 1, 500000, 5e6, 10, 10, 32, North, WGS84, units=m}\n"
        )
        for name in (f"Sigma0_{pol}", f"tie_point_grids/angle_{pol}"):
            values.astype(">f4").tofile(data / f"{name}.img")
            (data / f"{name}.hdr").write_text(header)
        bands += (
            f"<Spectral_Band_Info><BAND_INDEX>{index}</BAND_INDEX><BAND_NAME>Sigma0_{pol}</BAND_NAME>"
            "<PHYSICAL_UNIT>intensity</PHYSICAL_UNIT><NO_DATA_VALUE_USED>true</NO_DATA_VALUE_USED>"
            "<NO_DATA_VALUE>0.0</NO_DATA_VALUE></Spectral_Band_Info>"
        )
        href = f"{stem}.data/Sigma0_{pol}.hdr"
        files += f'<Data_File><DATA_FILE_PATH href="{href}"/><BAND_INDEX>{index}</BAND_INDEX></Data_File>'
    metadata = '<MDATTR name="PASS" type="ascii">DESCENDING</MDATTR>'
    (folder / f"{stem}.dim").write_text(f"<Dimap_Document>{files}{bands}{metadata}</Dimap_Document>")
    return data


def test_beam_dimap_is_opened_by_its_index_its_folder_or_an_image(tmp_path: Path) -> None:
    data = dimap(tmp_path)
    for path in (data.with_suffix(".dim"), data):
        scene = open_scene(path)
        assert scene.attrs["polarisations"] == ("VV", "VH")
        assert (scene.attrs["quantity"], scene.attrs["calibration"]) == ("intensity", "sigma0")
        assert (scene.attrs["platform"], scene.attrs["orbit_direction"]) == ("Sentinel-1A", "descending")
        assert np.isnan(scene.values[:, :3]).all()
        assert np.isfinite(scene.values[:, 3:]).all()
    only = open_scene(data / "Sigma0_VH.img")
    np.testing.assert_array_equal(only.values, scene.values[1:])
    assert [s.href for s in expand_sources([str(tmp_path)], "sar")] == [str(data.with_suffix(".dim"))]


def arrays(time: bool = False) -> xr.Dataset:
    dims, count = (("time", "y", "x"), 2) if time else (("y", "x"), 1)
    values = {n: np.stack([decibels(SHAPE, seed=s) for s in range(count)]) for n in ("VV", "VH")}
    coords = {"y": 5_000_000 - 10.0 * np.arange(SHAPE[0]), "x": 500_000 + 10.0 * np.arange(SHAPE[1])}
    if time:
        coords["time"] = np.array(["2023-06-01T05:40:21", "2023-06-13T05:40:21"], "datetime64[ns]")
    dataset = xr.Dataset({n: (dims, v if time else v[0]) for n, v in values.items()}, coords=coords)
    return dataset.rio.write_crs("EPSG:32633").rio.write_coordinate_system()


def write_zarr(folder: Path) -> Path:
    """Write Zarr, version 2, of one chunk for each array, as xarray lays it out."""
    dataset = arrays()
    wkt = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    named = {"spatial_ref": (np.array(0), [], {"crs_wkt": wkt})}
    for name in ("VV", "VH", "x", "y"):
        axis = {"standard_name": f"projection_{name}_coordinate"}
        attrs = {"grid_mapping": "spatial_ref"} if name in ("VV", "VH") else axis
        named[name] = (dataset[name].values, list(dataset[name].dims), attrs)
    for name, (values, dims, attrs) in named.items():
        (folder / name).mkdir(parents=True)
        about = {
            "zarr_format": 2, "shape": values.shape, "chunks": values.shape, "dtype": values.dtype.str,
            "compressor": None, "fill_value": None, "order": "C", "filters": None,
        }  # fmt: skip
        (folder / name / ".zarray").write_text(json.dumps(about))
        (folder / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": dims, **attrs}))
        values.tofile(folder / name / (".".join("0" * values.ndim) or "0"))
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    return folder


def test_netcdf_hdf5_and_zarr_are_opened_by_the_names_of_their_arrays(tmp_path: Path) -> None:
    dataset = arrays()
    dataset.to_netcdf(tmp_path / "s1.nc", engine="h5netcdf")
    group = "science/LSAR/GCOV/grids/frequencyA"
    covariances = dataset.rename(VV="VVVV", VH="VHVH")
    covariances.to_netcdf(tmp_path / "NISAR_L2_GCOV.h5", group=group, engine="h5netcdf")
    for path in (tmp_path / "s1.nc", tmp_path / "NISAR_L2_GCOV.h5", write_zarr(tmp_path / "s1.zarr")):
        scene = open_scene(path, quantity="db")
        assert scene.attrs["polarisations"] == ("VV", "VH")
        np.testing.assert_array_equal(scene.values, [dataset["VV"].values, dataset["VH"].values])
        assert scene.rio.crs.to_epsg() == 32633
    covariances.rename(VVVV="a", VHVH="b").to_netcdf(tmp_path / "x.h5", engine="h5netcdf")
    with pytest.raises(SceneError, match=r"no raster that names a polarisation: name one, .*netcdf:.*:/a"):
        open_scene(tmp_path / "x.h5")
    named = open_scene(f"netcdf:{tmp_path / 'NISAR_L2_GCOV.h5'}:/{group}/VHVH", quantity="db")
    assert named.attrs["polarisations"] == ("VH",)


def test_one_date_of_a_stack_is_taken(tmp_path: Path) -> None:
    values = np.stack([decibels(SHAPE, seed=seed) for seed in range(4)])
    names = ["VV_20230601", "VH_20230601", "VV_20230613", "VH_20230613"]
    stack = write_raster(tmp_path / "stack.tif", values, names=names)
    arrays(time=True).to_netcdf(tmp_path / "stack.nc", engine="h5netcdf")
    for path in (stack, tmp_path / "stack.nc"):
        with pytest.raises(
            SceneError, match=r"a stack of dates \(2023-06-01, 2023-06-13\): choose one with --date"
        ):
            open_scene(path)
        with pytest.raises(SceneError, match=r"no band of 2023-06-02, but 2023-06-01, 2023-06-13"):
            open_scene(path, date="2023-06-02")
        scene = open_scene(path, date="2023-06-13")
        assert scene.attrs["polarisations"] == ("VV", "VH")
        assert scene.attrs["datetime"].startswith("2023-06-13")
    np.testing.assert_array_equal(open_scene(stack, date="2023-06-13").values, values[2:])
    with pytest.raises(SettingsError, match="asset=x: goes with a STAC item"):
        open_scene(stack, asset="x")
