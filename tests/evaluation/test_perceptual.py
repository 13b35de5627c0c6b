"""LPIPS, FID and the distance of features, against torchmetrics and closed forms."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sar2eo.errors import SettingsError
from sar2eo.evaluation.perceptual import (
    Frechet,
    Lpips,
    create_alexnet,
    open_efficientnet,
    open_inception,
    open_lpips,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = {f"features.{key}": value for key, value in create_alexnet().state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file(state | {"classifier.1.weight": torch.zeros(2)}, path)
    return path


@pytest.fixture(scope="module")
def lpips(weights: Path) -> Lpips:
    return open_lpips(str(weights))


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(seed))


def test_lpips_is_that_of_torchmetrics(lpips: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: lpips.features)
    network = theirs._LPIPS(pretrained=True, pnet_rand=True, net="alex")
    expected = network(images(1), images(2), normalize=True).flatten()
    found = lpips(images(1), images(2), torch.ones(2, 1, 64, 80))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    assert found.min() > 0


def test_lpips_of_equal_images_is_zero_and_invalid_pixels_do_not_count(lpips: Lpips) -> None:
    valid = torch.ones(2, 1, 64, 80)
    valid[..., 50:] = 0
    changed = torch.where(valid > 0, images(1), images(3))
    assert lpips(images(1), images(1), valid).tolist() == [0, 0]
    assert lpips(changed, images(1), valid).tolist() == [0, 0]
    assert (lpips(changed, images(1), torch.ones_like(valid)) > 0).all()
    assert np.isnan(lpips(images(1)[..., :31], images(1)[..., :31], valid[..., :31])).all()


class MeanColour(nn.Module):
    num_features = 3

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        return pixels.float().mean((2, 3))


def test_fid_is_the_frechet_distance_of_features() -> None:
    truth = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(4)) * 0.5
    distance, same = Frechet(MeanColour()), Frechet(MeanColour())
    distance.add(truth + 0.25, truth, torch.ones(40, 1, 4, 4))
    # Features of equal covariance: the squared distance of their means.
    assert distance.value() == pytest.approx(3 * (0.25 * 255) ** 2, rel=0.01)
    same.add(truth + 0.25, truth, torch.zeros(40, 1, 4, 4))
    assert same.value() == pytest.approx(0, abs=0.1)
    alone = Frechet(MeanColour())
    alone.add(truth[:1], truth[:1], torch.ones(1, 1, 4, 4))
    assert np.isnan(alone.value())


def test_without_weights_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"needs the weights of torchvision's AlexNet: --lpips-weights"):
        open_lpips(None)
    with pytest.raises(SettingsError, match=r"needs the weights of torch-fidelity's .*: --fid-weights"):
        open_inception(None)
    save_file({"some": torch.zeros(2)}, tmp_path / "some.safetensors")
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(SettingsError, match="pip install torch-fidelity"):
        open_inception(str(tmp_path / "some.safetensors"))


def test_features_of_the_deepest_block_tell_noise_from_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        SettingsError, match=r"^metrics=features: needs .*: pip install 'sar2eo\[features\]'$"
    ):
        open_efficientnet()
    monkeypatch.undo()
    pytest.importorskip("efficientnet_lite_pytorch")
    truth = torch.cat([images(seed) for seed in range(4)]).cumsum(3) / 80
    distance, same = Frechet(open_efficientnet()), Frechet(open_efficientnet())
    valid = torch.ones(8, 1, 64, 80)
    distance.add(torch.rand_like(truth), truth, valid)
    same.add(truth, truth, valid)
    assert distance.value() > 1 + abs(same.value())


@pytest.mark.parametrize("open_network", [open_lpips, open_inception])
def test_weights_that_are_none_are_refused(open_network: object, tmp_path: Path) -> None:
    assert callable(open_network)
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(SettingsError, match=r"must be a \.safetensors file"):
        open_network(str(tmp_path / "weights.pth"))
    (tmp_path / "broken.safetensors").write_bytes(b"none")
    with pytest.raises(SettingsError, match="cannot be read"):
        open_network(str(tmp_path / "broken.safetensors"))
    with pytest.raises(SettingsError, match="cannot be read"):
        open_network(str(tmp_path / "missing.safetensors"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(SettingsError, match=r"other\.safetensors: must hold features"):
        open_lpips(str(tmp_path / "other.safetensors"))
