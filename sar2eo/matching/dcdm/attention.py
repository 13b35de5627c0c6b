"""Gated dynamic sparse cross-attention: only promising regions attend, and a gate filters outliers.

The supplement names it (section 2.7: it saves memory and computation for 1.5 % more parameters) without
its construction. Own choice: tokens are gathered in square regions; each region of the template
attends to the regions of the search image with the highest affinity (routing as in BiFormer,
https://arxiv.org/abs/2303.08810), and the contribution of each is multiplied by a gate that sees
how the attention to it is spread.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED = -1e4
"""Logit of masked keys: finite, so that a row of masked keys alone is not NaN."""

_GATE_WIDTH = 16
_OPEN = 3.0  # bias of a new gate: nearly open, sigmoid(3) = 0.95


class Attended(NamedTuple):
    """Output of cross-attention of B templates, over T tokens of each region.

    Parameters
    ----------
    output : Tensor, shape (B, C, h, w)
        To be added to the queries' features.
    affinity : Tensor, shape (B, regions of queries, regions of keys)
        Logits of the routing.
    chosen : Tensor of int64, shape (B, regions of queries, K)
        Regions of keys that each region of queries attends to.
    weights : Tensor, shape (B, regions of queries, T, K * T)
        Attention to the tokens of the chosen regions, before the gate, mean over the heads.
    """

    output: Tensor
    affinity: Tensor
    chosen: Tensor
    weights: Tensor


class RegionAttention(nn.Module):
    """Cross-attention from a template's features to a search image's, by regions.

    `width` and `context_width` are their channels. A `region` is that many tokens wide, and attends to `top`
    others, or all where there are fewer.
    """

    def __init__(self, width: int, context_width: int, *, heads: int, region: int, top: int) -> None:
        super().__init__()
        self.heads, self.region, self.top = heads, region, top
        self.norm, self.context_norm = nn.GroupNorm(1, width), nn.GroupNorm(1, context_width)
        self.to_q = nn.Conv2d(width, width, 1, bias=False)
        self.to_k = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_v = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_out = nn.Conv2d(width, width, 1)
        self.gate = _gate()

    def forward(self, features: Tensor, context: Tensor, valid: Tensor) -> Attended:
        """Attend from features, shape (B, C, h, w), to a context, shape (B, C', H, W), where it is valid.

        Sides are multiples of the region's; `valid`, shape (B, 1, H, W), is 1 or 0.
        """
        normed = self.context_norm(context)
        q, k, v = self.to_q(self.norm(features)), self.to_k(normed), self.to_v(normed)
        queries, keys, values = (to_regions(part, self.region) for part in (q, k, v))  # [B, R, T, C]
        open_keys = to_regions(valid, self.region)[..., 0]  # [B, Rk, T]
        affinity = _affinity(queries, keys, open_keys)  # [B, Rq, Rk]
        chosen = affinity.detach().topk(min(self.top, keys.shape[1]), dim=-1).indices  # [B, Rq, K]
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
        let = weights * _gates(self.gate, weights, tokens)
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


_KERNEL = 5
_LEAST = -8.0  # of the evidence: one query without evidence must not overrule all others


class Mapped(NamedTuple):
    """Output of calibrated cross-attention.

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
    """The attention calibration block, ACB (supplement, section 2.2), of maps of `heads`.

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
        """Calibrate and renormalise logits of attention, float32, shape (B, heads, h, w, H, W).

        Keys that are `closed`, shape (B, H, W), must not be attended to. Returns probabilities over the keys.
        """
        barred = closed[:, None, None, None]
        free = (~closed).sum(dim=(1, 2)).clamp_min(1).log()[:, None, None, None, None, None]
        evidence = logits.flatten(4).log_softmax(dim=-1).view_as(logits) + free
        evidence = evidence.clamp_min(_LEAST).masked_fill(barred, 0.0)
        evidence = evidence + self._smooth(evidence)
        votes = count_displacement_votes(evidence.masked_fill(barred, 0.0))
        evidence = evidence + self.vote.view(1, -1, 1, 1, 1, 1) * votes
        final = evidence.float().masked_fill(barred, MASKED).flatten(4)
        return final.softmax(dim=-1).view_as(logits)

    def _smooth(self, evidence: Tensor) -> Tensor:
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


def count_displacement_votes(evidence: Tensor) -> Tensor:
    """Return for each query and key the mean evidence of all queries for keys with the same displacement.

    Evidence and votes have shape (B, heads, h, w, H, W); keys outside the search image count as 0.
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

    `width` and `context_width` are their channels, `hidden` those of the calibration.
    """

    def __init__(self, width: int, context_width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.context_norm = nn.GroupNorm(1, width), nn.GroupNorm(1, context_width)
        self.to_q = nn.Conv2d(width, width, 1, bias=False)
        self.to_k = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_v = nn.Conv2d(context_width, width, 1, bias=False)
        self.to_out = nn.Conv2d(width, width, 1)
        self.calibration = AttentionCalibration(heads, hidden)

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
        before = logits.softmax(dim=-1)
        grid = logits.unflatten(3, context.shape[-2:]).unflatten(2, features.shape[-2:])
        after = self.calibration(grid, closed).flatten(4).flatten(2, 3)
        mixed = torch.einsum("bhqk,bhdk->bhdq", after.to(v.dtype), v).flatten(1, 2)
        output = self.to_out(mixed.unflatten(-1, features.shape[-2:]))
        return Mapped(output, before.mean(dim=1), after.mean(dim=1))
