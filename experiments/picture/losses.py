"""What the direct network is trained on: colour, structure and correlation by octave."""

import torch
from torch.nn import functional as F

GREY = (0.299, 0.587, 0.114)
HARMONICS = (1.0, 1.8, 1.31, 0.76)


def grey(x):
    """Return luminance [N, 1, H, W]."""
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def gaussian(x, sigma):
    """Return x smoothed, without the border that the kernel does not cover."""
    r = int(3 * sigma + 0.5)
    t = torch.arange(-r, r + 1, dtype=x.dtype)
    k = torch.exp(-(t**2) / (2 * sigma**2))
    k = (k / k.sum()).view(1, 1, 1, -1).repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(F.conv2d(x, k, groups=x.shape[1]), k.transpose(2, 3), groups=x.shape[1])


def orientation(g, before, after):
    """Return unit descriptors of gradient orientation modulo pi, [N, 7, h, w], without a border.

    The harmonics stand for soft histograms of eight bins, as the measure of structure has them;
    ``before`` and ``after`` are the widths of smoothing before the gradient and of the descriptor.
    """
    g = gaussian(g, before)
    dx, dy = g[..., 1:-1, 2:] - g[..., 1:-1, :-2], g[..., 2:, 1:-1] - g[..., :-2, 1:-1]
    m = torch.sqrt(dx**2 + dy**2 + 1e-7)
    c, s = (dx**2 - dy**2) / m**2, 2 * dx * dy / m**2
    parts, a, b = [m * HARMONICS[0] ** 0.5], c, s
    for h in HARMONICS[1:]:
        parts += [m * a * h**0.5, m * b * h**0.5]
        a, b = a * c - b * s, a * s + b * c
    d = gaussian(torch.cat(parts, 1), after)
    return d / ((d * d).sum(1, keepdim=True).add(1e-9).sqrt() + 1e-2 * m.mean((1, 2, 3), keepdim=True) + 1e-5)


def likeness(a, b):
    """Return per sample the correlation of two maps of descriptors about their means over the crop.

    Their plain cosine is mostly the mean, and is raised by drawing what has no direction.
    """
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (a, b))
    ab, aa, bb = ((x * y).sum((1, 2, 3)) for x, y in ((a, b), (a, a), (b, b)))
    return ab / torch.sqrt(aa * bb + 1e-9)


def octaves(x, levels=6):
    """Return differences of successive means of 2 x 2: about 2-4, 4-8, ... pixels, and what is left."""
    out = []
    for _ in range(levels):
        y = F.avg_pool2d(x, 2)
        out.append(x - F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False))
        x = y
    return out, x


def cosine(p, t):
    """Return per sample and channel the cosine of two bands, and the ratio of their power."""
    pt, pp, tt = (torch.sum(a * b, (2, 3)) for a, b in ((p, t), (p, p), (t, t)))
    n = p.shape[2] * p.shape[3]
    return pt / torch.sqrt((pp + 1e-5 * n) * (tt + 1e-5 * n)), pp / n, tt / n


def picture_loss(p, t, power=(0.5, 0.8, 0.4, 0.4, 0.4, 0.4), structure=1.5):
    """Return the loss and its parts.

    Parameters
    ----------
    p, t : torch.Tensor
        Prediction and truth, [N, 3, H, W], about 0..1.
    power : tuple of float
        The share of the truth's power that the prediction is led to, by octave from 2-4 pixels. In the first
        two only too much is punished: asked for power there, the network draws a fixed pattern.
    """
    parts = {}
    parts["l1"] = (p - t).abs().mean()
    parts["colour"] = (F.avg_pool2d(p, 8) - F.avg_pool2d(t, 8)).abs().mean()
    parts["level"] = ((F.avg_pool2d(p, 32) - F.avg_pool2d(t, 32)) ** 2).mean()
    # Luminance and two colour differences, so that correlation in colour counts as well.
    mix = p.new_tensor([[0.299, 0.587, 0.114], [0.7, -0.5, -0.2], [-0.3, -0.4, 0.7]])
    cos = amount = 0.0
    half_p, half_t = F.avg_pool2d(p, 2), F.avg_pool2d(t, 2)
    fine_p, fine_t = (grey(a) - F.interpolate(grey(h), scale_factor=2) for a, h in ((p, half_p), (t, half_t)))
    bp, _ = octaves(torch.einsum("ij,njhw->nihw", mix, half_p), 5)
    bt, _ = octaves(torch.einsum("ij,njhw->nihw", mix, half_t), 5)
    for k, (a, b) in enumerate(zip([fine_p, *bp], [fine_t, *bt], strict=True)):
        c, pp, tt = cosine(a, b)
        weight = p.new_tensor([1.0, 0.3, 0.3])[: a.shape[1]]
        cos = cos + (0.1 if k == 0 else 1.0) * ((1 - c) * weight).mean()
        log = torch.log((pp.mean(0) + 1e-5) / (power[k] * tt.mean(0) + 1e-5))
        each = torch.log((pp + 1e-4) / (power[k] * tt + 1e-4))
        if k < 2:
            log, each = log.clamp(min=0), each.clamp(min=0)
        amount = amount + ((log**2 + 0.25 * each**2).clamp(max=16) * weight).mean()
    parts["cos"], parts["amount"] = cos, amount
    gp, gt = grey(half_p), grey(half_t)
    unlike = 0.0
    for k in range(3):
        widths = (0.75, 1.0) if k == 0 else (0.8, 1.2)
        unlike = unlike + (1 - likeness(orientation(gp, *widths), orientation(gt, *widths))).mean()
        gp, gt = F.avg_pool2d(gp, 2), F.avg_pool2d(gt, 2)
    parts["structure"] = unlike
    weights = {"l1": 1.0, "colour": 10.0, "level": 20.0, "cos": 0.5, "amount": 0.1, "structure": structure}
    total = sum(w * parts[k] for k, w in weights.items())
    return total, parts
