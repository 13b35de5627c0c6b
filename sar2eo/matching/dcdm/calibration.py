"""Attention whose map is calibrated: neighbours in the template have their places side by side.

The attention calibration block works on the two-dimensional attention maps after cross-attention,
smooths them, and removes tokens with wrong positions (supplement, section 2.2; the maps are sparse
along a diagonal). How it does is an own choice: a map says for each query how much evidence there is for
each key, as the logarithm of its probability over that of a uniform map; a query's neighbours, displaced
by as much as a key's, bear witness for it. A separable convolution over the rows of queries and keys and
then over their columns gathers this nearby; a vote of all queries for each displacement gathers it over
the whole template, which moves as one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sar2eo.matching.dcdm.attention import MASKED

__all__ = ["AttentionCalibration", "CalibratedAttention", "Mapped", "displacement_votes"]

_KERNEL = 5
_LEAST = -8.0  # of the evidence: one query that sees nothing must not overrule all others


class Mapped(NamedTuple):
    """What calibrated cross-attention gives.

    Parameters
    ----------
    output : Tensor, shape (B, C, h, w)
        To be added to the queries' features.
    before, after : Tensor, shape (B, h * w, H * W)
        Attention, mean over the heads, without and with the calibration; rows sum to 1.
    """

    output: Tensor
    before: Tensor
    after: Tensor


class AttentionCalibration(nn.Module):
    """The attention calibration block, ACB (supplement, section 2.2).

    Parameters
    ----------
    heads : int
        Maps that are calibrated together.
    hidden : int
        Channels of the convolutions.

    Notes
    -----
    It starts as the identity: its last convolution and the weight of the votes are 0.
    """

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        sizes = [(heads, hidden), (hidden, hidden), (hidden, hidden), (hidden, heads)]
        convolutions = [nn.Conv2d(a, b, _KERNEL, padding=_KERNEL // 2) for a, b in sizes]
        for values in convolutions[-1].parameters():
            nn.init.zeros_(values)
        self.convolutions = nn.ModuleList(convolutions)
        self.vote = nn.Parameter(torch.zeros(heads))

    def forward(self, logits: Tensor, closed: Tensor) -> Tensor:
        """Calibrate and renormalise.

        Parameters
        ----------
        logits : Tensor of float32, shape (B, heads, h, w, H, W)
            Of each query's attention to each key.
        closed : Tensor of bool, shape (B, H, W)
            Keys that must not be attended to.

        Returns
        -------
        Tensor of float32, shape (B, heads, h, w, H, W)
            Probabilities over the keys.
        """
        barred = closed[:, None, None, None]
        free = (~closed).sum(dim=(1, 2)).clamp_min(1).log()[:, None, None, None, None, None]
        evidence = logits.flatten(4).log_softmax(dim=-1).view_as(logits) + free
        evidence = evidence.clamp_min(_LEAST).masked_fill(barred, 0.0)
        evidence = evidence + self._smoothed(evidence)
        votes = displacement_votes(evidence.masked_fill(barred, 0.0))
        evidence = evidence + self.vote.view(1, -1, 1, 1, 1, 1) * votes
        final = evidence.float().masked_fill(barred, MASKED).flatten(4)
        return final.softmax(dim=-1).view_as(logits)

    def _smoothed(self, evidence: Tensor) -> Tensor:
        """Convolve over rows of queries and keys, over their columns, and both again."""
        x = evidence
        for index, convolution in enumerate(self.convolutions):
            along_rows = index % 2 == 0
            order = (0, 3, 5, 1, 2, 4) if along_rows else (0, 2, 4, 1, 3, 5)
            moved = x.permute(order)
            flat = convolution(moved.flatten(0, 2))
            flat = functional.silu(flat) if index + 1 < len(self.convolutions) else flat
            moved = flat.unflatten(0, moved.shape[:3])
            x = moved.permute([order.index(dim) for dim in range(6)])
        return x


def displacement_votes(evidence: Tensor) -> Tensor:
    """Return for each query and key the mean evidence of all queries for keys displaced by as much.

    What would lie outside the search image says nothing, 0.

    Parameters
    ----------
    evidence : Tensor, shape (B, heads, h, w, H, W)

    Returns
    -------
    Tensor of the same shape
    """
    h, w, H, W = evidence.shape[2:]
    rows, cols = (
        torch.arange(keys, device=evidence.device) - torch.arange(queries, device=evidence.device)[:, None]
        for queries, keys in ((h, H), (w, W))
    )
    index = (rows[:, None, :, None] + h - 1) * (w + W - 1) + cols[None, :, None, :] + w - 1  # [h, w, H, W]
    flat = evidence.flatten(2)
    sums = flat.new_zeros(*flat.shape[:2], (h + H - 1) * (w + W - 1)).index_add(2, index.flatten(), flat)
    return (sums / (h * w))[..., index.flatten()].view_as(evidence)


class CalibratedAttention(nn.Module):
    """Dense cross-attention from a template's features to a search image's, its map calibrated.

    Parameters
    ----------
    width, context_width : int
        Channels of the template's and the search image's features.
    heads : int
    hidden : int
        Of the calibration; 0: none, for comparison.
    """

    def __init__(self, width: int, context_width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.context_norm = nn.GroupNorm(1, width), nn.GroupNorm(1, context_width)
        self.to_q = nn.Conv2d(width, width, 1, bias=False)
        self.to_k = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_v = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_out = nn.Conv2d(width, width, 1)
        self.calibration = AttentionCalibration(heads, hidden) if hidden else None

    def forward(self, features: Tensor, context: Tensor, valid: Tensor) -> Mapped:
        """Attend; parameters as of `RegionAttention.forward`, of any sides."""
        normed = self.context_norm(context)
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3)
            for part in (self.to_q(self.norm(features)), self.to_k(normed), self.to_v(normed))
        )  # [B, heads, d, tokens]
        logits = (torch.einsum("bhdq,bhdk->bhqk", q, k) / math.sqrt(q.shape[2])).float()
        closed = valid[:, 0] == 0
        logits = logits.masked_fill(closed.flatten(1)[:, None, None], MASKED)
        before = after = logits.softmax(dim=-1)
        if self.calibration is not None:
            grid = logits.unflatten(3, context.shape[-2:]).unflatten(2, features.shape[-2:])
            after = self.calibration(grid, closed).flatten(4).flatten(2, 3)
        mixed = torch.einsum("bhqk,bhdk->bhdq", after.to(v.dtype), v).flatten(1, 2)
        output = self.to_out(mixed.unflatten(-1, features.shape[-2:]))
        return Mapped(output, before.mean(dim=1), after.mean(dim=1))
