"""Interrupted evaluations: what is drawn is not drawn again, and what is kept is told apart."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.evaluation_fixtures import simulated_pairs

import sar2eo
from sar2eo.cli import cli
from sar2eo.errors import JournalError
from sar2eo.evaluation.model_probe import Drawn, ModelImages
from sar2eo.store.journal import Journal

QUICK: dict[str, Any] = {"threads": 1, "dtype": "float32", "steps": 2, "samples": 3, "sweep_steps": (1,)}
DRAWS = 4  # three samples of one batch, and the sweep


class Draws:
    """Counts what is drawn, and interrupts it."""

    def __init__(self, patch: pytest.MonkeyPatch, *, stop_before: int | None = None) -> None:
        self.batches = 0
        whole = ModelImages.draw

        def draw(images: ModelImages, batch: Any, number: int = 0) -> Drawn:
            if self.batches == stop_before:
                raise KeyboardInterrupt
            self.batches += 1
            return whole(images, batch, number)

        patch.setattr(ModelImages, "draw", draw)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_pairs(tmp_path_factory.mktemp("pairs") / "pairs", counts={"train": 1, "test": 3})


@pytest.fixture
def interrupted(checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a report was to be: two of four draws are done."""
    out = tmp_path / "report"
    with monkeypatch.context() as patch:
        Draws(patch, stop_before=2)
        with pytest.raises(KeyboardInterrupt):
            sar2eo.evaluate(checkpoint, pairs, out, **QUICK)
    assert not out.exists()
    return out


def kept(out: Path) -> list[str]:
    return sorted(path.name for path in out.with_name(f"{out.name}.partial").glob("blocks-*/*"))


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if key != "seconds_per_image"}
    return [without_times(value) for value in found] if isinstance(found, list) else found


def test_the_same_call_goes_on_and_finds_the_same_figures(
    interrupted: Path, checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name.rsplit(".", 2)[0] for name in kept(interrupted)] == ["model-0.0.0", "model-0.1.0"]
    undisturbed = sar2eo.evaluate(checkpoint, pairs, tmp_path / "undisturbed", **QUICK)
    draws = Draws(monkeypatch)
    found = sar2eo.evaluate(checkpoint, pairs, interrupted, **QUICK)
    assert draws.batches == DRAWS - 2
    assert without_times(found) == without_times(undisturbed)
    assert found["methods"]["model"]["seconds_per_image"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "undisturbed"]


def test_other_settings_are_refused_and_overwrite_discards(
    interrupted: Path, checkpoint: Path, pairs: Path
) -> None:
    other = QUICK | {"seed": 7}
    with pytest.raises(JournalError, match=r"seed 2025 -> 7.*overwrite=True"):
        sar2eo.evaluate(checkpoint, pairs, interrupted, **other)
    assert len(kept(interrupted)) == 2
    assert sar2eo.evaluate(checkpoint, pairs, interrupted, overwrite=True, **other)["pairs"]
    assert not interrupted.with_name("report.partial").exists()


def test_overwrite_of_the_same_evaluation_goes_on(
    interrupted: Path, checkpoint: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws(monkeypatch)
    sar2eo.evaluate(checkpoint, pairs, interrupted, overwrite=True, **QUICK)
    assert draws.batches == DRAWS - 2


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"no tensors, whatever it was once"])
def test_what_was_damaged_is_drawn_again(
    damage: bytes, interrupted: Path, checkpoint: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = interrupted.with_name("report.partial").glob("blocks-*/model-0.1.0.*.safetensors")
    path.write_bytes(damage)
    draws = Draws(monkeypatch)
    sar2eo.evaluate(checkpoint, pairs, interrupted, **QUICK)
    assert draws.batches == DRAWS - 1


def test_two_at_once_are_refused(interrupted: Path, checkpoint: Path, pairs: Path) -> None:
    folder = interrupted.with_name("report.partial")
    other = Journal.open(folder, {}, restart=True)
    with pytest.raises(JournalError, match="another run is writing here"):
        sar2eo.evaluate(checkpoint, pairs, interrupted, **QUICK)
    other.remove()


def test_stopped_before_its_first_image_it_leaves_nothing(
    checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Draws(monkeypatch, stop_before=0)
    with pytest.raises(KeyboardInterrupt):
        sar2eo.evaluate(checkpoint, pairs, tmp_path / "report", **QUICK)
    assert not list(tmp_path.iterdir())


def test_the_command_says_how_to_go_on(
    checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "--model", str(checkpoint), "--pairs", str(pairs), "--out", str(tmp_path / "out")]
    command += ["--threads", "1", "--steps", "2", "--samples", "2"]
    with monkeypatch.context() as patch:
        Draws(patch, stop_before=1)
        stopped = CliRunner().invoke(cli, command)
    assert stopped.exit_code == 130
    assert "interrupted: run the same command again to go on where it stopped" in stopped.stderr
    draws = Draws(monkeypatch)
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert draws.batches == 1
