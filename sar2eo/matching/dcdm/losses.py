"""Training losses of a matcher: structure of the translation, places of the attention, the match.

The squared error of x0 is the supplement's Eq. 4, and SSIM constrains the translation (section 2.3).
The paper's outline says that attention is drawn to the true places; the form of that loss is an own choice,
as is the loss on the similarity map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

WINDOW = 7
"""Side of the windows of SSIM, in latents."""

_LATENT_RANGE = 4.0  # of values with a deviation of 1: two to either side
_PLACE_SIGMA = 0.5  # cells of the similarity map; pairs are registered to a pixel or two, half a cell
_FLOOR = 1e-8


def structure_loss(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - SSIM of latents over uniform windows of 7 x 7, where all of a window is valid.

    Latents, shape (B, C, h, w), have a deviation about 1; `valid`, shape (B, 1, h, w), is 1 where they count,
    else 0.
    """
    _, similarity = structural_similarity_index_measure(
        prediction.float(),
        truth.float(),
        gaussian_kernel=False,
        kernel_size=WINDOW,
        data_range=_LATENT_RANGE,
        reduction="none",
        return_full_image=True,
    )
    edge = WINDOW // 2
    whole = 1 - functional.max_pool2d(1 - valid, WINDOW, stride=1)  # [B, 1, h - 6, w - 6]
    inside = similarity[..., edge : similarity.shape[-2] - edge, edge : similarity.shape[-1] - edge]
    return ((1 - inside) * whole).sum() / (whole.sum() * inside.shape[1]).clamp_min(1)


def place_targets(shifts: Tensor, queries: int, keys: int, sigma: float = 1.0) -> Tensor:
    """Return target attention along one axis: for each query a Gaussian over the keys that sums to 1.

    Query q lies at key q + shift, in tokens, and so is `sigma`. The result has shape (B, queries, keys).
    """
    steps = torch.arange(queries, device=shifts.device)[:, None]
    places = torch.arange(keys, device=shifts.device)
    distance = places - steps - shifts[:, None, None]
    return (-distance.square() / (2 * sigma**2)).softmax(dim=-1)


def position_loss(attention: Tensor, shifts: Tensor, valid: Tensor) -> Tensor:
    """Draw attention to the true places: cross-entropy, and the distance of its mean place.

    The cross-entropy is that to a Gaussian of one token; the distance, of the soft-argmax along each axis, is
    in sides of the search image. `attention` holds probabilities over (H, W), shape (B, h, w, H, W); `shifts`
    of the template are in tokens, shape (B, 2); `valid`, shape (B, 1, h, w), is 1 where queries count.
    """
    h, w, H, W = attention.shape[1:]
    rows, cols = place_targets(shifts[:, 0], h, H), place_targets(shifts[:, 1], w, W)
    entropy = -torch.einsum("bhwHW,bhH,bwW->bhw", attention.clamp_min(_FLOOR).log(), rows, cols)
    distance = torch.zeros_like(entropy)
    for axis, (queries, keys) in enumerate(((h, H), (w, W))):
        along = attention.sum(dim=4 - axis)  # [B, h, w, keys]
        found = (along * torch.arange(keys, device=along.device)).sum(dim=-1)
        start = torch.arange(queries, device=along.device)
        true = (start[:, None] if axis == 0 else start[None]) + shifts[:, axis, None, None]
        distance = distance + (found - true).abs() / keys
    return ((entropy + distance) * valid[:, 0]).sum() / valid.sum().clamp_min(1)


def routing_loss(affinity: Tensor, shifts: Tensor, grid: tuple[int, int, int, int], region: int) -> Tensor:
    """Cross-entropy of the routing to the regions in which a region's tokens lie.

    `affinity` holds logits, shape (B, regions of queries, regions of keys); `shifts`, shape (B, 2), are in
    tokens, and so is the side of a `region`; `grid` are rows and columns of queries, then of keys.
    """
    h, w, H, W = grid
    rows, cols = (
        place_targets(shifts[:, axis], queries, keys)
        .unflatten(2, (-1, region))
        .sum(dim=3)
        .unflatten(1, (-1, region))
        .mean(dim=2)
        for axis, (queries, keys) in enumerate(((h, H), (w, W)))
    )  # [B, regions of queries, regions of keys] along each axis
    target = torch.einsum("bhH,bwW->bhwHW", rows, cols).flatten(3).flatten(1, 2)
    return -(target * affinity.log_softmax(dim=-1)).sum(dim=-1).mean()


def similarity_loss(
    surface: Tensor, places: Tensor, matches: Tensor, sharpness: Tensor, none: Tensor
) -> Tensor:
    """Cross-entropy on the similarity map over all places and, as one more outcome, no match.

    `surface` holds correlations, shape (B, n, m); `places` true rows and columns in the map, fractional,
    shape (B, 2), ignored where nothing `matches`. `sharpness` and `none` are those of
    `sar2eo.matching.dcdm.similarity.compute_match_probability`.
    """
    n, m = surface.shape[1:]
    factor = sharpness.exp()
    level = (factor * none).expand(len(surface), 1)
    logs = torch.cat([factor * surface.flatten(1), level], dim=1).log_softmax(dim=1)
    rows, cols = (
        place_targets(places[:, axis], 1, length, _PLACE_SIGMA)[:, 0] for axis, length in enumerate((n, m))
    )
    target = (rows[:, :, None] * cols[:, None]).flatten(1)
    found = -(target * logs[:, :-1]).sum(dim=1)
    return torch.where(matches, found, -logs[:, -1]).mean()
