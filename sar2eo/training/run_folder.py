"""The folder of a training run: what it was started with, its records, and its results.

::

    run.json        settings, data, base, versions, threads; what was finished
    metrics.jsonl   one line for each step and validation
    log/            the same for TensorBoard, with pictures
    pictures/       validation pictures, PNG
    states/         weights, optimiser and averages by step, to resume from
    best/  final/   results, as the task exports them
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sar2eo._version import __version__
from sar2eo.errors import CheckpointError, OutputError, TrainingError, TrainingWarning
from sar2eo.model.folder import hash_file
from sar2eo.store.atomic import atomic_folder, json_values, lock_folder, refuse, write_file, write_json
from sar2eo.store.journal import flatten

__all__ = ["RunFolder", "State", "States", "record"]

_LOCK = ".lock"

_FREE = ("keep", "save_every", "validate_every", "gradient_checkpointing", "device", "threads")
"""Settings of what is kept and where it is computed, not of what is learnt.

`RunFolder.begin` warns of other threads and other hardware.
"""


class RunFolder:
    """A run's folder.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = path / "run.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, making it if it is not there.

        Raises
        ------
        OutputError
            If another run holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refuse(error, self.path)
        lock = lock_folder(self.path, _LOCK)
        try:
            yield
        finally:
            lock.release()

    def check(self, identity: Mapping[str, Any]) -> int | None:
        """Refuse to go on with other settings.

        Parameters
        ----------
        identity : mapping
            JSON values; what differs from those of the run that is there is named.

        Returns
        -------
        int or None
            Steps that this run, or a shorter one that it extends, was finished with.

        Raises
        ------
        TrainingError
            If something differs, or the folder holds something else than a run.
        """
        if not self._run.exists():
            if self.path.is_dir() and any(path.name != _LOCK for path in self.path.iterdir()):
                raise TrainingError(f"{self.path} holds something else than a run: choose another folder")
            return None
        before = self._read()
        old, new = flatten(before["identity"]), flatten(json_values(identity))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and name.removeprefix("settings.") not in _FREE:
                if name == "settings.steps":
                    _check_steps(self.path, old, new)
                    continue
                raise TrainingError(
                    f"{self.path} was begun with {name}={old.get(name)!r}, not {new.get(name)!r}: repeat its "
                    "command, or choose another folder"
                )
        finished: int | None = before["finished"]
        return finished

    def begin(self, identity: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write down what a run is, after `check`; warn if it goes on under other circumstances."""
        finished = None
        if self._run.exists():
            before = self._read()
            finished = before["finished"]
            for name, value in environment.items():
                if before["environment"].get(name) != value:
                    warnings.warn(
                        f"{self.path} was begun with {name} {before['environment'].get(name)}, goes on with "
                        f"{value}: not bit for bit what it would have been",
                        TrainingWarning,
                        stacklevel=2,
                    )
        self._write(identity, environment, finished)

    def finish(self, steps: int) -> None:
        """Write down that the results are there."""
        before = self._read()
        self._write(before["identity"], before["environment"], steps)

    def publish(self, name: str, export: Callable[[Path], Path]) -> Path:
        """Replace a result by what `export` writes into a new folder; it appears whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written; the one before stays.
        """
        target = self.path / name
        for path in self.path.glob(f".*{name}.*"):  # of a run that was killed
            shutil.rmtree(path, ignore_errors=True)
        try:
            with atomic_folder(target) as folder:
                folder.rmdir()  # models are saved into folders that do not exist
                export(folder)
        except SafetensorError as error:
            raise OutputError(f"{target} cannot be written: {error}") from error
        return target

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._run.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{self._run} cannot be read: {error}") from error
        if not {"identity", "environment", "finished"} <= set(found):
            raise TrainingError(f"{self._run} is not the record of a run")
        return found

    def _write(
        self, identity: Mapping[str, Any], environment: Mapping[str, Any], finished: int | None
    ) -> None:
        values = {
            "sar2eo": __version__,
            "identity": dict(identity),
            "environment": dict(environment),
            "finished": finished,
        }
        write_json(self._run, values)


class Recorder:
    """Writes scalars and pictures of a run, for people and for plots.

    Parameters
    ----------
    path : Path
        The run's folder.
    step : int
        Where the run goes on; what was recorded beyond is dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path / "metrics.jsonl"
        if lines.exists():
            kept = [line for line in lines.read_text(encoding="utf-8").splitlines() if _up_to(line, step)]
            write_file(lines, "".join(f"{line}\n" for line in kept).encode())
        self._lines = lines.open("a", encoding="utf-8")
        self._board = SummaryWriter(path / "log", purge_step=step + 1)

    def scalars(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Record values under ``part/name``; steps count from 1.

        Raises
        ------
        OutputError
            If they cannot be written.
        """
        try:
            self._lines.write(json.dumps({"step": step, "part": part, **values}) + "\n")
            self._lines.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{part}/{name}", value, step)
        except OSError as error:
            refuse(error, self._path)

    def picture(self, step: int, picture: Tensor) -> None:
        """Record a picture, uint8 of shape (3, H, W); errors as of `scalars`."""
        from PIL import Image

        folder = self._path / "pictures"
        try:
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(folder / f"step-{step:06d}.png")
            self._board.add_image("validation", picture, step)
        except OSError as error:
            refuse(error, self._path)

    def close(self) -> None:
        """Flush and close; what fails has failed before, and should not hide why."""
        for records in (self._lines, self._board):
            with suppress(OSError):
                records.close()


@contextmanager
def record(path: Path, step: int, *, writing: bool) -> Iterator[Recorder | None]:
    """Record a run while it goes on; None for processes that do not write."""
    recorder = Recorder(path, step) if writing else None
    try:
        yield recorder
    finally:
        if recorder is not None:
            recorder.close()


def _check_steps(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    name = "settings.steps"
    if old["settings.decay"] != "constant":
        raise TrainingError(
            f"{path} was begun with steps={old[name]}, not {new[name]}: with decay=cosine the learning rates "
            "depend on it, only a run with decay=constant can be extended"
        )
    if new.get("settings.adversarial") and 0 < new["settings.adversarial_from"] < 1:
        raise TrainingError(
            f"{path} was begun with steps={old[name]}, not {new[name]}: its adversary joined after a share "
            "of them; begin another run from its result (--base), with adversarial_from=0"
        )
    if new[name] < old[name]:
        raise TrainingError(
            f"{path} was begun with steps={old[name]}: it can be extended, not cut to {new[name]}"
        )


def _up_to(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (KeyError, TypeError, ValueError):  # the last line of a run that was killed
        return False


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
        digests[path.name] = hash_file(path)
    facts = {"step": state.step, "sha256": digests, "facts": state.facts}
    write_json(folder / _FACTS, facts)


def _read(folder: Path) -> State:
    raw = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    tensors = {}
    for name, digest in raw["sha256"].items():
        if hash_file(folder / name) != digest:
            raise CheckpointError(f"{name} is not what was written")
        # Copied: the library maps the file, which a later save may delete.
        tensors[Path(name).stem] = {key: value.clone() for key, value in load_file(folder / name).items()}
    return State(step=int(raw["step"]), tensors=tensors, facts=dict(raw["facts"]))


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1
