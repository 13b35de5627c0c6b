"""Files that are whole or not there, whoever else writes them."""

import errno
import os
import threading
from pathlib import Path

import pytest

from sar2eo.errors import OutputError
from sar2eo.store import atomic
from sar2eo.store.journal import Journal


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


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_links_under_a_temporary_name_are_not_followed(tmp_path: Path, link) -> None:
    (tmp_path / "thesis").write_bytes(b"years of work")
    link(tmp_path / "thesis", tmp_path / ".report.json.tmp")
    with pytest.raises(OutputError, match="cannot be written"):
        atomic.write_file(tmp_path / "report.json", b"whole")
    assert (tmp_path / "thesis").read_bytes() == b"years of work"


def test_what_another_user_has_put_there_is_refused(tmp_path: Path) -> None:
    mine = tmp_path.stat()
    atomic.check_owner(tmp_path, mine)
    with pytest.raises(OutputError, match="belongs to another user"):
        atomic.check_owner(tmp_path / "a", os.stat_result([*mine[:4], mine.st_uid + 1, *mine[5:]]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_journal_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp, folder = tmp_path / "tmp", tmp_path / "eo.tif.partial"
    tmp.mkdir()
    journal = Journal.open(folder, {}, tmp=tmp)
    place = folder.resolve()
    journal.release()
    for stranger in (place, folder):
        os.chown(stranger, 65534, -1, follow_symlinks=False)
        with pytest.raises(OutputError, match="belongs to another user"):
            Journal.open(folder, {}, tmp=tmp)
        os.chown(stranger, 0, -1, follow_symlinks=False)
    folder.unlink()
    os.chown(place, 65534, -1)
    with pytest.raises(OutputError, match="belongs to another user"):
        Journal.open(folder, {}, tmp=tmp)
    assert not folder.is_symlink()
