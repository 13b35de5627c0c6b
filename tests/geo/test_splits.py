"""Splits by place, and distances between chips."""

import hashlib
import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from sar2eo.geo import splits
from sar2eo.geo.splits import Chips, assign, choose_split, find_near, measure_distance, name_blocks
from sar2eo.settings import PairsSettings

UTM = "EPSG:32633"
GEOD = Geod(ellps="WGS84")
TO_LONLAT = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)


def chips_at(places: np.ndarray, side: float) -> np.ndarray:
    """Corners of square chips by their lower left corners in UTM metres."""
    offsets = np.array([[0, 0], [side, 0], [side, side], [0, side]])
    xy = places[:, None] + offsets
    lon, lat = TO_LONLAT.transform(xy[..., 0], xy[..., 1])
    return np.stack([lon, lat], axis=-1)


def around(lon: float, lat: float, side: float) -> np.ndarray:
    """Corners of one chip of about `side` metres around a point."""
    azimuths = [225, 135, 45, 315]
    found = [GEOD.fwd(lon, lat, azimuth, side / math.sqrt(2))[:2] for azimuth in azimuths]
    return np.array([found])


def places(count: int, extent: float):
    return st.lists(st.tuples(st.floats(0, extent), st.floats(0, extent)), min_size=1, max_size=count).map(
        lambda found: np.array(found) + np.array([400_000, 5_000_000])
    )


@given(ours=places(8, 20_000), theirs=places(8, 20_000), metres=st.floats(0, 5000))
def test_distances_are_those_of_the_plane(ours, theirs, metres):
    """UTM is the oracle: its scale is within 4e-4 there."""
    side = 1000.0
    boxes = [shapely.box(x, y, x + side, y + side) for x, y in ours]
    others = [shapely.box(x, y, x + side, y + side) for x, y in theirs]
    table = np.array([[shapely.distance(a, b) for b in others] for a in boxes])
    left, right = Chips(chips_at(ours, side)), Chips(chips_at(theirs, side))
    assert measure_distance(left, right) == pytest.approx(table.min(), rel=1e-3, abs=1.0)
    found = find_near(left, right, metres)
    surely_near, surely_far = table.min(axis=1) < metres * 0.999 - 1, table.min(axis=1) > metres * 1.001 + 1
    assert found[surely_near].all()
    assert not found[surely_far].any()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((179.999, 10.0), (-179.99, 10.0)),
        ((12.0, 89.99), (-168.0, 89.99)),
        ((-118.0, 34.0), (-98.5, 29.5)),
        ((12.0, -45.0), (12.0, -45.05)),
    ],
    ids=["antimeridian", "pole", "far apart", "near"],
)
def test_distances_hold_wherever_on_earth(ours, theirs):
    side = 200.0
    _, _, between = GEOD.inv(*ours, *theirs)
    found = measure_distance(Chips(around(*ours, side)), Chips(around(*theirs, side)))
    # Between centres, less half a side or diagonal of both; far apart, the sphere is right to 0.5 %.
    assert between * 0.995 - side * math.sqrt(2) <= found <= between * 1.005 - side * 0.99


def test_chips_that_touch_are_not_near_at_no_distance_and_those_that_overlap_are():
    origin = np.array([[500_000.0, 5_000_000.0]])
    one = Chips(chips_at(origin, 1000))
    beside = Chips(chips_at(origin + np.array([1000, 0]), 1000))
    over = Chips(chips_at(origin + np.array([990, 0]), 1000))
    assert not find_near(one, beside, 0.0).any()
    assert find_near(one, over, 0.0).all()
    assert find_near(one, beside, 1.0).all()
    assert find_near(one, Chips(np.empty((0, 4, 2))), 1e9).tolist() == [False]
    assert measure_distance(one, Chips(np.empty((0, 4, 2)))) is None


def test_a_block_is_a_cell_of_an_equal_area_grid():
    """EPSG:6933: x = a k0 lon, y = a q / (2 k0), with k0 = cos 30 / sqrt(1 - e2 sin2 30)."""
    e2, a = 0.00669437999014, 6_378_137.0
    k0 = math.cos(math.pi / 6) / math.sqrt(1 - e2 * 0.25)
    lon, lat = -118.25, 34.05
    s, e = math.sin(math.radians(lat)), math.sqrt(e2)
    q = (1 - e2) * (s / (1 - e2 * s * s) - math.log((1 - e * s) / (1 + e * s)) / (2 * e))
    x, y = a * k0 * math.radians(lon), a * q / (2 * k0)
    (name,) = name_blocks(np.array([[lon, lat]]), 20_000.0)
    assert name == f"{math.floor(x / 20_000)}_{math.floor(y / 20_000)}"
    east, west = name_blocks(np.array([[180.0, 10.0], [-180.0, 10.0]]), 20_000.0)
    assert east == west
    assert name_blocks(np.empty((0, 2)), 1.0) == []


def test_the_split_of_a_block_is_a_hash_of_seed_and_block():
    drawn = int.from_bytes(hashlib.sha256(b"2025/-574_206").digest()[:8], "big") / 2**64
    assert drawn == pytest.approx(0.123526, abs=1e-6)
    shares = ((drawn + 1e-9, 0, "test"), (0.1, drawn - 0.1 + 1e-9, "val"), (0.1, drawn - 0.1 - 1e-9, "train"))
    for test, val, expected in shares:
        assert choose_split("-574_206", val=val, test=test, seed=2025) == expected


def test_shares_of_blocks_are_those_asked_for():
    names = [f"{i}_{j}" for i in range(100) for j in range(100)]
    found = [choose_split(name, val=0.1, test=0.2, seed=7) for name in names]
    # Binomial, n = 10 000: standard deviations are 0.003 and 0.004.
    assert found.count("val") / 1e4 == pytest.approx(0.1, abs=0.015)
    assert found.count("test") / 1e4 == pytest.approx(0.2, abs=0.02)
    other = [choose_split(name, val=0.1, test=0.2, seed=8) for name in names]
    assert np.mean([a != b for a, b in zip(found, other, strict=True)]) > 0.3


@given(
    at=places(60, 30_000),
    side=st.sampled_from([500.0, 1500.0]),
    buffer=st.sampled_from([0.0, 300.0, 2000.0]),
    seed=st.integers(0, 50),
)
def test_no_kept_chip_is_too_near_to_another_split(at, side, buffer, seed):
    settings = PairsSettings(block=6000.0, val=0.25, test=0.25, buffer=buffer, seed=seed)
    found = assign(chips_at(at, side), settings)
    boxes = [shapely.box(x, y, x + side, y + side) for x, y in at]
    split, order = np.array(found.split), {"train": 0, "val": 1, "test": 2}
    smallest = math.inf
    for i in range(len(at)):
        gives_way_to = [j for j in range(len(at)) if order[split[j]] > order[split[i]]]
        apart = [(shapely.distance(boxes[i], boxes[j]), found.kept[j]) for j in gives_way_to]
        if found.kept[i]:
            smallest = min([smallest, *(d for d, kept in apart if kept)])
        else:
            # A chip is dropped for a reason: one that is kept is near.
            assert min(d for d, kept in apart if kept) <= buffer * 1.001 + 1
    assert smallest >= buffer * 0.999 - 1
    measured = found.audit["smallest_distance_m"]["any"]
    assert (measured is None) == math.isinf(smallest)
    if measured is not None:
        assert measured == pytest.approx(smallest, rel=1e-3, abs=1.0)
        assert measured >= buffer
    assert sum(found.audit["chips"].values()) == found.kept.sum()
    dropped = found.audit["dropped_for_distance"]
    assert dropped["train"] + dropped["val"] == (~found.kept).sum()
    assert found.kept[split == "test"].all()


@given(at=places(30, 60_000), more=places(30, 60_000))
def test_chips_of_other_scenes_do_not_change_a_block_or_split(at, more):
    settings = PairsSettings(block=5000.0)
    alone = assign(chips_at(at, 800.0), settings)
    together = assign(chips_at(np.concatenate([at, more]), 800.0), settings)
    assert together.block[: len(at)] == alone.block
    assert together.split[: len(at)] == alone.split


def test_many_dates_of_one_place_are_measured_once_and_a_bounded_number_at_a_time(monkeypatch):
    once = chips_at(np.array([[5e5 + 2560 * c, 5e6] for c in range(12)]), 2560.0)
    series = np.tile(once, (50, 1, 1))
    ours, theirs = np.arange(len(series)) % 12 < 5, np.arange(len(series)) % 12 >= 6
    sizes = []
    original = splits._measure

    def measured(*arguments):
        sizes.append(len(arguments[-1]))
        return original(*arguments)

    monkeypatch.setattr(splits, "_measure", measured)
    monkeypatch.setattr(splits, "_AT_ONCE", 8)
    found = find_near(Chips(series[ours]), Chips(series[theirs]), 6000.0)
    np.testing.assert_array_equal(found.reshape(50, 5), np.tile(found[:5], (50, 1)))
    assert found[:5].tolist() == [False, False, False, True, True]
    # The sixth chip, 2560 m wide on a grid of scale 0.9996, lies between the two.
    assert measure_distance(Chips(series[ours]), Chips(series[theirs])) == pytest.approx(2561, abs=0.5)
    assert len(sizes) > 2
    assert max(sizes) <= 8 + 12
    assert sum(sizes) < 200
