"""Match validation pairs with parts of a trained matcher (DCDM) switched off.

    python experiments/switched_off/switched_off.py PAIRS --model bundled

Nothing is trained again, so this shows what a trained network relies on, not what one trained without a part
would reach. It prints CMR(T=5) and CMR(T=2) by the learned map and that of pixels, and by all maps with the
weights of the matcher's card.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo.datasets import Augmentation, collate, open_dataset
from sar2eo.evaluation.matchers import figures
from sar2eo.matching.dcdm.matcher import Matcher
from sar2eo.matching.dcdm.similarity import MapWeights, plant_templates
from sar2eo.settings import DataSettings

AT_ONCE = 8
LEARNED = MapWeights(pixels=1.0, structure=0.0)


class Zero(nn.Module):
    """A layer that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class OpenGate(nn.Module):
    """Lets everything through."""

    def forward(self, seen: Tensor) -> Tensor:
        return torch.full_like(seen[..., :1], 100.0)


class Uncalibrated(nn.Module):
    """Plain attention."""

    def forward(self, logits: Tensor, closed: Tensor) -> Tensor:
        return logits.flatten(4).softmax(dim=-1).view_as(logits)


def switch_off(network: Any, *parts: str) -> None:
    """Switch parts of a denoiser off."""
    for part in parts:
        match part:
            case "routing":
                network.attend_fine.top = 10**6
            case "gates":
                network.attend_fine.gate = OpenGate()
            case "calibration":
                network.attend_coarse.calibration = Uncalibrated()
            case "attention at stride 8":
                network.attend_fine.to_out = Zero()
            case "attention at stride 16":
                network.attend_coarse.to_out = Zero()


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
        switch_off(matcher.checkpoint.denoiser, *parts)
        figures_text = match_pairs(matcher, given.pairs, given.offsets)
        print(f"without {' and '.join(parts) or 'nothing'}: {figures_text}", flush=True)


def match_pairs(matcher: Matcher, folder: str, offsets: int) -> str:
    """Match the same templates of all validation pairs; return the shares that were found as text."""
    card = matcher.card
    augmentation = Augmentation(crop=card.search_px, centre=True)
    pairs = open_dataset(DataSettings(pairs=folder), "val", augmentation=augmentation).with_channels_of(card)
    numbers = range(offsets * len(pairs))
    distances: dict[str, list[Tensor]] = {"learned": [], "all maps": []}
    for first in numbers[::AT_ONCE]:
        batch = collate([pairs.sample(n % len(pairs), 0) for n in numbers[first : first + AT_ONCE]])
        draw = torch.Generator().manual_seed(2025 + first)
        images, _, places = plant_templates(batch, card.template_px, draw)
        maps = matcher.compare(images)
        for found, weights in zip(distances.values(), (LEARNED, matcher.weights), strict=True):
            found.append((torch.from_numpy(maps.find_best(weights).shifts) - places).norm(dim=1))
    counted = {name: figures(torch.cat(found).numpy()) for name, found in distances.items()}
    return ", ".join(f"{name} {each['cmr_5']:.3f} {each['cmr_2']:.3f}" for name, each in counted.items())


if __name__ == "__main__":
    main()
