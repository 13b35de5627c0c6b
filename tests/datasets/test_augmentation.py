"""What happens to an image, and in which order images come: pure functions of few numbers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.datasets import Augmentation, Order
from sar2eo.datasets.augmentation import ORIENTATIONS, orient
from sar2eo.datasets.loading import Purpose, permutation, uniform
from sar2eo.errors import PairsError, SettingsError

SEEDS = st.integers(0, 2**64 - 1)
GOLDEN_UNIFORM = [0.8445207640751946, 0.5265377845569629, 0.12005149938149307]
GOLDEN_ORDER = [7, 0, 3, 2, 1, 6, 4, 5]
SIDES = st.tuples(st.integers(8, 40), st.integers(8, 40))


def test_draws_do_not_change():
    """Golden values: a run resumed under another numpy must see the same crops."""
    np.testing.assert_allclose(
        uniform(2025, Purpose.AUGMENTATION, 3, 14, 3), GOLDEN_UNIFORM, rtol=0, atol=1e-15
    )
    assert permutation(2025, Purpose.ORDER, 1, 0, 8).tolist() == GOLDEN_ORDER


@given(seed=SEEDS, epoch=st.integers(0, 10**6), index=st.integers(0, 10**6), shape=SIDES, data=st.data())
def test_a_crop_is_a_function_of_seed_epoch_and_index(seed, epoch, index, shape, data):
    crop = data.draw(st.none() | st.integers(1, 50))
    align = data.draw(st.sampled_from([1, 4, 8]))
    centre = data.draw(st.booleans())
    settings = {"crop": crop, "flips": True, "turns": True, "gain": 0.3, "centre": centre, "align": align}
    place = Augmentation(**settings, seed=seed).place(epoch, index, shape)
    assert place == Augmentation(**settings, seed=seed).place(epoch, index, shape)
    side = min(*shape, crop or 50)
    assert place.shape == (side, side)
    assert 0 <= place.row <= shape[0] - side
    assert 0 <= place.col <= shape[1] - side
    if centre:
        assert (place.row, place.col) == ((shape[0] - side) // 2, (shape[1] - side) // 2)
    else:
        assert place.row % align == place.col % align == 0
    assert 0.7 <= place.gain <= 1.3


def test_everything_is_drawn_alike():
    """Rows, columns, orientations and gains are uniform, and belong to no other."""
    augmentation = Augmentation(crop=10, flips=True, turns=True, gain=0.5)
    places = [augmentation.place(epoch, index, (14, 12)) for epoch in range(40) for index in range(100)]
    for values, kinds in (
        ([place.row for place in places], 5),
        ([place.col for place in places], 3),
        ([place.orientation for place in places], 8),
    ):
        counts = Counter(values)
        assert set(counts) == set(range(kinds))
        assert max(abs(count / 4000 * kinds - 1) for count in counts.values()) < 0.2
    gains = np.array([place.gain for place in places])
    assert abs(gains.mean() - 1) < 0.02
    assert gains.min() < 0.51
    assert gains.max() > 1.49
    columns = np.array([(p.row, p.col, p.orientation, p.gain) for p in places]).T
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 0.06
    assert len({augmentation.place(0, index, (14, 12)) for index in range(50)}) == 50
    assert augmentation.place(1, 0, (14, 12)) != augmentation.place(0, 0, (14, 12))


@pytest.mark.parametrize(
    ("flips", "turns", "expected"),
    [(False, False, 1), (True, False, 4), (False, True, 4), (True, True, 8)],
)
def test_orientations_are_those_asked_for(flips, turns, expected):
    image = np.arange(9).reshape(1, 3, 3)
    augmentation = Augmentation(flips=flips, turns=turns)
    drawn = {augmentation.place(0, index, (3, 3)).orientation for index in range(200)}
    assert drawn == set(augmentation.orientations)
    turned = {orient(image, number).tobytes() for number in drawn}
    assert len(turned) == expected
    if flips:
        assert image[..., ::-1].copy().tobytes() in turned
        assert image[:, ::-1].copy().tobytes() in turned
    if turns:
        assert np.rot90(image, 3, (1, 2)).copy().tobytes() in turned


def test_what_an_orientation_is():
    image = np.array([[1, 2], [3, 4]])
    expected = {
        0: [[1, 2], [3, 4]],
        1: [[2, 4], [1, 3]],
        2: [[4, 3], [2, 1]],
        3: [[3, 1], [4, 2]],
        4: [[2, 1], [4, 3]],
        6: [[3, 4], [1, 2]],
    }
    for number, values in expected.items():
        assert orient(image, number).tolist() == values


@given(
    seed=SEEDS,
    index=st.integers(0, 1000),
    shape=SIDES,
    fixed=st.integers(1, 9),
    align=st.sampled_from([1, 4, 8]),
)
def test_fixed_crops_are_few_and_different(seed, index, shape, fixed, align):
    augmentation = Augmentation(crop=8, flips=True, turns=True, seed=seed, fixed=fixed, align=align)
    count = augmentation.variants(shape)
    possible = ((shape[0] - 8) // align + 1) * ((shape[1] - 8) // align + 1)
    assert count == min(fixed, possible)
    places = [
        augmentation.fixed_place(index, crop, turn, shape, (8, 8))
        for crop in range(count)
        for turn in range(ORIENTATIONS)
    ]
    assert [place.variant for place in places] == list(range(count * ORIENTATIONS))
    assert len({(place.row, place.col) for place in places}) == count
    assert all(place.row % align == place.col % align == 0 for place in places)
    for epoch in range(5):
        place = augmentation.place(epoch, index, shape)
        assert place == places[place.variant]


def test_each_view_of_a_fixed_crop_has_a_gain_of_its_own():
    augmentation = Augmentation(crop=8, flips=True, turns=True, fixed=3, align=4, gain=0.25)
    views = [
        augmentation.fixed_place(1, crop, turn, (16, 16), (8, 8)) for crop in range(3) for turn in range(8)
    ]
    gains = [view.gain for view in views]
    assert len(set(gains)) == 24
    assert 0.75 <= min(gains) < 0.85 < 1.15 < max(gains) <= 1.25
    drawn = {place.variant: place.gain for place in (augmentation.place(e, 1, (16, 16)) for e in range(200))}
    assert drawn == {view.variant: view.gain for view in views if view.variant in drawn}
    assert len(drawn) > 20


def test_all_fixed_crops_are_drawn():
    augmentation = Augmentation(crop=8, flips=True, turns=True, fixed=3, align=4)
    counts = Counter(augmentation.place(epoch, 5, (40, 40)).variant for epoch in range(2400))
    assert set(counts) == set(range(24))
    assert min(counts.values()) > 60


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"crop": 0}, "crop=0"),
        ({"fixed": 0}, "fixed=0"),
        ({"gain": 1.0}, "gain=1"),
        ({"centre": True, "fixed": 2}, "choose one"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(SettingsError, match=named):
        Augmentation(**settings)


def test_seeds_out_of_range_are_refused():
    with pytest.raises(SettingsError, match="seed=-1"):
        Augmentation(seed=-1).place(0, 0, (8, 8))


@given(n=st.integers(1, 60), batch=st.integers(1, 70), seed=SEEDS)
def test_every_index_once_per_pass(n, batch, seed):
    order = Order(n, batch, seed)
    steps = -(-3 * n // batch)
    seen = [pair for step in range(steps) for pair in order.indices(step)]
    assert all(len(order.indices(step)) == batch for step in range(steps))
    for epoch in range(3):
        assert sorted(index for at, index in seen if at == epoch) == list(range(n))
    assert [epoch for epoch, _ in seen] == [i // n for i in range(steps * batch)]
    # Random access: a step by itself is what it was among the others.
    assert Order(n, batch, seed).indices(steps - 1) == seen[-batch:]


def test_passes_and_seeds_differ():
    order = Order(50, 50, 1)
    assert [i for _, i in order.indices(0)] != [i for _, i in order.indices(1)]
    assert order.indices(0) != Order(50, 50, 2).indices(0)
    assert [i for _, i in order.indices(0)] != list(range(50))


def test_orders_of_nothing_are_refused():
    with pytest.raises(PairsError, match="no pairs"):
        Order(0, 4)
    with pytest.raises(SettingsError, match="batch=0"):
        Order(4, 0)
