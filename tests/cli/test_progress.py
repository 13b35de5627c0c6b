"""Progress on terminals, in files, and where nobody reads."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import SMALL
from support.scenes import amplitude, write_scene

from sar2eo.cli import cli, output, translate


class Terminal(io.StringIO):
    def __init__(self, live: bool) -> None:
        super().__init__()
        self.live = live

    def isatty(self) -> bool:
        return self.live


class Gone(Terminal):
    """A terminal that was closed at its other end."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("gone", ["terminal", "pipe", "closed"])
def test_nobody_there_to_read_stops_no_work(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [write_scene(tmp_path / f"scene{n}.tif", amplitude((60, 60), n)) for n in (1, 2)]
    stream = None if gone == "closed" else Gone(live=gone == "terminal")
    monkeypatch.setattr(output.ProgressLine, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    (tmp_path / "out").mkdir()
    command = ["translate", *map(str, scenes), "--out", str(tmp_path / "out"), *SMALL]
    cli.main(command, standalone_mode=False)
    monkeypatch.undo()
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"scene1_eo.tif", "scene2_eo.tif"} <= found
    assert not any(name.endswith(".partial") for name in found)


def test_a_broken_pipe_is_not_written_to_at_the_end_once_more(scene_file: Path, tmp_path: Path) -> None:
    program = "from sar2eo.cli import main; main()"
    command = [sys.executable, "-c", program, "translate", str(scene_file), "--out", str(tmp_path / "eo.tif")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*command, *SMALL], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "eo.tif").exists()


@pytest.mark.parametrize("live", [True, False])
def test_progress_renews_a_line_on_a_terminal_and_is_plain_otherwise(
    monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    clock = [100.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    stream = Terminal(live)
    monkeypatch.setattr(output.sys, "stderr", stream)
    counts = {"tiles_total": 40, "tiles_translated": 8, "tiles_skipped": 2}
    with output.ProgressLine(translate._format_progress) as line:
        for clock[0] in (101.0, 140.0, 150.0):
            line(counts)
    told = stream.getvalue()
    assert "10 of 40 tiles, 0.25 a second, 0:02:00 left" in told
    assert told.count("tiles,") == (3 if live else 1)
    assert ("\x1b" in told) == live
