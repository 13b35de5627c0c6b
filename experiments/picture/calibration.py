"""Is a model's variance its squared error? ``calibration.py --prepared DIR``: of every third held-out one."""

import argparse
from pathlib import Path

import numpy as np
import torch
from picture_data import Pictures

from sar2eo.evaluation.scores import compute_calibration
from sar2eo.geo.radiometry import RANGE_DB
from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.diffusion import add_noise, compute_target, create_scheduler
from sar2eo.model.folder import find_folder
from sar2eo.model.network import encode_images, to_variance


@torch.no_grad()
def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--model", default="bundled")
    o = p.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(find_folder(o.model))
    kind, timestep = model.card.prediction_type, model.card.confidence_timestep
    alpha_bar = create_scheduler("ddim", "trailing", kind, model.schedule).alphas_cumprod[[timestep]]
    draw, found = torch.Generator().manual_seed(0), {}
    for k, (place, source, db, eo, _) in enumerate(Pictures(o.prepared).held_out("validation")):
        if k % 3 or source != "scenes":
            continue
        vh = torch.from_numpy(np.clip(db / RANGE_DB, -1, 1).astype(np.float32))[None, None]
        known = model.encode_sar(torch.cat([torch.full_like(vh, -1), vh, vh], 1)).with_trust(0)
        truth = encode_images(model.vae, torch.from_numpy(eo)[None].float() / 127.5 - 1)
        noise = torch.randn(truth.shape, generator=draw)
        told, raw = model.predict(known, add_noise(truth, noise, alpha_bar), timestep)
        error = (compute_target(truth, noise, alpha_bar, kind) - told).square().mean(1)
        group = "San Antonio" if place.startswith("san") else "Los Angeles"
        found.setdefault(group, []).append((to_variance(raw).numpy().ravel(), error.numpy().ravel()))
    for group, parts in {**found, "both": [tile for tiles in found.values() for tile in tiles]}.items():
        c = compute_calibration(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        rank = c["rank_correlation"]
        tenths = " ".join(f"{q['error'] / q['variance']:.2f}" for q in c["quantiles"])
        print(f"{group}: {len(parts)} tiles, {c['ratio']:.2f}, by tenths {tenths}, rank {rank:.2f}")


if __name__ == "__main__":
    main()
