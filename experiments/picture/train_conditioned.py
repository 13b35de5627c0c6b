"""Train the conditioned C-DiffSET model; the same command resumes.

``train_conditioned.py --prepared DIR --direct FILE --bundled DIR --run DIR``

Crops are encoded once, by the bundled VAE and the frozen direct network, into a ring of which batches are
drawn: every step puts new crops in. Half of the timesteps are those near 500, where sampling starts.
"""

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from conditioned import LATENT, Conditioned, alphas_bar, c_diff_loss, load_direct, sample
from losses import gaussian, grey, octaves
from muon import Both
from picture_data import Crops, Pictures
from safetensors.torch import save_file
from torch.nn import functional as F

from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.encoder import describe_backscatter
from sar2eo.model.network import decode_latents, encode_images


def keep(run, net, average, optimiser, step, seconds):
    """Write the state atomically."""
    state = {
        "net": net.state_dict(),
        "average": average,
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, run / "state.tmp")
    (run / "state.tmp").replace(run / "state.pt")
    save_file({k: v.contiguous().clone() for k, v in average.items()}, run / "average.tmp")
    (run / "average.tmp").replace(run / "average.safetensors")


class Ring:
    """The newest crops as the U-Net sees them."""

    def __init__(self, size, side=32):
        self.trunk = np.zeros((size, 64, 2 * side, 2 * side), np.float16)
        self.direct = np.zeros((size, LATENT, side, side), np.float16)
        self.eo = np.zeros((size, LATENT, side, side), np.float16)
        self.plain = np.zeros((size, LATENT, side, side), np.float16)
        self.size, self.count = size, 0

    def put(self, *new):
        """Put crops in, over the oldest."""
        for parts in zip(*new, strict=True):
            i = self.count % self.size
            for array, p in zip((self.trunk, self.direct, self.eo, self.plain), parts, strict=True):
                array[i] = p.float().numpy()
            self.count += 1

    def draw(self, rng, n):
        """Return a batch."""
        k = rng.integers(min(self.count, self.size), size=n)
        return (torch.from_numpy(a[k]).float() for a in (self.trunk, self.direct, self.eo, self.plain))


@torch.no_grad()
def encode(net, vae, crops, n):
    """Return (trunk, direct latents, EO latents, EO latents without texture) of new crops."""
    db, eo, flag, source = crops.batch(n)
    x = describe_backscatter(torch.from_numpy(db)[:, None], torch.from_numpy(flag)).to(
        memory_format=torch.channels_last
    )
    with torch.autocast("cpu", torch.bfloat16):
        trunk = net.trunk(x)
        image = F.pixel_shuffle(net.head(F.silu(net.norm(trunk))), 4).float()
    gain = torch.cat([torch.ones(1, 3), net.gain])[source][:, :, None, None]
    bias = torch.cat([torch.zeros(1, 3), net.bias])[source][:, :, None, None]
    truth = ((torch.from_numpy(eo).float() / 255 - bias) / gain).clamp(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        sigma = float(crops.rng.uniform(0.4, 2.0))  # the direct picture has some texture of its own
        r = int(3 * sigma + 0.5)
        plain = gaussian(F.pad(truth, (r, r, r, r), mode="replicate"), sigma)
        z = encode_images(vae, torch.cat([image.clamp(0, 1), truth, plain]) * 2 - 1).float()
    return trunk, *z.split(n)


@torch.no_grad()
def validate(model, net, vae, tiles):
    """Return correlation, power and agreement of two draws by octave (grey), pooled by group."""
    out = {}
    for group, members in tiles.items():
        acc = np.zeros((6, 5))
        for db, eo, flag in members:
            x = describe_backscatter(db[None, None], torch.tensor([flag])).to(
                memory_format=torch.channels_last
            )
            with torch.autocast("cpu", torch.bfloat16):
                trunk = net.trunk(x)
            made = []
            for seed in (0, 1):
                noise = torch.randn(1, LATENT, 32, 32, generator=torch.Generator().manual_seed(seed))
                with torch.autocast("cpu", torch.bfloat16):
                    z = sample(model, trunk, noise, 500, 3)
                    y = decode_latents(vae, z.float())
                made.append(octaves(grey((y.float().clamp(-1, 1) + 1) / 2))[0])
            t = octaves(grey(eo[None].float() / 255))[0]
            for k in range(6):
                a, b, c = made[0][k], made[1][k], t[k]
                acc[k] += [float((u * w).sum()) for u, w in ((a, c), (a, a), (c, c), (a, b), (b, b))]
        out[group] = {
            "corr": (acc[:, 0] / np.sqrt(acc[:, 1] * acc[:, 2])).round(3).tolist(),
            "power": (acc[:, 1] / acc[:, 2]).round(2).tolist(),
            "agree": (acc[:, 3] / np.sqrt(acc[:, 1] * acc[:, 4])).round(3).tolist(),
        }
    return out


def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument(
        "--direct", type=Path, required=True, help="its weights are copied into the run at the start"
    )
    p.add_argument("--bundled", type=Path, required=True, help="a checkpoint folder, for its VAE")
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--until", default="")
    p.add_argument("--batch", type=int, default=10)
    p.add_argument("--fresh", type=int, default=1, help="new crops a step")
    p.add_argument("--ring", type=int, default=3000)
    p.add_argument("--rate", type=float, default=4e-4)
    p.add_argument("--steps", type=int, default=0, help="stop after so many (for timing)")
    o = p.parse_args()
    torch.set_num_threads(1)
    o.run.mkdir(parents=True, exist_ok=True)
    if not (o.run / "direct.safetensors").exists():
        (o.run / "direct.safetensors").write_bytes(o.direct.read_bytes())
    net = load_direct(o.run / "direct.safetensors")
    vae = load_checkpoint(o.bundled).vae.eval()
    torch.manual_seed(2)
    model = Conditioned().to(memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = Both(model, o.rate, ("unet.conv_in", "unet.conv_out", "adapter.out"))
    step, seconds = 0, 0.0
    if (o.run / "state.pt").exists():
        s = torch.load(o.run / "state.pt", weights_only=True)
        model.load_state_dict(s["net"])
        if "optimiser" in s:
            optimiser.load_state_dict(s["optimiser"])
        average, step, seconds = s["average"], s["step"], s["seconds"]
    pictures = Pictures(o.prepared)
    crops = Crops(pictures, size=256, seed=2000 + step)
    rng = np.random.default_rng(3000 + step)
    torch.manual_seed(4000 + step)
    tiles = {}
    for k, (place, source, db, eo, flag) in enumerate(pictures.held_out("validation")):
        if source == "scenes" and k % 4 == 0:
            group = "San Antonio" if place.startswith("san") else "Los Angeles"
            tiles.setdefault(group, []).append((torch.tensor(db), torch.tensor(eo), flag))
    alphas = alphas_bar()
    ring = Ring(o.ring)
    while ring.count < 3 * o.batch:
        ring.put(*encode(net, vae, crops, 4))
    log = (o.run / "log.jsonl").open("a")
    print(sum(v.numel() for v in model.parameters()) / 1e6, "M parameters; start at", step, flush=True)
    begun = kept = checked = time.time()
    total, first = {}, step
    while True:
        now = time.time()
        rate = o.rate * min(1, (step + 1) / 200)
        optimiser.rate(rate)
        ring.put(*encode(net, vae, crops, o.fresh))
        trunk, direct, eo, plain = ring.draw(rng, o.batch)
        n = len(eo)
        near = torch.rand(n) < 0.5
        t = torch.where(near, torch.randint(300, 700, (n,)), torch.randint(0, 1000, (n,)))
        a = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(eo)
        noisy = a.sqrt() * eo + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * eo
        with torch.autocast("cpu", torch.bfloat16):
            sar, guess = model.adapter(trunk.contiguous(memory_format=torch.channels_last))
            # The direct latents are better on training ground than on new ground: noise takes that off.
            blur = torch.rand(n, 1, 1, 1) * 0.4 * (torch.rand(n, 1, 1, 1) < 0.5)
            trust = torch.rand(n) * (torch.rand(n) < 0.7)
            guide = torch.lerp(guess.detach(), plain, trust.view(-1, 1, 1, 1))
            guide = guide + blur * torch.randn_like(guess)
            v, variance = model.denoise(sar, guide, trust, noisy, t)
        parts = {
            "cdiff": c_diff_loss(v, variance, target, a),
            "mse": ((v.detach() - target) ** 2).mean(),
            "mse_high": ((v.detach() - target) ** 2)[t > 700].mean()
            if (t > 700).any()
            else torch.tensor(1.0),
            "mse_known": ((v.detach() - target) ** 2)[trust == 0].mean()
            if (trust == 0).any()
            else torch.tensor(0.9),
            "direct": F.smooth_l1_loss(guess, direct),
        }
        loss = parts["cdiff"] + parts["direct"]
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        step += 1
        decay = min(0.999, (1 + step) / (10 + step))
        for k, w in model.state_dict().items():
            average[k].lerp_(w, 1 - decay)
        for k, w in {**parts, "loss": loss, "norm": norm, "variance": variance.mean()}.items():
            total[k] = total.get(k, 0) + float(w.detach())
        seconds += time.time() - now
        end = bool(o.until) and datetime.datetime.now().strftime("%H:%M") >= o.until
        end |= bool(o.steps) and step - first >= o.steps
        if step % 50 == 0:
            line = {"step": step, "samples": step * o.batch, "ring": min(ring.count, ring.size)}
            line |= {"minutes": round(seconds / 60, 1)} | {k: round(w / 50, 4) for k, w in total.items()}
            total = {}
            log.write(json.dumps(line) + "\n")
            log.flush()
        if now - kept > 180 or end:
            keep(o.run, model, average, optimiser, step, seconds)
            kept = now
        if now - checked > 1200 or end:
            checked = now
            other = Conditioned().to(memory_format=torch.channels_last).eval()
            other.load_state_dict(average)
            found = validate(other, net, vae, tiles)
            log.write(
                json.dumps({"step": step, "minutes": round(seconds / 60, 1), "validation": found}) + "\n"
            )
            log.flush()
        if end:
            break
    print(step, "steps,", round(time.time() - begun), "s", flush=True)


if __name__ == "__main__":
    main()
