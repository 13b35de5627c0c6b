"""A small patch discriminator and its hinge losses.

As in latent diffusion (https://arxiv.org/abs/2112.10752, appendix G) after VQGAN
(https://arxiv.org/abs/2012.09841, Eq. 5 and 6); patches after pix2pix (https://arxiv.org/abs/1611.07004). Its
weight is a plain number: VQGAN's own (Eq. 7) holds the two gradients at a ratio, and that of a squared error
that has converged is next to nothing, so the adversary then is, too; a larger ratio runs away, for whatever
error the adversary makes, makes it stronger.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from sar2eo.training.vae_losses import weighted_mean

__all__ = [
    "PatchDiscriminator",
    "discriminator_loss",
    "generator_loss",
    "only_where_valid",
]

_WIDTHS = (32, 64, 128)
_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Judges patches of 24 pixels: above 0 real, below 0 reconstructed.

    Group normalisation, for images of one batch are not to know each other; patches far smaller than an
    image, for it is texture that a reconstruction lacks; and a first look at full resolution, for without
    one the checks that an upsampling decoder draws pass for texture.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, _WIDTHS[0], 3, padding=1)]
        for before, width in itertools.pairwise(_WIDTHS):
            layers += [
                nn.LeakyReLU(0.2),
                nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, width),
            ]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(_WIDTHS[-1], 1, 4, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score images of shape (B, 3, H, W), at least 16 pixels a side; a map of scores, (B, 1, h, w)."""
        scores: Tensor = self.layers(images)
        return scores


def only_where_valid(reconstruction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the reconstruction with the truth in its invalid pixels, so that they tell nothing."""
    return torch.where(valid > 0, reconstruction, truth)


def discriminator_loss(real: Tensor, fake: Tensor, valid: Tensor) -> Tensor:
    """Hinge loss of the discriminator: half of relu(1 - real) and half of relu(1 + fake).

    Parameters
    ----------
    real, fake : Tensor, shape (B, 1, h, w)
        Scores of true and of reconstructed images.
    valid : Tensor, shape (B, 1, H, W)
        Of the images; a score weighs as much as its place has valid pixels.
    """
    weight = _at(valid, real)
    return 0.5 * weighted_mean(functional.relu(1 - real) + functional.relu(1 + fake), weight)


def generator_loss(fake: Tensor, valid: Tensor) -> Tensor:
    """Hinge loss of the reconstruction: minus its mean score; parameters as in `discriminator_loss`."""
    return -weighted_mean(fake, _at(valid, fake))


def _at(valid: Tensor, scores: Tensor) -> Tensor:
    size = (scores.shape[-2], scores.shape[-1])
    return functional.interpolate(valid, size=size, mode="area")
