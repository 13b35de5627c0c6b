"""The direct network: radar features in, optical image out, in one pass."""

import torch
from torch import nn
from torch.nn import functional as F

from sar2eo.model.encoder import Block, ChannelNorm

WIDTHS = (64, 128, 192, 256)
SOURCES = ("scenes", "ombria", "sen12", "desert")


class Direct(nn.Module):
    """A U-Net at a quarter of the resolution.

    Parameters
    ----------
    widths : tuple of int
        Channels at 1/4, 1/8, 1/16 and 1/32.
    """

    def __init__(self, widths=WIDTHS):
        super().__init__()
        self.stem = nn.Conv2d(66, widths[0], 3, padding=1)
        self.down, self.enc = nn.ModuleList(), nn.ModuleList()
        for k, w in enumerate(widths):
            if k:
                self.down.append(nn.Conv2d(widths[k - 1], w, 2, stride=2))
            self.enc.append(nn.Sequential(Block(w, w), Block(w, w)))
        self.up, self.dec = nn.ModuleList(), nn.ModuleList()
        for k in range(len(widths) - 1, 0, -1):
            self.up.append(nn.Conv2d(widths[k], widths[k - 1], 1))
            self.dec.append(Block(2 * widths[k - 1], widths[k - 1]))
        self.last = nn.Sequential(Block(widths[0], widths[0]))
        self.norm = ChannelNorm(widths[0])
        self.head = nn.Conv2d(widths[0], 48, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, 0.45)
        # From the scenes' stretch to the other sources': gain and bias by colour; the scenes' is identity.
        gain = torch.tensor([[0.77, 0.75, 0.78], [0.77, 0.75, 0.78], [0.47, 0.47, 0.47]])
        bias = torch.tensor([[-0.07, -0.16, -0.28], [-0.07, -0.16, -0.28], [0.0, 0.0, 0.0]])
        self.gain, self.bias = nn.Parameter(gain), nn.Parameter(bias)

    def trunk(self, x):
        """Return features at a quarter of the resolution."""
        x = self.stem(x)
        kept = []
        for k, enc in enumerate(self.enc):
            x = enc(self.down[k - 1](x) if k else x)
            kept.append(x)
        for k, (up, dec) in enumerate(zip(self.up, self.dec, strict=True)):
            y = F.interpolate(up(x), scale_factor=2, mode="nearest")
            x = dec(torch.cat([y, kept[-2 - k]], 1))
        return self.last(x)

    def forward(self, x):
        """Return the optical image in the scenes' stretch, about 0..1, [N, 3, H, W]."""
        return F.pixel_shuffle(self.head(F.silu(self.norm(self.trunk(x)))), 4)

    def restretch(self, image, source):
        """Return the image in the stretch of each sample's source (index into SOURCES)."""
        gain = torch.cat([torch.ones_like(self.gain[:1]), self.gain])[source][:, :, None, None]
        bias = torch.cat([torch.zeros_like(self.bias[:1]), self.bias])[source][:, :, None, None]
        return image * gain + bias
