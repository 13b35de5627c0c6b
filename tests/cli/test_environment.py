"""What surrounds a run: streams that are closed or full, foreign locales and libraries, folders that go."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import run
from support.faults import ROOT
from support.scenes import amplitude, write_scene

import sar2eo.scenes.raster
from sar2eo.errors import explain
from sar2eo.translation import writer

SMALL = ("--model", "identity", "--tile", "64", "--overlap", "16", "--scaling-from", "1000")


def sar2eo_in_a_shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = f"{sys.executable} -c 'import sar2eo.cli; sar2eo.cli.main()'"
    script = f'set -o pipefail; sar2eo() {{ {program} "$@"; }}; {command}'
    known = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", script], capture_output=True, env=known, check=False)  # noqa: S607


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("sar2eo info scene.tif | true", 0, b""),
        ("sar2eo info scene.tif > /dev/full", 1, b"standard output cannot be written: No space left"),
        ("sar2eo --help > /dev/full", 1, b"No space left"),
        ("sar2eo info $'sc\\xc3\\xa9ne.tif'", 0, b""),
    ],
)
def test_streams_that_fail_and_other_alphabets_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, words: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    shutil.copy("scene.tif", "scéne.tif")
    done = sar2eo_in_a_shell(command, PYTHONIOENCODING="ascii")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.count(b"\n") == (1 if words else 0), done.stderr


def test_foreign_projections_are_named_as_the_cause(tmp_path: Path) -> None:
    (tmp_path / "proj.db").touch()
    write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6), crs="EPSG:3395")
    done = sar2eo_in_a_shell(f"sar2eo info {tmp_path}/scene.tif", PROJ_DATA=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"PROJ_DATA" in done.stderr


@pytest.mark.parametrize("gone", ["out", "out/eo.tif.partial", "out/eo.tif.partial/blocks-*"])
def test_folders_that_are_removed_under_a_run_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    scene = write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    (tmp_path / "out").mkdir()
    real = writer.compute_keys

    def remove(*args, **kwargs):
        for folder in tmp_path.glob(gone):
            shutil.rmtree(folder)
        return real(*args, **kwargs)

    monkeypatch.setattr(writer, "compute_keys", remove)
    done = run("translate", scene, "--out", tmp_path / "out" / "eo.tif", *SMALL)
    assert done.exit_code == 1
    assert "No such file or directory" in done.stderr
    assert "unexpected" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_scene_that_is_written_to_during_the_run_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "scene.tif", amplitude((60, 60), 6))
    real, calls = sar2eo.scenes.raster.read_dataset, []

    def change(*args):
        calls.append(args)
        if len(calls) == 1:
            os.utime(scene, ns=(1, 1))
        return real(*args)

    monkeypatch.setattr(sar2eo.scenes.raster, "read_dataset", change)
    done = run("translate", scene, "--out", tmp_path / "eo.tif", "--quantity", "amplitude", *SMALL)
    assert done.exit_code == 1
    assert "has changed since it was opened" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.tif"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 48.0 MiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_runs_out_is_told_in_the_same_words(error: Exception) -> None:
    assert explain(error).startswith("out of memory")
    assert "--tile" in explain(error)
