"""Nothing lost, whatever happens: runs of the command line that are killed, interrupted, or run out of luck.

After each fault the outputs are the old ones or the complete new ones, or the journal says that they are not;
and the same command then ends as if nothing had happened, with nothing left behind.
"""

import copy
import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import psutil
import pytest
import rasterio
import rasterio.shutil
from support.faults import Launcher, Run
from support.pairs_scenes import SETTINGS, write_scenes
from support.scenes import amplitude, write_scene

from sar2eo.store.journal import Journal

SEED = 2025
SMALL = ("--model", "identity", "--tile", 128, "--overlap", 16, "--batch", 4)
OUTPUTS = ("confidence.tif", "eo.json", "eo.png", "eo.tif")
PARTIAL = "eo.tif.partial"
slow = pytest.mark.slow

State = dict[str, Any]


def content(path: Path) -> Any:
    """All that a file says, apart from the time it was made."""
    if path.suffix == ".json":
        item = json.loads(path.read_text())
        for asset in item.get("assets", {}).values():
            asset.pop("created", None)
        return item
    if path.suffix == ".png":
        return path.read_bytes()
    with rasterio.open(path) as raster:
        levels = len(raster.overviews(1))
        told = {**raster.profile, "tags": raster.tags(), "levels": levels, "names": raster.descriptions}
        pixels = [raster.read().tobytes(), raster.dataset_mask().tobytes()]
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as raster:
            pixels += [raster.read().tobytes(), raster.dataset_mask().tobytes()]
    return repr(told), pixels


def state(folder: Path) -> State:
    """What every output in a folder says, but for the way to the scene, which differs between disks."""
    found = {name: content(folder / name) for name in OUTPUTS if (folder / name).exists()}
    if isinstance(item := found.get("eo.json"), dict):
        item["properties"].pop("sar2eo:source", None)
        item["links"] = [link for link in item["links"] if link["rel"] != "derived_from"]
    return found


def assert_one_line(failed: Run) -> None:
    assert failed.code == 1
    assert failed.told.startswith("Error: ")
    assert len(failed.told.splitlines()) == 1


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Case:
    """One scene, its old result, and the result of the command that is to be disturbed."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self.launcher, self.folder, self.place, self.numbers = launcher, folder, folder, itertools.count()
        self.scene = write_scene(folder / "scene.tif", amplitude((1100, 160), 3))
        self.old_folder, self.new_folder = self.out(), self.out()
        assert self.run(self.old_folder, "--scaling-from", 200).code == 0
        undisturbed = self.run(self.new_folder)
        assert undisturbed.code == 0
        self.events = undisturbed.events
        self.old, self.new = state(self.old_folder), state(self.new_folder)
        assert names(self.old_folder) == names(self.new_folder) == list(OUTPUTS)
        assert all(self.old[name] != self.new[name] for name in OUTPUTS), "else no mixture could be told"

    def out(self, *, old: bool = False) -> Path:
        """A new folder for results, empty or with the old ones."""
        folder = self.place / f"out-{next(self.numbers)}"
        if old:
            shutil.copytree(self.old_folder, folder)
        else:
            folder.mkdir()
        return folder

    def command(self, out: Path, *more: object) -> list[object]:
        files = ("--confidence", out / "confidence.tif", "--quicklook", out / "eo.png")
        scaling = () if "--scaling-from" in more else ("--scaling-from", 255)
        return ["translate", self.scene, "--out", out / "eo.tif", *files, *SMALL, *scaling, *more]

    def run(self, out: Path, *more: object, **fault: Any) -> Run:
        return self.launcher.run(*self.command(out, *more), **fault)

    def check(self, out: Path, *, old: bool) -> str:
        """Check what a fault has left; returns which result is there: "old", "new" or "mixed"."""
        assert set(names(out)) <= {*OUTPUTS, PARTIAL}, "nothing but the journal is left behind"
        there = state(out)
        before = self.old if old else {}
        if there == before:
            return "old"
        if there == self.new:
            return "new"
        for name in OUTPUTS:
            assert there.get(name) in (before.get(name), self.new[name]), f"{name} is of neither run"
        assert there.get("eo.tif") == before.get("eo.tif"), "the EO image comes last"
        assert Journal.is_publishing(out / PARTIAL), "a mixture is told"
        return "mixed"

    def check_whole(self, out: Path) -> None:
        """Check that all is as if nothing had happened."""
        assert names(out) == list(OUTPUTS)
        assert state(out) == self.new

    def resume(self, out: Path, *more: object, **fault: Any) -> Run:
        """Repeat the command, which then ends as an undisturbed one."""
        again = self.run(out, *more, **fault)
        assert again.code == 0, again.told
        self.check_whole(out)
        return again

    def kill(self, *, old: bool, **fault: Any) -> str:
        """Kill a run by a fault, check what is left, go on, and check again."""
        out, more = self.out(old=old), ("--overwrite",) if old else ()
        killed = self.run(out, *more, **fault)
        assert killed.code in (-signal.SIGKILL, -signal.SIGALRM), killed.told
        found = self.check(out, old=old)
        self.resume(out, *more)
        shutil.rmtree(out)
        return found


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("told")) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def case(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(launcher, tmp_path_factory.mktemp("case"))


# Kills of the process


@pytest.mark.parametrize("old", [False, True])
def test_a_kill_between_the_renames_is_told_and_made_good(case: Case, old: bool) -> None:
    # Both get their names in the journal first.
    found = [case.kill(old=old, on=f"replace {name}", nth=2) for name in ("eo.json", "eo.png")]
    found += [case.kill(old=old, on=f"replace {name}") for name in ("confidence.tif", "eo.tif", "finished")]
    assert sorted(found) == ["mixed", "mixed", "mixed", "new", "old"]


@pytest.mark.parametrize(
    "fault",
    [
        {"on": "mkdir blocks"},
        {"on": r"fsync \..*\.tmp", "nth": 4},
        {"on": r"replace confidence\.0"},
        {"on": "copy eo.tif", "delay": 0.004},
        {"on": "copy confidence.tif", "delay": 0.002},
        {"on": r"fsync \.eo.json"},
        {"on": "unlink manifest"},
        {"on": "rmdir eo.tif.partial"},
    ],
    ids=lambda fault: fault["on"],
)
def test_a_kill_in_any_phase_leaves_old_or_new(case: Case, fault: dict[str, Any]) -> None:
    last = fault["on"].startswith(("unlink", "rmdir"))
    assert case.kill(old=True, **fault) == ("new" if last else "old")


@slow
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_before_any_event_leaves_old_or_new(case: Case, old: bool) -> None:
    found = [case.kill(old=old, at=at) for at in range(0, len(case.events), 1 if old else 4)]
    first, last = found.index("mixed"), len(found) - 1 - found[::-1].index("mixed")
    assert found[-1] == "new"
    assert set(found[:first]) == {"old"}
    assert set(found[first : last + 1]) == {"mixed"}
    assert set(found[last + 1 :]) == {"new"}


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=slow)])
def test_kills_at_random_moments(case: Case, times: int) -> None:
    draw = random.Random(SEED)
    out = case.out(old=True)
    started = time.perf_counter()
    case.run(case.out(), sleep=0.01)
    whole = time.perf_counter() - started
    killed = 0
    for _ in range(times):
        shutil.rmtree(out)
        shutil.copytree(case.old_folder, out)
        begun = case.launcher.start(*case.command(out, "--overwrite"), sleep=0.01)
        time.sleep(whole * draw.uniform(0.05, 0.85))
        os.kill(begun[0], signal.SIGKILL)
        killed += case.launcher.wait(begun).code == -signal.SIGKILL
        case.check(out, old=True)
        case.resume(out, "--overwrite")
    assert killed, "else these moments were no test"


def test_a_run_that_is_killed_again_and_again_comes_to_its_end(case: Case) -> None:
    out, seen = case.out(old=True), []
    # Each time a little later than where the one before has got to.
    for fault in ({"on": "translate", "nth": 4}, {"on": "replace eo"}, {"on": "copy"}):
        assert case.run(out, "--overwrite", **fault).code == -signal.SIGKILL
        seen.append(case.check(out, old=True))
    for fault in ({"on": "replace confidence.tif"}, {"on": "copy"}, {"on": "mkdir blocks"}):
        assert case.run(out, "--overwrite", **fault).code == -signal.SIGKILL
        seen.append(case.check(out, old=True))
    assert seen == ["old"] * 3 + ["mixed"] * 3
    case.resume(out, "--overwrite")


def test_other_settings_do_not_take_a_mixture_for_done(case: Case) -> None:
    out = case.out(old=True)
    assert case.run(out, "--overwrite", on="replace eo.tif").code == -signal.SIGKILL
    assert case.check(out, old=True) == "mixed"
    before = case.run(out, "--scaling-from", 200)
    assert before.code == 1
    assert "unfinished work of another run" in before.told
    refused = case.run(out, "--scaling-from", 200, "--restart")
    assert refused.code == 1
    assert "pass --overwrite" in refused.told
    assert case.check(out, old=True) == "mixed"
    done = case.run(out, "--scaling-from", 200, "--restart", "--overwrite")
    assert done.code == 0, done.told
    assert state(out) == case.old
    assert names(out) == list(OUTPUTS)


def test_a_journal_that_was_deleted_does_not_make_a_mixture_pass(case: Case) -> None:
    out = case.out(old=True)
    case.run(out, "--overwrite", on="replace eo.tif")
    shutil.rmtree(out / PARTIAL)
    refused = case.run(out, "--scaling-from", 200)
    assert refused.code == 1
    assert "confidence.tif exists, and differs in settings.scaling" in refused.told


def test_skipping_what_is_done_keeps_unfinished_work_of_others(case: Case) -> None:
    out = case.out(old=True)
    case.run(out, "--overwrite", on="mkdir assembled")
    skipped = case.run(out, "--scaling-from", 200)
    assert skipped.code == 0
    assert "done before" in skipped.told
    assert case.check(out, old=True) == "old"
    again = case.resume(out, "--overwrite")
    assert "translate batch" not in again.events
    # Of its own result, nothing is to be gone on with.
    case.run(out, "--restart", "--overwrite", on="mkdir assembled")
    assert "done before" in case.resume(out).told


def test_sidecars_of_the_old_image_do_not_outlive_a_kill(case: Case) -> None:
    out = case.out(old=True)
    (out / "eo.tif.aux.xml").write_text("<PAMDataset/>")
    assert case.run(out, "--overwrite", on="unlink eo.tif.aux.xml").code == -signal.SIGKILL
    assert (out / "eo.tif.aux.xml").exists()
    case.resume(out, "--overwrite")


def test_a_report_that_was_cut_short_is_taken_over(case: Case) -> None:
    out = case.out()
    report = out.with_suffix(".json")
    flags = ("--report", report)
    assert case.run(out, *flags, on=rf"replace {report.name}").code == -signal.SIGKILL
    assert not report.exists()
    case.resume(out, "--restart", "--overwrite", *flags)
    assert json.loads(report.read_text())["tiles"]["total"] == 20
    assert not list(report.parent.glob(".*"))


# Signals


@pytest.mark.parametrize(
    "on",
    [
        "replace manifest",
        "translate",
        pytest.param("mkdir assembled", marks=slow),
        "copy confidence.tif",
        pytest.param("fsync eo.tif.partial", marks=slow),
        "replace confidence.tif",
        pytest.param("unlink manifest", marks=slow),
    ],
)
def test_ctrl_c_is_130_and_a_line(case: Case, on: str) -> None:
    out = case.out(old=True)
    stopped = case.run(out, "--overwrite", on=on, do="int", sleep=0.005)
    assert stopped.code == 130, stopped.told
    assert "interrupted" in stopped.told
    assert "Traceback" not in stopped.told
    case.check(out, old=True)
    case.resume(out, "--overwrite")


@pytest.mark.parametrize("on", ["translate", pytest.param("replace confidence.tif", marks=slow)])
def test_a_termination_leaves_old_or_new(case: Case, on: str) -> None:
    out = case.out(old=True)
    assert case.run(out, "--overwrite", on=on, nth=1, do="term").code == -signal.SIGTERM
    case.check(out, old=True)
    case.resume(out, "--overwrite")


# Two runs, and the clock


def test_the_second_of_two_runs_is_refused_until_the_first_is_killed(case: Case) -> None:
    out = case.out(old=True)
    first = case.launcher.start(*case.command(out, "--overwrite"), sleep=1.0)
    deadline = time.monotonic() + 120
    while not list(out.glob(f"{PARTIAL}/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for more in ((), ("--restart",)):
        second = case.run(out, "--overwrite", *more)
        assert second.code == 1
        assert "another run is writing here" in second.told
    os.kill(first[0], signal.SIGKILL)
    assert case.launcher.wait(first).code == -signal.SIGKILL
    case.resume(out, "--overwrite")


def test_what_another_run_has_just_ended_is_not_replaced(case: Case) -> None:
    out = case.out()
    # It has looked at the outputs, and waits for a moment before it opens its journal.
    pause = {"on": f"mkdir {PARTIAL}", "do": "pause", "until": str(out / "go")}
    late = case.launcher.start(*case.command(out, "--scaling-from", 200), **pause)
    deadline = time.monotonic() + 120
    while not (out / "go.waits").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert case.run(out).code == 0
    (out / "go.waits").unlink()
    (out / "go").touch()
    ended = case.launcher.wait(late)
    (out / "go").unlink()
    assert ended.code == 1, ended.told
    assert "exists: pass --overwrite" in ended.told
    case.check_whole(out)


def test_a_clock_that_jumps_changes_nothing(case: Case) -> None:
    out = case.out()
    killed = case.run(out, on="mkdir assembled", clock=3e8)
    assert killed.code == -signal.SIGKILL
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9))
    again = case.resume(out, clock=-3e8)
    assert "translate batch" not in again.events
    assert "done before" in case.run(out, clock=-9e8).told


# Damage to the journal


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def blank(path: Path) -> None:
    """As after a power cut, on a file system that had the name on disk, but not the bytes."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [flip, cut_off, blank])
def test_a_damaged_block_is_made_again(case: Case, damage: Callable[[Path], None]) -> None:
    out = case.out()
    case.run(out, on="mkdir assembled")
    blocks = sorted(out.glob(f"{PARTIAL}/blocks-*/*.tif"))
    assert len(blocks) == 6
    damage(random.Random(SEED).choice(blocks))
    report = out.with_suffix(".json")
    case.resume(out, "--report", report)
    windows = json.loads(report.read_text())["tiles"]
    assert windows["translated"] > 0
    assert windows["resumed"] > 0


@pytest.mark.parametrize("damage", [flip, cut_off, blank, Path.unlink])
def test_a_damaged_manifest_is_told_and_a_restart_helps(case: Case, damage: Callable[[Path], None]) -> None:
    out = case.out(old=True)
    case.run(out, "--overwrite", on="mkdir assembled")
    damage(out / PARTIAL / "manifest.json")
    refused = case.run(out, "--overwrite")
    assert refused.code == 1
    assert "--restart discards" in refused.told
    assert case.check(out, old=True) == "old"
    case.resume(out, "--overwrite", "--restart")


# Disks


@pytest.mark.parametrize(
    ("on", "nth", "error"),
    [
        (r"fsync \..*\.tmp", 3, "ENOSPC"),
        (r"replace eo\.0", 1, "EDQUOT"),
        ("fsync blocks", 2, "EIO"),
        (r"fsync \.eo.json", 1, "ENOSPC"),
        ("fsync confidence.tif", 1, "EIO"),
        ("replace confidence.tif", 1, "EROFS"),
        ("replace eo.tif", 1, "EACCES"),
    ],
)
def test_an_error_while_writing_is_a_line_and_the_same_command_goes_on(
    case: Case, on: str, nth: int, error: str
) -> None:
    out = case.out(old=True)
    failed = case.run(out, "--overwrite", on=on, nth=nth, do=error)
    assert_one_line(failed)
    mixed = on.startswith(("replace con", "replace eo.tif"))
    assert case.check(out, old=True) == ("mixed" if mixed else "old")
    case.resume(out, "--overwrite")


@pytest.mark.parametrize("error", ["EIO", pytest.param("ENOSPC", marks=slow)])
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=slow)])
def test_the_nth_call_to_the_disk_may_fail_for_every_n(case: Case, error: str, step: int) -> None:
    for at in range(0, len(case.events), step):
        out = case.out(old=True)
        failed = case.run(out, "--overwrite", at=at, do=error)
        if failed.code != 0:  # what is left behind need not be deleted
            assert_one_line(failed)
            case.check(out, old=True)
        case.resume(out, "--overwrite")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launcher, Path]]:
    """A launcher in a mount name space of its own, with a small file system that lies there."""
    folder = tmp_path_factory.mktemp("disk")
    mount = 'mount -t tmpfs -o size=8m none "$0" && exec "$@"'
    around = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(folder)]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: file systems cannot be mounted here")
    with Launcher(tmp_path_factory.mktemp("told"), around=around) as launcher:
        if not launcher.ready:
            pytest.skip("file systems cannot be mounted here, not even in a name space")
        # Under this name the runs see it, and so does this process.
        yield launcher, Path(f"/proc/{launcher.process.pid}/root{folder}")


@pytest.fixture
def disk(case: Case, elsewhere: tuple[Launcher, Path]) -> Iterator[Case]:
    """The case with outputs on that small file system."""
    there = copy.copy(case)
    there.launcher, there.place = elsewhere
    yield there
    there.launcher.shell(f"mount -o remount,rw {there.place}; rm -rf {there.place}/*")


def remount(disk: Case, how: str) -> None:
    assert disk.launcher.shell(f"mount -o remount,{how} {disk.place}") == 0


@pytest.mark.parametrize(
    "left", [8, 450, 1800, *(pytest.param(size, marks=slow) for size in range(100, 2400, 110))]
)
def test_a_full_disk_is_a_line_and_the_same_command_goes_on(disk: Case, left: int) -> None:
    out, ballast = disk.out(old=True), disk.place / "ballast"
    free = shutil.disk_usage(out).free
    ballast.write_bytes(bytes(free - left * 1024))
    failed = disk.run(out, "--overwrite", "--force")
    if failed.code == 0:
        assert left > 1500
        disk.check_whole(out)
        return
    assert failed.code == 1
    # GDAL's TIFF library may have said things of its own before, past all handlers.
    assert failed.told.splitlines()[-1].startswith("Error: ")
    assert re.search("no space for another|Finished work is kept", failed.told)
    assert disk.check(out, old=True) == "old"
    ballast.unlink()
    disk.resume(out, "--overwrite")


def test_a_disk_that_fills_up_while_results_are_copied_to_it_changes_nothing(disk: Case) -> None:
    out, space = disk.out(old=True), disk.folder / "space"
    space.mkdir()
    flags, ballast = ("--overwrite", "--force", "--tmp", space), disk.place / "ballast"
    largest = max(path.stat().st_size for path in disk.new_folder.iterdir())
    ballast.write_bytes(bytes(shutil.disk_usage(out).free - largest - 64 * 1024))
    failed = disk.run(out, *flags)
    assert_one_line(failed)
    assert "no space" in failed.told
    assert state(out) == disk.old
    assert names(out) == [*OUTPUTS[:-1], *sorted([OUTPUTS[-1], PARTIAL])]
    ballast.unlink()
    killed = disk.run(out, *flags, on=r"fsync \.confidence.tif.tmp")
    assert killed.code == -signal.SIGKILL
    assert state(out) == disk.old
    disk.resume(out, *flags)
    assert not list(space.iterdir())


def test_a_folder_that_cannot_be_written_is_a_line(disk: Case) -> None:
    out = disk.out(old=True)
    remount(disk, "ro")
    refused = disk.run(out, "--overwrite")
    assert_one_line(refused)
    assert "not writable" in refused.told
    remount(disk, "rw")
    assert names(out) == list(OUTPUTS)
    assert disk.check(out, old=True) == "old"
    disk.run(out, "--overwrite", on="copy confidence.tif")
    remount(disk, "ro")
    assert_one_line(disk.run(out, "--overwrite"))
    remount(disk, "rw")
    assert disk.check(out, old=True) == "old"
    disk.resume(out, "--overwrite")


# Input


def test_an_input_that_is_cut_off_while_it_is_read_is_a_line(case: Case) -> None:
    out, kept = case.out(old=True), case.folder / "kept.tif"
    shutil.copy2(case.scene, kept)
    failed = case.run(out, "--overwrite", on="translate", do="truncate", truncated=str(case.scene))
    kept.replace(case.scene)  # with its time
    if failed.code == 0:  # all of it had been read by then
        assert case.check(out, old=True) == "new"
        return
    assert_one_line(failed)
    assert "scene.tif" in failed.told
    assert case.check(out, old=True) == "old"
    case.resume(out, "--overwrite")


def test_an_input_with_a_broken_block_is_a_line_and_a_repaired_one_begins_anew(case: Case) -> None:
    out, part = case.out(), case.folder / "part.tif"
    shutil.copyfile(case.scene, part)
    repaired = copy.copy(case)
    repaired.scene = case.folder / "mosaic.vrt"
    rasterio.shutil.copy(part, repaired.scene, driver="VRT")
    data = bytearray(part.read_bytes())
    data[len(data) * 2 // 3 : len(data) * 2 // 3 + 9000] = bytes(9000)
    part.write_bytes(data)
    failed = repaired.run(out)
    assert_one_line(failed)
    assert "cannot be read, is it damaged?" in failed.told
    assert set(names(out)) <= {PARTIAL}
    shutil.copyfile(case.scene, part)
    again = repaired.run(out)
    if again.code:  # there were finished blocks
        assert "differs in input" in again.told
        again = repaired.run(out, "--restart")
    assert again.code == 0, again.told
    assert names(out) == list(OUTPUTS)
    assert content(out / "eo.tif")[1] == case.new["eo.tif"][1]


# Workers


def workers_of(pid: int) -> list[psutil.Process]:
    family = psutil.Process(pid).children(recursive=True)
    return [each for each in family if "spawn_main" in " ".join(each.cmdline())]


def wait_for(done: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 240
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("moment", "delay"),
    [
        (f"{PARTIAL}/blocks-*/eo*.tif", 0.0),
        *(pytest.param(f"{PARTIAL}/blocks-*", delay, marks=slow) for delay in (0.0, 0.2, 0.5, 1.0)),
        pytest.param(f"{PARTIAL}/assembled", 0.0, marks=slow),
    ],
)
def test_a_killed_worker_is_replaced(case: Case, moment: str, delay: float) -> None:
    out = case.out(old=True)
    begun = case.launcher.start(*case.command(out, "--overwrite", "--workers", 2), sleep=0.5)
    assert wait_for(lambda: list(out.glob(moment)))
    time.sleep(delay)
    workers = workers_of(begun[0])
    assert len(workers) == 2
    random.Random(SEED).choice(workers).kill()
    ended = case.launcher.wait(begun)
    assert ended.code == 0, ended.told
    case.check_whole(out)


@slow
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.9])
def test_workers_do_not_outlive_a_killed_run(case: Case, delay: float) -> None:
    out = case.out(old=True)
    begun = case.launcher.start(*case.command(out, "--overwrite", "--workers", 2), sleep=0.5)
    assert wait_for(lambda: list(out.glob(f"{PARTIAL}/blocks-*")))
    time.sleep(delay)
    workers = workers_of(begun[0])
    os.kill(begun[0], signal.SIGKILL)
    assert case.launcher.wait(begun).code == -signal.SIGKILL
    assert case.check(out, old=True) == "old"
    # At once, while workers of the killed run may still write.
    case.resume(out, "--overwrite")
    assert not psutil.wait_procs(workers, timeout=120)[1]
    case.check_whole(out)


@slow
def test_ctrl_c_with_workers_is_130(case: Case) -> None:
    out = case.out(old=True)
    begun = case.launcher.start(*case.command(out, "--overwrite", "--workers", 2), sleep=0.5)
    assert wait_for(lambda: list(out.glob(f"{PARTIAL}/blocks-*/eo*.tif")))
    workers = workers_of(begun[0])
    os.kill(begun[0], signal.SIGINT)
    stopped = case.launcher.wait(begun)
    assert stopped.code == 130, stopped.told
    assert "Traceback" not in stopped.told
    assert not psutil.wait_procs(workers, timeout=120)[1]
    assert case.check(out, old=True) == "old"
    case.resume(out, "--overwrite")


# Archives


class Archive:
    """Three scenes into a folder."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self.launcher, self.folder, self.numbers = launcher, folder, itertools.count()
        for number, name in enumerate("abc"):
            write_scene(folder / f"scene-{name}.tif", amplitude((600, 140), number))
        whole, undisturbed = self.run()
        assert undisturbed.code == 0
        self.events, self.whole = undisturbed.events, self.state(whole)
        assert len(self.whole) == 7

    def run(self, out: Path | None = None, **fault: Any) -> tuple[Path, Run]:
        if out is None:
            out = self.folder / f"out-{next(self.numbers)}" / "results"
            out.mkdir(parents=True)
        scenes = sorted(self.folder.glob("scene-*.tif"))
        return out, self.launcher.run(
            "translate", *scenes, "--out", out, *SMALL, "--scaling-from", 255, **fault
        )

    def state(self, out: Path) -> State:
        return {path.name: content(path) for path in out.iterdir() if path.suffix in (".tif", ".json")}

    def kill(self, **fault: Any) -> None:
        out, killed = self.run(**fault)
        assert killed.code == -signal.SIGKILL
        left = {name for name in names(out) if not name.endswith(".partial")}
        assert left - {".collection.json.tmp"} <= set(self.whole)
        for name, said in self.state(out).items():
            assert said == self.whole[name] or name == "collection.json"
        assert self.run(out)[1].code == 0
        assert self.state(out) == self.whole
        assert names(out) == sorted(self.whole), "nothing is left behind"


@pytest.fixture(scope="module")
def archive(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(launcher, tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize(
    "on", ["translate", "copy", r"replace scene-b_eo\.tif", "fsync .collection.json.tmp"]
)
def test_a_killed_archive_ends_as_an_undisturbed_one(archive: Archive, on: str) -> None:
    archive.kill(on=on, nth=2 if on in ("translate", "copy") else 1)


@slow
def test_an_archive_killed_at_random_moments_ends_as_an_undisturbed_one(archive: Archive) -> None:
    for at in random.Random(SEED).sample(range(len(archive.events) - 5), 20):
        archive.kill(at=at)


# Pairs


class Pairs:
    """A folder of pairs."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self.launcher, self.folder, self.numbers = launcher, folder, itertools.count()
        self.scenes = write_scenes(folder / "scenes")
        whole, undisturbed = self.run()
        assert undisturbed.code == 0, undisturbed.told
        self.events, self.whole = undisturbed.events, self.state(whole)
        assert len(self.whole) > 10

    def run(self, out: Path | None = None, **fault: Any) -> tuple[Path, Run]:
        out = self.folder / f"pairs-{next(self.numbers)}" if out is None else out
        given = ("--sar", self.scenes / "sar", "--eo", self.scenes / "eo", "--out", out)
        flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
        return out, self.launcher.run("build-pairs", *given, *flags, **fault)

    def state(self, out: Path) -> State:
        found: State = {
            str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
        }
        record = json.loads(found["pairs.json"])
        for name in ("seconds", "cells_resumed", "peak_rss_bytes", "index_crc32"):
            record.pop(name)
        index = geopandas.read_parquet(out / "pairs.parquet")
        return found | {"pairs.json": record, "pairs.parquet": index.to_wkt().to_csv()}

    def kill(self, **fault: Any) -> None:
        out, killed = self.run(**fault)
        assert killed.code == -signal.SIGKILL
        if (out / "pairs.json").exists():
            there = {name for name in self.state(out) if ".partial" not in name}
            assert there == set(self.whole), "pairs.json comes last"
        again = self.run(out)[1]
        assert again.code == 0, again.told
        assert self.state(out) == self.whole
        assert names(out) == ["audit.json", "chips", "pairs.json", "pairs.parquet"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    with Launcher(tmp_path_factory.mktemp("told"), ["sar2eo.cli.pairs", "sar2eo.pairs.builder"]) as launcher:
        yield Pairs(launcher, tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("on", ["replace cut-", "rename chips", r"replace pairs\.json", "unlink manifest"])
def test_a_killed_build_ends_as_an_undisturbed_one(pairs: Pairs, on: str) -> None:
    pairs.kill(on=on, nth=2 if on in ("replace cut-", r"replace pairs\.json") else 1)


@slow
def test_a_build_killed_at_random_moments_ends_as_an_undisturbed_one(pairs: Pairs) -> None:
    for at in random.Random(SEED).sample(range(len(pairs.events) - 5), 20):
        pairs.kill(at=at)
