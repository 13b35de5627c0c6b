"""The training loop: any task, resumed bit for bit, with validation, records, states and results.

Data order, augmentation, noise and timesteps are functions of the seed and the step, so a state need
not hold them.
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

__all__ = ["Outcome", "Progress", "create_accelerator", "environment_of", "identity_of", "run_loop"]

Progress = Callable[[Mapping[str, float]], None]


class Outcome(NamedTuple):
    """What a run came to."""

    final: Path
    begun_at: int
    """Steps that were done before; as many as there are, if it was finished."""
    seconds: float
    metrics: dict[str, float]
    """Of the last validation."""


def identity_of(settings: Any, accelerator: Accelerator, **more: Any) -> dict[str, Any]:
    """Return what must not differ when a run goes on, as JSON values.

    Parameters
    ----------
    settings : TrainSettings or VaeSettings
    accelerator : Accelerator
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
    """Train a task, or go on with it.

    Parameters
    ----------
    task : Task
    accelerator : Accelerator
        From `sar2eo.training.loop.create_accelerator`.
    settings : LoopSettings
    batches : callable
        Of first and last step (excluded) to this process's batches, ``settings.accumulate`` for each step.
    validation : callable or None
        Returns the validation batches, the same every time.
    out : Path
        Run folder (see `sar2eo.training.run_folder`).
    identity : mapping
        From `identity_of`.
    progress : callable or None
        Called by the first process after every step, with counts and the loss.

    Raises
    ------
    TrainingError
        If the folder holds another run, or a loss is not finite; the last state is kept.
    OutputError
        If something cannot be written.
    KeyboardInterrupt
        On SIGINT or SIGTERM, after a state was saved.
    """
    folder = RunFolder(out)
    finished = folder.check(identity)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if finished == settings.steps and (out / "final").is_dir():
        return Outcome(out / "final", finished, 0.0, {})
    writing = accelerator.is_main_process
    with folder.locked() if writing else nullcontext():
        if writing:
            folder.begin(identity, environment_of(accelerator))
        run = _Run(task, accelerator, settings, folder)
        begun_at = run.resume()
        # Not yet under `_stop_signals`: what a cache takes before the first step can be stopped at once.
        source = batches(begun_at, settings.steps) if begun_at < settings.steps else ()
        start = time.monotonic()
        with record(out, begun_at, writing=writing) as recorder, _stop_signals() as stop:
            run.advance(iter(source), validation, recorder, stop, progress if writing else None)
        final = out / "final"
        with run.in_use():
            if writing:
                folder.publish("final", lambda path: task.export(path, run.result()))
                folder.finish(settings.steps)
        accelerator.wait_for_everyone()
    if stop.wanted:
        raise KeyboardInterrupt  # it came too late to stop this, and what follows is not to begin
    return Outcome(final, begun_at, time.monotonic() - start, run.metrics)


class _Stop:
    """Whether a signal asked to stop."""

    wanted = False


class _Run:
    """A task under way."""

    def __init__(
        self, task: Task, accelerator: Accelerator, settings: LoopSettings, folder: RunFolder
    ) -> None:
        self._task, self._accelerator, self._settings, self._folder = task, accelerator, settings, folder
        self._states = States(folder.path / "states", settings.keep)
        self._phases = [Phase(name, task, accelerator, settings) for name in list(task.phases)]
        self._best: float | None = None
        self.done = 0
        self._validated = 0  # after which step at last
        self.metrics: dict[str, float] = {}

    def resume(self) -> int:
        """Go to the newest state; return the steps done."""
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

    def advance(
        self,
        source: Iterator[Batch],
        validation: Callable[[], Iterable[Batch]] | None,
        recorder: Recorder | None,
        stop: _Stop,
        progress: Progress | None,
    ) -> None:
        """Do the steps that are left."""
        settings, first = self._settings, self.done
        start = time.monotonic()
        if validation is not None and self.done > self._validated and self._due(settings.validate_every):
            self._validate(validation, recorder)  # for which a stop, or a failure, left no time
        while self.done < settings.steps:
            values = self._step(self.done, self._read(source, first))
            self.done += 1
            if recorder is not None:
                recorder.scalars(self.done, "train", values)
            if progress is not None:
                rate = (self.done - first) / max(time.monotonic() - start, 1e-9)
                loss = values[f"{self._phases[0].name}/loss"]
                progress({"steps": self.done, "steps_total": settings.steps, "rate": rate, "loss": loss})
            stopping = self._agreed(stop) and self.done < settings.steps
            if validation is not None and not stopping and self._due(settings.validate_every):
                try:
                    self._validate(validation, recorder)
                except Exception:
                    self._save()  # what was trained is not lost with it
                    raise
            if stopping or self._due(settings.save_every):
                self._save()
            if stopping:
                raise KeyboardInterrupt

    def _read(self, source: Iterator[Batch], first: int) -> list[Batch]:
        """Return the batches of a step; if they cannot be read, the steps so far are not lost with them."""
        try:
            return list(islice(source, self._settings.accumulate))
        except Exception:
            # Other processes have read theirs, and would be waited for.
            if self.done > first and self._accelerator.num_processes == 1:
                self._save()
            raise

    def _due(self, every: int) -> bool:
        return self.done == self._settings.steps or bool(every and self.done % every == 0)

    def _step(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        settings, processes = self._settings, self._accelerator.num_processes
        if len(batches) < settings.accumulate:
            raise TrainingError(f"step {step + 1}: the data end here")
        moved = [_on_device(batch, self._accelerator.device) for batch in batches]
        first = step * settings.accumulate
        numbers = [
            (first + k) * processes + self._accelerator.process_index for k in range(settings.accumulate)
        ]
        values: dict[str, float] = {}
        for phase in self._phases:
            if self._task.active(phase.name, step):
                generators = [_generator(settings.seed, number) for number in numbers]
                with phase.others_frozen(self._phases):
                    found = phase.update(step, moved, generators)
                values |= {f"{phase.name}/{key}": value for key, value in found.items()}
        return values

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Put the weights that are for use in place meanwhile."""
        with ExitStack() as stack, torch.no_grad():
            for phase in self._phases:
                stack.enter_context(phase.in_use())
            yield

    def _validate(self, validation: Callable[[], Iterable[Batch]], recorder: Recorder | None) -> None:
        """Measure, draw, and publish the best so far; every process measures, the first one writes."""
        device = self._accelerator.device
        with self.in_use():
            self.metrics = self._task.validate(_on_device(batch, device) for batch in validation())
            score = self.metrics["score"]
            better = math.isfinite(score) and (self._best is None or score < self._best)
            if better:
                self._best = score
            if recorder is not None:
                recorder.scalars(self.done, "validation", self.metrics)
                shown = next((_on_device(batch, device) for batch in validation()), None)
                if shown is not None:
                    recorder.picture(self.done, self._task.picture(shown))
                if better:
                    self._folder.publish("best", lambda path: self._task.export(path, self.result()))
        self._validated = self.done
        self._accelerator.wait_for_everyone()

    def result(self) -> dict[str, Any]:
        """Return the facts that go with an exported result."""
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

    def _agreed(self, stop: _Stop) -> bool:
        """Whether any process was asked to stop: all of them stop after the same step."""
        if self._accelerator.num_processes == 1:
            return stop.wanted
        flag = torch.tensor(float(stop.wanted), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum") > 0)


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a wish; a second one acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are for the main thread
        return

    def wish(number: int, _: Any) -> None:
        stop.wanted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _generator(seed: int, number: int) -> torch.Generator:
    """Return the generator of one batch, counted over steps, accumulation and processes."""
    words = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def _on_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


_PATIENCE = timedelta(days=7)  # of processes for the first one, which may be encoding a cache
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def create_accelerator(settings: LoopSettings) -> Accelerator:
    """Set up device, precision, accumulation and, under ``accelerate launch``, processes.

    Weights stay float32; in half precision the networks' forward passes compute under autocast. Torch's
    number of threads is set, too: results depend on it.

    Raises
    ------
    SettingsError
        For a device that is not there, or float16 on a CPU.
    """
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    if device == "cpu" and dtype == "float16":
        raise SettingsError("dtype='float16': a CPU trains in float32 or bfloat16")
    torch.set_num_threads(settings.threads or default_threads())
    if settings.device.startswith("cuda:"):
        torch.cuda.set_device(device)
    # accelerate keeps one set-up per process, and a second run may want another.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=_MIXED[dtype],
        # As a number, a variable of the environment would overrule it, and steps would end in no update.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """Describe what results depend on in their last bits, as JSON values."""
    on_cpu = accelerator.device.type == "cpu"
    return {
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(accelerator.device),
        "dtype": {mixed: name for name, mixed in _MIXED.items()}[str(accelerator.mixed_precision)],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }
