"""The loss that asks a decoder for as much texture as the truth has."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sar2eo.errors import SettingsError
from sar2eo.settings import VaeSettings
from sar2eo.training.vae_losses import BLOCK, texture_error
from sar2eo.training.vae_task import VaeTask


def noise(seed: int, size: int = 64, count: int = 4) -> torch.Tensor:
    return 0.3 * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def everywhere(images: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(images[:, :1])


def by_numpy(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Go through blocks, colours, rings and directions, one after the other."""
    window = np.outer(*[np.sin(np.pi * np.arange(32) / 32) ** 2] * 2)
    grey_and_colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    found = []
    for row in range(0, truth.shape[1] - 31, 16):
        for col in range(0, truth.shape[2] - 31, 16):
            for colour in grey_and_colours:
                powers = []
                for image in (prediction, truth):
                    block = np.tensordot(colour, image[:, row : row + 32, col : col + 32], 1)
                    block = (block - (block * window).sum() / window.sum()) * window
                    power = np.abs(np.fft.rfft2(block)) ** 2 / (window**2).sum()
                    sums: dict[tuple[int, int], list[float]] = {}
                    for (i, j), value in np.ndenumerate(power):
                        down, across = (i if i < 16 else i - 32), j
                        ring = int(math.hypot(down, across) / 2)
                        direction = math.floor(math.atan2(down, across) / math.pi * 4 + 0.5) % 4
                        sums.setdefault((ring, direction), []).append(value)
                    powers.append({key: np.mean(values) for key, values in sums.items() if key[0]})
                ratios = [(powers[0][key] + 1e-4) / (powers[1][key] + 1e-4) for key in powers[0]]
                found.append(np.abs(np.log(ratios)).mean())
    return float(np.mean(found))


def test_it_is_what_numpy_finds_group_by_group() -> None:
    a, b = noise(1, 48, 1), noise(2, 48, 1)
    expected = by_numpy(a[0].double().numpy(), b[0].double().numpy())
    assert texture_error(a, b, everywhere(a)).item() == pytest.approx(expected, rel=1e-4)


def test_half_of_the_contrast_is_a_quarter_of_the_power() -> None:
    truth = noise(3)
    assert texture_error(truth, truth, everywhere(truth)) == 0
    # 0.01 of grain is little beside 0.3 and 0.15.
    error = texture_error(truth / 2, truth, everywhere(truth)).item()
    assert error == pytest.approx(math.log(4), rel=0.01)


def test_texture_of_the_same_kind_is_nearer_than_a_blur_of_the_truth_and_squared_error_has_it_otherwise() -> (
    None
):
    truth, other = noise(4), noise(5)
    blurred = functional.avg_pool2d(truth, 5, 1, 2)
    valid = everywhere(truth)
    assert texture_error(other, truth, valid) < 0.5 * texture_error(blurred, truth, valid)
    assert (other - truth).square().mean() > (blurred - truth).square().mean()


def test_direction_and_colour_of_texture_count() -> None:
    rows, cols = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    down, across = (torch.sin(2 * math.pi * at / 4).expand(1, 3, 64, 64) * 0.3 for at in (rows, cols))
    valid = everywhere(down)
    assert texture_error(down.roll(1, -2), down, valid).item() == pytest.approx(0, abs=0.02)
    assert texture_error(across, down, valid) > 0.2
    red, blue = (
        torch.cat([down[:, :1] * a, torch.zeros(1, 1, 64, 64), down[:, :1] * b], 1)
        for a, b in ((1, -1), (1, 1))
    )
    assert texture_error(red, blue, valid) > 0.2


def test_water_stays_plain_where_the_truth_is() -> None:
    truth = torch.zeros(1, 3, 64, 64)
    assert texture_error(truth + 0.5, truth, everywhere(truth)).item() == pytest.approx(0, abs=1e-4)  # tone
    assert texture_error(noise(6, count=1), truth, everywhere(truth)) > 5


def test_blocks_with_a_hole_do_not_count() -> None:
    truth, valid = noise(7, 64, 1), torch.ones(1, 1, 64, 64)
    valid[..., 60, 60] = 0
    prediction = truth.clone()
    prediction[..., 49:, 49:] = 0.0
    assert texture_error(prediction, truth, valid) == 0
    assert texture_error(prediction, truth, torch.ones_like(valid)) > 0
    assert texture_error(prediction, truth, torch.zeros_like(valid)) == 0


def test_a_blur_is_told_to_be_less_of_one() -> None:
    truth = noise(8)
    blurred = functional.avg_pool2d(truth, 3, 1, 1).requires_grad_()
    texture_error(blurred, truth, everywhere(truth)).backward()
    assert blurred.grad is not None
    assert blurred.grad.isfinite().all()
    # Less of its detail would be a greater error.
    assert (blurred.grad * blurred).sum() < 0


def test_crops_smaller_than_a_block_are_refused() -> None:
    task = VaeTask(VaeSettings(widths=(8, 16), texture=0.1), list)
    task.check_shape((BLOCK, BLOCK))
    with pytest.raises(SettingsError, match="blocks of 32"):
        task.check_shape((BLOCK - 2, 64))
    with pytest.raises(SettingsError, match="texture=-1"):
        VaeSettings(texture=-1)
