"""States of a training run: written whole or not at all, the last few kept, read back with proof.

::

    states/
        step-000100/  weights.safetensors  optimiser.safetensors  average.safetensors  state.json
        step-000200/  ...

A state is written beside its place, flushed to disk and renamed. ``state.json`` is written last and
holds the sha256 of every other file, so what a crash or a full disk leaves is never taken for a state.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sar2eo.errors import CheckpointError, OutputError, TrainingError, TrainingWarning
from sar2eo.model.checkpoint_files import file_sha256
from sar2eo.store.atomic import atomic_folder, write_json

__all__ = ["State", "States"]

_FACTS = "state.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a run needs to go on.

    Parameters
    ----------
    step : int
        Steps done.
    tensors : dict of str to dict of str to Tensor
        Named tensors by file.
    facts : dict
        JSON values.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


class States:
    """The states of one run.

    Parameters
    ----------
    folder : Path
        Made on the first `save`.
    keep : int
        How many are kept, the newest.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State) -> Path:
        """Write a state durably, then delete those that are no longer to be kept.

        Raises
        ------
        OutputError
            If it cannot be written; those that were there stay.
        """
        target = self.folder / f"step-{state.step:06d}"
        size = sum(t.numel() * t.element_size() for group in state.tensors.values() for t in group.values())
        try:
            # In place of a broken one of the same step, which was passed over.
            with atomic_folder(target, size=size) as partial:
                _write(state, partial)
        except SafetensorError as error:
            raise OutputError(
                f"{self.folder}: a state of {size / 1e6:.0f} MB cannot be written: {error}"
            ) from error
        self._prune(target)
        return target

    def latest(self) -> State | None:
        """Read the newest whole state; None if there is none at all.

        Broken ones are passed over with a warning.

        Raises
        ------
        TrainingError
            If there are states and none of them is whole.
        """
        found = sorted(self.folder.glob("step-*"), key=_step, reverse=True)
        for path in found:
            try:
                return _read(path)
            except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
                warnings.warn(f"{path} is passed over: {error}", TrainingWarning, stacklevel=2)
        if found:
            raise TrainingError(
                f"{self.folder}: none of its {len(found)} states can be read: remove the run to begin anew"
            )
        return None

    def _prune(self, newest: Path) -> None:
        """Delete what is too old, and what belongs to a future that a broken state promised."""
        others = sorted((path for path in self.folder.glob("step-*") if path != newest), key=_step)
        older = [path for path in others if _step(path) < _step(newest)]
        surplus = max(0, len(older) + 1 - self.keep)
        for path in {*older[:surplus], *(set(others) - set(older))}:
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def _write(state: State, folder: Path) -> None:
    digests = {}
    for name, tensors in state.tensors.items():
        path = folder / f"{name}.safetensors"
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(plain, path)
        digests[path.name] = file_sha256(path)
    facts = {"step": state.step, "sha256": digests, "facts": state.facts}
    write_json(folder / _FACTS, facts)


def _read(folder: Path) -> State:
    raw = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    tensors = {}
    for name, digest in raw["sha256"].items():
        if file_sha256(folder / name) != digest:
            raise CheckpointError(f"{name} is not what was written")
        # Copied: the library maps the file, which a later save may delete.
        tensors[Path(name).stem] = {key: value.clone() for key, value in load_file(folder / name).items()}
    return State(step=int(raw["step"]), tensors=tensors, facts=dict(raw["facts"]))


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1
