from math import inf

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from support.scene_fixtures import speckle, write_raster, write_safe

from sar2eo.errors import PairsError
from sar2eo.pairs.plan import find_candidates
from sar2eo.scenes import open_scene
from sar2eo.scenes.extent import SceneFootprint, read_footprint, read_validity
from sar2eo.scenes.optical import open_eo_scene
from sar2eo.scenes.sources import Source, expand_sources
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

UTM = "EPSG:32633"


def footprint(box, time="2022-01-01", name="x"):
    return SceneFootprint(Source(name, datetime=time), shapely.box(*box))


def dated(days, name="x", box=(0, 0, 1, 1)):
    return footprint(box, None if days is None else str(np.datetime64("2022-01-01") + days), name)


boxes = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 5)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
scenes = st.lists(st.tuples(boxes, st.integers(0, 40)), min_size=1, max_size=8)


@given(scenes, scenes, st.sampled_from([0, 3, 20, inf]))
def test_candidates_are_those_of_every_pair_looked_at(sar, eo, max_days):
    expected = {}
    for i, ((w, s, e, n), day) in enumerate(sar):
        for j, ((w2, s2, e2, n2), day2) in enumerate(eo):
            area = max(0, min(e, e2) - max(w, w2)) * max(0, min(n, n2) - max(s, s2))
            if area and abs(day - day2) <= max_days:
                expected[i, j] = (abs(day - day2), area)
    lists = [[dated(day, box=box) for box, day in scenes] for scenes in (sar, eo)]
    if not expected:
        with pytest.raises(PairsError, match="overlap"):
            find_candidates(*lists, max_days=max_days)
        return
    found = find_candidates(*lists, max_days=max_days)
    assert {(c.sar, c.eo): (c.day_gap, c.overlap.area) for c in found} == expected
    order = [(c.sar, c.day_gap, -c.overlap.area, c.eo) for c in found]
    assert order == sorted(order)


def test_why_nothing_was_found():
    with pytest.raises(PairsError, match=r"no EO scene overlaps .* SAR lies in 0\.00, 0\.00, 1\.00, 1\.00"):
        find_candidates([dated(0)], [dated(0, box=(1, 0, 2, 1))], max_days=9)  # they touch
    with pytest.raises(PairsError, match=r"1 pairs .* max_days=5: the closest are 7\.0 days apart \(a, b\)"):
        find_candidates([dated(0, "a")], [dated(7, "b"), dated(1, box=(5, 5, 6, 6))], max_days=5)
    with pytest.raises(PairsError, match="no valid pixels"):
        find_candidates([SceneFootprint(Source("a"), shapely.Polygon())], [dated(0)], max_days=5)
    with pytest.raises(PairsError, match="no EO scene overlaps"):
        find_candidates([dated(0)], [], max_days=5)


def test_times_that_are_not_known():
    known, unknown = dated(0, "known"), dated(None, "unknown")
    with pytest.raises(PairsError, match=r"no acquisition time is known of unknown: .*--max-days inf"):
        find_candidates([known], [dated(1), unknown], max_days=30)
    found = find_candidates([known], [unknown, dated(9)], max_days=inf)
    assert [(c.eo, c.day_gap) for c in found] == [(1, 9.0), (0, None)]
    # A scene that meets no other needs no time.
    far = dated(None, box=(50, 50, 51, 51))
    assert len(find_candidates([known, far], [dated(1)], max_days=30)) == 1


def test_gaps_are_parts_of_days_and_never_negative():
    a, b = (
        footprint((0, 0, 1, 1), "2022-01-02T06:00:00Z"),
        footprint((0, 0, 1, 1), "2022-01-02T12:00:00+02:00"),
    )
    for sar, eo in ((a, b), (b, a)):
        (found,) = find_candidates([sar], [eo], max_days=1)
        assert found.day_gap == pytest.approx(4 / 24)


def write_eo(path, valid, transform, crs=UTM):
    values = np.full((3, *valid.shape), 90, np.uint8)
    path = write_raster(path, values, crs=crs, transform=transform, mask=valid, photometric="RGB")
    return open_eo_scene(path, eo_range=(0, 3000))


def test_the_footprint_of_an_eo_scene_is_where_it_is_valid(tmp_path):
    transform = Affine(10.0, 0, 500_000.0, 0, -10.0, 5_000_000.0)
    valid = np.zeros((3000, 2000), bool)
    valid[500:2500, 200:1500] = True
    valid[1000:1400, 600:1000] = False
    scene = write_eo(tmp_path / "eo.tif", valid, transform)
    small = read_validity(scene, longest=300)
    assert small.shape == (300, 200)
    np.testing.assert_array_equal(small, valid[5::10, 5::10])
    found = read_footprint(Source(scene.href), scene)
    to_pixels = open_eo_scene(scene.href, eo_range=(0, 3000)).grid
    from sar2eo.scenes.geolocation import AffineMapping

    rows, cols = AffineMapping(to_pixels, "EPSG:4326").pixels(*shapely.get_coordinates(found.area).T)
    assert (rows.min(), rows.max()) == pytest.approx((500, 2500), abs=4)
    assert (cols.min(), cols.max()) == pytest.approx((200, 1500), abs=4)
    assert len(found.area.interiors) == 1


def test_a_footprint_across_the_antimeridian(tmp_path):
    transform = Affine(100.0, 0, 140_000.0, 0, -100.0, 100_000.0)
    scene = write_eo(tmp_path / "eo.tif", np.ones((300, 600), bool), transform, "EPSG:32601")
    eo = read_footprint(Source(scene.href), scene)
    assert eo.area.geom_type == "MultiPolygon"
    assert eo.area.area < 0.2
    east, west = footprint((-180, 0, -179, 1), name="e"), footprint((179, 0, 180, 1), name="w")
    found = find_candidates([east, west, footprint((10, 0, 11, 1))], [eo], max_days=inf)
    assert [c.sar for c in found] == [0, 1]
    assert sum(c.overlap.area for c in found) == pytest.approx(eo.area.area)


@pytest.mark.parametrize("kind", ["nodata", "warped", "safe", "in memory"])
def test_the_footprint_of_a_sar_scene_is_where_it_is_valid(tmp_path, kind):
    if kind == "safe":
        folder, _ = write_safe(tmp_path, shape=(90, 120))
        scene = open_scene(folder)
    else:
        values = speckle((900, 600))
        values[:300] = 0
        crs = None if kind != "warped" else "EPSG:4326"
        path = write_raster(tmp_path / "a.tif", values, nodata=0, names=["VV"])
        scene = open_scene(path, crs=crs)
        if kind == "in memory":
            scene = scene.compute()
    full = np.isfinite(scene.values).all(axis=0)
    assert 0.05 < full.mean() < 0.999
    small = read_validity(scene, longest=100)
    rows, cols = (
        ((np.arange(n) + 0.5) * size / n).astype(int) for n, size in zip(small.shape, full.shape, strict=True)
    )
    assert (small == full[rows][:, cols]).mean() > 0.98
    assert abs(small.mean() - full.mean()) < 0.02


def test_what_is_known_goes_before_what_the_scene_says(tmp_path):
    path = write_raster(tmp_path / "a.tif", speckle((20, 30)), names=["VV"], tags={"DATETIME": "2020-02-03"})
    scene = open_scene(path)
    found = read_footprint(Source(str(path)), scene)
    assert found.source.datetime == "2020-02-03T00:00:00Z"
    area = shapely.box(1, 2, 3, 4)
    told = read_footprint(Source(str(path), "2021-01-01T00:00:00Z", "P", None, area), scene)
    assert (told.source.datetime, told.source.platform, told.area) == ("2021-01-01T00:00:00Z", "P", area)


def test_a_scene_without_georeference_cannot_be_paired(tmp_path):
    path = write_raster(tmp_path / "a.tif", speckle((20, 30)), names=["VV"], crs=None, transform=None)
    scene = open_scene(path, allow_ungeoreferenced=True)
    with pytest.raises(PairsError, match="without a georeference"):
        read_footprint(Source(str(path)), scene)


def test_a_simulated_pair_meets(tmp_path):
    files = write_pair(simulate_pair(SimulationSettings(size=256, seed=3)), tmp_path)
    sar = [read_footprint(s, open_scene(s.href)) for s in expand_sources([str(files["sar"])], "sar")]
    eo = [
        read_footprint(s, open_eo_scene(s, eo_range=(0, 3000)))
        for s in expand_sources([str(files["eo"])], "eo")
    ]
    (found,) = find_candidates(sar, eo, max_days=30)
    assert found.day_gap == pytest.approx(2 + (19 * 3600 + 17 * 60) / 86400)
    assert found.overlap.area <= min(sar[0].area.area, eo[0].area.area)
    assert found.overlap.area > 0.8 * sar[0].area.area


@pytest.mark.realdata
def test_real_scenes_meet_as_they_should(real_data):
    eo = expand_sources([str(real_data / "scenes/*_eo.tif")], "eo")
    sar = expand_sources([str(real_data / "scenes/*_sar.tif")], "sar")
    found = find_candidates(
        [read_footprint(s, open_scene(s.href)) for s in sar],
        [read_footprint(s, open_eo_scene(s, eo_range=(0, 3000))) for s in eo],
        max_days=40,
    )
    assert [(c.sar, c.eo) for c in found] == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 2)]
    assert [round(c.day_gap) for c in found] == [3, 3, 3, 3, 33]
