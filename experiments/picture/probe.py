"""Where structure is lost: linear probes of the optical image at 8-pixel means.

``probe.py --prepared DIR --bundled DIR [--direct FILE]``: ridge over neighbours on training ground,
correlation by octave on the validation fragments of the scenes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from measure import cut, grey
from picture_data import Pictures, decibels

from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.network import encode_images


def neighbours(f, k=2):
    """Return [H * W, C * (2 k + 1)^2] of [C, H, W], border replicated."""
    p = np.pad(f, ((0, 0), (k, k), (k, k)), mode="edge")
    h, w = f.shape[1:]
    parts = [p[:, i : i + h, j : j + w] for i in range(2 * k + 1) for j in range(2 * k + 1)]
    return np.concatenate(parts).reshape(-1, h * w).T


def blocks(x, n=8):
    """Return statistics of n x n blocks: mean and spread of dB, log of mean intensity, brightest."""
    h, w = x.shape[0] // n, x.shape[1] // n
    b = x.reshape(h, n, w, n).transpose(0, 2, 1, 3).reshape(h, w, -1)
    return np.stack([b.mean(-1), b.std(-1), 10 * np.log10((10 ** (b / 10)).mean(-1)), b.max(-1)])


class Places:
    """Features of a tile by place in the chain."""

    def __init__(self, bundled, direct):
        self.parts = load_checkpoint(bundled)
        self.vae, self.unet = self.parts.vae.eval(), self.parts.unet.eval()
        self.seen = {}
        self.unet.mid_block.register_forward_hook(lambda m, i, o: self.seen.update(mid=o))
        self.unet.conv_norm_out.register_forward_hook(lambda m, i, o: self.seen.update(last=o))
        self.net = None
        if direct:
            from conditioned import load_direct

            self.net = load_direct(direct)

    @torch.no_grad()
    def __call__(self, db, raw):
        """Return {name: [C, 32, 32]}."""
        out = {"SAR pixels": blocks(db)}
        x = torch.from_numpy(np.repeat(raw[None] / 127.5 - 1, 3, 0))[None].float()
        z = encode_images(self.vae, x)
        out["SAR latents (6)"] = z[0].numpy()
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        prompt = self.parts.prompt_embeds
        for name, t, noisy in (("t 999", 999, noise), ("t 999, no noise", 999, 0 * noise)):
            self.unet(torch.cat([z, noisy], 1), torch.tensor([t]), encoder_hidden_states=prompt)
            out[f"U-Net last, {name}"] = self.seen["last"][0].numpy()
            mid = torch.nn.functional.interpolate(self.seen["mid"], size=(32, 32), mode="bilinear")
            out[f"U-Net middle, {name}"] = mid[0].numpy()
        if self.net is not None:
            from sar2eo.model.encoder import describe_backscatter

            f = describe_backscatter(torch.from_numpy(db)[None, None], torch.tensor([1]))
            trunk = self.net.trunk(f.contiguous(memory_format=torch.channels_last))
            out["direct network's trunk"] = torch.nn.functional.avg_pool2d(trunk, 2)[0].numpy()
        return out


def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--bundled", type=Path, required=True)
    p.add_argument("--direct", type=Path)
    p.add_argument("--tiles", type=int, default=70)
    o = p.parse_args()
    torch.set_num_threads(1)
    pictures, rng = Pictures(o.prepared), np.random.default_rng(0)
    places = Places(o.bundled, o.direct)
    corners = pictures.corners(256)
    data = {"training": [], "validation": []}
    for n in pictures.scenes:
        for y, x in corners[n][rng.choice(len(corners[n]), o.tiles // 3, replace=False)]:
            s, e, _, _ = pictures.scenes[n]
            s = np.array(s[y : y + 256, x : x + 256])
            data["training"].append((decibels(s, "scenes", n), s, np.array(e[:, y : y + 256, x : x + 256])))
        for r, c in pictures.places["validation"][n]:
            at = np.s_[r * 1024 : r * 1024 + 1024, c * 1024 : c * 1024 + 1024]
            s, e = np.array(pictures.scenes[n][0][at]), np.array(pictures.scenes[n][1][(slice(None), *at)])
            tiles = list(zip(cut(decibels(s, "scenes", n)), cut(s), cut(e), strict=True))
            data["validation"] += tiles[::3]
    made = {k: [(places(d, s), grey(blocks8(e))) for d, s, e in v] for k, v in data.items()}
    freq = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]) / 8
    wave = 1 / np.maximum(freq, 1e-9)
    window = np.hanning(32)[:, None] * np.hanning(32)
    for name in made["training"][0][0]:
        k = 2 if made["training"][0][0][name].shape[0] < 100 else 1
        a = np.concatenate([neighbours(f[name], k) for f, _ in made["training"]]).astype(np.float64)
        b = np.concatenate([t.ravel() for _, t in made["training"]])
        mean, spread, level = a.mean(0), a.std(0) + 1e-6, b.mean()
        a = (a - mean) / spread
        w = np.linalg.solve(a.T @ a + 0.01 * len(a) * np.eye(a.shape[1]), a.T @ (b - level))
        acc = np.zeros((3, 3))
        flat = []
        for f, t in made["validation"]:
            y = (((neighbours(f[name], k) - mean) / spread) @ w).reshape(32, 32)
            flat.append((y.ravel(), t.ravel() - level))
            fy, ft = (np.fft.fft2((v - v.mean()) * window) for v in (y, t))
            for i, (lo, hi) in enumerate(((16, 32), (32, 64), (64, 128))):
                m = (wave >= lo) & (wave < hi)
                acc[i] += [
                    (fy[m] * ft[m].conj()).real.sum(),
                    (abs(fy[m]) ** 2).sum(),
                    (abs(ft[m]) ** 2).sum(),
                ]
        c = acc[:, 0] / np.sqrt(acc[:, 1] * acc[:, 2])
        y, t = (np.concatenate(v) for v in zip(*flat, strict=True))
        print(f"{name:28s} {a.shape[1]:5d} features: 16-32, 32-64, 64-128 px", c.round(3),
              "8-pixel means", np.corrcoef(y, t)[0, 1].round(3), flush=True)  # fmt: skip


def blocks8(e):
    """Return 8-pixel means of [3, H, W]."""
    return e.reshape(3, 32, 8, 32, 8).mean((2, 4)).astype(np.float32)


if __name__ == "__main__":
    main()
