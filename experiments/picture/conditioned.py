"""C-DiffSET with a condition of its own: the direct network's trunk as SAR encoder, its picture as start.

The U-Net's input is [SAR latents (16) | guide (6) | trust (1) | noisy EO latents (6)] at factor 8, its output
v and one channel of variance. Sampling starts not from noise alone but from the direct latents with noise of
a timestep below 1000: what the radar decides stays, what it leaves open is drawn.

The guide is the direct latents. They are right by little (a correlation of 0.2 to 0.5), so a network that is
honest about it draws another picture for each noise. Therefore in training a share of the guide is that of
the true image without its fine texture, and the share stands in the channel of trust: at trust 0 the network
says what is known, which is what confidence is taken from; at trust 1 it keeps the guide and draws texture.
"""

import itertools

import torch
from diffusers import UNet2DConditionModel
from direct_network import Direct
from torch import nn
from torch.nn import functional as F

from sar2eo.model.encoder import Block, ChannelNorm

STEPS = 1000
LATENT = 6
SAR = 16


def alphas_bar():
    """Return the schedule of the bundled model: scaled linear, with zero terminal SNR."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float()


class Adapter(nn.Module):
    """From the trunk's features at factor 4 to SAR latents and direct latents at factor 8."""

    def __init__(self, width=64, inner=96):
        super().__init__()
        self.down = nn.Conv2d(width, inner, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(inner, inner), Block(inner, inner))
        self.norm = ChannelNorm(inner)
        self.out = nn.Conv2d(inner, SAR + LATENT, 3, padding=1)

    def forward(self, trunk):
        """Return (SAR latents, direct latents)."""
        y = self.out(F.silu(self.norm(self.blocks(self.down(trunk)))))
        return y[:, :SAR], y[:, SAR:].float()


class Conditioned(nn.Module):
    """Adapter and U-Net; the direct network stands beside it, frozen.

    Parameters
    ----------
    widths : tuple of int
        Of the U-Net, at factors 8, 16 and 32.
    """

    def __init__(self, widths=(96, 160, 224)):
        super().__init__()
        self.adapter = Adapter()
        self.unet = UNet2DConditionModel(
            in_channels=SAR + 2 * LATENT + 1,
            out_channels=LATENT + 1,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            norm_num_groups=16,
        )
        with torch.no_grad():
            self.unet.conv_out.weight[LATENT:].zero_()
            self.unet.conv_out.bias[LATENT:].zero_()

    def denoise(self, sar, guide, trust, noisy, t):
        """Return (v, variance) of noisy EO latents at timesteps t."""
        trust = trust.to(noisy.dtype).view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        x = torch.cat([sar.to(noisy.dtype), guide.to(noisy.dtype), trust, noisy], 1)
        x = x.contiguous(memory_format=torch.channels_last)
        y = self.unet(x, t, encoder_hidden_states=None, return_dict=False)[0].float()
        variance = F.softplus(y[:, LATENT:] + 0.541324) + 1e-6
        return y[:, :LATENT], variance.clamp(1e-6, 10)


def c_diff_loss(v, variance, target, alpha):
    """Return the paper's likelihood without its constant, weighted by variance ** sqrt(alpha-bar)."""
    nll = 0.5 * ((target - v) ** 2 / variance + variance.log())
    return (nll * variance.detach() ** alpha.sqrt()).mean()


@torch.no_grad()
def sample(model, trunk, noise, start=500, steps=3, trust=1.0, temperature=1.0):
    """Return EO latents drawn from the direct latents with noise of timestep ``start`` (DDIM, eta 0)."""
    a = alphas_bar()
    sar, direct = model.adapter(trunk)
    first = min(start, STEPS) - 1
    x = a[first].sqrt() * direct + (1 - a[first]).sqrt() * noise * temperature
    times = [round(start * (steps - k) / steps) - 1 for k in range(steps)] + [-1]
    for now, after in itertools.pairwise(times):
        v, _ = model.denoise(sar, direct, torch.full((len(x),), trust), x, torch.full((len(x),), now))
        clean = a[now].sqrt() * x - (1 - a[now]).sqrt() * v
        if after < 0:
            return clean
        drawn = (1 - a[now]).sqrt() * x + a[now].sqrt() * v
        x = a[after].sqrt() * clean + (1 - a[after]).sqrt() * drawn
    return x


def load_direct(path):
    """Return the direct network of a weights file, frozen."""
    from safetensors.torch import load_file

    net = Direct()
    net.load_state_dict(load_file(path))
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
