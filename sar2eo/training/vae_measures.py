"""What is measured of a VAE: its reconstructions against the truth, and its latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sar2eo.evaluation.spectrum import OctavePowers, octave_powers

__all__ = ["Moments", "Tally"]

_LEAST_DEVIATION = 1e-3  # of a latent channel that holds nothing, which would be divided by 0


class Tally:
    """Squared error and spectra of reconstructions, summed over batches."""

    def __init__(self) -> None:
        self._squared = self._count = 0.0
        self._powers: OctavePowers | None = None

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Add images in [-1, 1] of shape (B, C, H, W), and their validity, (B, 1, H, W)."""
        self._squared += float(((prediction - truth).square() * valid).double().sum())
        self._count += float(valid.sum()) * truth.shape[1]
        images = (tensor.cpu().numpy() for tensor in (prediction, truth, valid[:, 0]))
        for found in map(octave_powers, *images):
            self._powers = found if self._powers is None else self._powers + found

    def metrics(self) -> dict[str, float]:
        """Return PSNR in dB, and power over the truth's per octave, the finest first."""
        octaves = {f"power_{index}": ratio for index, ratio in enumerate(self._ratios())}
        return {"psnr": self.psnr(), **octaves}

    def psnr(self) -> float:
        """Return the PSNR in dB of all valid pixels together."""
        mean = self._squared / max(self._count, 1.0)
        return 10 * math.log10(4 / max(mean, 1e-12))  # images span 2

    def worst_octave_db(self) -> float:
        """Return how far the power of the worst octave is from the truth's, in dB."""
        return max((abs(10 * math.log10(max(ratio, 1e-12))) for ratio in self._ratios()), default=0.0)

    def _ratios(self) -> list[float]:
        found = [] if self._powers is None else self._powers.ratios.tolist()
        return [ratio for ratio in found if math.isfinite(ratio)]


class Moments:
    """Sums of values and of their squares by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add values of shape (N, C)."""
        exact = values.double().cpu()
        self.count += len(exact)
        self.sums += torch.stack([exact.sum(0), exact.square().sum(0)])

    def described(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel."""
        mean, square = self.sums / max(self.count, 1)
        deviation = (square - mean.square()).clamp_min(_LEAST_DEVIATION**2).sqrt()
        return {"mean": mean.tolist(), "std": deviation.tolist()}
