"""Metrics over valid pixels, against scikit-image, torchmetrics and plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import spatial_correlation_coefficient

from sar2eo.evaluation.metrics import (
    average_blocks,
    colour_difference,
    image_metrics,
    psnr,
    scc,
    ssim,
    sum_squared_errors,
    to_unit,
)


def images(
    count: int = 2, rows: int = 40, cols: int = 48, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    truth = draw.random((count, 3, rows, cols), dtype=np.float32)
    noise = draw.normal(0, 0.15, truth.shape).astype(np.float32)
    return torch.from_numpy(np.clip(truth + noise, 0, 1)), torch.from_numpy(truth)


def everywhere(truth: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(truth[:, :1])


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(11, 40), cols=st.integers(11, 40))
def test_psnr_and_ssim_are_those_of_scikit_image(seed: int, rows: int, cols: int) -> None:
    prediction, truth = images(1, rows, cols, seed)
    measured = image_metrics(prediction, truth, everywhere(truth), ("psnr", "ssim"))
    p, t = (image[0].permute(1, 2, 0).double().numpy() for image in (prediction, truth))
    assert measured["psnr"][0] == pytest.approx(peak_signal_noise_ratio(t, p, data_range=1), abs=1e-4)
    expected = structural_similarity(
        t, p, data_range=1, channel_axis=2, gaussian_weights=True, use_sample_covariance=False
    )
    assert measured["ssim"][0] == pytest.approx(expected, abs=1e-4)


def test_scc_of_valid_images_is_that_of_torchmetrics() -> None:
    prediction, truth = images(3)
    expected = spatial_correlation_coefficient(prediction, truth, reduction="none")
    np.testing.assert_allclose(scc(prediction, truth, everywhere(truth)), expected, atol=1e-6)
    assert scc(truth, truth, everywhere(truth)) == pytest.approx(1, abs=1e-4)


@settings(max_examples=8)
@given(seed=st.integers(0, 1000))
def test_invalid_pixels_count_in_no_metric(seed: int) -> None:
    draw = np.random.default_rng(seed)
    prediction, truth = images(2, 32, 36, seed)
    valid = everywhere(truth)
    row, col = draw.integers(0, 30, 2)
    valid[0, :, row : row + 3, col : col + 4] = 0
    other_prediction, other_truth = (
        torch.where(valid > 0, image, torch.from_numpy(draw.random(image.shape, dtype=np.float32)))
        for image in (prediction, truth)
    )
    for measure in (psnr, ssim, scc, colour_difference):
        before, after = measure(prediction, truth, valid), measure(other_prediction, other_truth, valid)
        np.testing.assert_allclose(before, after, atol=1e-5, err_msg=measure.__name__)
        assert np.isfinite(before).all()
        whole = measure(other_prediction, other_truth, everywhere(truth))
        assert abs(whole[0] - after[0]) > 1e-6, measure.__name__


def test_masked_metrics_are_means_over_what_is_valid() -> None:
    prediction, truth = images(1)
    valid = everywhere(truth)
    valid[..., 20:] = 0  # the left part alone
    left = (prediction[..., :20], truth[..., :20], valid[..., :20])
    assert psnr(prediction, truth, valid) == pytest.approx(psnr(*left), abs=1e-4)
    assert ssim(prediction, truth, valid) == pytest.approx(ssim(*left), abs=1e-5)
    error = (left[0].double() - left[1].double()).square()
    total, count = sum_squared_errors(prediction, truth, valid)
    assert total == pytest.approx(error.sum().item())
    assert count == error.numel()


def test_what_cannot_be_measured_is_nan() -> None:
    prediction, truth = images(2, 16, 16)
    valid = everywhere(truth)
    valid[1] = 0
    for measure in (psnr, ssim, scc, colour_difference):
        found = measure(prediction, truth, valid)
        assert np.isfinite(found[0])
        assert np.isnan(found[1])
    small = [image[..., :7, :7] for image in (prediction, truth, valid)]
    assert np.isnan(ssim(*small)).all()
    assert np.isnan(scc(*small)).all()
    assert psnr(truth, truth, valid)[0] == np.inf


def test_colour_difference_is_that_of_scikit_image() -> None:
    prediction, truth = images(1)
    lab = [rgb2lab(image[0].permute(1, 2, 0).double().numpy()) for image in (prediction, truth)]
    found = colour_difference(prediction, truth, everywhere(truth))
    assert found == pytest.approx(deltaE_ciede2000(*lab).mean())


def test_block_means_count_valid_pixels_only() -> None:
    image = torch.arange(32.0).reshape(1, 1, 4, 8)
    valid = torch.ones(1, 1, 4, 8)
    valid[..., :2] = 0  # half of the first block
    valid[..., 4:7] = 0  # three quarters of the second
    means, kept = average_blocks(image, valid, 4)
    assert kept.tolist() == [[[[1.0, 0.0]]]]
    assert means[0, 0, 0, 0] == image[0, 0, :, 2:4].mean()
    assert average_blocks(image[..., :7], valid[..., :7], 4)[0].shape == (1, 1, 1, 1)


def test_the_two_maps_to_unit_range() -> None:
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert to_unit(values).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert to_unit(values, "release").tolist() == [0, 0, 0.5, 1, 1]
