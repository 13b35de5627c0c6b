"""The files of one translation: checked before work, made in the journal, published together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sar2eo.cog import assemble, check_target, cog_bytes, needed_bytes, publish
from sar2eo.errors import OutputError, SettingsError
from sar2eo.footprint import footprint_of
from sar2eo.grid import Grid
from sar2eo.journal import Journal
from sar2eo.preview import quicklook, valid_pixels
from sar2eo.recipe import Compression
from sar2eo.stac_item import stac_item, write_stac_item
from sar2eo.windows import Window

__all__ = ["Outputs"]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the results of one translation go.

    Parameters
    ----------
    eo : Path
        COG of the EO image; unfinished work lies beside it in ``<name>.partial``.
    confidence, spread : Path, optional
        COGs of the confidence, and of the standard deviation over samples.
    quicklook : Path, optional
        A small PNG.
    """

    eo: Path
    confidence: Path | None = None
    spread: Path | None = None
    quicklook: Path | None = None

    @property
    def rasters(self) -> dict[str, Path]:
        """The COGs, by variable of the Dataset."""
        named = {"eo": self.eo, "confidence": self.confidence, "spread": self.spread}
        return {name: path for name, path in named.items() if path is not None}

    @property
    def paths(self) -> list[Path]:
        """All files that are, or may be, written."""
        return [*self.rasters.values(), self.item, *([self.quicklook] if self.quicklook else [])]

    @property
    def item(self) -> Path:
        """The STAC item, which is written where the acquisition time is known."""
        return self.eo.with_suffix(".json")

    @property
    def journal(self) -> Path:
        """Folder of unfinished work."""
        return self.eo.with_name(self.eo.name + ".partial")

    @property
    def half_published(self) -> bool:
        """Whether a run was stopped while it published: the files may then be of two runs."""
        return Journal.is_publishing(self.journal)

    def needs(self, grid: Grid, compress: Compression, tmp: Path | None = None) -> list[tuple[Path, int]]:
        """Estimate the bytes that a run takes, and where: for `sar2eo.cog.check_space`.

        What a stopped run has left is taken off.
        """
        there = self.journal.exists()
        place = self.journal.resolve() if there else (tmp or self.eo.absolute().parent)
        used = sum(path.stat().st_size for path in place.glob("blocks-*/*")) if there else 0
        work = max(0, needed_bytes(grid, self.rasters, compress) - used)
        home = self.eo.absolute().parent
        if place.stat().st_dev == home.stat().st_dev:
            return [(place, work)]
        return [(place, work), (home, cog_bytes(grid, self.rasters, compress))]

    def check(self, *, overwrite: bool, restart: bool = False) -> None:
        """Refuse targets that cannot be written, before any work.

        Parameters
        ----------
        overwrite : bool
            Whether existing files may be replaced; a run that goes on where it was stopped while it published
            may do so anyway.
        restart : bool, optional (default: False)
            Whether it begins anew instead.

        Raises
        ------
        OutputError
            If a folder is missing or a file exists and may not be replaced.
        SettingsError
            If two outputs are the same file.
        """
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise SettingsError(f"outputs {', '.join(map(str, self.paths))}: each must be a file of its own")
        overwrite = overwrite or (self.half_published and not restart)
        for path in self.rasters.values():
            check_target(path, overwrite)
        for path in self.paths[len(self.rasters) :]:
            if not path.parent.is_dir():
                raise OutputError(f"{path}: there is no folder {path.parent}: make it first")
            if path.exists() and not overwrite:
                raise OutputError(f"{path} exists: pass --overwrite to replace it")

    def finish(
        self,
        journal: Journal,
        grid: Grid,
        windows: Sequence[Window],
        tags: Mapping[str, str],
        when: str | None,
        compress: Compression,
        collection: str | None = None,
    ) -> None:
        """Make every file in the journal, then publish all, the EO image last.

        Parameters
        ----------
        journal : Journal
            With all blocks finished.
        grid : Grid
            Of the result.
        windows : sequence of Window
            Its blocks.
        tags : mapping
            Provenance.
        when : str or None
            Acquisition time, ISO 8601; without it there is no STAC item.
        compress : str
            Of the EO image.
        collection : str, optional
            Id of the STAC collection that the item belongs to.

        Raises
        ------
        OutputError
            If a file cannot be made or published; what is published already is whole.
        """
        made = {
            name: assemble(journal, name, grid, windows, tags=tags, compress=compress)
            for name in self.rasters
        }
        beside = []
        if self.quicklook is not None:
            beside.append((made["eo"].with_suffix(".png"), self.quicklook))
            quicklook(made["eo"], beside[-1][0])
        if when is not None and grid.crs is not None:
            outline = footprint_of(valid_pixels(made["eo"]), grid)
            item = stac_item(
                self.rasters,
                grid,
                outline,
                when,
                tags=tags,
                quicklook=self.quicklook,
                collection=collection,
            )
            beside.append((made["eo"].with_suffix(".json"), self.item))
            write_stac_item(item, beside[-1][0])
        journal.begin_publishing()
        if (made["eo"].with_suffix(".json"), self.item) not in beside:
            self.item.unlink(missing_ok=True)  # of a replaced result: it would speak of other pixels
        rasters = [(made[name], path) for name, path in self.rasters.items()]
        publish([*beside, *rasters[::-1]])
