"""How the conditioned model is best sampled.

``sweep.py --prepared DIR --bundled DIR --run DIR 500,3 300,2,0.8 ...``
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from conditioned import LATENT, Conditioned, load_direct, sample
from measure import figures, tile_record
from picture_data import Pictures
from safetensors.torch import load_file

from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.encoder import describe_backscatter
from sar2eo.model.network import decode_latents


@torch.no_grad()
def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--bundled", type=Path, required=True)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--every", type=int, default=4, help="one of so many validation tiles of the scenes")
    p.add_argument(
        "settings", nargs="+", help="start,steps[,trust[,temperature]]; 0,0 decodes the direct latents"
    )
    o = p.parse_args()
    torch.set_num_threads(1)
    net, vae = load_direct(o.run / "direct.safetensors"), load_checkpoint(o.bundled).vae.eval()
    model = Conditioned().to(memory_format=torch.channels_last).eval()
    model.load_state_dict(load_file(o.run / "average.safetensors"))
    tiles = [t for k, t in enumerate(Pictures(o.prepared).held_out("validation")) if t[1] == "scenes"][
        :: o.every
    ]
    for words in o.settings:
        start, steps, *more = (float(w) for w in words.split(","))
        records = {}
        for place, _, db, eo, flag in tiles:
            x = describe_backscatter(torch.from_numpy(db)[None, None], torch.tensor([flag]))
            made = []
            with torch.autocast("cpu", torch.bfloat16):
                trunk = net.trunk(x.contiguous(memory_format=torch.channels_last))
            for seed in (0, 1):
                noise = torch.randn(1, LATENT, 32, 32, generator=torch.Generator().manual_seed(seed))
                with torch.autocast("cpu", torch.bfloat16):
                    if steps:
                        z = sample(model, trunk, noise, int(start), int(steps), *more)
                    else:
                        z = model.adapter(trunk)[1]
                y = decode_latents(vae, z.float())[0].clamp(-1, 1)
                made.append(((y + 1) * 127.5).round().byte().numpy())
            group = "San Antonio" if place.startswith("san") else "Los Angeles"
            records.setdefault(group, []).append(tile_record(*made, eo))
        for group, r in records.items():
            f = figures(r, [(0, 0)] * len(r))
            told = {
                k: np.round(f[k], 2)
                for k in ("structure", "grey", "corr", "power", "agree", "corr8", "gain8", "gain1")
            }
            print(words, group, *(f"{k} {v}" for k, v in told.items()), flush=True)


if __name__ == "__main__":
    main()
