import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sar2eo.errors import SettingsError
from sar2eo.matching.structure import METHODS, StructuralAligner, describe_structure, match, smooth_valid


def landscape(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Fields of one border but unrelated brightness in both, as speckled SAR amplitude and as EO grey."""
    draw = np.random.default_rng(seed)
    heights = ndimage.gaussian_filter(draw.normal(size=shape), 7, mode="wrap")
    fields = np.digitize(heights, np.quantile(heights, np.linspace(0, 1, 12)[1:-1]))
    speckle = np.sqrt(draw.gamma(4.4, 1 / 4.4, shape))
    sar = draw.uniform(0.2, 1, 12)[fields] * speckle
    eo = draw.uniform(20, 230, 12)[fields] + draw.normal(0, 4, shape)
    return sar.astype(np.float32), eo.astype(np.float32)


def shifted_pair(side: int, rows: int, cols: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What the EO shows at (r, c) is in the SAR at (r + rows, c + cols)."""
    sar, eo = landscape((side + 64, side + 64), seed)
    inner = slice(32, 32 + side)
    return sar[32 - rows : 32 - rows + side, 32 - cols : 32 - cols + side], eo[inner, inner]


@given(rows=st.integers(-14, 14), cols=st.integers(-14, 14), seed=st.integers(0, 99))
@settings(max_examples=12)
def test_structure_finds_a_planted_shift(rows, cols, seed):
    sar, eo = shifted_pair(192, rows, cols, seed)
    found = match(sar, eo, radius_px=16)
    assert (found.rows, found.cols) == pytest.approx((rows, cols), abs=0.5)
    assert found.ratio > 2
    assert 0.1 < found.score <= 1


def test_structure_does_not_care_about_gain_contrast_or_its_sign():
    sar, eo = shifted_pair(192, 5, -8)
    one = match(sar, eo, radius_px=16)
    for other in (match(sar * 300, eo, radius_px=16), match(sar, 255 - eo, radius_px=16)):
        assert (other.rows, other.cols) == pytest.approx((one.rows, one.cols), abs=0.02)
        assert other.score == pytest.approx(one.score, abs=1e-3)
    bent = match(sar, 255 * (eo / 255) ** 0.5, radius_px=16)
    assert (bent.rows, bent.cols) == pytest.approx((5, -8), abs=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_picture_in_itself_to_a_fraction_of_a_pixel(method):
    _, picture = landscape((256, 256))
    picture = ndimage.gaussian_filter(picture + 50, 1.5, mode="wrap")
    moved = ndimage.shift(picture.astype(float), (3.3, -6.6), order=3, mode="grid-wrap")
    found = match(np.maximum(moved, 0)[20:-20, 20:-20], picture[20:-20, 20:-20], method=method, radius_px=12)
    assert (found.rows, found.cols) == pytest.approx((3.3, -6.6), abs=0.25)


@pytest.mark.parametrize("method", METHODS)
def test_score_of_a_picture_with_itself_is_one(method):
    _, picture = landscape((128, 128))
    log = np.log(picture + 30 + 0.1 * np.median(picture + 30))
    found = match(picture + 30, log, method=method, radius_px=8)
    assert (found.rows, found.cols) == pytest.approx((0, 0), abs=0.01)
    assert found.score == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("method", ["structure", "ncc"])
def test_holes_bias_nothing(method):
    sar, eo = shifted_pair(256, 6, -9, seed=3)
    if method == "ncc":
        eo = shifted_pair(256, 0, 0, seed=3)[0]
    sar, eo = sar.copy(), eo.copy()
    # One hole at one place of both images, which would vote for no shift, and one in each alone.
    sar[60:140, 80:150] = eo[60:140, 80:150] = np.nan
    sar[:, :40] = np.nan
    eo[200:] = np.nan
    found = match(sar, eo, method=method, radius_px=16)
    assert (found.rows, found.cols) == pytest.approx((6, -9), abs=0.6)


@pytest.mark.parametrize("method", METHODS)
def test_a_template_is_found_in_a_larger_image(method):
    _, picture = landscape((240, 280), seed=5)
    picture = picture + 30
    large, small = picture, picture[70:166, 120:232]
    found = match(large, small, method=method)
    assert (found.rows, found.cols) == pytest.approx((70, 120), abs=0.2)
    other = match(small, large, method=method)
    assert (other.rows, other.cols) == pytest.approx((-70, -120), abs=0.2)
    near = match(large, small, method=method, radius_px=40)
    # Around where the centres coincide: (240 - 96) // 2, (280 - 112) // 2.
    assert near.origin == (72 - 40, 84 - 40)
    assert near.surface.shape == (81, 81)
    assert (near.rows, near.cols) == pytest.approx((70, 120), abs=0.2)


@given(
    sar_shape=st.tuples(st.integers(12, 30), st.integers(12, 30)),
    eo_shape=st.tuples(st.integers(12, 30), st.integers(12, 30)),
    radius=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_ncc_is_the_correlation_coefficient_of_what_both_share(sar_shape, eo_shape, radius, seed):
    draw = np.random.default_rng(seed)
    sar = draw.uniform(0.5, 2, sar_shape).astype(np.float32)
    eo = draw.uniform(0, 255, eo_shape).astype(np.float32)
    sar[tuple(draw.integers(0, sar_shape))] = np.nan
    found = match(sar, eo, method="ncc", radius_px=radius)
    a, a_valid = smooth_valid(np.log(sar + np.float32(0.1 * np.nanmedian(sar))), 2.0)
    b, b_valid = smooth_valid(eo, 2.0)
    shared, oracle = np.zeros(found.surface.shape), np.zeros(found.surface.shape)
    for i, j in np.ndindex(found.surface.shape):
        rows, cols = found.origin[0] + i, found.origin[1] + j
        pairs = [
            (a[r + rows, c + cols], b[r, c])
            for r, c in np.ndindex(eo_shape)
            if 0 <= r + rows < sar_shape[0]
            and 0 <= c + cols < sar_shape[1]
            and a_valid[r + rows, c + cols]
            and b_valid[r, c]
        ]
        shared[i, j] = len(pairs)
        oracle[i, j] = np.corrcoef(np.array(pairs).T)[0, 1] if len(pairs) > 8 else np.nan
    known = np.isfinite(found.surface) & np.isfinite(oracle)
    np.testing.assert_allclose(found.surface[known], oracle[known], atol=2e-3)
    # No shift counts where less than half of the most is shared.
    assert not np.isfinite(found.surface[shared < 0.5 * shared.max() - 1e-3]).any()


def test_structure_is_the_cosine_of_the_descriptors_that_both_share():
    sar, eo = (image[:40, :36] for image in landscape((64, 64), seed=2))
    sar = sar.copy()
    sar[:9, :12] = np.nan
    found = match(sar, eo, radius_px=3)
    a, a_valid = describe_structure(np.log(sar + np.float32(0.1 * np.nanmedian(sar))), scale=2.0, spread=2.0)
    b, b_valid = describe_structure(eo, scale=2.0, spread=2.0)
    a = (a - a[:, a_valid].mean(axis=1)[:, None, None]) * a_valid
    b = (b - b[:, b_valid].mean(axis=1)[:, None, None]) * b_valid
    for rows, cols in ((0, 0), (3, -2), (-1, 3)):
        eo_rows = slice(max(0, -rows), min(40, 40 - rows))
        eo_cols = slice(max(0, -cols), min(36, 36 - cols))
        sar_at = (
            slice(eo_rows.start + rows, eo_rows.stop + rows),
            slice(eo_cols.start + cols, eo_cols.stop + cols),
        )
        f, g = a[:, *sar_at], b[:, eo_rows, eo_cols]
        both = a_valid[sar_at] & b_valid[eo_rows, eo_cols]
        f, g = f[:, both], g[:, both]
        cosine = (f * g).sum() / np.sqrt((f**2).sum() * (g**2).sum())
        assert found.surface[rows + 3, cols + 3] == pytest.approx(cosine, abs=1e-4)


def test_descriptor_tells_orientation_and_not_sign():
    columns = np.tile(np.repeat([10.0, 50.0], 20), (40, 1)).astype(np.float32)
    upright, valid = describe_structure(columns, scale=2.0, spread=2.0)
    assert valid.all()
    # Orientation 0 is an edge between columns, half of the orientations further one between rows.
    assert upright[:, 20, 20].argmax() == 0
    assert describe_structure(columns.T.copy(), scale=2.0, spread=2.0)[0][:, 20, 20].argmax() == 4
    reverse, _ = describe_structure(60 - columns, scale=2.0, spread=2.0)
    np.testing.assert_allclose(reverse, upright, atol=1e-5)
    assert (np.linalg.norm(upright, axis=0) < 1).all()


def test_descriptor_sees_no_edge_around_a_hole():
    image = np.full((60, 60), 100, np.float32)
    image += np.random.default_rng(1).normal(0, 1, image.shape).astype(np.float32)
    image[25:35, 25:35] = np.nan
    mean, valid = smooth_valid(image, 2.0)
    assert np.abs(mean[20:40, 20:40] - 100).max() < 2
    # Two sigma around the hole are not valid, the image's border is.
    assert not valid[21:39, 21:39].any()
    assert valid[:21].all()
    assert valid[0, 0]


def test_colour_is_matched_as_its_luma():
    sar, eo = shifted_pair(128, 4, 2)
    grey = match(sar, eo, radius_px=10)
    rgb = match(sar, np.repeat(eo[..., None], 3, axis=2), radius_px=10)
    assert (rgb.rows, rgb.cols) == pytest.approx((grey.rows, grey.cols), abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_compare_gives_no_shift(method):
    sar, eo = shifted_pair(96, 0, 0)
    for first, second in ((np.full_like(sar, np.nan), eo), (sar, np.full_like(eo, np.nan))):
        found = match(first, second, method=method, radius_px=5)
        assert np.isnan([found.rows, found.cols]).all()
        assert (found.score, found.ratio) == (0.0, 1.0)


@pytest.mark.parametrize("method", ["structure", "ncc"])
def test_a_flat_image_gives_no_shift(method):
    sar, eo = shifted_pair(96, 0, 0)
    assert np.isnan(match(sar, np.full_like(eo, 7), method=method, radius_px=5).rows)


def test_unrelated_images_are_a_guess():
    sar, _ = landscape((256, 256), seed=1)
    _, eo = landscape((256, 256), seed=2)
    found = match(sar, eo, radius_px=24)
    assert found.ratio < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sift"}, r"method='sift': must be one of structure, phase, ncc"),
        ({"radius_px": 0}, r"radius_px=0: must be at least 1"),
        ({"eo": np.ones((8, 8, 4))}, r"eo of shape \(8, 8, 4\): must be"),
        ({"sar": np.ones((1, 8, 8))}, r"sar of shape \(1, 8, 8\)"),
        ({"sar": np.ones((0, 8))}, r"sar of shape \(0, 8\)"),
    ],
)
def test_slips_are_refused(change, message):
    with pytest.raises(SettingsError, match=message):
        match(**({"sar": np.ones((8, 8)), "eo": np.ones((8, 8))} | change))


def test_aligner_is_sure_of_a_shift_it_can_see_and_of_nothing_else():
    aligner = StructuralAligner(neighbourhood_px=256)
    sar, eo = shifted_pair(256, 7, -11, seed=4)
    found = aligner.displacement(sar, eo)
    assert (found.rows, found.cols) == pytest.approx((7, -11), abs=0.5)
    assert found.sure
    _, other = landscape((256, 256), seed=9)
    assert not aligner.displacement(sar, other).sure
    assert not aligner.displacement(sar, np.full_like(eo, np.nan)).sure
    # At the edge of the search the peak may lie beyond.
    assert not StructuralAligner(neighbourhood_px=256, radius_px=11).displacement(sar, eo).sure
