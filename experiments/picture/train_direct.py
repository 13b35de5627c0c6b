"""Train the direct network: ``train_direct.py --prepared DIR --run DIR``; the same command resumes."""

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from adversary import Adversary
from direct_network import SOURCES, Direct
from losses import grey, octaves, picture_loss
from muon import Both
from picture_data import Crops, Pictures
from safetensors.torch import save_file

from sar2eo.model.encoder import average_squares, describe_backscatter

SEEN = 128
"""Side of what the adversary sees of a crop."""


def keep(run, net, average, optimiser, step, seconds, seen):
    """Write the state atomically."""
    state = {"net": net.state_dict(), "average": average, "optimiser": optimiser.state_dict(), "step": step,
             "seconds": seconds, "seen": seen}  # fmt: skip
    torch.save(state, run / "state.tmp")
    (run / "state.tmp").replace(run / "state.pt")
    save_file({k: v.contiguous().clone() for k, v in average.items()}, run / "average.tmp")
    (run / "average.tmp").replace(run / "average.safetensors")


@torch.no_grad()
def validate(net, tiles):
    """Return correlation and power by octave (grey), and PSNR gain over mean colour at 8 pixels, by group."""
    out = {}
    for group, members in tiles.items():
        acc, err, base = np.zeros((6, 3)), 0.0, 0.0
        truth = torch.stack([m[1] for m in members]).float() / 255
        mean = truth.mean((0, 2, 3))
        for i in range(0, len(members), 8):
            part = members[i : i + 8]
            db = torch.stack([m[0] for m in part])[:, None]
            flag = torch.tensor([m[2] for m in part])
            source = torch.tensor([m[3] for m in part])
            with torch.autocast("cpu", torch.bfloat16):
                p = net(describe_backscatter(db, flag).to(memory_format=torch.channels_last))
            p = net.restretch(p.float(), source).clamp(0, 1)
            t = truth[i : i + 8]
            for k, (a, b) in enumerate(zip(octaves(grey(p))[0], octaves(grey(t))[0], strict=True)):
                acc[k] += [(a * b).sum(), (a * a).sum(), (b * b).sum()]
            p8, t8 = torch.nn.functional.avg_pool2d(p, 8), torch.nn.functional.avg_pool2d(t, 8)
            err += ((p8 - t8) ** 2).sum().item()
            base += ((t8 - mean[:, None, None]) ** 2).sum().item()
        c = acc[:, 0] / np.sqrt(acc[:, 1] * acc[:, 2])
        out[group] = {"corr": c.round(3).tolist(), "power": (acc[:, 1] / acc[:, 2]).round(2).tolist(),
                      "gain8": round(10 * np.log10(base / err), 2)}  # fmt: skip
    return out


def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--until", default="")
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--rate", type=float, default=8e-4)
    p.add_argument(
        "--cool", type=float, default=0, help="minutes over which the rate falls to zero, then stop"
    )
    p.add_argument("--steps", type=int, default=0, help="stop after so many (for timing)")
    p.add_argument(
        "--adversary", type=float, default=0, help="its gradient's size over that of the other losses"
    )
    p.add_argument("--structure", type=float, default=1.5, help="weight of the correlation of orientations")
    o = p.parse_args()
    torch.set_num_threads(1)
    o.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    net = Direct().to(memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = Both(net, o.rate)
    step, seconds, seen = 0, 0.0, 0
    if (o.run / "state.pt").exists():
        s = torch.load(o.run / "state.pt", weights_only=True)
        net.load_state_dict(s["net"])
        if "muon" in s["optimiser"]:
            optimiser.load_state_dict(s["optimiser"])
        average, step, seconds, seen = s["average"], s["step"], s["seconds"], s.get("seen", 8 * s["step"])
    adversary, begin = None, step
    if o.adversary:
        adversary = Adversary()
        if (o.run / "adversary.pt").exists():
            s = torch.load(o.run / "adversary.pt", weights_only=True)
            adversary.heads.load_state_dict(s["heads"])
            adversary.optimiser.load_state_dict(s["optimiser"])
            begin = s["begin"]
    pictures = Pictures(o.prepared)
    crops = Crops(pictures, seed=1000 + step)
    tiles = {}
    for k, (place, source, db, eo, flag) in enumerate(pictures.held_out("validation")):
        group = place if source == "scenes" else source
        if k % 3 == 0:
            tiles.setdefault(group, []).append((torch.tensor(db, dtype=torch.float32), torch.tensor(eo), flag,
                                                SOURCES.index(source)))  # fmt: skip
    log = (o.run / "log.jsonl").open("a")
    print(sum(v.numel() for v in net.parameters()) / 1e6, "M parameters; start at", step, flush=True)
    begun = kept = checked = time.time()
    total = {}
    first = step
    while True:
        now = time.time()
        rate = o.rate * min(1, (step + 1) / 200)
        if o.cool:
            rate *= max(0.0, 1 - (now - begun) / 60 / o.cool)
        optimiser.rate(rate)
        db, eo, flag, source = crops.batch(o.batch)
        x = describe_backscatter(torch.from_numpy(db)[:, None], torch.from_numpy(flag)).to(
            memory_format=torch.channels_last
        )
        truth = torch.from_numpy(eo).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        y = y.float()
        drawn = y.detach().requires_grad_(True)
        stretched = net.restretch(drawn, torch.from_numpy(source))
        loss, parts = picture_loss(stretched, truth, structure=o.structure)
        optimiser.zero_grad()
        loss.backward()
        grad = drawn.grad
        if adversary is not None:
            # Seen in the scenes' stretch, whatever the source; a part of the crop is enough.
            top, left = np.random.default_rng(step).integers(0, truth.shape[-1] - SEEN + 1, 2)
            cut = (..., slice(top, top + SEEN), slice(left, left + SEEN))
            with torch.no_grad():
                gain, bias = (
                    net.restretch(torch.ones_like(truth), torch.from_numpy(source)),
                    net.restretch(torch.zeros_like(truth), torch.from_numpy(source)),
                )
                same = ((truth - bias) / (gain - bias)).clamp(0, 1)
            part = drawn.detach()[cut].clone().requires_grad_(True)
            level = torch.from_numpy(db)[:, None][cut] / 8
            flags = torch.from_numpy(flag).float().view(-1, 1, 1, 1).expand_as(level)
            radar = torch.cat([level, average_squares(level, 9), flags], 1)
            adversarial, distance, judged = adversary.judge(part, same[cut], radar)
            (told,) = torch.autograd.grad(adversarial + 2.0 * distance, part)
            size = grad[cut].norm() / (told.norm() + 1e-12) * o.adversary * min(1, (step - begin) / 200)
            grad[cut] += size * told
            parts |= {"adversarial": adversarial, "distance": distance, "judged": judged}
        y.backward(grad)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        step += 1
        seen += o.batch
        decay = min(0.999, (1 + step) / (10 + step))
        for k, v in net.state_dict().items():
            average[k].lerp_(v, 1 - decay)
        for k, v in {**parts, "loss": loss, "norm": norm}.items():
            total[k] = total.get(k, 0) + float(v.detach())
        seconds += time.time() - now
        end = bool(o.until) and datetime.datetime.now().strftime("%H:%M") >= o.until
        end |= bool(o.cool) and now - begun > o.cool * 60
        end |= bool(o.steps) and step - first >= o.steps
        if step % 50 == 0:
            line = {"step": step, "samples": seen, "minutes": round(seconds / 60, 1), "rate": round(rate, 6)}
            line |= {k: round(v / 50, 4) for k, v in total.items()}
            total = {}
            log.write(json.dumps(line) + "\n")
            log.flush()
        if now - kept > 180 or end:
            keep(o.run, net, average, optimiser, step, seconds, seen)
            if adversary is not None:
                state = {"heads": adversary.heads.state_dict(), "optimiser": adversary.optimiser.state_dict()}
                torch.save(state | {"begin": begin}, o.run / "adversary.pt")
            kept = now
        if now - checked > 480 or end:
            checked = now
            other = Direct().to(memory_format=torch.channels_last)
            other.load_state_dict(average)
            found = {
                "step": step,
                "minutes": round(seconds / 60, 1),
                "validation": validate(other.eval(), tiles),
            }
            log.write(json.dumps(found) + "\n")
            log.flush()
        if end:
            break
    print(step, "steps,", round(time.time() - begun), "s", flush=True)


if __name__ == "__main__":
    main()
