"""The lazy result: identity through the whole path, regions, slices, and what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scenes import amplitude, holes, scene_array, write_scene

import sar2eo
from sar2eo.compute.dask_run import collect_telemetry, reset_telemetry
from sar2eo.errors import PolarisationError, RadiometryError, SceneError, SettingsError
from sar2eo.geo.radiometry import fill_invalid
from sar2eo.model.loading import IdentityTranslator
from sar2eo.model.noise import draw_scene_noise
from sar2eo.model.spec import resolve_model
from sar2eo.scenes import lazy_array
from sar2eo.settings import TranslateSettings
from sar2eo.translation import dataset
from sar2eo.translation.dataset import count_tiles


def scaled(values: np.ndarray, divisor: float = 255.0) -> np.ndarray:
    """What identity makes of amplitude: three equal bands of bytes."""
    return np.repeat(np.clip(np.rint(values / divisor * 255), 0, 255), 3, axis=0).astype(np.uint8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bogus": 1}, "unknown bogus; known are tile"),
        ({"tile": None}, "tile=None: must be a whole number"),
        ({"seed": "3"}, "seed='3'"),
    ],
)
def test_settings_that_are_none_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        sar2eo.translate(scene_array(amplitude((20, 20), 1)), "identity", **options)


@given(
    shape=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    tile=st.sampled_from([16, 32, 48, 64]),
    share=st.sampled_from([0, 1, 2, 4]),
    chunk=st.sampled_from([7, 32, 200]),
    block=st.sampled_from([(16, 32), (64, 64), (512, 512)]),
    batch=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_identity_returns_the_input_for_every_layout(
    shape: tuple[int, int],
    tile: int,
    share: int,
    chunk: int,
    block: tuple[int, int],
    batch: int,
    seed: int,
) -> None:
    values, valid = amplitude(shape, seed), holes(shape, seed)
    scene = scene_array(np.where(valid, values, np.nan)).chunk(y=chunk, x=chunk)
    overlap = 0 if share == 0 else tile // (2 * share)
    eo = sar2eo.translate(
        scene, "identity", tile=tile, overlap=overlap, scaling=(255.0,), batch=batch, block=block
    ).compute(scheduler="sync")
    np.testing.assert_array_equal(eo.valid.values, valid)
    np.testing.assert_array_equal(eo.eo.values, np.where(valid, scaled(values), 0))


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    valid = np.ones((500, 700), bool)
    valid[:150, 420:] = False
    valid[300:340, 100:180] = False
    return write_scene(tmp_path_factory.mktemp("scenes") / "scene.tif", amplitude((500, 700), 5), valid)


def test_result_lies_on_the_scenes_grid(scene_file: Path) -> None:
    scene = sar2eo.open_scene(scene_file)
    eo = sar2eo.translate(scene, "identity", tile=128, overlap=16)
    assert eo.eo.dtype == np.uint8
    assert eo.eo.dims == ("band", "y", "x")
    assert eo.eo.rio.crs == scene.rio.crs
    assert eo.eo.rio.transform() == scene.rio.transform()
    np.testing.assert_array_equal(eo.x, scene.x)


def test_default_scaling_is_the_scenes_99th_percentile(scene_file: Path) -> None:
    scene = sar2eo.open_scene(scene_file)
    lazy_array = sar2eo.translate(scene, "identity", tile=128, overlap=16)
    eo = lazy_array.compute()
    exact = np.nanpercentile(scene.values, 99)
    assert float(eo.amplitude_divisor[0]) == pytest.approx(exact, rel=0.01)
    # Asked for alone, it takes no task of a window along to the scheduler.
    assert not any("batch" in str(key) for key in lazy_array.amplitude_divisor.data.dask)
    assert any("batch" in str(key) for key in lazy_array.eo.data.dask)
    expected = scaled(np.nan_to_num(scene.values), float(eo.amplitude_divisor[0]))
    assert np.abs(eo.eo.values.astype(int) - np.where(eo.valid, expected, 0)).max() <= 1


@pytest.mark.parametrize(
    "place", [(0, 60, 0, 80), (130, 131, 255, 300), (333, 500, 600, 700), (40, 460, 30, 690)]
)
def test_a_slice_of_the_result_the_result_of_a_slice_and_the_whole_agree(
    scene_file: Path, place: tuple[int, int, int, int]
) -> None:
    top, bottom, left, right = place
    where = {"y": slice(top, bottom), "x": slice(left, right)}
    scene = sar2eo.open_scene(scene_file)
    options = {"tile": 128, "overlap": 32, "block": (64, 64)}
    whole = sar2eo.translate(scene, "identity", **options)
    of_slice = sar2eo.translate(scene.isel(where), "identity", **options)
    for name in ("eo", "valid"):
        np.testing.assert_array_equal(whole[name].isel(where).values, of_slice[name].values)
        np.testing.assert_array_equal(whole[name].compute().isel(where).values, of_slice[name].values)
    assert float(of_slice.amplitude_divisor[0]) == float(whole.amplitude_divisor[0])


CHUNKED = {"tile": 64, "overlap": 16, "block": (96, 96)}


def add_noise(self: IdentityTranslator, sar: np.ndarray, origins: list[tuple[int, int]]) -> object:
    """Return the input under the noise of its place, of which a latent pixel is 8 pixels wide."""
    noisy = sar.copy()
    for tile, (row, col) in zip(noisy, origins, strict=True):
        rows, cols = (range(at // 8, -(-(at + 64) // 8)) for at in (row, col))
        noise = draw_scene_noise(2025, rows, cols, 3).repeat(8, axis=1).repeat(8, axis=2)
        tile += 0.2 * noise[:, row % 8 :, col % 8 :][:, :64, :64]
    return identity(self, noisy, origins)


identity = IdentityTranslator.translate


Chunked = tuple[Callable[..., object], xr.DataArray, xr.Dataset]


@pytest.fixture(scope="module", params=[identity, add_noise])
def chunked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chunked:
    """How tiles are translated, a scene in chunks of 64 pixels, bright in a corner, and all of its result."""
    values, valid = amplitude((200, 270), 6), np.ones((200, 270), bool)
    values[:, 130:, 200:] = np.minimum(255, 3 * values[:, 130:, 200:])
    valid[:70, 90:140] = False
    path = write_scene(tmp_path_factory.mktemp("scenes") / "scene.tif", values, valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy_array, "_CHUNK", 64)
        scene = sar2eo.open_scene(path)
    assert scene.chunks == ((1,), (64, 64, 64, 8), (64, 64, 64, 64, 14))
    return request.param, scene, translate_by(request.param, scene)


def translate_by(method: Callable[..., object], scene: xr.DataArray) -> xr.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdentityTranslator, "translate", method)
        return sar2eo.translate(scene, "identity", **CHUNKED).compute(scheduler="sync")


def slices(chunks: tuple[int, ...]) -> st.SearchStrategy[slice]:
    """Slices along an axis, of which many begin and end where chunks do."""
    size = sum(chunks)
    place = st.sampled_from([0, *np.cumsum(chunks).tolist()]) | st.integers(0, size)
    return st.lists(place, min_size=2, max_size=2, unique=True).map(lambda ends: slice(*sorted(ends)))


def check_slices(chunked: Chunked, data: st.DataObject) -> None:
    method, part, whole = chunked
    for _ in range(data.draw(st.integers(1, 4), "steps")):
        if data.draw(st.booleans(), "slice"):
            where = {name: data.draw(slices(part.chunksizes[name]), name) for name in ("y", "x")}
            part, whole = part.isel(where), whole.isel(where)
        else:
            part = part.chunk({name: data.draw(st.integers(20, 130), name) for name in ("y", "x")})
    xr.testing.assert_equal(translate_by(method, part), whole)


@given(data=st.data())
@settings(max_examples=30)
def test_slices_in_any_chunks_are_that_part_of_the_whole(chunked: Chunked, data: st.DataObject) -> None:
    check_slices(chunked, data)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
def test_very_many_slices_in_any_chunks_are_that_part_of_the_whole(
    chunked: Chunked, data: st.DataObject
) -> None:
    check_slices(chunked, data)


@pytest.mark.parametrize(
    "where", [{}, {"y": slice(0, 64), "x": slice(64, 128)}, {"y": slice(30, 90), "x": slice(40, 41)}]
)
def test_a_part_of_the_bands_is_scaled_by_the_whole_of_them(where: dict[str, slice], tmp_path: Path) -> None:
    values = amplitude((150, 170), 6, bands=2) * [[[0.8]], [[0.3]]]
    values[:, :80, 100:] *= 0.5
    path = write_scene(tmp_path / "scene.tif", values.clip(1), names=("VV", "VH"))
    expected = sar2eo.translate(sar2eo.open_scene(path, polarisations="VH"), "identity", tile=64, overlap=16)
    scene = sar2eo.open_scene(path).chunk(y=64, x=64)
    for part in (scene.sel(band=["VH"]).isel(where), scene.isel(where).sel(band="VH")):
        found = sar2eo.translate(part, "identity", tile=64, overlap=16).compute()
        xr.testing.assert_equal(found, expected.isel(where).compute())


def test_the_variables_of_a_result_say_what_its_files_say(scene_file: Path, tmp_path: Path) -> None:
    lazy = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", tile=128, overlap=16, samples=2)
    eo = lazy.isel(y=slice(100, 200), x=slice(380, 460)).compute()
    for name, bands, nodata in (("eo", ("red", "green", "blue"), 0), ("spread", ("spread",), np.nan)):
        eo[name].rio.to_raster(tmp_path / f"{name}.tif")
        with rasterio.open(tmp_path / f"{name}.tif") as written:
            assert written.descriptions == bands
            np.testing.assert_equal(written.nodata, nodata)
            assert written.tags()["synthetic"].startswith("true")
            np.testing.assert_array_equal(written.dataset_mask() > 0, eo.valid)
    eo.to_netcdf(tmp_path / "eo.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "eo.nc", engine="h5netcdf") as kept:
        assert [kept[name].attrs["grid_mapping"] for name in ("eo", "valid")] == ["spatial_ref"] * 2
        assert "_FillValue" not in kept.x.encoding
        xr.testing.assert_equal(kept.set_coords("spatial_ref"), eo)
    warped = eo.rio.reproject("EPSG:32612")
    assert (warped.eo.dtype, warped.valid.dtype, warped.rio.crs) == (np.uint8, bool, "EPSG:32612")
    np.testing.assert_array_equal(warped.valid, np.isfinite(warped.spread))
    assert not warped.eo.where(~warped.valid, 0).any()
    sar2eo.write_cog(warped, tmp_path / "warped.tif")


def test_only_needed_batches_run_and_empty_tiles_never_reach_the_model(scene_file: Path) -> None:
    scene = sar2eo.open_scene(scene_file)
    eo = sar2eo.translate(scene, "identity", tile=128, overlap=16, batch=1, block=(64, 64), scaling=(255.0,))
    reset_telemetry()
    eo.eo.isel(y=slice(0, 10), x=slice(0, 10)).compute()
    assert collect_telemetry()["tiles_translated"] == 1
    reset_telemetry()
    eo.eo.isel(y=slice(0, 60), x=slice(560, 700)).compute()
    counts = collect_telemetry()
    assert counts.get("tiles_translated", 0) == 0
    assert counts["tiles_skipped"] >= 2


@pytest.mark.parametrize("computed", [False, True])
def test_a_task_may_run_several_batches(
    scene_file: Path, monkeypatch: pytest.MonkeyPatch, computed: bool
) -> None:
    where = {"y": slice(100, 400), "x": slice(250, 420)}
    options = {"tile": 64, "overlap": 16, "batch": 2, "scaling": (255.0,), "block": (64, 128)}

    def translated() -> tuple[dict[str, np.ndarray], int, int, int]:
        scene = sar2eo.open_scene(scene_file)
        lazy_array = sar2eo.translate((scene * 1 if computed else scene).isel(where), "identity", **options)
        tasks = sum(
            str(key[0]).startswith("batch-") for key in dict(lazy_array.eo.data.dask) if len(key) == 2
        )
        reset_telemetry()
        values = {name: lazy_array[name].values for name in ("eo", "valid")}
        # Each of the two variables is computed by itself.
        return (
            values,
            tasks,
            int(collect_telemetry()["tiles_translated"]),
            count_tiles(lazy_array.eo.data),
        )

    alone, tasks, ran, counted = translated()
    monkeypatch.setattr(dataset, "_MOST_TASKS", 5)
    together, fewer, ran_together, counted_together = translated()
    assert 2 <= fewer < tasks
    assert ran_together == ran
    assert ran <= 2 * counted == 2 * counted_together
    for name, values in alone.items():
        np.testing.assert_array_equal(together[name], values)


def test_a_computed_scene_is_taken_from_its_chunks(scene_file: Path) -> None:
    scene = sar2eo.open_scene(scene_file)
    doubled = scene * 2
    options = {"tile": 128, "overlap": 16, "scaling": (255.0,)}
    eo = sar2eo.translate(doubled, "identity", **options)
    expected = scaled(np.nan_to_num(doubled.values))
    np.testing.assert_array_equal(eo.eo.values, np.where(eo.valid, expected, 0))
    default = sar2eo.translate(doubled, "identity", tile=128, overlap=16)
    assert float(default.amplitude_divisor[0]) == pytest.approx(
        np.nanpercentile(doubled.values, 99), rel=0.01
    )


def test_names_are_the_same_for_equal_requests_and_differ_for_others(scene_file: Path) -> None:
    def name(**options: object) -> str:
        return sar2eo.translate(sar2eo.open_scene(scene_file), "identity", **options).eo.data.name

    assert name() == name()
    assert len({name(), name(tile=256), name(overlap=32), name(scaling=(9.0,)), name(samples=2)}) == 5


def test_two_samples_of_identity_have_no_spread(scene_file: Path) -> None:
    eo = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", tile=128, overlap=16, samples=2)
    spread = eo.spread.values
    assert (spread[eo.valid.values] == 0).all()
    assert np.isnan(spread[~eo.valid.values]).all()


def test_intensity_and_db_become_amplitude() -> None:
    values = amplitude((40, 50), 3)
    options = {"tile": 32, "overlap": 8, "scaling": (255.0,)}
    expected = scaled(values)
    for quantity, stored in {
        "intensity": values**2,
        "db": 20 * np.log10(values),
        "amplitude": values,
    }.items():
        eo = sar2eo.translate(
            scene_array(stored.astype(np.float32), quantity=quantity), "identity", **options
        )
        assert np.abs(eo.eo.values.astype(int) - expected).max() <= 1, quantity


def test_co_and_cross_become_co_cross_and_their_mean() -> None:
    values = amplitude((32, 32), 4, bands=2)
    scene = scene_array(values, ("VH", "VV"))
    eo = sar2eo.translate(scene, "identity", tile=32, overlap=0, scaling=(200.0, 100.0)).eo.values.astype(
        float
    )
    cross, co = np.clip(values / np.array([200, 100])[:, None, None], 0, 1) * 255
    np.testing.assert_allclose(eo, [co, cross, (co + cross) / 2], atol=0.51)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda s: s.isel(band=0, drop=True).assign_attrs(polarisations=()), SceneError, "band"),
        (lambda s: s.assign_attrs(quantity=None), RadiometryError, "quantity"),
        (lambda s: s.isel(y=slice(0, 0)), SceneError, "empty"),
        (lambda s: s.isel(x=[1, 2, 9]), SceneError, "evenly"),
        (lambda s: "scene.tif", SceneError, "open_scene"),
        (lambda s: s.assign_coords(band=["XX"]).assign_attrs(polarisations=()), PolarisationError, "XX"),
        (
            lambda s: s.assign_coords(band=[1]).assign_attrs(polarisations=("VV", "VH")),
            PolarisationError,
            "1",
        ),
    ],
)
def test_what_is_no_scene_is_refused(change: object, error: type[Exception], word: str) -> None:
    scene = scene_array(amplitude((20, 20), 1))
    with pytest.raises(error, match=word):
        sar2eo.translate(change(scene), "identity")


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 0},
        {"tile": 512.0},
        {"tile": 100_000},
        {"overlap": 300},
        {"scaling": (0.0,)},
        {"scaling": (1.0, 2.0)},
        {"scaling": 3.0},
        {"steps": "3"},
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        sar2eo.translate(scene_array(amplitude((20, 20), 1)), "identity", **options)


def test_filling_takes_the_nearest_valid_value() -> None:
    values = np.array([[[1.0, np.nan, np.nan, 4.0]]], np.float32)
    np.testing.assert_array_equal(fill_invalid(values, np.isfinite(values[0])), [[[1, 1, 4, 4]]])


@given(
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    share=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 999),
)
def test_filling_never_looks_too_near(shape: tuple[int, int], share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    valid = draw.random(shape) < share
    valid[tuple(draw.integers(0, shape))] = True
    places = np.indices(shape).astype(np.float32)  # every pixel holds its own place
    filled = fill_invalid(places, valid)
    sources = np.argwhere(valid)
    nearest = np.hypot(*(sources[:, :, None, None] - places).transpose(1, 0, 2, 3)).min(axis=0)
    np.testing.assert_allclose(np.hypot(*(filled - places)), nearest, rtol=1e-6)
    assert valid[tuple(filled.astype(int))].all()


def test_the_accessor_is_the_same_function(scene_file: Path) -> None:
    scene = sar2eo.open_scene(scene_file)
    spec = resolve_model("identity")
    xr.testing.assert_identical(
        scene.sar2eo.translate(spec, tile=128).compute(), sar2eo.translate(scene, spec, tile=128).compute()
    )
    part = scene.isel(y=slice(8, 20))
    assert part.sar2eo.grid.shape == (12, 700)
    assert part.sar2eo.grid.transform[5] == scene.sar2eo.grid.transform[5] - 80


def model_inputs(scene: xr.DataArray, monkeypatch: pytest.MonkeyPatch, **options: object) -> list[np.ndarray]:
    """Every window that reaches the model, in order."""
    seen: list[np.ndarray] = []
    original = IdentityTranslator.translate

    def watched(self: IdentityTranslator, sar: np.ndarray, origins: object) -> object:
        seen.extend(sar.copy())
        return original(self, sar, origins)

    monkeypatch.setattr(IdentityTranslator, "translate", watched)
    sar2eo.translate(scene, "identity", scaling=(255.0,), **options).compute(scheduler="sync")
    return seen


def test_a_scene_smaller_than_a_tile_is_padded_by_reflection(monkeypatch: pytest.MonkeyPatch) -> None:
    values = amplitude((20, 26), 2)
    (window,) = model_inputs(scene_array(values), monkeypatch, tile=32, overlap=0)
    expected = np.pad(values[0], ((0, 12), (0, 6)), mode="reflect") / 255 * 2 - 1
    np.testing.assert_allclose(window, [expected] * 3, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2)])
def test_tiny_scenes_reach_the_model_whole(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    values = amplitude(shape, 2)
    (window,) = model_inputs(scene_array(values), monkeypatch, tile=32, overlap=0)
    assert window.shape == (3, 32, 32)
    np.testing.assert_allclose((window[0, : shape[0], : shape[1]] + 1) * 127.5, values[0], rtol=1e-5)
    assert np.isfinite(window).all()


def test_holes_are_filled_before_padding_and_no_nan_reaches_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = amplitude((20, 26), 2)
    values[0, 15:] = np.nan
    (window,) = model_inputs(scene_array(values), monkeypatch, tile=32, overlap=0)
    assert np.isfinite(window).all()
    np.testing.assert_array_equal(window[:, 15:20, :26], np.repeat(window[:, 14:15, :26], 5, axis=1))


def test_a_result_is_selected_by_coordinates(scene_file: Path) -> None:
    eo = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", tile=128, overlap=16, scaling=(255.0,))
    part = eo.eo.sel(x=slice(501_000, 502_000), y=slice(3_999_000, 3_998_000))
    np.testing.assert_array_equal(part.values, eo.eo.values[:, 100:200, 100:200])


CHANGES_NO_PIXEL = ("device", "force", "revision")
"""Device and revision count by what they resolve to, which the fingerprint of the model holds."""


def test_every_setting_that_changes_pixels_changes_the_names_of_the_result() -> None:
    other = {
        "tile": 256,
        "overlap": 128,
        "steps": 3,
        "sampler": "dpm++",
        "seed": 1,
        "samples": 2,
        "scaling": (100.0,),
        "dtype": "float16",
        "batch": 3,
        "compile": True,
        "threads": 3,
    }
    assert {*other, *CHANGES_NO_PIXEL} == {field.name for field in dataclasses.fields(TranslateSettings)}
    scene = scene_array(amplitude((600, 600), 1), ("VH",)).chunk(y=256, x=256)
    options = {"device": "cpu", "dtype": "float32"}

    def name(**changes: object) -> str:
        return str(sar2eo.translate(scene, **(options | changes)).eo.data.name)

    names = {key: name(**{key: value}) for key, value in other.items()}
    assert len({name(), *names.values()}) == 1 + len(names)
    assert name(force=True) == name()
