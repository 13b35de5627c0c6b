"""A task so small that whole runs take a moment: two lines fitted to points."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sar2eo.settings import TrainSettings
from sar2eo.training.task import Batch, Facts

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "lr": 0.05,
    "warmup": 2,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "ema": 0.9,
    "validate_every": 2,
    "save_every": 2,
}


def toy_settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**SETTINGS | changes)


class ToyTask:
    """Fits y = 2 x + 1 with noise; a second phase joins from the third step."""

    def __init__(self, spoil_at: int | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.phases: dict[str, nn.Module] = {
                "line": nn.Linear(1, 1),
                "other": nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)),
            }
        self.averaged = ("line",)
        self.spoil_at = spoil_at

    def active(self, phase: str, step: int) -> bool:
        return phase == "line" or step >= 2

    def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Facts]:
        x = batch["x"]
        noise = 0.01 * torch.randn(x.shape, generator=generator)
        found = self.phases[phase](x) + (0.0 * self.phases["line"](x).sum() if phase == "other" else 0)
        loss = (found - (2 * x + 1 + noise)).square().mean()
        if step == self.spoil_at:
            loss = loss * torch.nan
        return loss, {"noise": noise.mean()}

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        losses = [(self.phases["line"](b["x"]) - (2 * b["x"] + 1)).square().mean() for b in batches]
        return {"score": float(torch.stack(losses).mean())}

    def picture(self, batch: Batch) -> Tensor:
        return torch.full((3, 4, 6), 100, dtype=torch.uint8)

    def export(self, out: Path, facts: dict[str, Any]) -> Path:
        out.mkdir()
        save_file(
            {k: v.clone() for k, v in self.phases["line"].state_dict().items()}, out / "line.safetensors"
        )
        (out / "facts.json").write_text(json.dumps(facts))
        return out


def toy_batches(accumulate: int = 1) -> Any:
    """Batches by their number, whichever step a run begins with."""

    def of(start: int, stop: int) -> Iterator[Batch]:
        for number in range(start * accumulate, stop * accumulate):
            draw = torch.Generator().manual_seed(number)
            yield {"x": torch.rand((4, 1), generator=draw), "id": ["a", "b", "c", "d"]}

    return of


def toy_validation() -> Iterator[Batch]:
    yield {"x": torch.linspace(0, 1, 5)[:, None]}
