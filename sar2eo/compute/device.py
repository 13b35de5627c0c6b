"""Where a model runs: choose device, precision, batch size and threads without loading weights.

Torch is imported only where a CUDA device may be meant.
"""

from __future__ import annotations

from pathlib import Path

from sar2eo.errors import SettingsError

DTYPES = ("float32", "bfloat16", "float16")
"""Precisions the networks can run in; latents and schedules are always float32."""

_CUDA_BYTES_PER_WINDOW = 3 * 2**30  # of 512 pixels, in half precision: its largest moment is the VAE's


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda:N" for "auto", "cpu", "cuda" or "cuda:N".

    Raises
    ------
    SettingsError
        For another name, or a device that this machine does not have.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise SettingsError(f"device={device!r}: must be auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return "cpu"
    import torch

    found = torch.cuda.device_count()
    if kind == "auto":
        return "cuda:0" if found else "cpu"
    if int(number or 0) >= found:
        raise SettingsError(f"device={device!r}: this machine has {found} CUDA devices; use auto or cpu")
    return f"cuda:{int(number or 0)}"


def resolve_dtype(dtype: str, device: str) -> str:
    """Return a precision; for "auto" the fastest that the device computes in natively.

    Raises
    ------
    SettingsError
        For another name.
    """
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise SettingsError(f"dtype={dtype!r}: must be one of auto, {', '.join(DTYPES)}")
    if device == "cpu":
        return "bfloat16" if _cpu_flags() & {"amx_bf16", "avx512_bf16"} else "float32"
    import torch

    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def _cpu_flags() -> set[str]:
    """Return the processor's features, where the system lists them (Linux)."""
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def default_batch(device: str) -> int:
    """Return tiles per batch: one on a CPU, where more gain nothing, else what fits, a power of two."""
    if device == "cpu":
        return 1
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(min(16, 2 ** max(0, (free // _CUDA_BYTES_PER_WINDOW).bit_length() - 1)))


def default_threads() -> int:
    """Return the physical cores this process may use, as torch counts them at its start."""
    import psutil

    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 1024
    return int(max(1, min(allowed, psutil.cpu_count(logical=False) or 1)))
