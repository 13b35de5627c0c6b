"""What a measurement is, commands measured from outside, and what the machine can do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

# The memory of a process counts what its parent held when it was started, so the parent must be small.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
print(json.dumps([code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""

_CPU_FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A line of the table: a case against its baseline, and the ratio it should not exceed."""

    case: str
    value: float
    baseline: str
    against: float
    unit: str = "s"
    goal: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.value / self.against


class Baseline(NamedTuple):
    """What a case is measured against; `note` makes a remark of the case's median and this one's."""

    name: str
    run: Callable[[], Any]
    goal: float | None = None
    note: Callable[[float, float], str] = lambda value, against: ""


class Usage(NamedTuple):
    """What a command took: wall and CPU seconds, and its largest resident memory in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def sar2eo(*arguments: object) -> list[str]:
    """The installed program's command line; from a source tree without it, what the program does."""
    program = Path(sys.executable).with_name("sar2eo")
    start = (
        [str(program)] if program.exists() else [sys.executable, "-c", "from sar2eo.cli import main; main()"]
    )
    return [*start, *map(str, arguments)]


def python(program: str, *arguments: object) -> list[str]:
    """A program in a fresh interpreter."""
    return [sys.executable, "-c", program, *map(str, arguments)]


def run(command: list[str]) -> Usage:
    """Run a command to its end; a failing one is an error with its own words."""
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, cwd=ROOT, capture_output=True, text=True, check=True)
    code, *usage = json.loads(done.stdout)
    assert code == 0, f"{command} failed with {code}: {done.stderr}"
    return Usage(*usage)


def cpu_features() -> list[str]:
    """Those extensions of the instruction set that decide how fast a network runs."""
    listed = Path("/proc/cpuinfo")
    found = set(listed.read_text().split()) if listed.exists() else set()
    return [name for name in _CPU_FEATURES if name in found]


def matrix_products(flops: float, dtype: Any, size: int = 2048) -> Callable[[], None]:
    """Return a function that spends about as many floating-point operations in large matrix products."""
    import torch

    left, right = torch.randn(2, size, size).to(dtype)
    out = torch.empty_like(left)
    count = round(flops / (2 * size**3))

    def multiply() -> None:
        for _ in range(count):
            torch.mm(left, right, out=out)

    return multiply
