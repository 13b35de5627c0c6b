"""What an interrupted evaluation keeps beside its report: a journal of the images that were drawn.

::

    report.partial/                         a journal (see sar2eo.store.journal)
        blocks-<fingerprint digest>/        images of a batch, a file for each draw of it

Drawing is what takes hours; figures of images that are there take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from sar2eo.evaluation.model_probe import Drawn
from sar2eo.store.atomic import refuse
from sar2eo.store.journal import Journal
from sar2eo.store.task_results import keep_result, read_result

__all__ = ["KeptImages", "keeping"]


class KeptImages:
    """Images that an evaluation has drawn, those of an interrupted run among them.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draw(self, name: str, draw: Callable[[], Drawn]) -> Drawn:
        """Return the images of a model, a draw and a batch, by this name: kept ones, or drawn and kept.

        Returns
        -------
        Drawn
            Without the variance; seconds are those of the process that drew.

        Raises
        ------
        OutputError
            If they cannot be kept.
        """
        for kept in map(read_result, self._folder.glob(f"{name}.*.safetensors")):
            if kept:
                found = load(kept[1])
                # [B, 3, H, W], levels as they were drawn
                return Drawn(found["eo"].float() / 127.5 - 1, None, float(found["seconds"]))
        drawn = draw()
        levels = ((drawn.eo + 1) * 127.5).round().to(torch.uint8)
        seconds = torch.tensor(drawn.seconds, dtype=torch.float64)
        data = save({"eo": levels.contiguous(), "seconds": seconds})
        keep_result(self._folder, name, data, "safetensors")
        return drawn._replace(variance=None)


@contextmanager
def keeping(out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Iterator[KeptImages]:
    """Begin an evaluation, or go on with what an interrupted one of the same fingerprint has left.

    Nothing is left of a success; of any other ending, images.

    Parameters
    ----------
    out : Path
        Folder of the report.
    fingerprint : mapping
        All that the report depends on.
    overwrite : bool
        Discard images that belong to another.

    Raises
    ------
    JournalError
        If images that are there belong to another fingerprint, or another evaluation is writing here.
    OutputError
        If the folder cannot be written.
    """
    folder = out.absolute().with_name(f"{out.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(error, folder.parent)
    with Journal.resume(folder, fingerprint, overwrite=overwrite) as journal:
        yield KeptImages(journal.blocks)
