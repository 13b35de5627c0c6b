"""Gated dynamic sparse cross-attention: only promising regions attend, and a gate filters outliers.

The supplement names it (section 2.7: it saves memory and computation for 1.5 % more parameters) without
saying how it is made. Own choice: tokens are gathered in square regions; each region of the template
attends to the regions of the search image with the highest affinity (routing as in BiFormer,
https://arxiv.org/abs/2303.08810), and what each of these contributes is multiplied by a gate that sees
how the attention to it is spread.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["MASKED", "Attended", "RegionAttention", "from_regions", "gather_regions", "to_regions"]

MASKED = -1e4
"""Logit of what must not be attended to: finite, so that a row with nothing else is not NaN."""

_GATE_WIDTH = 16
_OPEN = 3.0  # bias of a new gate: nearly open, sigmoid(3) = 0.95


class Attended(NamedTuple):
    """What cross-attention gives.

    Parameters
    ----------
    output : Tensor, shape (B, C, h, w)
        To be added to the queries' features.
    affinity : Tensor, shape (B, regions of queries, regions of keys)
        Logits of the routing.
    chosen : Tensor of int64, shape (B, regions of queries, K)
        Regions of keys that each region of queries attends to.
    weights : Tensor, shape (B, regions of queries, T, K * T)
        Attention of each token to the tokens of the chosen regions, before the gate, mean over the heads.
    """

    output: Tensor
    affinity: Tensor
    chosen: Tensor
    weights: Tensor


class RegionAttention(nn.Module):
    """Cross-attention from a template's features to a search image's, by regions.

    Parameters
    ----------
    width, context_width : int
        Channels of the template's and the search image's features.
    heads : int
    region : int
        Side of a region in tokens.
    top : int
        Regions attended to; where there are fewer, all.
    dense : bool
        All regions, and no gate: plain attention, for comparison.
    """

    def __init__(
        self, width: int, context_width: int, *, heads: int, region: int, top: int, dense: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.region, self.top, self.dense = heads, region, top, dense
        self.norm, self.context_norm = nn.GroupNorm(1, width), nn.GroupNorm(1, context_width)
        self.to_q = nn.Conv2d(width, width, 1, bias=False)
        self.to_k = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_v = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_out = nn.Conv2d(width, width, 1)
        self.gate = None if dense else _gate()

    def forward(self, features: Tensor, context: Tensor, valid: Tensor) -> Attended:
        """Attend.

        Parameters
        ----------
        features : Tensor, shape (B, C, h, w)
            Sides multiples of the region's.
        context : Tensor, shape (B, C', H, W)
            Likewise.
        valid : Tensor, shape (B, 1, H, W)
            1 where the context may be attended to, else 0.
        """
        normed = self.context_norm(context)
        q, k, v = self.to_q(self.norm(features)), self.to_k(normed), self.to_v(normed)
        queries, keys, values = (to_regions(part, self.region) for part in (q, k, v))  # [B, R, T, C]
        open_keys = to_regions(valid, self.region)[..., 0]  # [B, Rk, T]
        affinity = _affinity(queries, keys, open_keys)  # [B, Rq, Rk]
        count = keys.shape[1] if self.dense else min(self.top, keys.shape[1])
        chosen = affinity.detach().topk(count, dim=-1).indices  # [B, Rq, K]
        weights, output = self._attend(queries, keys, values, open_keys, chosen)
        mixed = self.to_out(from_regions(output, self.region, q.shape[-2:]))
        return Attended(mixed, affinity, chosen, weights)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, open_keys: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the attention's mean over the heads, and the gated sum of values."""
        batch, regions, tokens, width = queries.shape
        count, size = chosen.shape[-1], width // self.heads
        q = queries.view(batch, regions, tokens, self.heads, size)
        k, v = (
            gather_regions(part, chosen).view(batch, regions, count * tokens, self.heads, size)
            for part in (keys, values)
        )
        logits = torch.einsum("brthd,brshd->brhts", q, k) / math.sqrt(size)
        # Half precision is as coarse as the differences between like places.
        closed = gather_regions(open_keys[..., None], chosen)[..., 0].flatten(2) == 0  # [B, Rq, K T]
        weights = logits.float().masked_fill(closed[:, :, None, None], MASKED).softmax(dim=-1)
        let = weights if self.gate is None else weights * _gates(self.gate, weights, tokens)
        output = torch.einsum("brhts,brshd->brthd", let.to(v.dtype), v).flatten(3)
        return weights.mean(dim=2), output


def _gates(gate: nn.Module, weights: Tensor, tokens: int) -> Tensor:
    """Return a factor for each attended region, broadcast over its tokens, shape (B, Rq, H, 1, K T).

    The small network sees maximum, mean (as the share that the region gets of all attention) and
    normalised entropy of a region's attention, shape (B, Rq, H, T, K T).
    """
    blocks = weights.unflatten(-1, (-1, tokens))  # [B, Rq, H, T, K, T]
    share = blocks.sum(dim=-1)
    within = blocks / share[..., None].clamp_min(1e-8)
    entropy = -(within * within.clamp_min(1e-8).log()).sum(dim=-1) / math.log(tokens)
    seen = torch.stack([blocks.amax(dim=-1), share, entropy], dim=-1).mean(dim=3)  # [B, Rq, H, K, 3]
    gates = torch.sigmoid(gate(seen).float())[..., 0]  # [B, Rq, H, K]
    return gates.repeat_interleave(tokens, dim=-1)[:, :, :, None]


def _gate() -> nn.Sequential:
    last = nn.Linear(_GATE_WIDTH, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, _OPEN)
    return nn.Sequential(nn.Linear(3, _GATE_WIDTH), nn.SiLU(), last)


def _affinity(queries: Tensor, keys: Tensor, open_keys: Tensor) -> Tensor:
    """Return how alike the mean tokens of regions are, shape (B, Rq, Rk); (B, R, T, C) and (B, Rk, T)."""
    share = open_keys.unsqueeze(-1)
    mean = (keys * share).sum(dim=2) / share.sum(dim=2).clamp_min(1)
    affinity = torch.einsum("bqc,bkc->bqk", queries.mean(dim=2), mean).float() / math.sqrt(keys.shape[-1])
    return affinity.masked_fill((open_keys.sum(dim=2) == 0)[:, None], MASKED)


def to_regions(image: Tensor, side: int) -> Tensor:
    """Cut (B, C, H, W) into square regions: (B, H / side * W / side, side * side, C), row by row."""
    cut = image.unflatten(-2, (-1, side)).unflatten(-1, (-1, side))  # [B, C, nr, side, nc, side]
    tokens: Tensor = cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
    return tokens


def from_regions(tokens: Tensor, side: int, shape: tuple[int, ...]) -> Tensor:
    """Put regions together again; `shape` is (H, W) of the image."""
    rows, cols = (length // side for length in shape)
    cut = tokens.unflatten(1, (rows, cols)).unflatten(3, (side, side))  # [B, nr, nc, side, side, C]
    image: Tensor = cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return image


def gather_regions(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Return the tokens (B, Rk, T, C) of chosen regions (B, Rq, K), as (B, Rq, K, T, C)."""
    batch = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return tokens[batch, chosen]
