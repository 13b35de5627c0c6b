"""Runs of the command line that end badly on purpose.

`Launcher` starts one process that has everything imported, and forks a child for each run: so a run takes a
fraction of a second, and many moments can be tried. A child counts what it does to files as events, and can
be made to die, to be interrupted or to fail right before any of them.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

_MODULES = (
    "sar2eo.cli.translate",
    "sar2eo.translation.archive",
    "sar2eo.translation.plan",
    "rasterio.shutil",
    "rio_cogeo.cogeo",
    "rioxarray",
    "dask.threaded",
)
_WATCHED = {"replace": 1, "rename": 1, "symlink": 1, "unlink": 0, "rmdir": 0, "mkdir": 0}
"""Functions of `os`, and which of their arguments is told."""

_SLEEP = "SECONDS_OF_A_BATCH"
_SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}


class Run(NamedTuple):
    """How a run ended."""

    code: int
    told: str
    events: list[str]


class Launcher:
    """Starts runs, one after the other or several at once.

    Parameters
    ----------
    folder : Path
        Of what the runs say.
    modules : sequence of str
        To import before the first run, beside those of ``sar2eo translate``.
    around : sequence of str
        A command that is to run the process, such as ``unshare``.
    """

    def __init__(self, folder: Path, modules: Sequence[str] = (), around: Sequence[str] = ()) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.folder, self.numbers = folder, itertools.count()
        self.process = subprocess.Popen(
            [*around, sys.executable, "-W", "ignore", __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )
        self.ready = self._answer() == "ready"

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _ask(self, **values: Any) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(self, *arguments: object, **fault: Any) -> tuple[int, Path]:
        """Start ``sar2eo ARGUMENTS``; returns its process, and where it says what.

        Parameters
        ----------
        *arguments : object
            Of the command line.
        at : int
            Number of the event right before which it happens.
        on : str
            A pattern that the event matches, as in ``replace eo\\.tif``; instead of `at`.
        nth : int
            Of these events, from 1.
        do : {"kill" (default), "int", "term", "truncate", "pause"} or the name of an errno
            What happens: a signal, that the file `truncated` loses its second half, that nothing goes on
            before the file `until` is there (``<until>.waits`` says so), or an error.
        delay : float
            Seconds between the event and a signal; the kernel ends the process without asking it.
        sleep : float
            Seconds that the model takes for a batch.
        clock : float
            Seconds that the clock is off.
        """
        told = self.folder / f"run-{next(self.numbers)}"
        return int(self._ask(argv=[str(argument) for argument in arguments], told=str(told), **fault)), told

    def wait(self, started: tuple[int, Path]) -> Run:
        """Wait for the end of a run."""
        pid, told = started
        code = int(self._ask(wait=pid))
        events = told.with_suffix(".events")
        lines = events.read_text().splitlines() if events.exists() else []
        return Run(code, told.read_text(), lines)

    def run(self, *arguments: object, **fault: Any) -> Run:
        """Start a run and wait for it."""
        return self.wait(self.start(*arguments, **fault))

    def shell(self, command: str) -> int:
        """Run a command where the runs are, which may be another name space."""
        return int(self._ask(shell=command))


def _serve() -> None:
    for name in (*_MODULES, *sys.argv[1:]):
        importlib.import_module(name)
    assert threading.active_count() == 1, "threads do not outlive a fork"
    _answer("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _answer(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]))
        elif "shell" in asked:
            _answer(subprocess.run(asked["shell"], shell=True, check=False).returncode)  # noqa: S602
        elif pid := os.fork():
            _answer(pid)
        else:
            _run(asked)


def _answer(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def _run(asked: dict[str, Any]) -> None:
    """Be the command line."""
    told = os.open(asked["told"], os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(told, 1)
    os.dup2(told, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[_SLEEP] = str(asked.get("sleep", 0.0))  # for workers, too
    _stand_in()
    if "clock" in asked:
        _set_clock(asked["clock"])
    _Watch(asked).install()
    sys.argv = ["sar2eo", *asked["argv"]]
    from sar2eo.cli import main

    main()
    sys.exit()


def _stand_in() -> None:
    """Let the identity model be slow, and have a variance and a spread that depend on the pixels."""
    import numpy as np

    from sar2eo.model.interface import Translation
    from sar2eo.model.loading import IdentityTranslator
    from sar2eo.model.spec import ModelSpec

    quick, seconds = IdentityTranslator.translate, float(os.environ.get(_SLEEP, 0))

    def translate(self: IdentityTranslator, sar: Any, origins: Any) -> Translation:
        time.sleep(seconds)
        level = np.ascontiguousarray(sar[:, 0] + 2)
        return Translation(quick(self, sar, origins).eo, level, level)

    IdentityTranslator.translate = translate  # type: ignore[method-assign]
    ModelSpec.confidence = property(lambda _: True)  # type: ignore[assignment, method-assign]


def _set_clock(offset: float) -> None:
    import datetime

    from sar2eo.results import stac_output

    real = time.time

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Then:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: real() + offset
    stac_output.datetime = Then  # type: ignore[misc]


class _Watch:
    """Counts events, and lets happen what is asked for."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.lock, self.count, self.found = asked, threading.Lock(), 0, 0
        self.log = os.open(f"{asked['told']}.events", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def install(self) -> None:
        import rasterio.shutil

        from sar2eo.model.loading import IdentityTranslator

        for name, which in _WATCHED.items():
            setattr(os, name, self.watched(name, getattr(os, name), operator.itemgetter(which)))
        os.fsync = self.watched("fsync", os.fsync, lambda given: Path(f"/proc/self/fd/{given[0]}").readlink())
        rasterio.shutil.copy = self.watched("copy", rasterio.shutil.copy, operator.itemgetter(1))
        translate = self.watched("translate", IdentityTranslator.translate, lambda _: "batch")
        IdentityTranslator.translate = translate  # type: ignore[method-assign]

    def watched(self, name: str, real: Callable[..., Any], place: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.event(f"{name} {Path(os.fsdecode(place(arguments))).name}")
            return real(*arguments, **options)

        return call

    def event(self, text: str) -> None:
        asked = self.asked
        with self.lock:
            os.write(self.log, f"{text}\n".encode())
            if "on" in asked:
                self.found += re.match(asked["on"], text) is not None
                due = re.match(asked["on"], text) and self.found == asked.get("nth", 1)
            else:
                due = self.count == asked.get("at")
            self.count += 1
        if due:
            self.happen(asked.get("do", "kill"))

    def happen(self, what: str) -> None:
        if what == "truncate":
            path = Path(self.asked["truncated"])
            os.truncate(path, path.stat().st_size // 2)
        elif what == "pause":
            until = Path(self.asked["until"])
            Path(f"{until}.waits").touch()
            while not until.exists():
                time.sleep(0.01)
        elif "delay" in self.asked:
            signal.setitimer(signal.ITIMER_REAL, self.asked["delay"])
        elif what in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[what])
        else:
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    _serve()
elif __name__ == "__mp_main__":  # a worker of a run
    _stand_in()
