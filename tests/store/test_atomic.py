"""Files that are whole or not there, whoever else writes them."""

import errno
import os
import threading
from pathlib import Path

import pytest

from sar2eo.errors import OutputError
from sar2eo.store import atomic


def test_what_a_crash_has_left_is_taken_over(tmp_path: Path) -> None:
    path, left = tmp_path / "report.json", tmp_path / ".report.json.tmp"
    left.write_bytes(b"half of something that was longer")
    atomic.write_file(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["report.json"]  # noqa: PTH208


def test_writers_of_one_file_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    contents = {bytes([65 + number]) * 300_000 * (number + 1) for number in range(4)}
    errors: list[Exception] = []

    def write(data: bytes) -> None:
        try:
            for _ in range(5):
                atomic.write_file(path, data)
                assert path.read_bytes() in contents
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".report.json.tmp").symlink_to(victim)
    with pytest.raises(OutputError, match="cannot be written"):
        atomic.write_file(tmp_path / "report.json", b"whole")
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize(("number", "refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", fail)
    if refused:
        with pytest.raises(OutputError, match="Input/output error"):
            atomic.sync_folder(tmp_path)
    else:
        atomic.sync_folder(tmp_path)
