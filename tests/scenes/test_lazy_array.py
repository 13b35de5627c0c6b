import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import PropertyMock

import dask
import numpy as np
import pytest
from dask.blockwise import Blockwise
from hypothesis import given
from hypothesis import strategies as st
from support.scene_fixtures import NORTH_UP, speckle, windows_of, write_raster

from sar2eo.geo.windows import Window
from sar2eo.scenes import SceneReader, find_reader, gdal, open_scene
from sar2eo.scenes.lazy_array import decode_attributes

SHAPE = (1100, 1300)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    values = speckle((2, *SHAPE))
    values[:, 50:300, 60:900] = 0
    file = tmp_path_factory.mktemp("lazy") / "vv_vh.tif"
    return write_raster(file, values, nodata=0, tiled=True, blockxsize=256, blockysize=256)


@pytest.fixture(scope="module")
def scene(path):
    return open_scene(path)


def slices(size):
    return st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(lambda s: slice(s[0], s[0] + s[1]))


def test_the_whole_scene_has_a_reader(scene):
    reader, window = find_reader(scene)
    assert isinstance(reader, SceneReader)
    assert window == Window(0, 0, *SHAPE)
    assert (reader.shape, reader.ndim, reader.dtype) == ((2, *SHAPE), 3, np.float32)
    assert scene.chunks == ((2,), (1024, 76), (1024, 276))


@given(slices(SHAPE[0]), slices(SHAPE[1]), slices(200), slices(200))
def test_a_slice_of_a_slice_knows_where_it_lies(scene, rows, cols, more_rows, more_cols):
    part = scene.isel(y=rows, x=cols)
    inner = part.isel(y=more_rows, x=more_cols)
    for each in (part, inner):
        if each.size:
            reader, window = find_reader(each)
            y, x = scene.y.values[window.slices[0]], scene.x.values[window.slices[1]]
            np.testing.assert_array_equal(each.y, y)
            np.testing.assert_array_equal(each.x, x)
    if inner.size:
        np.testing.assert_array_equal(inner.values, reader.read(window))


@pytest.mark.parametrize("part", [{}, {"y": slice(1030, 1090), "x": slice(7, 1200)}])
def test_a_scenes_tasks_are_not_written_out_to_find_its_reader(path, part, monkeypatch):
    scene = open_scene(path).isel(part)
    written = PropertyMock(side_effect=AssertionError("as many tasks as the scene has chunks"))
    monkeypatch.setattr(Blockwise, "_dict", written)
    rows, cols = (part.get(name, slice(0, size)) for name, size in zip("yx", SHAPE, strict=True))
    expected = Window(rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)
    assert find_reader(scene)[1] == expected


def test_selecting_by_coordinates_keeps_the_anchor(scene):
    left, top = NORTH_UP.c, NORTH_UP.f
    part = scene.sel(x=slice(left + 100, left + 300), y=slice(top - 500, top - 5100))
    assert find_reader(part)[1] == Window(50, 10, 460, 20)
    assert decode_attributes(part)["scene_grid"] == decode_attributes(scene)["scene_grid"]


def assigned(scene):
    scene[:, 3, 4] = 5
    return scene


@pytest.mark.parametrize(
    "same",
    [
        lambda s: s.isel(y=slice(0, 1024), x=slice(1024, None)),
        lambda s: s.chunk(band=1, y=100, x=-1),
        lambda s: s.chunk(y=100, x=300).isel(y=slice(100, 300), x=slice(-400, -100)).chunk(x=7),
        lambda s: copy.deepcopy(s.isel(y=slice(0, 1024))),
        lambda s: pickle.loads(pickle.dumps(s.chunk(y=64).isel(y=slice(64, 128)))),  # noqa: S301
    ],
)
def test_a_place_is_kept_on_chunk_borders_in_other_chunks_and_in_copies(scene, same):
    part = same(scene)
    reader, window = find_reader(part)
    np.testing.assert_array_equal(part.values, reader.read(window))
    np.testing.assert_array_equal(part.y, scene.y.values[window.slices[0]])
    np.testing.assert_array_equal(part.x, scene.x.values[window.slices[1]])


@pytest.mark.parametrize(
    "chosen",
    [
        lambda s: s.sel(band=["VH"]),
        lambda s: s.isel(band=[1, 0]),
        lambda s: s.isel(band=slice(0, 1)).isel(y=np.arange(100, 300)),
        lambda s: s.sel(band="VH").isel(x=slice(1024, None)).expand_dims("band"),
        lambda s: s.isel(y=slice(None, None, -1)).isel(y=slice(90, None)).isel(y=slice(None, None, -1)),
        lambda s: pickle.loads(pickle.dumps(s.sel(band=["VH"]).chunk(y=64))),  # noqa: S301
    ],
)
def test_bands_and_rows_that_are_chosen_in_any_way_know_where_they_lie(scene, chosen):
    part = chosen(scene)
    reader, window = find_reader(part)
    bands = [reader.polarisations.index(name) for name in part.band.values]
    np.testing.assert_array_equal(part.values, reader.read(window)[bands])
    np.testing.assert_array_equal(part.y, scene.y.values[window.slices[0]])


@pytest.mark.parametrize(
    "changed",
    [
        lambda s: s * 2,
        lambda s: s.isel(x=slice(None, None, 2)),
        lambda s: s.isel(y=slice(None, None, -1)),
        lambda s: s.isel(band=0),
        lambda s: s.isel(band=[1, 0]).assign_coords(band=["VV", "VH"]),
        lambda s: s.isel(y=[3, 4, 9]),
        lambda s: s.transpose("y", "x", "band"),
        lambda s: s.assign_coords(x=s.x + 10),
        lambda s: s.isel(x=slice(0, 20)).assign_coords(x=s.x.values[5:25]),
        lambda s: s.shift(x=1),
        lambda s: s.roll(y=3, roll_coords=False),
        lambda s: s.where(s > 3),
        lambda s: s.chunk(y=64).where(s > 3),
        lambda s: assigned(s.chunk(y=64)),
        lambda s: assigned(s.chunk(y=64)).isel(x=slice(0, 20)),
        lambda s: pickle.loads(pickle.dumps(assigned(s.chunk(y=64)))),  # noqa: S301
        lambda s: s.isel(y=slice(0, 0)),
        lambda s: s.isel(y=slice(0, 20), x=slice(0, 20)).compute(),
        lambda s: s.isel(y=slice(0, 20), x=slice(0, 20)).persist(),
    ],
)
def test_what_was_changed_has_no_reader(scene, changed):
    assert find_reader(changed(scene)) is None


@given(windows_of(SHAPE))
def test_reading_in_pieces_equals_reading_whole(scene, window):
    reader, _ = find_reader(scene)
    whole = scene.values
    rows, cols = window.slices
    assert reader.read(window).tobytes() == whole[:, rows, cols].tobytes()


@given(st.data())
def test_indexing_a_reader_is_indexing_an_array(scene, data):
    reader, _ = find_reader(scene)

    def index(size):
        ends = st.integers(-size - 3, size + 3) | st.none()
        steps = st.sampled_from([None, 1, 2, 7, -1, -3])
        return st.integers(-size, size - 1) | st.builds(slice, ends, ends, steps)

    key = tuple(data.draw(index(n)) for n in reader.shape)[: data.draw(st.integers(1, 3))]
    np.testing.assert_array_equal(reader[key], scene.values[key])
    np.testing.assert_array_equal(
        reader[..., key[-1] if len(key) == 3 else 0], scene.values[..., key[-1] if len(key) == 3 else 0]
    )


@pytest.mark.parametrize("key", [(0, 0, 0, 0), ([0, 1],), (0, SHAPE[0]), (None,)])
def test_indices_that_are_not_basic_are_refused(scene, key):
    with pytest.raises(IndexError):
        find_reader(scene)[0][key]


def test_a_reader_survives_pickling_and_works_in_threads(scene):
    reader, _ = find_reader(scene)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert again.identity() == reader.identity()
    whole = scene.values
    windows = [Window(r, c, 130, 170) for r in range(0, 900, 90) for c in range(0, 1100, 110)]
    with ThreadPoolExecutor(8) as pool:
        for window, found in zip(windows, pool.map(again.read, windows), strict=True):
            np.testing.assert_array_equal(found, whole[:, *window.slices])
    assert sum(map(len, gdal._idle.values())) <= gdal.IDLE_LIMIT


def test_idle_handles_are_bounded(tmp_path):
    for i in range(gdal.IDLE_LIMIT + 5):
        path = write_raster(tmp_path / f"vv_{i}.tif", speckle((4, 4), seed=i))
        np.testing.assert_array_equal(open_scene(path).values[0], speckle((4, 4), seed=i))
    assert sum(map(len, gdal._idle.values())) <= gdal.IDLE_LIMIT


def test_names_follow_content(path, scene, tmp_path):
    assert open_scene(path).data.name == scene.data.name
    assert open_scene(path, nodata=3).data.name != scene.data.name
    assert open_scene(path, polarisations="VH,VV").data.name != scene.data.name
    file = write_raster(tmp_path / "vv.tif", speckle((40, 50)))
    first = open_scene(file)
    before = first.values
    write_raster(file, speckle((40, 50), seed=5))
    second = open_scene(file)
    assert first.data.name != second.data.name
    assert not np.array_equal(second.values, before)
    os.utime(file, ns=(0, 12345))
    assert open_scene(file).data.name not in {first.data.name, second.data.name}


def test_identity_samples_large_files_and_sees_a_change_within_the_sample(tmp_path):
    from sar2eo.scenes.identity import identify_file

    file = tmp_path / "large.bin"
    file.write_bytes(bytes(5_000_000))
    os.utime(file, ns=(0, 0))
    first = identify_file(str(file))
    with file.open("r+b") as data:
        data.seek(4_999_000)
        data.write(b"x")
    os.utime(file, ns=(0, 0))
    second = identify_file(str(file))
    assert {**first, "sha256": ""} == {**second, "sha256": ""}
    assert first["sha256"] != second["sha256"]


def test_nothing_is_read_before_it_is_needed(path, monkeypatch):
    from sar2eo.scenes.raster import RasterReader

    seen = []
    read = RasterReader.read
    monkeypatch.setattr(RasterReader, "read", lambda self, window: seen.append(window) or read(self, window))
    scene = open_scene(path)
    assert seen == []
    with dask.config.set(scheduler="sync"):
        scene.isel(y=slice(10, 20), x=slice(1100, 1110)).compute()
    assert sum(w.height * w.width for w in seen) <= 1024 * 1024
