"""Built pairs of the simulated kind that the tiny checkpoint was trained on."""

from pathlib import Path

import numpy as np
from affine import Affine
from support.dataset_fixtures import built_pairs, write_tif
from support.model_fixtures import simulate_pair

COUNTS = {"train": 6, "val": 1, "test": 7}


def simulated_pairs(folder: Path, *, size: int = 66, counts: dict[str, int] | None = None) -> Path:
    """Write a folder as `sar2eo.build_pairs` does; every third chip has a hole."""
    counts = COUNTS if counts is None else counts
    built_pairs(folder, counts=counts, size=size, scaling=(255.0,))
    for number in range(sum(counts.values())):
        amplitude, eo = simulate_pair(size, size, seed=100 + number)
        sar = np.rint(1 + 254 * amplitude).astype(np.uint8)
        mask = np.full((size, size), 255, np.uint8)
        if number % 3 == 0:
            mask[: size // 8, : size // 4] = 0
        transform = Affine(10.0, 0.0, 400_000.0 + number * size * 20.0, 0.0, -10.0, 3_800_000.0)
        chip = folder / "chips" / f"pair-{number:04d}"
        write_tif(chip.with_name(f"{chip.name}_sar.tif"), sar, transform=transform, mask=mask)
        write_tif(
            chip.with_name(f"{chip.name}_eo.tif"),
            np.rint(255 * eo).astype(np.uint8),
            transform=transform,
            mask=mask,
        )
    return folder
