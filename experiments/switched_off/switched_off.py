"""What each part of a trained matcher (DCDM) is worth: validation pairs matched with parts switched off.

    python experiments/switched_off/switched_off.py PAIRS --model bundled

Nothing is trained anew, so this says what a trained network relies on, not what one trained without a part
would reach. Printed are CMR(T=5) and CMR(T=2) by the learned map and that of pixels, and by all maps with the
weights of the matcher's card.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo.datasets import Augmentation, collate, open_dataset
from sar2eo.evaluation.matchers import figures
from sar2eo.matching.dcdm.evidence import Weights
from sar2eo.matching.dcdm.matcher import Matcher
from sar2eo.matching.dcdm.templates import plant
from sar2eo.settings import DataSettings

AT_ONCE = 8
LEARNED = Weights(pixels=1.0, structure=0.0)


class Nothing(nn.Module):
    """Adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def switch(network: Any, *parts: str) -> None:
    """Switch parts of a denoiser off."""
    ways: dict[str, Callable[[], None]] = {
        "routing": lambda: setattr(network.attend_fine, "top", 10**6),
        "gates": lambda: setattr(network.attend_fine, "gate", None),
        "calibration": lambda: setattr(network.attend_coarse, "calibration", None),
        "attention at stride 8": lambda: setattr(network.attend_fine, "to_out", Nothing()),
        "attention at stride 16": lambda: setattr(network.attend_coarse, "to_out", Nothing()),
    }
    for part in parts:
        ways[part]()


CASES = [
    (),
    ("routing", "gates"),
    ("gates",),
    ("calibration",),
    ("attention at stride 8",),
    ("attention at stride 16",),
    ("attention at stride 8", "attention at stride 16"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", help="a folder of sar2eo build-pairs")
    parser.add_argument("--model", default="bundled", help="a matcher")
    parser.add_argument("--offsets", type=int, default=2, help="templates of each pair")
    given = parser.parse_args()
    for parts in CASES:
        matcher = Matcher(given.model)
        switch(matcher.checkpoint.denoiser, *parts)
        found = measured(matcher, given.pairs, given.offsets)
        print(f"without {' and '.join(parts) or 'nothing'}: {found}", flush=True)


def measured(matcher: Matcher, folder: str, offsets: int) -> str:
    """Match the same templates of all validation pairs, and say how many were found."""
    card = matcher.card
    augmentation = Augmentation(crop=card.search_px, centre=True)
    pairs = open_dataset(DataSettings(pairs=folder), "val", augmentation=augmentation).seen_by(card)
    numbers = range(offsets * len(pairs))
    distances: dict[str, list[Tensor]] = {"learned": [], "all maps": []}
    for first in numbers[::AT_ONCE]:
        batch = collate([pairs.sample(n % len(pairs), 0) for n in numbers[first : first + AT_ONCE]])
        draw = torch.Generator().manual_seed(2025 + first)
        images, _, places = plant(batch, card.template_px, draw)
        evidence = matcher.evidence(images)
        for found, weights in zip(distances.values(), (LEARNED, matcher.weights), strict=True):
            found.append((torch.from_numpy(evidence.found(weights).shifts) - places).norm(dim=1))
    counted = {name: figures(torch.cat(found).numpy()) for name, found in distances.items()}
    return ", ".join(f"{name} {each['cmr_5']:.3f} {each['cmr_2']:.3f}" for name, each in counted.items())


if __name__ == "__main__":
    main()
