"""Align the pairs and lay them out for training: ``prepare.py --data ../shared/data --out DIR``.

For each shared scene: local shifts by correlation of gradient orientations,
from wide to narrow windows, for the radar is not corrected for terrain and its columns follow the height of
the ground by several pixels within a kilometre; then the optical image is resampled onto the radar's grid
(the radar keeps its own speckle). For the chips: one shift per place and role. Everything stays uint8.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from scipy import fft, ndimage, spatial

from sar2eo.evaluation.crop_search import describe_orientations, to_grey

SCENES = ("la_west", "la_east", "san_antonio_west")
RANGE = 14


def surface(radar, optical):
    """Return the correlation of two grey images for shifts of the radar within RANGE, [2 RANGE + 1] twice."""
    a, b = describe_orientations(radar), describe_orientations(optical)
    a -= a.mean((1, 2), keepdims=True)
    b -= b.mean((1, 2), keepdims=True)
    h, w = radar.shape
    win = (np.hanning(h)[:, None] * np.hanning(w)).astype(np.float32)
    fa, fb = fft.rfft2(a * win), fft.rfft2(b * win)
    c = np.fft.fftshift(fft.irfft2((np.conj(fa) * fb).sum(0), s=(h, w)))
    c = c[h // 2 - RANGE : h // 2 + RANGE + 1, w // 2 - RANGE : w // 2 + RANGE + 1]
    return c / np.sqrt(((a * win) ** 2).sum() * ((b * win) ** 2).sum())


def peak(c):
    """Return the subpixel maximum of a surface as (row, column) shift, and its height over the spread."""
    c = ndimage.gaussian_filter(c, 0.7)
    i, j = np.unravel_index(c.argmax(), c.shape)
    z = (c[i, j] - np.median(c)) / (c.std() + 1e-9)
    d = []
    for k, line in ((i, c[:, j]), (j, c[i])):
        if 0 < k < len(line) - 1:
            l0, l1, l2 = line[k - 1 : k + 2]
            d.append(k + 0.5 * (l0 - l2) / (l0 - 2 * l1 + l2 - 1e-12))
        else:
            d.append(k)
    return d[0] - RANGE, d[1] - RANGE, z


def smooth(centres, values, weights, at, reach=450.0):
    """Return the weighted mean of values near each place: smooth, and flat beyond the last value."""
    d = ((at[:, None] - centres[None]) ** 2).sum(-1) / (2 * reach**2)
    k = np.exp(d.min(1, keepdims=True) - d) * weights
    return k @ values / k.sum(1, keepdims=True)


def shifts(centres, surfaces, reaches=(900, 500, 300, 200, 140, 100)):
    """Return each window's shift: surfaces pooled over ever nearer neighbours, about what wider found."""
    field = np.zeros((len(centres), 2))
    tree = spatial.cKDTree(centres)
    for reach in reaches:
        some = min(6, RANGE - 1) if reach > 800 else 4
        grid = np.arange(-some, some + 1)
        relative = np.stack(
            [
                ndimage.map_coordinates(
                    c,
                    np.meshgrid(grid + f[0] + RANGE, grid + f[1] + RANGE, indexing="ij"),
                    order=1,
                    mode="nearest",
                )
                for c, f in zip(surfaces, field, strict=True)
            ]
        )
        # A step from what wider windows found costs, in rows (the orbit) more than in columns (the ground).
        cost = 0.10 * grid[:, None] ** 2 + 0.03 * grid[None] ** 2
        step = np.zeros_like(field)
        for i, near in enumerate(tree.query_ball_point(centres, 2.2 * reach)):
            w = np.exp(-((centres[near] - centres[i]) ** 2).sum(1) / (2 * reach**2))
            c = np.tensordot(w, relative[near], 1) / w.sum()
            c = (c - np.median(c)) / (c.std() + 1e-9) - (0 if reach > 800 else cost)
            i0, j0 = np.unravel_index(c.argmax(), c.shape)
            for k, (at, line) in enumerate(((i0, c[:, j0]), (j0, c[i0]))):
                d = 0.0
                if 0 < at < len(line) - 1:
                    l0, l1, l2 = line[at - 1 : at + 2]
                    d = 0.5 * (l0 - l2) / min(l0 - 2 * l1 + l2, -1e-6)
                step[i, k] = grid[at] + np.clip(d, -0.5, 0.5)
        field += smooth(centres, step, np.ones(len(step)), centres, 0.7 * reach)
        print("  reach", reach, "mean step", np.abs(step).mean(0).round(2), "range", field.min(0).round(1),
              field.max(0).round(1), flush=True)  # fmt: skip
    return field


def scene(folder, name, out):
    """Align one scene; return what was fitted."""
    with rasterio.open(folder / f"{name}_sar.tif") as d:
        sar = d.read(1)
        mask = d.dataset_mask() > 0
    with rasterio.open(folder / f"{name}_eo.tif") as d:
        eo = d.read([1, 2, 3])
        mask &= d.dataset_mask() > 0
    size, step = 256, 128
    height, width = mask.shape
    centres, surfaces = [], []
    for y in range(0, height - size + 1, step):
        for x in range(0, width - size + 1, step):
            if mask[y : y + size, x : x + size].mean() < 0.999:
                continue
            r = np.log(np.maximum(sar[y : y + size, x : x + size], 1).astype(np.float32))
            e = to_grey(eo[:, y : y + size, x : x + size])
            centres.append((y + size / 2, x + size / 2))
            surfaces.append(surface(r, e))
    centres, surfaces = np.array(centres), np.array(surfaces, np.float32)
    np.savez(out / f"{name}_surfaces.npz", centres=centres, surfaces=surfaces)
    field = shifts(centres, surfaces)
    residual = np.abs(field - smooth(centres, field, np.ones(len(field)), centres, 300)).max(1)
    np.savez(out / f"{name}_shifts.npz", centres=centres, field=field)
    low, high = field.min(0).round(1), field.max(0).round(1)
    print(
        name, len(centres), "windows; shift", low, high, "rough by", np.median(residual).round(2), flush=True
    )
    warped = np.zeros_like(eo)
    for y in range(0, height, 512):
        for x in range(0, width, 512):
            if not mask[y : y + 512, x : x + 512].any():
                continue
            yy, xx = np.mgrid[y : min(y + 512, height), x : min(x + 512, width)].astype(np.float64)
            knots = np.array([[i, j] for i in range(y, y + 513, 64) for j in range(x, x + 513, 64)], float)
            t = smooth(centres, field, np.ones(len(field)), knots, 90).reshape(9, 9, 2)
            at = [(yy - y) / 64, (xx - x) / 64]
            t = np.stack([ndimage.map_coordinates(t[..., k], at, order=1) for k in (0, 1)], -1)
            # The radar shifted by t lies on the optical image, so radar pixel p shows optical pixel p + t.
            ys, xs = yy + t[..., 0], xx + t[..., 1]
            y0, x0 = max(int(ys.min()) - 8, 0), max(int(xs.min()) - 8, 0)
            y1, x1 = int(ys.max()) + 10, int(xs.max()) + 10
            for b in range(3):
                v = ndimage.map_coordinates(
                    eo[b, y0:y1, x0:x1].astype(np.float32), [ys - y0, xs - x0], order=3, mode="nearest"
                )
                warped[b, y : y + 512, x : x + 512] = np.clip(np.round(v), 0, 255)
    grown = ~ndimage.binary_dilation(~mask, iterations=12)
    grown[:12] = grown[-12:] = False
    grown[:, :12] = grown[:, -12:] = False
    np.save(out / f"{name}_sar.npy", sar)
    np.save(out / f"{name}_eo.npy", warped)
    np.save(out / f"{name}_mask.npy", grown & (sar > 0))
    return {"shift": [low.tolist(), high.tolist()], "windows": len(centres)}


def chips(folder, out):
    """Align the chips, one shift a place and role; return their list."""
    rows = list(csv.DictReader((folder / "pairs.csv").open()))
    sar = np.stack([np.asarray(Image.open(folder / r["s1"]).convert("L")) for r in rows])
    eo = np.stack([np.asarray(Image.open(folder / r["s2"]).convert("RGB")).transpose(2, 0, 1) for r in rows])
    groups = {}
    for i, r in enumerate(rows):
        groups.setdefault((r["place"], r["role"] if r["source"] == "ombria" else ""), []).append(i)
    for key, members in groups.items():
        total = sum(surface(sar[i].astype(np.float32), to_grey(eo[i])) for i in members)
        dy, dx, z = peak(total / len(members))
        if z < 2.5 or max(abs(dy), abs(dx)) > 4:
            print("left alone:", key, round(dy, 1), round(dx, 1), round(z, 1))
            dy = dx = 0.0
        for i in members:
            rows[i].update(shift=[round(float(dy), 2), round(float(dx), 2)], z=round(float(z), 2))
            if dy or dx:
                v = ndimage.shift(eo[i].astype(np.float32), (0, -dy, -dx), order=3, mode="nearest")
                eo[i] = np.clip(np.round(v), 0, 255)
        print(key, len(members), round(dy, 2), round(dx, 2), round(z, 1), flush=True)
    np.save(out / "pairs_sar.npy", sar)
    np.save(out / "pairs_eo.npy", eo)
    return [{k: r[k] for k in ("source", "name", "place", "role", "shift")} for r in rows]


def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--out", type=Path, required=True)
    o = p.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    t = time.time()
    made = {"scenes": {n: scene(o.data / "scenes", n, o.out) for n in SCENES}}
    print(round(time.time() - t), "s")
    made["pairs"] = chips(o.data / "pairs", o.out)
    (o.out / "prepared.json").write_text(json.dumps(made))
    print(round(time.time() - t), "s")


if __name__ == "__main__":
    main()
