"""Training crops and held-out tiles from what ``prepare.py`` laid out."""

import json
from pathlib import Path

import numpy as np
from direct_network import SOURCES
from scipy import ndimage

HERE = Path(__file__).parent
FRAGMENT = 1024
# dB of byte 255 of the scenes' VH: their absolute level is lost, this is a usual one for such ground.
SCENE_TOP = {"la_west": -7.0, "la_east": -7.0, "san_antonio_west": -9.5}
CAREFUL = {"ombria": 0.1}


def decibels(sar, source, name=""):
    """Return backscatter in dB above the polarisation's reference (VV -10, VH -16) of a source's bytes."""
    v = sar.astype(np.float32)
    if source == "scenes":
        return 20 * np.log10(np.maximum(v, 1) / 255) + SCENE_TOP[name] + 16
    if source == "sen12":
        return v * (25 / 255) - 25 + 10
    if source == "desert":
        return v / 5 - 40 + 10
    return (v - 110) * CAREFUL["ombria"]


class Pictures:
    """All pairs, split by place.

    Parameters
    ----------
    folder : path
        What ``prepare.py`` wrote.
    """

    def __init__(self, folder):
        folder = Path(folder)
        self.places = json.loads((HERE / "places.json").read_text())
        self.scenes = {}
        margin = self.places["margin"]
        for n in SCENE_TOP:
            sar, eo, mask = (np.load(folder / f"{n}_{k}.npy", mmap_mode="r") for k in ("sar", "eo", "mask"))
            free = np.array(mask)
            for part in ("validation", "test"):
                for r, c in self.places[part][n]:
                    y, x = r * FRAGMENT, c * FRAGMENT
                    free[
                        max(y - margin, 0) : y + FRAGMENT + margin, max(x - margin, 0) : x + FRAGMENT + margin
                    ] = False
            self.scenes[n] = sar, eo, mask, free
        made = json.loads((folder / "prepared.json").read_text())
        self.rows = made["pairs"]
        self.sar = np.load(folder / "pairs_sar.npy", mmap_mode="r")
        self.eo = np.load(folder / "pairs_eo.npy", mmap_mode="r")
        self.parts = [self.part(r) for r in self.rows]

    def part(self, row):
        """Return the part a chip belongs to."""
        for part in ("validation", "test"):
            held = self.places[part][row["source"]]
            if row["source"] == "desert":
                if int(row["name"].split("_p")[1]) in held:
                    return part
            elif row["place"] in held:
                return part
        return "training"

    def corners(self, size):
        """Return per scene the corners of crops that are free throughout, on a grid of 16."""
        out = {}
        for n, (_, _, _, free) in self.scenes.items():
            bad = np.pad((~free).astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
            h, w = free.shape
            ys, xs = np.mgrid[0 : h - size : 16, 0 : w - size : 16]
            total = bad[ys + size, xs + size] - bad[ys, xs + size] - bad[ys + size, xs] + bad[ys, xs]
            out[n] = np.stack([ys[total == 0], xs[total == 0]], 1)
        return out

    def held_out(self, part, size=256):
        """Yield (place, source, dB, optical uint8, flag) of whole tiles of 256 of a part.

        Parameters
        ----------
        part : {"validation", "test"}
            Which.
        size : int
            The tile.
        """
        for n, (sar, eo, mask, _) in self.scenes.items():
            for r, c in self.places[part][n]:
                for y in range(r * FRAGMENT, (r + 1) * FRAGMENT, size):
                    for x in range(c * FRAGMENT, (c + 1) * FRAGMENT, size):
                        if mask[y : y + size, x : x + size].mean() > 0.85:
                            s = np.array(sar[y : y + size, x : x + size])
                            yield (
                                f"{n} {r},{c}",
                                "scenes",
                                decibels(s, "scenes", n),
                                np.array(eo[:, y : y + size, x : x + size]),
                                1,
                            )
        for i, r in enumerate(self.rows):
            if self.parts[i] == part:
                yield (f"{r['source']} {r['place']}", r["source"], decibels(self.sar[i], r["source"]),
                       np.array(self.eo[i]), 0)  # fmt: skip


class Crops:
    """Endless augmented training crops.

    Parameters
    ----------
    pictures : Pictures
        Where they come from.
    size : int
        Pixels a side.
    seed : int
        Of the generator.
    """

    shares = (0.5, 0.26, 0.18, 0.06)

    def __init__(self, pictures, size=192, seed=0):
        self.p, self.size = pictures, size
        self.rng = np.random.default_rng(seed)
        self.corner = {z: pictures.corners(z) for z in (size, size * 4 // 3)}
        self.members = {}
        for s in SOURCES[1:]:
            k = [
                i for i, r in enumerate(pictures.rows) if r["source"] == s and pictures.parts[i] == "training"
            ]
            w = np.array([0.3 if pictures.rows[i]["role"] == "after" else 1.0 for i in k])
            # Large places count by the root of their number.
            count = {}
            for i in k:
                count[pictures.rows[i]["place"]] = count.get(pictures.rows[i]["place"], 0) + 1
            w /= np.array([count[pictures.rows[i]["place"]] ** 0.5 for i in k])
            self.members[s] = np.array(k), w / w.sum()

    def sample(self):
        """Return (dB float32 [H, W], optical uint8 [3, H, W], flag, source index)."""
        rng, n = self.rng, self.size
        source = rng.choice(4, p=self.shares)
        zoom = rng.random() < 0.2
        size = n * 4 // 3 if zoom else n
        if source == 0:
            names = list(self.p.scenes)
            weights = np.array([len(self.corner[size][m]) for m in names], float)
            name = names[rng.choice(len(names), p=weights / weights.sum())]
            y, x = self.corner[size][name][rng.integers(len(self.corner[size][name]))]
            sar, eo, _, _ = self.p.scenes[name]
            db = decibels(sar[y : y + size, x : x + size], "scenes", name)
            eo = np.array(eo[:, y : y + size, x : x + size])
            smooth = False
        else:
            k, w = self.members[SOURCES[source]]
            i = k[rng.choice(len(k), p=w)]
            if size > 250:
                size = 256
            y, x = rng.integers(2, 257 - size - 2, 2) if size < 250 else (0, 0)
            db = decibels(self.p.sar[i, y : y + size, x : x + size], SOURCES[source])
            eo = np.array(self.p.eo[i, :, y : y + size, x : x + size])
            smooth = SOURCES[source] == "ombria"
        flag = int(source == 0)
        if smooth:
            db = db * rng.uniform(0.7, 1.4)
            if rng.random() < 0.6:
                looks = np.exp(rng.uniform(np.log(2.5), np.log(30)))
                g = rng.gamma(looks, 1 / looks, db.shape)
                if rng.random() < 0.5:
                    g = ndimage.gaussian_filter(g, rng.uniform(0.4, 0.9))
                db = db + 10 * np.log10(np.maximum(g, 1e-3))
        elif rng.random() < 0.2:
            p = ndimage.gaussian_filter(10 ** (db / 10), rng.uniform(0.5, 1.5))
            db = 10 * np.log10(np.maximum(p, 1e-6))
        if zoom:
            z = n / db.shape[0]
            p = ndimage.zoom(ndimage.gaussian_filter(10 ** (db / 10), 0.4), z, order=1)
            db = 10 * np.log10(np.maximum(p, 1e-6))
            eo = np.stack([ndimage.zoom(ndimage.gaussian_filter(b, 0.4), z, order=1) for b in eo])
        if rng.random() < 0.8:
            db = db * rng.uniform(0.85, 1.15) + rng.normal(0, 2)
        turn = rng.integers(4)
        db, eo = np.rot90(db, turn, (-2, -1)), np.rot90(eo, turn, (-2, -1))
        if rng.random() < 0.5:
            db, eo = db[..., ::-1], eo[..., ::-1]
        return np.ascontiguousarray(db, dtype=np.float32), np.ascontiguousarray(eo), flag, int(source)

    def batch(self, count):
        """Return stacked samples."""
        parts = list(zip(*(self.sample() for _ in range(count)), strict=True))
        return np.stack(parts[0]), np.stack(parts[1]), np.array(parts[2]), np.array(parts[3])
