"""Test how well `sar2eo coregister` finds planted shifts, and whether it accepts scenes of another place.

    python experiments/misregistration/misregistration.py study --methods structure,phase,ncc
    python experiments/misregistration/misregistration.py study --model runs/matcher/final

Places are simulated, each with its SAR shifted by a known vector of 0 to 20 pixels in a direction of its own.
All lie on one grid, so that the optical scene of any of them can be given the SAR of any other. Measured
cases are kept in cases.jsonl: the same command continues, and other methods join the tables, study.md and
study.json.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

import sar2eo
from sar2eo.errors import CoregistrationError
from sar2eo.matching.dcdm.aligner import open_calibrated
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

LARGEST_PX, NEAR_PX = 20.0, 1.0
HEAD = """\
# Planted shifts, and scenes of other places

{shifts} simulated places of {size} pixels, their SAR shifted by 0 to 20 pixels; `sar2eo coregister` with
`--transform shift --grid {grid}`. In brackets the exact 95 % confidence interval.

| method | accepted | of these within 1 px | error: median, largest | other places | accepted there |
| --- | --- | --- | --- | --- | --- |
| goal | 80 % at least | 95 % at least | | | below 1 % |
"""

Case = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default="", help="of structure, phase and ncc, with commas")
    parser.add_argument("--model", help="a matcher: dcdm, too")
    for name, value, text in (
        ("shifts", 20, "places, each with a shift of its own"),
        ("strangers", 20, "pairs of an optical scene and the SAR of another place"),
        ("size", 1024, "pixels of a side"),
        ("grid", 170, "distance of tie points in pixels"),
        ("seed", 1001, "of the first place"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default: %(default)s)")
    given = parser.parse_args()
    if not 0 <= given.strangers <= given.shifts * (given.shifts - 1):
        parser.error(f"--strangers {given.strangers}: {given.shifts} places make fewer pairs")
    methods = dict.fromkeys(filter(None, given.methods.split(",")), "")
    if given.model is not None:
        methods["dcdm"] = open_calibrated(given.model)[0].sha256()
    given.folder.mkdir(parents=True, exist_ok=True)
    log = given.folder / "cases.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {case["key"]: case for case in done}
    for method, version in (methods or {"structure": ""}).items():
        for eo, sar in list_cases(given.shifts, given.strangers):
            key = f"{method} {version[:8]} {given.size} {given.grid} {given.seed} {given.shifts} {eo} {sar}"
            if key not in known:
                known[key] = {"key": key, **measure(given, method, eo, sar)}
                with log.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
    wanted = f" {given.size} {given.grid} {given.seed} {given.shifts} "
    write_tables(given, [case for key, case in known.items() if wanted in key])
    print((given.folder / "study.md").read_text())


def list_cases(shifts: int, strangers: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of optical scene and SAR: every place with itself, then with those after it."""
    yield from ((place, place) for place in range(shifts))
    yield from ((k % shifts, (k % shifts + 1 + k // shifts) % shifts) for k in range(strangers))


def open_place(given: argparse.Namespace, number: int) -> tuple[tuple[float, float], dict[str, Path]]:
    """Return the planted shift of a place and its scenes, which are simulated once."""
    length = LARGEST_PX * number / max(1, given.shifts - 1)
    angle = np.random.Generator(np.random.Philox(given.seed + number)).uniform(0, 2 * np.pi)
    shift = round(float(length * np.sin(angle)), 3), round(float(length * np.cos(angle)), 3)
    folder = given.folder / f"places-{given.size}-{given.shifts}" / str(given.seed + number)
    paths = {name: folder / f"{name}.tif" for name in ("sar", "eo", "truth")}
    if not paths["truth"].exists():  # the last of the three to be written
        pair = simulate_pair(SimulationSettings(size=given.size, seed=given.seed + number, shift=shift))
        # A grid that all places share.
        grid = dataclasses.replace(pair.grid, transform=(10.0, 0.0, 4e5, 0.0, -10.0, 3.8e6))
        write_pair(dataclasses.replace(pair, grid=grid), folder)
    return shift, paths


def measure(given: argparse.Namespace, method: str, eo: int, sar: int) -> Case:
    """Coregister one SAR scene to one optical scene, and compare the shift with the planted one."""
    shift, moving = open_place(given, sar)
    _, reference = open_place(given, eo)
    report, model = given.folder / "report.json", given.model if method == "dcdm" else None
    report.unlink(missing_ok=True)
    with suppress(CoregistrationError):
        sar2eo.coregister(
            reference["eo"], moving["sar"], given.folder / "moved.tif", report=report, overwrite=True,
            method=method, model=model, grid=given.grid, transform="shift",
        )  # fmt: skip
    result = json.loads(report.read_text())
    found = [result["transform"][name][0] for name in ("rows", "cols")] if result["accepted"] else None
    own = found is not None and eo == sar
    error = float(np.hypot(found[0] - shift[0], found[1] - shift[1])) if own else None
    return {
        "method": method, "eo": eo, "sar": sar, "planted": shift if eo == sar else None, "found": found,
        "error_px": error, **{name: result[name] for name in ("accepted", "refusal", "ties")},
    }  # fmt: skip


def write_tables(given: argparse.Namespace, measured: list[Case]) -> None:
    """Write study.json and study.md."""
    rows: dict[str, Any] = {}
    text = HEAD.format_map(vars(given))
    for method in dict.fromkeys(case["method"] for case in measured):
        mine = [case for case in measured if case["method"] == method]
        planted = [case for case in mine if case["planted"] is not None]
        strangers = [case for case in mine if case["planted"] is None]
        errors = [case["error_px"] for case in planted if case["accepted"]]
        rows[method] = {
            "accepted": count_share([case["accepted"] for case in planted]),
            "within_1_px": count_share([error <= NEAR_PX for error in errors]),
            "median_px": float(np.median(errors)) if errors else None,
            "largest_px": max(errors, default=None),
            "false_accepts": count_share([case["accepted"] for case in strangers]),
        }
        cells = [format_share(rows[method][name]) for name in ("accepted", "within_1_px", "false_accepts")]
        sizes = f"{rows[method]['median_px']:.2f}, {rows[method]['largest_px']:.2f} px" if errors else "-"
        text += f"| {method} | {cells[0]} | {cells[1]} | {sizes} | {len(strangers)} | {cells[2]} |\n"
    settings = {name: value for name, value in vars(given).items() if name != "folder"}
    content = {"settings": settings, "methods": rows, "cases": measured}
    (given.folder / "study.json").write_text(json.dumps(content, indent=1) + "\n")
    (given.folder / "study.md").write_text(text)


def count_share(hits: list[bool]) -> dict[str, Any]:
    """Count hits, with the exact interval of their share (Clopper and Pearson, 1934)."""
    if not hits:
        return {"count": 0, "of": 0, "low": None, "high": None}
    low, high = binomtest(sum(hits), len(hits)).proportion_ci(0.95, method="exact")
    return {"count": sum(hits), "of": len(hits), "low": float(low), "high": float(high)}


def format_share(found: dict[str, Any]) -> str:
    """Write a share as text."""
    if not found["of"]:
        return "-"
    return f"{found['count']} of {found['of']} ({100 * found['low']:.1f} to {100 * found['high']:.1f} %)"


if __name__ == "__main__":
    main()
