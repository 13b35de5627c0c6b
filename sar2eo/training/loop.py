"""The training loop of every task: steps, validation, records and saved states; resumes bit for bit.

Data order, augmentation, noise and timesteps are functions of the seed and the step, so states do not hold
them.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from sar2eo.compute.device import default_threads, resolve_device, resolve_dtype
from sar2eo.errors import SettingsError, TrainingError
from sar2eo.settings import LoopSettings
from sar2eo.training.phase import Phase
from sar2eo.training.run_folder import Recorder, RunFolder, State, States, record
from sar2eo.training.task import Batch, Task

Progress = Callable[[Mapping[str, float]], None]


class Outcome(NamedTuple):
    """Result of a training run."""

    final: Path
    """Folder of the exported result."""
    begun_at: int
    """Steps done by earlier calls; all of them if the run was already finished."""
    seconds: float
    """Duration of this call."""
    metrics: dict[str, float]
    """Metrics of the last validation."""


def describe_run(settings: Any, accelerator: Accelerator, **more: Any) -> dict[str, Any]:
    """Describe what must stay the same when a run is resumed, as JSON values.

    Parameters
    ----------
    settings : LoopSettings
        All settings of the run.
    accelerator : Accelerator
        Gives the number of processes.
    **more
        Data and base, with their fingerprints.
    """
    return {"settings": dataclasses.asdict(settings), "processes": accelerator.num_processes, **more}


def run_loop(
    task: Task,
    accelerator: Accelerator,
    *,
    settings: LoopSettings,
    batches: Callable[[int, int], Iterable[Batch]],
    validation: Callable[[], Iterable[Batch]] | None,
    out: Path,
    identity: Mapping[str, Any],
    progress: Progress | None = None,
) -> Outcome:
    """Train a task, or resume its run.

    Parameters
    ----------
    task : Task
        Networks, losses, validation and export.
    accelerator : Accelerator
        From `create_accelerator`.
    settings : LoopSettings
        Steps, learning rate, intervals.
    batches : callable
        ``batches(start, stop)`` loads this process's batches of steps `start` to before `stop`,
        ``settings.accumulate`` for each step.
    validation : callable or None
        Returns the validation batches, the same every time.
    out : Path
        Run folder (see `sar2eo.training.run_folder`).
    identity : mapping
        From `describe_run`.
    progress : callable or None
        Called by the first process after every step, with counts and the loss.

    Raises
    ------
    TrainingError
        If the folder holds another run, or a loss is not finite; the last state is kept.
    KeyboardInterrupt
        On SIGINT or SIGTERM, after a state was saved.
    """
    folder = RunFolder(out)
    finished = folder.check(identity)
    accelerator.wait_for_everyone()  # every process has checked before the first one writes
    if finished == settings.steps and (out / "final").is_dir():
        return Outcome(out / "final", finished, 0.0, {})
    writing = accelerator.is_main_process
    with folder.lock() if writing else nullcontext():
        if writing:
            folder.begin(identity, describe_environment(accelerator))
        run = _Run(task, accelerator, settings, folder)
        begun_at = run.resume()
        # Outside `_stop_signals`: building a cache of latents before the first step can be stopped at once.
        source = batches(begun_at, settings.steps) if begun_at < settings.steps else ()
        start = time.monotonic()
        with record(out, begun_at, writing=writing) as recorder, _stop_signals() as stop:
            run.train(iter(source), validation, recorder, stop, progress if writing else None)
        final = out / "final"
        with run.averaged_weights():
            if writing:
                folder.publish("final", lambda path: task.export(path, run.result()))
                folder.finish(settings.steps)
        accelerator.wait_for_everyone()
    if stop.requested:
        raise KeyboardInterrupt  # too late to stop this run, but callers must not begin another
    return Outcome(final, begun_at, time.monotonic() - start, run.metrics)


class _Stop:
    """A request to stop, made by a signal."""

    requested = False


class _Run:
    """Networks, states and counters of a run in progress."""

    def __init__(
        self, task: Task, accelerator: Accelerator, settings: LoopSettings, folder: RunFolder
    ) -> None:
        self._task, self._accelerator, self._settings, self._folder = task, accelerator, settings, folder
        self._states = States(folder.path / "states", settings.keep)
        self._phases = [Phase(name, task, accelerator, settings) for name in list(task.phases)]
        self._best: float | None = None
        self.done = 0
        self._validated = 0  # step of the last validation
        self.metrics: dict[str, float] = {}

    def resume(self) -> int:
        """Restore the newest state; return the number of steps done."""
        state = self._states.latest()
        if state is not None:
            if state.step > self._settings.steps:
                raise TrainingError(f"{self._folder.path} has a state of step {state.step}, beyond --steps")
            self.done, self._best = state.step, state.facts["best"]
            self.metrics = state.facts["metrics"]
            self._validated = state.facts.get("validated", state.step)
            for phase in self._phases:
                phase.restore(state.tensors, state.facts["phases"][phase.name])
            if self._accelerator.scaler is not None and state.facts["scaler"] is not None:
                self._accelerator.scaler.load_state_dict(state.facts["scaler"])
        return self.done

    def train(
        self,
        source: Iterator[Batch],
        validation: Callable[[], Iterable[Batch]] | None,
        recorder: Recorder | None,
        stop: _Stop,
        progress: Progress | None,
    ) -> None:
        """Run the remaining steps."""
        settings, first = self._settings, self.done
        start = time.monotonic()
        if validation is not None and self.done > self._validated and self._is_due(settings.validate_every):
            self._validate(validation, recorder)  # the run was stopped, or failed, before it
        while self.done < settings.steps:
            values = self._step(self.done, self._read(source, first))
            self.done += 1
            if recorder is not None:
                recorder.scalars(self.done, "train", values)
            if progress is not None:
                rate = (self.done - first) / max(time.monotonic() - start, 1e-9)
                loss = values[f"{self._phases[0].name}/loss"]
                progress({"steps": self.done, "steps_total": settings.steps, "rate": rate, "loss": loss})
            stopping = self._stop_requested(stop) and self.done < settings.steps
            if validation is not None and not stopping and self._is_due(settings.validate_every):
                try:
                    self._validate(validation, recorder)
                except Exception:
                    self._save()  # a failed validation must not lose the training
                    raise
            if stopping or self._is_due(settings.save_every):
                self._save()
            if stopping:
                raise KeyboardInterrupt

    def _read(self, source: Iterator[Batch], first: int) -> list[Batch]:
        """Read the batches of a step; on failure save a state first, so that finished steps are kept."""
        try:
            return list(islice(source, self._settings.accumulate))
        except Exception:
            # Only with one process: others have read theirs, and saving would wait for them.
            if self.done > first and self._accelerator.num_processes == 1:
                self._save()
            raise

    def _is_due(self, every: int) -> bool:
        return self.done == self._settings.steps or bool(every and self.done % every == 0)

    def _step(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        settings, processes = self._settings, self._accelerator.num_processes
        if len(batches) < settings.accumulate:
            raise TrainingError(f"step {step + 1}: the data end before this step")
        moved = [_move(batch, self._accelerator.device) for batch in batches]
        first = step * settings.accumulate
        numbers = [
            (first + k) * processes + self._accelerator.process_index for k in range(settings.accumulate)
        ]
        values: dict[str, float] = {}
        for phase in self._phases:
            if self._task.active(phase.name, step):
                generators = [_create_generator(settings.seed, number) for number in numbers]
                with phase.freeze_others(self._phases):
                    found = phase.update(step, moved, generators)
                values |= {f"{phase.name}/{key}": value for key, value in found.items()}
        return values

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the averaged weights, which are validated and exported, inside the context."""
        with ExitStack() as stack, torch.no_grad():
            for phase in self._phases:
                stack.enter_context(phase.averaged_weights())
            yield

    def _validate(self, validation: Callable[[], Iterable[Batch]], recorder: Recorder | None) -> None:
        """Compute metrics, draw a picture, export the best so far; only the first process writes."""
        device = self._accelerator.device
        with self.averaged_weights():
            self.metrics = self._task.validate(_move(batch, device) for batch in validation())
            score = self.metrics["score"]
            better = math.isfinite(score) and (self._best is None or score < self._best)
            if better:
                self._best = score
            if recorder is not None:
                recorder.scalars(self.done, "validation", self.metrics)
                shown = next((_move(batch, device) for batch in validation()), None)
                if shown is not None:
                    recorder.picture(self.done, self._task.picture(shown))
                if better:
                    self._folder.publish("best", lambda path: self._task.export(path, self.result()))
        self._validated = self.done
        self._accelerator.wait_for_everyone()

    def result(self) -> dict[str, Any]:
        """Return steps and metrics, for an exported result."""
        return {"steps": self.done, "metrics": self.metrics}

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            tensors: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "optimiser": {}, "average": {}}
            for phase in self._phases:
                for file, found in phase.tensors().items():
                    tensors[file] |= found
            scaler = self._accelerator.scaler
            facts = {
                "best": self._best,
                "metrics": self.metrics,
                "validated": self._validated,
                "phases": {phase.name: phase.facts() for phase in self._phases},
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            self._states.save(State(step=self.done, tensors=tensors, facts=facts))
        self._accelerator.wait_for_everyone()

    def _stop_requested(self, stop: _Stop) -> bool:
        """Return whether any process was asked to stop: all of them stop after the same step."""
        if self._accelerator.num_processes == 1:
            return stop.requested
        flag = torch.tensor(float(stop.requested), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum") > 0)


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread receives signals
        return

    def request(number: int, _: Any) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _create_generator(seed: int, number: int) -> torch.Generator:
    """Create the generator of one batch, numbered over steps, accumulation and processes."""
    words = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def _move(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


_PROCESS_TIMEOUT = timedelta(days=7)  # others wait while the first one encodes a cache of latents
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def create_accelerator(settings: LoopSettings) -> Accelerator:
    """Set up device, precision, accumulation and, under ``accelerate launch``, processes.

    Weights stay float32; in half precision, forward passes run under autocast. Torch's number of threads is
    set as well: results depend on it.

    Raises
    ------
    SettingsError
        If the device does not exist, or for float16 on a CPU.
    """
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    if device == "cpu" and dtype == "float16":
        raise SettingsError("dtype='float16': a CPU trains in float32 or bfloat16")
    torch.set_num_threads(settings.threads or default_threads())
    if settings.device.startswith("cuda:"):
        torch.cuda.set_device(device)
    # accelerate keeps one configuration per process; a second run may need another.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=_MIXED[dtype],
        # Given as a number, an environment variable would override it, and steps would end without an update.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PROCESS_TIMEOUT)],
    )


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Describe hardware, precision and versions, on which the last bits of results depend."""
    on_cpu = accelerator.device.type == "cpu"
    return {
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(accelerator.device),
        "dtype": {mixed: name for name, mixed in _MIXED.items()}[str(accelerator.mixed_precision)],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }
