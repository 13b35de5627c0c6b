"""LPIPS and FID, whose networks are fetched once by libraries of their own, or taken from local files.

Local files are safetensors. Pickled weights (``.pth``) are refused: reading them can run code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from torchmetrics.image.fid import FrechetInceptionDistance

from sar2eo.errors import SettingsError

__all__ = ["Fid", "Lpips", "inception", "open_lpips"]

_TAPS = (1, 4, 7, 9, 11)  # the ReLUs of AlexNet whose outputs are compared
_LPIPS_LEAST_PX = 32  # below, AlexNet's pooling has nothing left
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for [-1, 1]


class Lpips:
    """Learned perceptual distance by AlexNet (Zhang et al. 2018, https://arxiv.org/abs/1801.03924).

    What torchmetrics' ``LearnedPerceptualImagePatchSimilarity(net_type="alex")`` measures, with the
    mean of each layer taken over valid pixels; and without torchvision, given weights.

    Parameters
    ----------
    features : Module
        Of `create_alexnet`.
    linear : sequence of Tensor
        Weights of the channels of each of the five layers, shapes (C,).
    """

    def __init__(self, features: nn.Sequential, linear: list[Tensor]) -> None:
        self.features = features.eval().requires_grad_(False)
        self.linear = linear

    @torch.inference_mode()
    def __call__(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> npt.NDArray[np.float64]:
        """Measure a batch; parameters as in `sar2eo.evaluation.metrics`. NaN below 32 pixels."""
        if min(truth.shape[2:]) < _LPIPS_LEAST_PX:
            return np.full(len(truth), np.nan)
        # Where pixels are invalid the two are made equal, so that nothing leaks in from there.
        layers = zip(
            self._layers(torch.where(valid > 0, prediction, truth)), self._layers(truth), strict=True
        )
        total = torch.zeros(len(truth))
        for (predicted, true), weights in zip(layers, self.linear, strict=True):
            distance = ((predicted - true).square() * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)
            share = functional.interpolate(valid, size=distance.shape[2:], mode="area")
            total += (distance * share).flatten(1).sum(1) / share.flatten(1).sum(1)
        return total.double().numpy()

    def _layers(self, images: Tensor) -> list[Tensor]:
        """Return features of unit length, of images in [0, 1]."""
        shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        values, found = (2 * images - 1 - shift) / scale, []
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
    """Return LPIPS with AlexNet's weights from a local file, or as torchvision fetches them.

    Parameters
    ----------
    weights : str or None
        safetensors with the keys ``features.*`` of torchvision's AlexNet; others are left out.
    """
    if weights is not None:
        state = _read(weights, "lpips_weights")
    else:
        state = _fetched(_alexnet_of_torchvision, "lpips", "torchvision", "--lpips-weights", "AlexNet")
    features = create_alexnet()
    chosen = {
        key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")
    }
    _fill(features, chosen, f"lpips_weights={weights}", "features.* of torchvision's AlexNet")
    # The weights of the channels come with torchmetrics; they are its own file, and read as tensors alone.
    with resources.as_file(
        resources.files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"
    ) as path:
        linear = torch.load(path, map_location="cpu", weights_only=True)
    return Lpips(features, [linear[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(_TAPS))])


def _alexnet_of_torchvision() -> dict[str, Tensor]:
    from torchvision.models import AlexNet_Weights  # type: ignore[import-not-found,unused-ignore]

    state: dict[str, Tensor] = AlexNet_Weights.DEFAULT.get_state_dict(check_hash=True)
    return state


class Fid:
    """Fréchet distance of Inception features (Heusel et al. 2017, https://arxiv.org/abs/1706.08500).

    Parameters
    ----------
    features : Module
        uint8 images, shape (B, 3, H, W), to features, shape (B, N); see `inception`.
    """

    def __init__(self, features: nn.Module) -> None:
        self._metric = FrechetInceptionDistance(feature=features)

    @torch.inference_mode()
    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Add a batch of images in [0, 1]; invalid pixels of the prediction are made the truth's."""
        for images, real in ((torch.where(valid > 0, prediction, truth), False), (truth, True)):
            self._metric.update((images * 255).round().byte(), real=real)

    def value(self) -> float:
        """Return the distance; NaN for fewer than two images."""
        if self._metric.real_features_num_samples < 2:
            return float("nan")
        return float(self._metric.compute())


def inception(weights: str | None) -> nn.Module:
    """Return the Inception network of FID from a local file, or as torch-fidelity fetches it.

    Parameters
    ----------
    weights : str or None
        safetensors with the keys of torch-fidelity's ``FeatureExtractorInceptionV3``.
    """
    state = None if weights is None else _read(weights, "fid_weights")

    def make() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            path = None
            if state is not None:
                # torch-fidelity reads pickles only: one that was written here is safe.
                path = str(Path(folder) / "inception.pth")
                torch.save(state, path)
            network: Any = FrechetInceptionDistance(feature_extractor_weights_path=path).inception
        network.num_features = 2048
        network.requires_grad_(False)
        module: nn.Module = network
        return module

    try:
        network: nn.Module = _fetched(make, "fid", "torch-fidelity", "--fid-weights", "Inception")
    except RuntimeError as error:
        raise SettingsError(
            f"fid_weights={weights}: must hold the tensors of torch-fidelity's Inception"
        ) from error
    return network


def _fetched(make: Callable[[], Any], metric: str, library: str, flag: str, network: str) -> Any:
    try:
        return make()
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{metric}: needs {library} for its network: pip install {library}"
            + (f", or pass {network}'s weights by {flag} FILE.safetensors" if metric == "lpips" else "")
        ) from error
    except OSError as error:
        raise SettingsError(
            f"{metric}: {library} could not fetch its network ({error}): pass {network}'s weights by "
            f"{flag} FILE.safetensors"
        ) from error


def _read(path: str, name: str) -> dict[str, Tensor]:
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


def _fill(module: nn.Module, state: dict[str, Tensor], where: str, wanted: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise SettingsError(f"{where}: must hold {wanted}") from error
