"""What predictors are worth on held-out places.

python measure.py --prepared DIR --out DIR radar bundled direct:RUN/average.safetensors

Structure and grey match shares as in the project's measure of pictures, correlation, power and agreement
of two seeds by octave, correlation and PSNR at 8-pixel means (against the place's mean colour), the cost of
another pair's radar; by place and by group with bootstrap intervals, and a contact sheet (radar | prediction
... | truth) of twelve tiles.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from picture_data import Pictures
from PIL import Image

from sar2eo.evaluation.crop_search import find_crop, is_found, measure_offsets
from sar2eo.evaluation.crop_search import to_grey as grey

TILE = 256
OCTAVES = ((2, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128))
_f = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None])
_WAVELENGTH = 1 / np.maximum(_f, 1e-9)
_BANDS = [(lo <= _WAVELENGTH) & (hi > _WAVELENGTH) for lo, hi in OCTAVES]
_WINDOW = (np.hanning(TILE)[:, None] * np.hanning(TILE)).astype(np.float32)
SHEET = (
    ("la_west 1,0", 4), ("la_west 6,9", 6), ("la_west 1,0", 11), ("la_east 2,4", 5), ("la_east 4,2", 9),
    ("san_antonio_west 2,4", 6), ("san_antonio_west 4,4", 5), ("ombria a04 brown fields, lagoon coast", 0),
    ("ombria a13 green rivers", 3), ("sen12 scene 114", 2), ("sen12 scene 8", 5), ("desert desert", 2),
)  # fmt: skip


def spectra(image):
    """Return the windowed transform of a grey tile, as values of its octaves."""
    z = np.fft.fft2((image - image.mean()) * _WINDOW)
    return [z[b] for b in _BANDS]


def areas(pictures, part, most):
    """Yield (place, source, dB, bytes, optical, flag) of whole areas, chips thinned to ``most`` a place."""
    from picture_data import FRAGMENT, decibels

    for n, (sar, eo, _, _) in pictures.scenes.items():
        for r, c in pictures.places[part][n]:
            at = np.s_[r * FRAGMENT : (r + 1) * FRAGMENT, c * FRAGMENT : (c + 1) * FRAGMENT]
            s, e = np.array(sar[at]), np.array(eo[(slice(None), *at)])
            yield f"{n} {r},{c}", "scenes", decibels(s, "scenes", n), s, e, 1
    groups = {}
    for i, r in enumerate(pictures.rows):
        if pictures.parts[i] == part and r["role"] != "after":
            groups.setdefault(f"{r['source']} {r['place']}", []).append(i)
    for place, members in groups.items():
        for i in members[:: max(1, -(-len(members) // most))]:
            r = pictures.rows[i]
            s = np.array(pictures.sar[i])
            yield place, r["source"], decibels(s, r["source"]), s, np.array(pictures.eo[i]), 0


class Radar:
    """The radar itself as a picture."""

    def __call__(self, db, raw, source, flag, seed):
        """Return [3, H, W] bytes."""
        return np.repeat(raw[None].astype(np.float32), 3, 0)


class Bundled:
    """The bundled model at its default."""

    def __init__(self, samples=1):
        from sar2eo.model.loading import load_translator
        from sar2eo.model.spec import resolve_model

        self.load, self.resolve = load_translator, resolve_model
        self.samples, self.seed, self.model = samples, None, None

    def __call__(self, db, raw, source, flag, seed):
        """Return [3, H, W] bytes."""
        if seed != self.seed:
            spec = self.resolve("bundled", seed=seed, samples=self.samples, batch=1, threads=1)
            self.model = self.load(spec)
            self.seed = seed
        a = np.where(source == "scenes", raw / 255.0, 10 ** (db / 20))
        if source != "scenes":
            a = a / np.percentile(a, 99)
        x = np.repeat((np.clip(a, 0, 1) * 2 - 1)[None].astype(np.float32), 3, 0)
        out = np.zeros((3, *raw.shape), np.uint8)
        step = min(512, raw.shape[0])
        for i in range(0, raw.shape[0], step):
            for j in range(0, raw.shape[1], step):
                out[:, i : i + step, j : j + step] = self.model.translate(
                    x[None, :, i : i + step, j : j + step], [(i, j)]
                ).eo[0]
        return out


class Network:
    """The direct network of a weights file."""

    def __init__(self, path):
        from direct_network import Direct
        from safetensors.torch import load_file

        self.net = Direct().to(memory_format=torch.channels_last).eval()
        self.net.load_state_dict(load_file(path))

    def __call__(self, db, raw, source, flag, seed):
        """Return [3, H, W] bytes, in the stretch of the source."""
        from direct_network import SOURCES

        from sar2eo.model.encoder import describe_backscatter

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            x = describe_backscatter(torch.from_numpy(db)[None, None], torch.tensor([flag]))
            y = self.net(x.contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            y = self.net.restretch(y.float(), torch.tensor([SOURCES.index(source)]))
        return (y[0].clamp(0, 1) * 255).round().byte().numpy()


def predictor(name):
    """Return the predictor of a name."""
    kind, _, rest = name.partition(":")
    if kind == "radar":
        return Radar()
    if kind == "bundled":
        return Bundled(int(rest or 1))
    if kind == "direct":
        return Network(rest)
    from diffusion_predictor import Diffusion

    return Diffusion(rest)


def cut(image):
    """Yield tiles of the last two axes."""
    for i in range(0, image.shape[-2], TILE):
        for j in range(0, image.shape[-1], TILE):
            yield image[..., i : i + TILE, j : j + TILE]


def tile_record(pred, second, truth):
    """Return what one tile says of a prediction."""
    p, t = grey(pred), grey(truth)
    structure, plain = find_crop(p, t)
    sp, st = spectra(p), spectra(t)
    rec = {
        "s": structure,
        "g": plain,
        "pt": [(x * y.conj()).real.sum() for x, y in zip(sp, st, strict=True)],
        "pp": [(abs(x) ** 2).sum() for x in sp],
        "tt": [(abs(x) ** 2).sum() for x in st],
        "p8": pred.reshape(3, 32, 8, 32, 8).mean((2, 4)).astype(np.float32),
        "t8": truth.reshape(3, 32, 8, 32, 8).mean((2, 4)).astype(np.float32),
        "e1": ((pred.astype(np.float32) - truth) ** 2).mean(),
        "m1": truth.reshape(3, -1).mean(1),
        "v1": truth.reshape(3, -1).astype(np.float32).var(1) + truth.reshape(3, -1).mean(1) ** 2,
    }
    if second is not None:
        sq = spectra(grey(second))
        rec["pq"] = [(x * y.conj()).real.sum() for x, y in zip(sp, sq, strict=True)]
        rec["qq"] = [(abs(x) ** 2).sum() for x in sq]
    return rec


def figures(records, offset, others=None):
    """Return the figures of pooled tiles."""

    def share(k):
        return float(is_found(np.array([r[k] for r in records]), np.array(offset)).mean())

    def total(k):
        return np.sum([r[k] for r in records], 0)

    g8p, g8t = (np.stack([grey(r[k]) for r in records]) for k in ("p8", "t8"))
    e8 = np.mean([((r["p8"] - r["t8"]) ** 2).mean() for r in records])
    mean = np.mean([r["m1"] for r in records], 0)
    base8 = np.mean([((r["t8"] - mean[:, None, None]) ** 2).mean() for r in records])
    base1 = (np.mean([r["v1"] for r in records], 0) - mean**2).mean()
    out = {
        "tiles": len(records), "structure": share("s"), "grey": share("g"),
        "corr": (total("pt") / np.sqrt(total("pp") * total("tt") + 1e-9)).tolist(),
        "power": (total("pp") / total("tt")).tolist(),
        "corr8": float(np.corrcoef(g8p.ravel(), g8t.ravel())[0, 1]),
        "gain8": float(10 * np.log10(base8 / e8)),
        "gain1": float(10 * np.log10(base1 / np.mean([r["e1"] for r in records]))),
    }  # fmt: skip
    if "pq" in records[0]:
        out["agree"] = (total("pq") / np.sqrt(total("pp") * total("qq") + 1e-9)).tolist()
    if others is not None:
        o8 = np.mean([((o["p8"] - r["t8"]) ** 2).mean() for r, o in zip(records, others, strict=True)])
        out["other"] = float(10 * np.log10(o8 / e8))
    return out


def report(records, places, sources, radar, times=300):
    """Return figures by place and group with intervals."""
    rng = np.random.default_rng(0)
    offset = measure_offsets(np.array([r["s"] for r in radar]), places)
    other = [None] * len(records)
    for s in set(sources):
        k = [i for i, q in enumerate(sources) if q == s]
        turned = k[len(k) // 2 :] + k[: len(k) // 2]
        for i, j in zip(k, turned, strict=True):
            other[i] = records[j]
    groups = {}
    for i, (p, s) in enumerate(zip(places, sources, strict=True)):
        name = "Los Angeles" if p.startswith("la_") else "San Antonio" if p.startswith("san") else s
        for g in (p, "= " + name):
            groups.setdefault(g, []).append(i)
    out = {}

    def get(k):
        return figures([records[i] for i in k], [offset[i] for i in k], [other[i] for i in k])

    for g, k in groups.items():
        out[g] = get(k)
        draws = [get(rng.choice(k, len(k))) for _ in range(times if len(k) > 2 else 0)]
        if draws:
            out[g]["interval"] = {
                n: np.percentile([d[n] for d in draws], [5, 95]).round(3).tolist()
                for n in ("structure", "grey", "corr8", "gain8", "other")
            }
    return out


def table(found):
    """Return lines of figures."""
    lines = []
    for g, f in found.items():
        c, p = f["corr"], f["power"]
        i = f.get("interval", {"structure": [0, 0], "grey": [0, 0], "corr8": [0, 0], "gain8": [0, 0]})
        a = "" if "agree" not in f else " agree " + " ".join(f"{v:.2f}" for v in f["agree"])
        lines.append(
            f"{g[:34]:34s} n {f['tiles']:3d} | structure {f['structure']:.2f} [{i['structure'][0]:.2f} "
            f"{i['structure'][1]:.2f}] grey {f['grey']:.2f} [{i['grey'][0]:.2f} {i['grey'][1]:.2f}] | corr "
            + " ".join(f"{v:5.2f}" for v in c) + " | power " + " ".join(f"{v:.2f}" for v in p)
            + f" | corr8 {f['corr8']:.2f} [{i['corr8'][0]:.2f} {i['corr8'][1]:.2f}] gain8 {f['gain8']:5.2f} "
            f"[{i['gain8'][0]:.1f} {i['gain8'][1]:.1f}] gain1 {f['gain1']:5.2f} other {f['other']:.1f}{a}"
        )  # fmt: skip
    return lines


def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--part", default="validation", choices=("validation", "test"))
    p.add_argument("--most", type=int, default=12, help="chips a place")
    p.add_argument("--seeds", type=int, default=1, help="2: the second is held against the first")
    p.add_argument("--name", default="", help="of the report; the predictor's otherwise")
    p.add_argument("predictors", nargs="+")
    o = p.parse_args()
    torch.set_num_threads(1)
    o.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(o.prepared)
    whole = list(areas(pictures, o.part, o.most))
    places, sources, truth = [], [], []
    for place, source, _, _, eo, _ in whole:
        for t in cut(eo):
            places.append(place)
            sources.append(source)
            truth.append(t)
    columns, radar = [], None
    for name in dict.fromkeys(["radar", *o.predictors]):
        t0 = time.time()
        f = predictor(name)
        seeds = o.seeds if name != "radar" else 1
        made = []
        for seed in range(seeds):
            tiles = [t for _, s, db, raw, _, flag in whole for t in cut(f(db, raw, s, flag, seed))]
            made.append(tiles)
        took = time.time() - t0
        seconds = made[1] if seeds > 1 else [None] * len(truth)
        records = [tile_record(a, b, t) for a, b, t in zip(made[0], seconds, truth, strict=True)]
        columns.append(made[0])
        if name == "radar":
            radar = records
        found = report(records, places, sources, radar)
        print(f"== {name} ({took:.0f} s to make, {time.time() - t0 - took:.0f} s to measure)")
        print("\n".join(table(found)), flush=True)
        label = (o.name or name.replace(":", "_").replace("/", "_").replace(".safetensors", ""))[-60:]
        label = "radar" if name == "radar" else label
        (o.out / f"{o.part}_{label}.json").write_text(json.dumps(found, indent=1))
    rows = []
    for place, k in SHEET if o.part == "validation" else [(q, 0) for q in dict.fromkeys(places)]:
        index = [i for i, q in enumerate(places) if q == place]
        if index:
            i = index[min(k, len(index) - 1)]
            parts = [np.clip(c[i], 0, 255).astype(np.uint8) for c in columns] + [truth[i]]
            rows.append(np.concatenate(parts, 2))
    for half in range(2):
        part = rows[half * 6 : half * 6 + 6]
        if part:
            sheet = np.concatenate(part, 1).transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(sheet)).save(
                o.out / f"{o.part}_{o.name or 'sheet'}_{half}.png"
            )


if __name__ == "__main__":
    main()
