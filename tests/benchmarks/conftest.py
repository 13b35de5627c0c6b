"""Each case and its baselines measured in turn, in one run; their ratios as a table at the end."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from material import mirrored_scene
from measuring import Baseline, Ratio, cpu_features

_PACKAGES = ("torch", "diffusers", "dask", "rasterio")


_RATIOS = pytest.StashKey[list[Ratio]]()


@pytest.fixture
def ratios(request: pytest.FixtureRequest) -> list[Ratio]:
    """The table, to append to."""
    return request.config.stash.setdefault(_RATIOS, [])


@pytest.fixture
def compare(benchmark: Any, ratios: list[Ratio]) -> Callable[..., None]:
    """Measure a case and its baselines in turn, round by round, so that all see the same machine.

    Medians go into the table.
    """

    def compared(
        case: str,
        run: Callable[[], Any],
        baselines: Iterable[Baseline],
        *,
        rounds: int,
        warmups: int = 0,
    ) -> None:
        against = list(baselines)
        seconds: list[list[float]] = [[] for _ in against]

        def before() -> None:
            for baseline, times in zip(against, seconds, strict=True):
                start = time.perf_counter()
                baseline.run()
                times.append(time.perf_counter() - start)

        benchmark.pedantic(run, setup=before, rounds=rounds, warmup_rounds=warmups)
        median = benchmark.stats.stats.median
        for baseline, times in zip(against, seconds, strict=True):
            other = statistics.median(times[-rounds:])
            note = baseline.note(median, other)
            ratios.append(
                Ratio(
                    case=case,
                    value=median,
                    baseline=baseline.name,
                    against=other,
                    goal=baseline.goal,
                    note=note,
                )
            )

    return compared


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """Square scenes by size in pixels, each made once."""
    folder = tmp_path_factory.mktemp("scenes")
    made: dict[int, Path] = {}

    def of(size: int) -> Path:
        if size not in made:
            made[size] = mirrored_scene(folder, size)
        return made[size]

    yield of
    for path in folder.iterdir():
        path.unlink()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table and keep it as JSON."""
    found = config.stash.get(_RATIOS, [])
    if not found:
        return
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "cpu features": ", ".join(cpu_features()) or "none that matter",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
    terminalreporter.section("ratios: medians of one run, measured in turn")
    terminalreporter.write_line(", ".join(f"{name} {value}" for name, value in machine.items()))
    for line in _laid_out(found):
        terminalreporter.write_line(line)
    path = config.rootpath / ".benchmarks" / "ratios.json"
    path.parent.mkdir(exist_ok=True)
    rows = [{**asdict(row), "ratio": row.ratio} for row in found]
    path.write_text(json.dumps({"machine": machine, "ratios": rows}, indent=2) + "\n", encoding="utf-8")


def _laid_out(found: list[Ratio]) -> list[str]:
    table = [("case", "median", "baseline", "median", "ratio", "goal", "")]
    for row in found:
        goal = "" if row.goal is None else f"<= {row.goal:g}"
        met = "" if row.goal is None else "met" if row.ratio <= row.goal else "MISSED"
        cells = (row.case, f"{row.value:.3g} {row.unit}", row.baseline, f"{row.against:.3g} {row.unit}")
        table.append((*cells, f"{row.ratio:.3f}", goal, "; ".join(filter(None, (met, row.note)))))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
