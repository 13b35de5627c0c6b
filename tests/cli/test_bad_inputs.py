"""The corpora of bad inputs: each case gets its right answer or its one line, soon, in little memory, and
leaves nothing behind."""

import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from support.bad_checkpoints import CHECKPOINTS, RECIPES, Breakage, Recipe
from support.bad_inputs import SCENES, Made, Refused, Scene, pixels
from support.scene_fixtures import write_raster

from sar2eo.cli import cli

SECONDS = 90  # on a machine that is busy with other work; alone no case takes more than one
MEGABYTES = 500
ADDRESSES = 3 << 30  # of a process of its own, beyond what it starts with


class Told(NamedTuple):
    """What a command came to."""

    code: int
    stdout: str
    stderr: str
    error: str | None
    megabytes: float


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(*arguments: str) -> Told:
    before = peak()
    with within(SECONDS):
        done = CliRunner().invoke(cli, arguments)
    error = None if isinstance(done.exception, SystemExit | None) else repr(done.exception)
    return Told(done.exit_code, done.stdout, done.stderr, error, peak() - before)


class Apart:
    """A process where a hang can be ended and memory has a limit; a new one where that was needed."""

    def __init__(self) -> None:
        self._process: Any = None

    def __call__(self, *commands: tuple[str, ...]) -> list[Told]:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there,))
            self._process.start()
            there.close()
            assert self._pipe.poll(10 * SECONDS)  # what it imports takes its time on a busy machine
            self._pipe.recv()
        self._pipe.send((str(Path.cwd()), commands))
        if not self._pipe.poll(2 * SECONDS):
            self.end()
            pytest.fail(f"hangs: {commands}")
        found: list[Told] = self._pipe.recv()
        return found

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any) -> None:
    for name in ("translate",):
        importlib.import_module(f"sar2eo.cli.{name}")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ADDRESSES, held + ADDRESSES))
    pipe.send("ready")
    while True:
        folder, commands = pipe.recv()
        os.chdir(folder)
        pipe.send([run(*arguments) for arguments in commands])


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    made = Apart()
    yield made
    made.end()


def judge(told: Told, verdict: Refused | None) -> None:
    """Check exit code, words, and that there is one line of them and no more."""
    assert told.error is None, told.stderr
    assert told.megabytes < MEGABYTES
    if verdict is None:
        assert told.code == 0, told.stderr
        return
    assert told.code == verdict.code, told.stderr
    lines = [
        line for line in told.stderr.splitlines() if not re.search(r"^Warning: |^\d+ of \d+ tiles", line)
    ]
    assert len(lines) == 1, told.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(verdict.words, lines[0]), lines[0]
    assert "unexpected; --debug" not in lines[0], lines[0]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with size and time."""
    found = {str(path): path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def named(cases: list[Any]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, beside an empty one for results."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    return Path()


def make(case: Scene, folder: Path) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rasterio's, that a scene is odd
        return case.make(folder)


@named(SCENES)
def test_scenes(case: Scene, folder: Path, apart: Apart) -> None:
    made = make(case, folder)
    before = listing(folder)
    arguments = (*case.flags, made.source)
    how = ("--model", "identity", *(("--scaling-from", "255") if case.scaled else ()))
    commands = ("info", "--json", *arguments), ("translate", "--out", "../out/eo.tif", *how, *arguments)
    shown, translated = apart(*commands) if case.apart else [run(*command) for command in commands]
    judge(shown, case.info)
    if case.info is None and made.levels is not None:
        assert json.loads(shown.stdout)["shape"] == list(np.shape(made.levels)[-2:])
    judge(translated, case.translate)
    if case.translate is None:
        assert {path.name for path in Path("../out").iterdir()} <= {"eo.tif", "eo.json"}
        compare(Path("../out/eo.tif"), made)
    else:
        check_no_result()
    assert listing(folder) == before


def check_no_result() -> None:
    """Check that nothing is left, not even the journal of a run that had begun, without a block."""
    assert not list(Path("../out").iterdir())


def compare(path: Path, made: Made) -> None:
    """Compare a result with what the identity model must make of the scene."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as raster:
            if made.check is not None:
                made.check(raster)
                return
            assert made.levels is not None
            levels = np.broadcast_to(made.levels, (3, *made.levels.shape[-2:]))
            valid = np.isfinite(levels)
            assert raster.transform.almost_equals(made.transform or Affine.identity(), 1e-6)
            assert raster.crs == (made.crs and rasterio.CRS.from_string(made.crs))
            found, mask = raster.read(), raster.read_masks() > 0
    np.testing.assert_array_equal(mask, valid)
    np.testing.assert_array_equal(found[valid], levels[valid])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that nothing is wrong with."""
    from sar2eo.model.creation import init_checkpoint

    return init_checkpoint(tmp_path_factory.mktemp("sound") / "tiny", size="tiny", polarisations=("VV",))


SMALL = ("--tile", "64", "--overlap", "0", "--steps", "1", "--scaling-from", "255")


@named(CHECKPOINTS)
def test_checkpoints(case: Breakage, sound: Path, folder: Path) -> None:
    shutil.copytree(sound, "model")
    case.change(Path("model"))
    write_raster(folder / "vv.tif", pixels(64, 64))
    before = listing(folder)
    judge(run("model", "info", "model"), case.info)
    judge(run("translate", "vv.tif", "--out", "../out/eo.tif", "--model", "model", *SMALL), case.translate)
    check_no_result()
    assert listing(folder) == before


def test_the_checkpoint_that_all_breakages_begin_with_is_taken(sound: Path, folder: Path) -> None:
    write_raster(folder / "vv.tif", pixels(64, 64))
    judge(run("model", "info", str(sound)), None)
    judge(run("translate", "vv.tif", "--out", "../out/eo.tif", "--model", str(sound), *SMALL), None)


@named(RECIPES)
def test_recipes(case: Recipe, folder: Path) -> None:
    data = case.content.encode() if isinstance(case.content, str) else case.content
    (folder / "recipe.toml").write_bytes(data)
    write_raster(folder / "vv.tif", pixels())
    judge(run("run", "recipe.toml"), case.verdict)
    check_no_result()


def test_the_recipe_that_all_slips_begin_with_is_taken(folder: Path) -> None:
    from support.bad_checkpoints import translate_table

    (folder / "recipe.toml").write_text(translate_table("[translate.settings]\nscaling = [255]\n"))
    write_raster(folder / "vv.tif", pixels())
    judge(run("run", "recipe.toml"), None)
    compare(Path("../out/eo.tif"), Made("vv.tif", pixels().astype(np.float32)))


@pytest.mark.parametrize("name", ["missing.toml", ".", "pipe", "loop", "/dev/zero", "a" * 300])
def test_what_is_no_file_is_no_recipe(name: str, folder: Path) -> None:
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    judge(run("run", name), Refused("not a recipe|not a readable TOML recipe", 2))


@pytest.mark.filterwarnings("ignore::sar2eo.errors.RadiometryWarning")
def test_the_directory_of_a_tiff_may_be_flipped_anywhere(folder: Path) -> None:
    """Header bits, one after the other: an answer or a line, and never a crash of the process."""
    path = write_raster(folder / "vv.tif", pixels(40, 50))
    judge(run("info", str(path)), None)
    sound = path.read_bytes()
    (start,) = np.frombuffer(sound[4:8], "<u4")
    draw = np.random.default_rng(2025)
    for place in draw.integers(start, min(start + 300, len(sound)), 60):
        data = bytearray(sound)
        data[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(data)
        told = run("info", str(path))
        judge(told, None if told.code == 0 else Refused("", told.code))
