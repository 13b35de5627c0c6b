"""Losses of a VAE's reconstruction, over valid pixels alone, and the divergence of its latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sar2eo.datasets.latents import pooled_validity

__all__ = [
    "absolute_error",
    "balanced",
    "divergence",
    "gradient_error",
    "squared_error",
    "weighted_mean",
]


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of values, weighted; 0 where no weight is left.

    Parameters
    ----------
    values : Tensor, shape (B, C, H, W)
    weight : Tensor, shape (B, 1, H, W)
        Not negative.
    """
    total = weight.sum() * values.shape[1]
    return (values * weight).sum() / total.clamp_min(torch.finfo(total.dtype).tiny)


def absolute_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error over valid pixels.

    Parameters
    ----------
    prediction, truth : Tensor, shape (B, C, H, W)
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0.
    """
    return weighted_mean((prediction - truth).abs(), valid)


def squared_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over valid pixels; parameters as in `absolute_error`."""
    return weighted_mean((prediction - truth).square(), valid)


def gradient_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error of the image's gradient, along rows and columns, between valid neighbours.

    It weighs detail against tone: the spectrum of a difference of neighbours rises with frequency.
    Parameters as in `absolute_error`.
    """
    error = prediction - truth
    parts = [
        weighted_mean(error.diff(dim=dim).abs(), _both(valid, dim))
        for dim in (-2, -1)
        if error.shape[dim] > 1
    ]
    return torch.stack(parts).sum() if parts else error.new_zeros(())


def _both(valid: Tensor, dim: int) -> Tensor:
    """Return where a pixel and its next neighbour are valid."""
    length = valid.shape[dim] - 1
    return valid.narrow(dim, 0, length) * valid.narrow(dim, 1, length)


def balanced(errors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the mean of errors whose gradients count relative to the size of each.

    As the sum of their logarithms would have it, on the scale of the mean: the speckle of SAR images,
    which no latent can hold, would otherwise leave little of the gradient to the EO images.

    Parameters
    ----------
    errors : sequence of Tensor
        Scalars, not negative, one for each kind of image.
    shares : sequence of float
        Of the gradient, for each; positive, of any sum.
    """
    sizes = torch.stack([error.detach() for error in errors])
    parts = torch.tensor(shares, dtype=sizes.dtype, device=sizes.device)
    weights = parts / parts.sum() * sizes.mean() / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return (torch.stack(list(errors)) * weights).sum()


def divergence(mean: Tensor, log_variance: Tensor, valid: Tensor, bands: int) -> Tensor:
    """Kullback-Leibler divergence of the latents from a standard normal, in nats per value of the image.

    Divided by image values, not by latents, it weighs against a mean error over pixels as in
    Kingma and Welling (https://arxiv.org/abs/1312.6114, appendix B), whatever the factor and channels.

    Parameters
    ----------
    mean, log_variance : Tensor, shape (B, C, h, w)
        Of the latents' distribution.
    valid : Tensor, shape (B, 1, H, W)
        1 where pixels count, else 0; a latent counts with all of its pixels or not at all.
    bands : int
        Of the images.
    """
    factor = valid.shape[-1] // mean.shape[-1]
    whole = pooled_validity(valid, factor)  # [B, 1, h, w]
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return (nats * whole).sum() / (whole.sum() * factor**2 * bands).clamp_min(1)
