"""Run folder of a training: settings, metrics, states to resume from, results.

::

    run.json        settings, data, base, versions, threads; number of finished steps
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

_LOCK = ".lock"

# Settings that do not change what is learnt: they may differ when a run is resumed. `RunFolder.begin` warns
# of other threads and hardware, which change the last bits.
_FREE = ("keep", "save_every", "validate_every", "gradient_checkpointing", "device", "threads")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = path / "run.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder if need be, and lock it inside the context; another run is refused."""
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
        """Check that the folder is empty, or holds a run with the same settings, data and base.

        Parameters
        ----------
        identity : mapping
            JSON values, from `sar2eo.training.loop.describe_run`.

        Returns
        -------
        int or None
            Steps of this run, or of a shorter one that it extends, if that was finished.

        Raises
        ------
        TrainingError
            Naming the first value that differs, or if the folder holds other files.
        """
        if not self._run.exists():
            if self.path.is_dir() and any(path.name != _LOCK for path in self.path.iterdir()):
                raise TrainingError(f"{self.path} holds other files than a run's: choose another folder")
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
        """Write ``run.json``, after `check`; warn if hardware, threads or versions have changed."""
        finished = None
        if self._run.exists():
            before = self._read()
            finished = before["finished"]
            for name, value in environment.items():
                if before["environment"].get(name) != value:
                    warnings.warn(
                        f"{self.path} was begun with {name} {before['environment'].get(name)}, goes on with "
                        f"{value}: not bit for bit the same result",
                        TrainingWarning,
                        stacklevel=2,
                    )
        self._write(identity, environment, finished)

    def finish(self, steps: int) -> None:
        """Record in ``run.json`` that the run is finished."""
        before = self._read()
        self._write(before["identity"], before["environment"], steps)

    def publish(self, name: str, export: Callable[[Path], Path]) -> Path:
        """Replace a result by the folder that `export` writes; on failure the previous one stays.

        Parameters
        ----------
        name : str
            "best" or "final".
        export : callable
            Writes the result as a new folder at the given path.
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
    """Writes scalars and pictures to ``metrics.jsonl``, ``pictures/`` and TensorBoard.

    Parameters
    ----------
    path : Path
        The run's folder.
    step : int
        Step the run resumes from; later records are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path / "metrics.jsonl"
        if lines.exists():
            kept = [line for line in lines.read_text(encoding="utf-8").splitlines() if _is_within(line, step)]
            write_file(lines, "".join(f"{line}\n" for line in kept).encode())
        self._lines = lines.open("a", encoding="utf-8")
        self._board = SummaryWriter(path / "log", purge_step=step + 1)

    def scalars(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Record values under ``part/name``; steps count from 1."""
        try:
            self._lines.write(json.dumps({"step": step, "part": part, **values}) + "\n")
            self._lines.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{part}/{name}", value, step)
        except OSError as error:
            refuse(error, self._path)

    def picture(self, step: int, picture: Tensor) -> None:
        """Record a picture, uint8 of shape (3, H, W)."""
        from PIL import Image

        folder = self._path / "pictures"
        try:
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(folder / f"step-{step:06d}.png")
            self._board.add_image("validation", picture, step)
        except OSError as error:
            refuse(error, self._path)

    def close(self) -> None:
        """Flush and close; errors were raised by earlier writes, and are ignored here."""
        for records in (self._lines, self._board):
            with suppress(OSError):
                records.close()


@contextmanager
def record(path: Path, step: int, *, writing: bool) -> Iterator[Recorder | None]:
    """Open the records of a run inside the context; None for processes that do not write."""
    recorder = Recorder(path, step) if writing else None
    try:
        yield recorder
    finally:
        if recorder is not None:
            recorder.close()


def _check_steps(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse another number of steps, unless it extends a run whose steps do not depend on it."""
    name = "settings.steps"
    if old["settings.decay"] != "constant":
        raise TrainingError(
            f"{path} was begun with steps={old[name]}, not {new[name]}: with decay=cosine the learning rates "
            "depend on it, only a run with decay=constant can be extended"
        )
    if new.get("settings.adversarial") and 0 < new["settings.adversarial_from"] < 1:
        raise TrainingError(
            f"{path} was begun with steps={old[name]}, not {new[name]}: its adversary joins after a share "
            "of them; begin another run from its result (--base), with adversarial_from=0"
        )
    if new[name] < old[name]:
        raise TrainingError(
            f"{path} was begun with steps={old[name]}: it can be extended, not cut to {new[name]}"
        )


def _is_within(line: str, step: int) -> bool:
    """Return whether a line of ``metrics.jsonl`` is of that step or an earlier one."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (KeyError, TypeError, ValueError):  # the last line of a run that was killed
        return False


_FACTS = "state.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """State of a run, from which it resumes.

    Parameters
    ----------
    step : int
        Steps done.
    tensors : dict of str to dict of str to Tensor
        Weights, optimiser and averages: named tensors by file.
    facts : dict
        Best score, metrics and counters, as JSON values.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


class States:
    """The saved states of one run.

    Parameters
    ----------
    folder : Path
        Created by the first `save`.
    keep : int
        Number of newest states that are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State) -> Path:
        """Write a state and flush it to disk, then delete surplus ones; on failure none is deleted."""
        target = self.folder / f"step-{state.step:06d}"
        size = sum(t.numel() * t.element_size() for group in state.tensors.values() for t in group.values())
        try:
            # It replaces a broken state of the same step, which `latest` skipped.
            with atomic_folder(target, size=size) as partial:
                _write(state, partial)
        except SafetensorError as error:
            raise OutputError(
                f"{self.folder}: a state of {size / 1e6:.0f} MB cannot be written: {error}"
            ) from error
        self._prune(target)
        return target

    def latest(self) -> State | None:
        """Read the newest intact state; None if there are no states.

        Broken ones are skipped with a warning; if none is intact, `TrainingError` is raised.
        """
        found = sorted(self.folder.glob("step-*"), key=_step, reverse=True)
        for path in found:
            try:
                return _read(path)
            except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
                warnings.warn(f"{path} is skipped: {error}", TrainingWarning, stacklevel=2)
        if found:
            raise TrainingError(
                f"{self.folder}: none of its {len(found)} states can be read: delete the run to start again"
            )
        return None

    def _prune(self, newest: Path) -> None:
        """Delete surplus old states, and states after the newest, which are broken."""
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
            raise CheckpointError(f"{name} has changed since it was written")
        # Copied: safetensors maps the file, which a later save may delete.
        tensors[Path(name).stem] = {key: value.clone() for key, value in load_file(folder / name).items()}
    return State(step=int(raw["step"]), tensors=tensors, facts=dict(raw["facts"]))


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1
