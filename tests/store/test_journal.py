from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo.errors import JournalError, OutputError
from sar2eo.geo.windows import Window
from sar2eo.store.journal import BlockWriter, Journal

FINGERPRINT = {
    "model": {"sha256": "a" * 64, "steps": 10},
    "grid": {"crs": "EPSG:32611", "transform": (10.0, 0.0, 3.0, 0.0, -10.0, 7.0)},
    "scaling": [float("nan")],
}
WINDOW = Window(512, 1024, 40, 70)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "eo.tif.partial"


def pixels(window: Window = WINDOW, count: int = 4, seed: int = 0) -> np.ndarray:
    shape = (count, window.height, window.width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    code = (
        "import sys, time, numpy as np\nfrom pathlib import Path\nfrom sar2eo.store.journal import Journal\n"
    )
    code += "from sar2eo.geo.windows import Window\n" + textwrap.dedent(program)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    dtype=st.sampled_from(["uint8", "float32"]),
    holes=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_block_reads_back_as_it_was_written(
    tmp_path_factory, count, height, width, dtype, holes, seed
) -> None:
    rng = np.random.default_rng(seed)
    window = Window(seed * 512, 512, height, width)
    bands = rng.integers(1, 256, (count, height, width)).astype(dtype)
    bands[:, rng.random((height, width)) < holes] = np.nan if dtype == "float32" else 0
    journal = Journal.open(tmp_path_factory.mktemp("j") / "p", {})
    pickle.loads(pickle.dumps(journal.writer())).write("eo", window, bands)  # noqa: S301
    assert journal.finished("eo", [window]) == {window}
    with rasterio.open(journal.paths("eo")[window]) as raster:
        np.testing.assert_array_equal(raster.read(), bands)
        assert raster.dtypes[0] == dtype
    journal.remove()


def test_the_same_fingerprint_goes_on_and_the_end_leaves_nothing(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    journal.release()
    again = Journal.open(folder, json.loads(json.dumps(FINGERPRINT)))
    assert again.finished("eo", [WINDOW, Window(0, 0, 512, 512)]) == {WINDOW}
    assert again.finished("confidence", [WINDOW]) == set()
    again.remove()
    assert not folder.exists()


def test_remove_after_release_locks_again_and_keeps_foreign_files(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.release()
    (folder / "notes.txt").write_text("mine")
    other = Journal.open(folder, FINGERPRINT)
    with pytest.raises(JournalError, match="another run is writing"):
        journal.remove()
    other.release()
    journal.remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_another_fingerprint_is_refused_and_says_what_differs(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    journal.release()
    changed = {**FINGERPRINT, "model": {"sha256": "b" * 64, "steps": 20}, "seed": 7}
    with pytest.raises(JournalError) as caught:
        Journal.open(folder, changed)
    message = str(caught.value)
    assert "model.steps 10 -> 20" in message
    assert "seed (nothing) -> 7" in message
    assert '"bbb' in message
    assert "grid" not in message
    assert "restart=True" in message
    assert "\n" not in message

    again = Journal.open(folder, FINGERPRINT)
    assert again.finished("eo", [WINDOW]) == {WINDOW}, "a refusal must not touch the work"
    again.release()
    restarted = Journal.open(folder, changed, restart=True)
    assert restarted.finished("eo", [WINDOW]) == set()
    restarted.writer().write("eo", WINDOW, pixels())
    restarted.release()
    with pytest.raises(JournalError, match=r"model\.sha256"):
        Journal.open(folder, FINGERPRINT)


def test_where_nothing_was_done_any_work_may_begin(folder: Path) -> None:
    Journal.open(folder, FINGERPRINT).release()  # as a kill would leave it
    journal = Journal.open(folder, {"another": 1})
    journal.begin_publishing()
    journal.release()
    assert journal.begun
    with pytest.raises(JournalError, match=r"differs in another"):
        Journal.open(folder, FINGERPRINT)
    again = Journal.open(folder, FINGERPRINT, restart=True)
    assert again.publishing, "what is there may still be of two runs"
    again.remove()
    assert not folder.exists()


def test_what_is_cleared_is_work_of_that_result(folder: Path) -> None:
    for result, stays in (("a", False), ("b", True), (None, True)):
        journal = Journal.open(folder, FINGERPRINT, result=result)
        journal.writer().write("eo", WINDOW, pixels())
        if not stays:
            with pytest.raises(JournalError, match="another run is writing"):
                Journal.clear(folder, "a")
        journal.release()
        Journal.clear(folder, "a")
        assert folder.exists() == stays
    (folder / "manifest.json").write_text("[]")
    Journal.clear(folder, "a")
    assert list(folder.glob("blocks-*/*"))
    (folder / "finished").touch()
    Journal.clear(folder, "a")
    assert not folder.exists()


def test_many_differences_are_named_in_part(folder: Path) -> None:
    journal = Journal.open(folder, {f"k{i}": 0 for i in range(9)})
    journal.writer().write("eo", WINDOW, pixels())
    journal.release()
    with pytest.raises(JournalError, match=r"k4 0 -> 1 and 4 more"):
        Journal.open(folder, {f"k{i}": 1 for i in range(9)})


def test_restart_discards_blocks_of_the_same_fingerprint(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    journal.release()
    assert Journal.open(folder, FINGERPRINT, restart=True).finished("eo", [WINDOW]) == set()


@pytest.mark.parametrize("damage", ["", '{"format": 1, "finger', "[]", '{"format": 1}', "\x00" * 40, None])
def test_a_damaged_manifest_is_an_error_that_offers_restart(folder: Path, damage: str | None) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    journal.release()
    manifest = folder / "manifest.json"
    manifest.unlink() if damage is None else manifest.write_text(damage)
    with pytest.raises(JournalError, match=r"damaged.*restart=True"):
        Journal.open(folder, FINGERPRINT)
    assert Journal.open(folder, FINGERPRINT, restart=True).finished("eo", [WINDOW]) == set()


def test_an_unknown_format_is_an_error(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    journal.release()
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(JournalError, match="format 99"):
        Journal.open(folder, FINGERPRINT)


@pytest.mark.parametrize("where", [0, 300, -1])
def test_a_flipped_bit_is_found_and_the_block_deleted(folder: Path, where: int) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    other = Window(0, 0, 16, 16)
    journal.writer().write("eo", WINDOW, pixels())
    journal.writer().write("eo", other, pixels(other))
    path = journal.paths("eo")[WINDOW]
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    assert journal.finished("eo", [WINDOW, other]) == {other}
    assert not path.exists()


def test_a_truncated_block_is_found(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    path = journal.paths("eo")[WINDOW]
    path.write_bytes(path.read_bytes()[:-100])
    assert journal.finished("eo", [WINDOW]) == set()


def test_of_two_whole_blocks_of_one_window_one_is_kept(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    for seed in (1, 2):
        journal.writer().write("eo", WINDOW, pixels(seed=seed))
    assert journal.finished("eo", [WINDOW]) == {WINDOW}
    assert len(list(journal.blocks.iterdir())) == 1


def test_leftovers_do_not_outlive_the_next_open(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    journal.writer().write("eo", WINDOW, pixels())
    (journal.blocks / ".0a1b.tmp").write_bytes(b"half")
    (folder / "assembled").mkdir()
    (folder / "assembled" / "eo.tif").write_bytes(b"stale")
    (folder / "blocks-0123").mkdir()
    journal.release()
    again = Journal.open(folder, FINGERPRINT)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "lock", again.blocks.name}
    assert list(again.blocks.iterdir()) == [again.paths("eo")[WINDOW]]


def test_empty_blocks_take_no_disk_space(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    window = Window(0, 0, 512, 1024)
    journal.writer().write("eo", window, np.zeros((4, 512, 1024), np.uint8))
    journal.writer().write("confidence", window, np.full((1, 512, 1024), np.nan, np.float32))
    assert all(path.stat().st_size < 2000 for path in journal.blocks.iterdir())


def test_a_writer_does_not_outlive_its_journal(folder: Path) -> None:
    journal = Journal.open(folder, FINGERPRINT)
    orphan = journal.writer()
    journal.remove()
    Journal.open(folder, {"another": 1})
    with pytest.raises(OutputError, match="No such file"):
        orphan.write("eo", WINDOW, pixels())


@pytest.mark.parametrize(
    ("variable", "bands"),
    [
        ("eo.x", pixels()),
        ("../eo", pixels()),
        ("eo", pixels()[:, 1:]),
        ("eo", pixels().astype(np.float64)),
        ("eo", pixels()[0]),
    ],
)
def test_what_is_not_a_block_is_refused(tmp_path: Path, variable: str, bands: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"block|variable="):
        BlockWriter(str(tmp_path)).write(variable, WINDOW, bands)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "absent" / "eo.tif.partial"):
        with pytest.raises(OutputError, match=r"cannot be written: \w") as caught:
            Journal.open(folder, FINGERPRINT)
        assert "\n" not in str(caught.value)


def test_a_full_disk_names_folder_and_space_and_leaves_no_rest(folder: Path) -> None:
    program = """
        import resource
        from sar2eo.errors import OutputError
        journal = Journal.open(Path(sys.argv[1]), {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            journal.writer().write("eo", Window(0, 0, 512, 512), np.ones((4, 512, 512), np.uint8))
        except OutputError as error:
            print(error)
    """
    output, _ = start(program, folder).communicate(timeout=60)
    assert str(folder) in output
    assert "no space for another 1.0 MB" in output
    journal = Journal.open(folder, {})
    assert list(journal.blocks.iterdir()) == []


def test_a_second_run_is_refused_until_the_first_is_killed(folder: Path) -> None:
    holder = start(
        'journal = Journal.open(Path(sys.argv[1]), {"a": 1}); print("open", flush=True); time.sleep(60)',
        folder,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    for restart in (False, True):
        with pytest.raises(JournalError, match="another run is writing"):
            Journal.open(folder, {"a": 1}, restart=restart)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    Journal.open(folder, {"a": 1}).remove()


def test_a_kill_while_writing_leaves_whole_blocks_only(folder: Path) -> None:
    program = """
        journal = Journal.open(Path(sys.argv[1]), {})
        rng = np.random.default_rng(0)
        print("open", flush=True)
        for row in range(10000):
            window = Window(row * 512, 0, 512, 1024)
            journal.writer().write("eo", window, rng.integers(1, 255, (4, 512, 1024), np.uint8))
    """
    windows = [Window(row * 512, 0, 512, 1024) for row in range(10000)]
    finished: set[Window] = set()
    for delay in (0.011, 0.013):
        run = start(program, folder)
        assert run.stdout is not None
        run.stdout.readline()
        before = len(list(folder.glob("blocks-*/eo.*")))
        deadline = time.monotonic() + 60
        while len(list(folder.glob("blocks-*/eo.*"))) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        run.kill()
        run.wait()
        run.stdout.close()
        named = {path.name for path in next(folder.glob("blocks-*")).glob("eo.*")}
        journal = Journal.open(folder, {})
        finished = journal.finished("eo", windows)
        kept = {path.name for path in journal.blocks.iterdir()}
        journal.release()
        assert kept == named, "a block that bears its name is whole"
        assert len(finished) == len(kept)
    rng = np.random.default_rng(0)
    for window in sorted(finished):
        expected = rng.integers(1, 255, (4, 512, 1024), np.uint8)
        with rasterio.open(journal.paths("eo")[window]) as raster:
            np.testing.assert_array_equal(raster.read(), expected)
    assert finished
    shutil.rmtree(folder)


def test_a_journal_in_temporary_space_is_found_by_its_link(folder: Path, tmp_path: Path) -> None:
    tmp, other = tmp_path / "tmp", tmp_path / "other"
    tmp.mkdir()
    other.mkdir()
    journal = Journal.open(folder, FINGERPRINT, tmp=tmp)
    journal.writer().write("eo", WINDOW, pixels())
    assert folder.is_symlink()
    assert [path.parent for path in tmp.glob("*/lock")] == [folder.resolve()]
    for elsewhere in (None, other):
        with pytest.raises(JournalError, match="another run is writing"):
            Journal.open(folder, FINGERPRINT, tmp=elsewhere)
    journal.release()
    again = Journal.open(folder, FINGERPRINT, tmp=other)
    assert again.finished("eo", [WINDOW]) == {WINDOW}
    again.remove()
    assert not folder.is_symlink()
    assert not folder.exists()
    assert not [*tmp.iterdir(), *other.iterdir()]


def test_a_journal_whose_temporary_space_was_cleared_begins_anew(folder: Path, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    for place in (None, tmp):
        journal = Journal.open(folder, FINGERPRINT, tmp=tmp)
        journal.writer().write("eo", WINDOW, pixels())
        journal.release()
        shutil.rmtree(folder.resolve())
        journal = Journal.open(folder, FINGERPRINT, tmp=place)
        assert journal.finished("eo", [WINDOW]) == set()
        assert folder.is_symlink() == (place is not None)
        journal.remove()
    assert not list(tmp.iterdir())
