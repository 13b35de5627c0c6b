"""Where and how a run computes: accelerate set up from the settings."""

from __future__ import annotations

import platform
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from sar2eo.compute.device import default_threads, resolve_device, resolve_dtype
from sar2eo.errors import SettingsError
from sar2eo.settings import LoopSettings

__all__ = ["create_accelerator", "environment_of"]

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
