"""A journal under random runs, kills, edits, restarts and deletions, against a model of a few lines."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sar2eo.errors import JournalError
from sar2eo.geo.windows import Window
from sar2eo.store.journal import Journal

WINDOWS = [Window(row, 0, 16, 16) for row in (0, 16, 32)]


class JournalMachine(RuleBasedStateMachine):
    """`blocks` are the work in the folder, of the settings `made`; `publishing` is as there."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder, self.journal = self.home / "eo.tif.partial", None
        self.made, self.blocks, self.publishing = None, {}, False

    def teardown(self) -> None:
        if self.journal is not None:
            self.journal.release()
        shutil.rmtree(self.home)

    @precondition(lambda self: self.journal is None)
    @rule(made=st.sampled_from("ab"), restart=st.booleans())
    def run(self, made: str, restart: bool) -> None:
        if self.made != made and not restart and (self.blocks or self.publishing):
            with pytest.raises(JournalError, match="another run, which differs in input"):
                Journal.open(self.folder, {"input": made})
            return
        self.journal = Journal.open(self.folder, {"input": made}, restart=restart)
        if self.made != made or restart:
            self.blocks = {}
        self.made = made

    @precondition(lambda self: self.journal is not None)
    @rule(window=st.sampled_from(WINDOWS), value=st.integers(1, 255))
    def write(self, window: Window, value: int) -> None:
        if window not in self.blocks:  # a run writes each block once
            self.journal.writer().write("eo", window, np.full((4, 16, 16), value, np.uint8))
            self.blocks[window] = value

    @precondition(lambda self: self.journal is not None)
    @rule()
    def second_run(self) -> None:
        with pytest.raises(JournalError, match="another run is writing"):
            Journal.open(self.folder, {"input": self.made})

    @precondition(lambda self: self.journal is not None)
    @rule()
    def replace_results(self) -> None:
        self.journal.begin_publishing()
        self.publishing = True

    @precondition(lambda self: self.journal is not None)
    @rule()
    def kill(self) -> None:
        if self.blocks:  # half a block is taken for work
            (self.journal.blocks / ".eo.0.0.16.16.tif.tmp").write_bytes(b"half a block")
        (self.folder / "assembled").mkdir(exist_ok=True)
        self.journal.release()
        self.journal = None

    @precondition(lambda self: self.journal is not None)
    @rule()
    def succeed(self) -> None:
        self.journal.remove()
        assert not self.folder.exists()
        self.journal, self.made, self.blocks, self.publishing = None, None, {}, False

    @precondition(lambda self: self.blocks)
    @rule(draw=st.data(), damage=st.booleans())
    def lose(self, draw: st.DataObject, damage: bool) -> None:
        window = draw.draw(st.sampled_from(sorted(self.blocks)))
        (path,) = self.folder.glob(f"blocks-*/eo.{'.'.join(map(str, window))}.*.tif")
        path.write_bytes(path.read_bytes()[:-9]) if damage and self.journal is not None else path.unlink()
        for half in self.folder.glob("blocks-*/.*") if len(self.blocks) == 1 else ():
            half.unlink()
        del self.blocks[window]

    @precondition(lambda self: self.journal is None)
    @rule()
    def delete_all(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.made, self.blocks, self.publishing = None, {}, False

    @invariant()
    def agree(self) -> None:
        assert Journal.is_publishing(self.folder) == self.publishing
        if self.journal is not None:
            assert self.journal.finished("eo", WINDOWS) == set(self.blocks)
            assert self.journal.paths("eo").keys() == self.blocks.keys()


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_a_journal_holds_what_was_written_and_nothing_else(examples: int) -> None:
    run_state_machine_as_test(
        JournalMachine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )
