"""A network in training: optimiser step, learning rate, moving average, saved tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sar2eo.errors import TrainingError
from sar2eo.settings import LoopSettings
from sar2eo.training.task import Batch, Task

Tensors = dict[str, dict[str, Tensor]]


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then cosine decay or constant.

    The first step has ``lr / warmup``, the last of the warm-up ``lr``; the cosine (SGDR without restarts,
    https://arxiv.org/abs/1608.03983) would reach 0 at step ``steps``.
    """
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.decay == "constant":
        return settings.lr
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


# With the usual momentum, two adversarial networks oscillate; the second pair is VQGAN's
# (https://arxiv.org/abs/2012.09841).
_BETAS, _ADVERSARIAL_BETAS = (0.9, 0.999), (0.5, 0.9)


class Phase:
    """A network of a task with its optimiser, prepared by accelerate.

    Parameters
    ----------
    name : str
        Key of the network in ``task.phases``.
    task : Task
        Its network of that name is replaced by the prepared one.
    accelerator : Accelerator
        Device, precision and processes.
    settings : LoopSettings
        Learning rate, weight decay, decay of the average.
    """

    def __init__(self, name: str, task: Task, accelerator: Accelerator, settings: LoopSettings) -> None:
        self.name = name
        self._task, self._accelerator, self._settings = task, accelerator, settings
        network = task.phases[name]
        optimiser = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=settings.lr,
            betas=_BETAS if len(task.phases) == 1 else _ADVERSARIAL_BETAS,
            weight_decay=settings.weight_decay,
        )
        prepared, self._optimiser = accelerator.prepare(network, optimiser)
        task.phases[name] = prepared
        self._network: nn.Module = accelerator.unwrap_model(prepared)
        self._trained = {k: p for k, p in self._network.named_parameters() if p.requires_grad}
        self._average: Any = None
        if settings.ema and name in task.averaged:
            self._average = EMAModel(self._trained.values(), decay=settings.ema, foreach=True)
        self._network.train()

    def update(
        self, step: int, batches: Sequence[Batch], generators: Sequence[torch.Generator]
    ) -> dict[str, float]:
        """Take one optimiser step over one or more batches.

        Returns
        -------
        dict of str to float
            ``loss``, ``grad_norm``, ``lr`` and the scalars of the task, averaged over the batches.

        Raises
        ------
        TrainingError
            If loss or gradient is not finite; the weights are then unchanged.
        """
        rate = learning_rate(self._settings, step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        sums: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for batch, generator in zip(batches, generators, strict=True):
            with self._accelerator.accumulate(self._task.phases[self.name]):
                loss, facts = self._task.loss(self.name, batch, step, generator)
                self._accelerator.backward(loss)
                for key, fact in {"loss": loss.detach(), **facts}.items():
                    part = fact / len(batches)
                    sums[key] = sums[key] + part if key in sums else part
                if self._accelerator.sync_gradients:
                    numbers = self._apply(step, sums)
        if self._average is not None:
            self._average.step(self._trained.values())
        return {**numbers, "lr": rate}

    def _apply(self, step: int, sums: dict[str, Tensor]) -> dict[str, float]:
        """Clip the gradient and update the weights; in float16 the scaler skips what overflowed."""
        norm = self._accelerator.clip_grad_norm_(self._trained.values(), self._settings.max_grad_norm)
        numbers = _read_scalars({**sums, "grad_norm": norm})
        if not math.isfinite(numbers["loss"]):
            raise TrainingError(self._not_finite(step, "loss", numbers["loss"]))
        if self._accelerator.scaler is None and not math.isfinite(numbers["grad_norm"]):
            raise TrainingError(self._not_finite(step, "gradient's norm", numbers["grad_norm"]))
        self._optimiser.step()
        return numbers

    def _not_finite(self, step: int, what: str, value: float) -> str:
        return (
            f"step {step + 1}: the {what} of {self.name} is {value}: lower --lr, or use --dtype float32; the "
            "last state is kept"
        )

    @contextmanager
    def freeze_others(self, phases: Sequence[Phase]) -> Iterator[None]:
        """Compute no gradients of other phases' weights inside the context: they would not be used."""
        others = [p for phase in phases if phase is not self for p in phase._trained.values()]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the averaged weights, in evaluation mode, inside the context."""
        self._network.eval()
        if self._average is not None:
            self._average.store(self._trained.values())
            self._average.copy_to(self._trained.values())
        try:
            yield
        finally:
            if self._average is not None:
                self._average.restore(self._trained.values())
            self._network.train()

    def tensors(self) -> Tensors:
        """Return the tensors to save, by file; frozen weights are the base's and are not saved."""
        kept: Tensors = {"weights": {}, "optimiser": {}, "average": {}}
        for key, tensor in {**self._trained, **self._buffers()}.items():
            kept["weights"][f"{self.name}.{key}"] = tensor
        for index, values in self._optimiser.state_dict()["state"].items():
            for key, tensor in values.items():
                kept["optimiser"][f"{self.name}.{self._order[index]}.{key}"] = tensor
        if self._average is not None:
            for key, tensor in zip(self._trained, self._average.shadow_params, strict=True):
                kept["average"][f"{self.name}.{key}"] = tensor
        return kept

    def facts(self) -> dict[str, Any]:
        """Return the values to save beside tensors, as JSON values."""
        return {"averaged_steps": 0 if self._average is None else self._average.optimization_step}

    def restore(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Restore saved tensors and facts; those of another network are refused."""
        expected = self.tensors()
        for file in ("weights", "average"):
            found = {key for key in tensors[file] if key.startswith(f"{self.name}.")}
            if found != set(expected[file]):
                odd = min(found ^ set(expected[file]))
                raise TrainingError(f"the state belongs to another network: {file} differ in {odd}")
        with torch.no_grad():
            for file in ("weights", "average"):
                for key, tensor in expected[file].items():
                    tensor.copy_(tensors[file][key])
        if self._average is not None:
            self._average.optimization_step = facts["averaged_steps"]
        number = {key: index for index, key in enumerate(self._order)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors["optimiser"].items():
            phase, _, rest = key.partition(".")
            if phase == self.name:
                parameter, _, kind = rest.rpartition(".")
                weight = self._trained[parameter]
                if tensor.shape == weight.shape:
                    # In its weight's memory format: otherwise updates are slow on a GPU.
                    tensor = torch.empty_like(weight, requires_grad=False).copy_(tensor)
                state.setdefault(number[parameter], {})[kind] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})

    @property
    def _order(self) -> list[str]:
        return list(self._trained)

    def _buffers(self) -> dict[str, Tensor]:
        kept = self._network.state_dict().keys()
        return {name: buffer for name, buffer in self._network.named_buffers() if name in kept}


def _read_scalars(values: dict[str, Tensor]) -> dict[str, float]:
    """Read all scalars at once: the host waits for the device a single time."""
    read: list[float] = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, read, strict=True))
