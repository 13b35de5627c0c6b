"""The files of one translation: checked before work, made in the journal, published together.

What goes to an object store is published in the journal, so to say, and uploaded from there: until that has
succeeded it stays, and the same command goes on with uploading.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.io import DatasetReader, MemoryFile

from sar2eo.errors import OutputError, SettingsError
from sar2eo.geo.footprint import trace_footprint
from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.geo.windows import Window
from sar2eo.results.cog import assemble, check_target, cog_bytes, needed_bytes, publish
from sar2eo.results.destination import Destination
from sar2eo.results.stac_output import is_item_of_result, stac_item, write_stac_item
from sar2eo.scenes.gdal import gdal_path, open_dataset
from sar2eo.settings import Compression
from sar2eo.store.atomic import json_values, refuse, sync_folder, write_file, write_json
from sar2eo.store.journal import Journal
from sar2eo.store.s3 import is_object

__all__ = ["Outputs", "quicklook", "valid_pixels"]

_MADE = "made.json"


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
    destination : Destination, optional
        In an object store; the paths then are in its folder, where the files themselves never are.
    """

    eo: Path
    confidence: Path | None = None
    spread: Path | None = None
    quicklook: Path | None = None
    destination: Destination | None = None

    @classmethod
    def of(cls, eo: str | Path, further: Mapping[str, str | Path], tmp: Path | None = None) -> Outputs:
        """Return the outputs of given names.

        Parameters
        ----------
        eo : str or Path
            Of the EO image: a file, or ``s3://bucket/key.tif``.
        further : mapping
            Of the others, by field; in an object store if the EO image is.
        tmp : Path, optional
            Folder for unfinished work.

        Raises
        ------
        SettingsError
            If they are not all files, or all beside each other in an object store.
        """
        away = [str(name) for name in (eo, *further.values()) if is_object(str(name))]
        if not away:
            here: dict[str, Any] = {name: Path(path) for name, path in further.items()}
            return cls(eo=Path(eo), **here)
        if len(away) <= len(further):
            near = next(str(name) for name in (eo, *further.values()) if not is_object(str(name)))
            raise SettingsError(
                f"{near} and {away[0]}: outputs go to an object store together, or not at all"
            )
        destination = Destination.of(str(eo), tmp)
        beside: dict[str, Any] = {name: destination.beside(str(url)) for name, url in further.items()}
        return cls(eo=destination.beside(destination.probe), destination=destination, **beside)

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

    def name(self, path: Path) -> str:
        """Return the name of an output for people: its path or URL."""
        return str(path) if self.destination is None else self.destination.url_of(path)

    def is_there(self, path: Path) -> bool:
        """Whether an output is there already."""
        return path.is_file() if self.destination is None else path.name in self.destination.present

    def tag(self, path: Path, name: str) -> str | None:
        """Return a tag of a raster that is there.

        Raises
        ------
        SceneError
            If it cannot be read.
        """
        version = None if self.destination is None else self.destination.present[path.name].etag
        with open_dataset(gdal_path(self.name(path)), version) as raster:
            found: str | None = raster.tags().get(name)
            return found

    @property
    def home(self) -> Path:
        """An existing folder, on the disk where unfinished work goes by default."""
        return self.eo.absolute().parent if self.destination is None else self.destination.folder.parent

    def needs(self, grid: Grid, compress: Compression, tmp: Path | None = None) -> list[tuple[Path, int]]:
        """Estimate the bytes that a run takes, and where: for `sar2eo.results.cog.check_space`.

        What a stopped run has left is taken off.
        """
        there = self.journal.exists()
        place = self.journal.resolve() if there else (tmp or self.home)
        used = sum(path.stat().st_size for path in place.glob("blocks-*/*")) if there else 0
        work = max(0, needed_bytes(grid, self.rasters, compress) - used)
        if self.destination is not None or place.stat().st_dev == self.home.stat().st_dev:
            return [(place, work)]
        return [(place, work), (self.home, cog_bytes(grid, self.rasters, compress))]

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
            names = ", ".join(map(self.name, self.paths))
            raise SettingsError(f"outputs {names}: each must be a file of its own")
        if self.quicklook is not None and self.quicklook.suffix.lower() != ".png":
            raise SettingsError(f"quicklook {self.name(self.quicklook)}: must end with .png, which it is")
        overwrite = overwrite or (self.half_published and not restart)
        if overwrite and self.is_there(self.item) and not is_item_of_result(self._item_text()):
            raise OutputError(
                f"{self.name(self.item)} is no STAC item of a result, and would have to make room for one: "
                "give --out another name"
            )
        if self.destination is not None:
            self._check_remote(overwrite)
            return
        for path in self.rasters.values():
            check_target(path, overwrite)
        for path in self.paths[len(self.rasters) :]:
            if not path.parent.is_dir():
                raise OutputError(f"{path}: there is no folder {path.parent}: make it first")
            if path.exists() and not overwrite:
                raise OutputError(f"{path} exists: pass --overwrite to replace it")
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise OutputError(f"{path}: its folder is not writable")

    def _item_text(self) -> bytes:
        if self.destination is None:
            return self.item.read_bytes()
        return self.destination.texts([self.item.name])[self.item.name]

    def _check_remote(self, overwrite: bool) -> None:
        for path in self.rasters.values():
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise OutputError(
                    f"{self.name(path)}: the result is a GeoTIFF: its name must end in .tif or .tiff"
                )
        there = [path for path in self.paths if self.is_there(path)]
        if there and not overwrite:
            raise OutputError(f"{self.name(there[0])} exists: pass --overwrite to replace it")

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
        """Make every file in the journal, then publish all, the EO image last, or leave them to `upload`.

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
        settings = {"tags": dict(tags), "when": when, "compress": compress, "collection": collection}
        if self._is_ready(journal, settings):
            return
        made = {
            name: assemble(journal, name, grid, windows, tags=tags, compress=compress)
            for name in self.rasters
        }
        beside = []
        if self.quicklook is not None:
            beside.append((made["eo"].with_suffix(".png"), self.quicklook))
            quicklook(made["eo"], beside[-1][0])
        if when is not None and grid.crs is not None:
            outline = trace_footprint(valid_pixels(made["eo"]), grid)
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
        rasters = [(made[name], path) for name, path in self.rasters.items()][::-1]
        if self.destination is not None:
            # The item comes last: a catalogue finds it when all is there that it speaks of.
            files = sorted([*beside, *rasters], key=lambda pair: pair[1] == self.item)
            self._make_ready(journal, settings, files)
            return
        journal.begin_publishing()
        if (made["eo"].with_suffix(".json"), self.item) not in beside:
            self.item.unlink(missing_ok=True)  # of a replaced result: it would speak of other pixels
        publish([*beside, *rasters])

    def upload(self, journal: Journal) -> None:
        """Upload what `finish` has made, if it is for an object store, the STAC item last.

        Parameters
        ----------
        journal : Journal
            Keeps the files until it is removed.

        Raises
        ------
        OutputError
            If something cannot be uploaded; the message says where it waits.
        """
        if self.destination is None:
            return
        ready = _ready(journal)
        try:
            journal.begin_publishing()
            if self.is_there(self.item):
                self.destination.delete(
                    self.item.name
                )  # of a replaced result: it would speak of other pixels
            for file, name in json.loads((ready / _MADE).read_bytes())["files"]:
                self.destination.upload(ready / file, name)
        except OutputError as error:
            raise OutputError(
                f"{error}; the finished files wait in {ready}: the same command uploads them"
            ) from error

    def _is_ready(self, journal: Journal, settings: Mapping[str, Any]) -> bool:
        """Whether a run has made the same files, and not uploaded them."""
        try:
            made = json.loads((_ready(journal) / _MADE).read_bytes())
        except FileNotFoundError:
            return False
        names = {path.name for path in self.paths}
        return bool(
            made["settings"] == json_values(dict(settings))
            and {name for _, name in made["files"]} >= names - {self.item.name}
        )

    def _make_ready(
        self, journal: Journal, settings: Mapping[str, Any], files: Sequence[tuple[Path, Path]]
    ) -> None:
        """Keep assembled files in the journal: all of them by one rename, or none."""
        folder, ready = files[0][0].parent, _ready(journal)
        content = {"settings": settings, "files": [[made.name, path.name] for made, path in files]}
        write_json(folder / _MADE, content)
        try:
            shutil.rmtree(ready, ignore_errors=True)  # of other settings
            folder.rename(ready)
        except OSError as error:
            refuse(error, ready)
        sync_folder(ready.parent)


def _ready(journal: Journal) -> Path:
    """Return the folder of files that wait to be uploaded: discarded with the blocks they were made of."""
    return journal.blocks / "ready"


def quicklook(cog: Path, png: Path, longest: int = 1024) -> None:
    """Draw a COG of an EO image small, from its overviews; invalid pixels are transparent.

    What the tag ``synthetic`` of the COG says is the picture's description.

    Parameters
    ----------
    cog : Path
        COG with red, green and blue.
    png : Path
        PNG to write; it appears whole or not at all.
    longest : int, optional (default: 1024)
        Pixels of the longer side.

    Raises
    ------
    OutputError
        If the PNG cannot be written.
    """
    with ignore_missing_georeference(), rasterio.open(cog) as raster:
        shape = _small_shape(raster, longest)
        rgb = raster.read((1, 2, 3), out_shape=(3, *shape), resampling=Resampling.average)
        alpha = raster.dataset_mask(out_shape=shape)
        said = raster.tags().get("synthetic")
    with MemoryFile(ext=".png") as memory, ignore_missing_georeference():
        layout = {"driver": "PNG", "dtype": "uint8", "count": 4, "height": shape[0], "width": shape[1]}
        layout |= {} if said is None else {"DESCRIPTION": f"synthetic={said}"}
        with memory.open(**layout) as picture:
            picture.write(np.concatenate([rgb, alpha[None]]))
        write_file(png, memory.getbuffer())


def valid_pixels(cog: Path, longest: int = 1024) -> npt.NDArray[np.bool_]:
    """Read which pixels of a COG are valid, decimated through its overviews.

    Parameters
    ----------
    cog : Path
        COG with a mask or a nodata value.
    longest : int, optional (default: 1024)
        Pixels of the longer side.

    Returns
    -------
    ndarray of bool, shape (row, col)
        Of the same extent as the COG.
    """
    with ignore_missing_georeference(), rasterio.open(cog) as raster:
        return np.asarray(raster.dataset_mask(out_shape=_small_shape(raster, longest)) > 0)


def _small_shape(raster: DatasetReader, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(raster.shape))
    rows, cols = (max(1, round(size * scale)) for size in raster.shape)
    return rows, cols
