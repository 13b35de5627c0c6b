"""The conditioned model for ``measure.py``: ``conditioned:RUN[,start[,steps[,trust[,temperature]]]]``."""

import os
from pathlib import Path

import numpy as np
import torch
from conditioned import LATENT, Conditioned, load_direct, sample
from direct_network import SOURCES
from safetensors.torch import load_file

from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.encoder import describe_backscatter
from sar2eo.model.network import decode_latents
from sar2eo.model.noise import draw_scene_noise


class Diffusion:
    """The averaged weights of a run, drawn in tiles of 512 with the scene's noise.

    Parameters
    ----------
    words : str
        The run's folder, where sampling starts, steps, trust, temperature.
    """

    def __init__(self, words):
        run, *numbers = words.split(",")
        given = [float(n) for n in numbers]
        start, steps, trust, temperature = given + [500, 3, 1, 1][len(given) :]
        self.settings = int(start), int(steps), trust, temperature
        self.net = load_direct(Path(run) / "direct.safetensors")
        self.model = Conditioned().to(memory_format=torch.channels_last).eval()
        self.model.load_state_dict(load_file(Path(run) / "average.safetensors"))
        self.vae = load_checkpoint(os.environ["SAR2EO_BUNDLED"]).vae.eval()

    @torch.no_grad()
    def __call__(self, db, raw, source, flag, seed):
        """Return [3, H, W] bytes, in the stretch of the source."""
        out = np.zeros((3, *db.shape), np.uint8)
        step = min(512, db.shape[0])
        for i in range(0, db.shape[0], step):
            for j in range(0, db.shape[1], step):
                x = describe_backscatter(
                    torch.from_numpy(db[None, None, i : i + step, j : j + step]), torch.tensor([flag])
                )
                rows, columns = (range(k // 8, (k + step) // 8) for k in (i, j))
                noise = torch.from_numpy(draw_scene_noise(seed, rows, columns, LATENT, 0))[None]
                with torch.autocast("cpu", torch.bfloat16):
                    trunk = self.net.trunk(x.contiguous(memory_format=torch.channels_last))
                    z = sample(self.model, trunk, noise, *self.settings)
                y = (decode_latents(self.vae, z.float()).clamp(-1, 1) + 1) / 2
                y = self.net.restretch(y, torch.tensor([SOURCES.index(source)]))
                out[:, i : i + step, j : j + step] = (y[0].clamp(0, 1) * 255).round().byte().numpy()
        return out
