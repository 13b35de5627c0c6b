"""What an interrupted coregistration keeps beside its result: a journal of tie points.

::

    moved.tif.partial/                      a journal (see sar2eo.store.journal)
        blocks-<fingerprint digest>/
            parts/                          tie points, a file for each task that has ended
        assembled/                          results in the making
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo._version import __version__
from sar2eo.coregistration.scene_pair import ScenePair
from sar2eo.coregistration.tie_points import Finder
from sar2eo.errors import CoregistrationError
from sar2eo.settings import CoregisterSettings, SceneSettings
from sar2eo.store.atomic import refuse
from sar2eo.store.journal import Journal
from sar2eo.store.task_results import PartStore

__all__ = ["Work", "fingerprint_of", "is_publishing", "working"]

# Where and how fast it runs, and what was insisted on.
_FREE = ("device", "threads", "force", "model")


@dataclass(frozen=True)
class Work:
    """The journal of a run that goes on, locked.

    Parameters
    ----------
    journal : Journal
    """

    journal: Journal

    @property
    def store(self) -> PartStore:
        """Where tasks keep their tie points; every worker must see its folder."""
        return PartStore(str(self.journal.blocks.absolute()))

    @contextmanager
    def assembling(self) -> Iterator[Path]:
        """Hold a folder for results in the making, empty at the start and gone in the end.

        Raises
        ------
        OutputError
            If it cannot be made.
        """
        folder = self.journal.folder / "assembled"
        try:
            folder.mkdir()
        except OSError as error:
            refuse(error, folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fingerprint_of(
    pair: ScenePair, scene: SceneSettings, settings: CoregisterSettings, finder: Finder
) -> dict[str, Any]:
    """Return all that a result depends on, as JSON values."""
    sar, eo = pair.sar.reader.identity(), pair.eo.identity()
    named = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _FREE}
    return {
        "software": f"sar2eo {__version__}",
        "reference": sar if pair.reference is pair.sar else eo,
        "moving": sar if pair.moving is pair.sar else eo,
        "scene": dataclasses.asdict(scene),
        "settings": named,
        "matching": {"template_px": finder.side, "radius_px": finder.radius, **finder.facts()},
    }


def is_publishing(target: Path) -> bool:
    """Whether an earlier run was stopped while it put its results in place."""
    return Journal.is_publishing(_folder(target))


@contextmanager
def working(target: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Iterator[Work]:
    """Begin, or go on with what an interrupted run of the same fingerprint has left.

    In the end nothing is left of a success, nor where the evidence is too thin, which another run would not
    change; of any other ending, tie points.

    Parameters
    ----------
    target : Path
        The result.
    fingerprint : mapping
        From `fingerprint_of`.
    overwrite : bool
        Discard what belongs to another.

    Raises
    ------
    JournalError
        If what is there belongs to another fingerprint, or another run is writing here.
    OutputError
        If the folder cannot be written.
    """
    with Journal.resume(_folder(target), fingerprint, overwrite=overwrite) as journal:
        parts = journal.blocks / "parts"
        try:
            parts.mkdir(exist_ok=True)
            yield Work(journal)
        except CoregistrationError:
            journal.remove()
            raise
        finally:
            with suppress(OSError):
                parts.rmdir()  # without a tie point there is nothing to keep


def _folder(target: Path) -> Path:
    return target.absolute().with_name(f"{target.name}.partial")
