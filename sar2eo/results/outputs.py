"""The files of one translation: checked before work, assembled in the journal, published together.

Results for an object store are assembled in a local folder and uploaded from there. They stay in it until the
upload has succeeded, so that the same command can go on with uploading.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
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
from sar2eo.results.cog import assemble, estimate_bytes, publish
from sar2eo.results.stac_output import COLLECTION, is_item_of_result, make_stac_item, write_stac_item
from sar2eo.results.targets import check_file, check_raster
from sar2eo.scenes.gdal import gdal_path, open_dataset
from sar2eo.settings import Compression
from sar2eo.store import s3
from sar2eo.store.atomic import check_owner, json_values, refuse, sync_folder, write_file, write_json
from sar2eo.store.documents import read_file
from sar2eo.store.http import Found
from sar2eo.store.journal import Journal

_FILES = "made.json"


@dataclass(frozen=True)
class Destination:
    """A prefix in an object store, and the local folder in which its files are made.

    Parameters
    ----------
    url : str
        The prefix, ending in ``/``.
    folder : Path
        Holds unfinished work, and finished files until they are uploaded. Its name depends on the output
        alone, so the same command finds it again.
    probe : str
        URL of a file that will be written.
    """

    url: str
    folder: Path
    probe: str

    @classmethod
    def from_url(cls, out: str, tmp: Path | None) -> Destination:
        """Return the destination of one result, or of many with ``s3://bucket/prefix/``.

        The local folder is made in `tmp`, or else in the working directory.

        Raises
        ------
        SettingsError
            If `out` has another form.
        """
        bucket, key = s3.split_url(out)
        single = Path(key).suffix.lower() in (".tif", ".tiff") and not key.endswith("/")
        parts = key.removesuffix("/").split("/") if key.strip("/") else []
        if not bucket or any(part in ("", ".", "..") for part in parts):
            raise SettingsError(f"{out!r}: must be s3://bucket/key.tif, or s3://bucket/prefix/ for many")
        url = "/".join([f"s3://{bucket}", *(parts[:-1] if single else parts), ""])
        whole = url + parts[-1] if single else url
        name = f"{Path(parts[-1]).stem if parts else bucket}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        place = (tmp or Path()).absolute() / f"{name}.partial"
        return cls(url, place, whole if single else url + COLLECTION)

    def local_path(self, url: str) -> Path:
        """Return the file of the folder that is uploaded to a URL right under the prefix."""
        name = url.removeprefix(self.url)
        if not url.startswith(self.url) or not name or "/" in name:
            raise SettingsError(f"{url}: must be beside the EO image, right under {self.url}")
        return self.folder / name

    def make_folder(self) -> None:
        """Create the local folder."""
        try:
            self.folder.mkdir(exist_ok=True)
            check_owner(self.folder, self.folder.lstat())
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror}): give a --tmp") from error

    def remove_folder(self) -> None:
        """Delete the local folder if it is empty."""
        with suppress(OSError):
            self.folder.rmdir()

    @cached_property
    def present(self) -> Mapping[str, Found]:
        """Files under the prefix by name, as first listed."""
        return self.list_files()

    def list_files(self) -> dict[str, Found]:
        """Return the files under the prefix, by name."""
        with _raise_output_errors():
            return s3.list_objects(self.url)

    def check(self) -> None:
        """Refuse a prefix that cannot be listed or written to."""
        with _raise_output_errors():
            _ = self.present
            s3.check_writable(self.probe)

    def read_texts(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the content of small files under the prefix, by name."""
        from concurrent.futures import ThreadPoolExecutor

        with _raise_output_errors(), ThreadPoolExecutor(8, "sar2eo-items") as pool:
            return dict(pool.map(lambda name: (name, s3.fetch(self.url + name)), names))

    def upload(self, path: Path, name: str) -> None:
        """Upload a file, checked as by `sar2eo.store.s3.upload`."""
        with _raise_output_errors():
            s3.upload(path, self.url + name)

    def delete(self, name: str) -> None:
        """Delete a file under the prefix, if it exists."""
        with _raise_output_errors():
            s3.delete(self.url + name)


@contextmanager
def _raise_output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Paths of the results of one translation.

    Parameters
    ----------
    eo : Path
        COG of the EO image. Unfinished work lies beside it in ``<name>.partial``.
    confidence, spread : Path, optional
        COGs of the confidence, and of the standard deviation over samples.
    quicklook : Path, optional
        A small PNG.
    destination : Destination, optional
        Where the results are uploaded to. The paths are then in its folder, and stand for URLs.
    """

    eo: Path
    confidence: Path | None = None
    spread: Path | None = None
    quicklook: Path | None = None
    destination: Destination | None = None

    @classmethod
    def from_paths(
        cls, eo: str | Path, further: Mapping[str, str | Path], tmp: Path | None = None
    ) -> Outputs:
        """Return outputs that are all files, or all URLs beside each other.

        Parameters
        ----------
        eo : str or Path
        further : mapping
            The other outputs, by field.
        tmp : Path, optional
            Folder for the unfinished work of results in an object store.

        Raises
        ------
        SettingsError
            If some are files and some URLs, or URLs are not beside each other.
        """
        remote = [str(name) for name in (eo, *further.values()) if s3.is_object(str(name))]
        if not remote:
            files: dict[str, Any] = {name: Path(path) for name, path in further.items()}
            return cls(eo=Path(eo), **files)
        if len(remote) <= len(further):
            local = next(str(name) for name in (eo, *further.values()) if not s3.is_object(str(name)))
            raise SettingsError(
                f"{local} and {remote[0]}: outputs go to an object store together, or not at all"
            )
        destination = Destination.from_url(str(eo), tmp)
        beside: dict[str, Any] = {name: destination.local_path(str(url)) for name, url in further.items()}
        return cls(eo=destination.local_path(destination.probe), destination=destination, **beside)

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
        """The STAC item; written only if the acquisition time is known."""
        return self.eo.with_suffix(".json")

    @property
    def journal(self) -> Path:
        """Folder of unfinished work."""
        return self.eo.with_name(self.eo.name + ".partial")

    @property
    def home(self) -> Path:
        """An existing folder on the disk where unfinished work goes by default."""
        return self.eo.absolute().parent if self.destination is None else self.destination.folder.parent

    def display_name(self, path: Path) -> str:
        """Return the path or URL of an output as messages name it."""
        return str(path) if self.destination is None else self.destination.url + path.name

    def exists(self, path: Path) -> bool:
        """Whether an output exists already."""
        return path.is_file() if self.destination is None else path.name in self.destination.present

    def read_tag(self, path: Path, name: str) -> str | None:
        """Return a tag of an existing raster."""
        version = None if self.destination is None else self.destination.present[path.name].etag
        with open_dataset(gdal_path(self.display_name(path)), version) as raster:
            found: str | None = raster.tags().get(name)
            return found

    def estimate_disk(
        self, grid: Grid, compress: Compression, tmp: Path | None = None
    ) -> list[tuple[Path, int]]:
        """Estimate the bytes that a run takes and where, for `sar2eo.results.cog.check_space`.

        Blocks that a stopped run has left are subtracted.
        """
        resumed = self.journal.exists()
        place = self.journal.resolve() if resumed else (tmp or self.home)
        used = sum(path.stat().st_size for path in place.glob("blocks-*/*")) if resumed else 0
        blocks, cogs = estimate_bytes(grid, self.rasters, compress)
        work = max(0, blocks + cogs - used)
        if self.destination is not None or place.stat().st_dev == self.home.stat().st_dev:
            return [(place, work)]
        return [(place, work), (self.home, cogs)]

    def check(self, *, overwrite: bool, restart: bool = False) -> None:
        """Refuse targets that cannot be written, before any work.

        Without `restart`, a run that was stopped while it published may go on with replacing files anyway.

        Raises
        ------
        OutputError
            If a folder is missing, or a file exists and may not be replaced.
        SettingsError
            If two outputs are the same file.
        """
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            names = ", ".join(map(self.display_name, self.paths))
            raise SettingsError(f"outputs {names}: each must be a file of its own")
        if self.quicklook is not None and self.quicklook.suffix.lower() != ".png":
            name = self.display_name(self.quicklook)
            raise SettingsError(f"quicklook {name}: must end with .png, which it is")
        overwrite = overwrite or (Journal.is_publishing(self.journal) and not restart)
        if overwrite and self.exists(self.item):
            name, remote = self.item.name, self.destination
            text = read_file(self.item) if remote is None else remote.read_texts([name])[name]
            if not is_item_of_result(text):
                raise OutputError(
                    f"{self.display_name(self.item)} is not the STAC item of a result and would be replaced "
                    "by one: give another --out"
                )
        rasters = self.rasters.values()
        for path in self.paths:
            if self.destination is None:
                (check_raster if path in rasters else check_file)(path, overwrite=overwrite)
            elif path in rasters and path.suffix.lower() not in (".tif", ".tiff"):
                name = self.display_name(path)
                raise OutputError(f"{name}: the result is a GeoTIFF, its name must end in .tif or .tiff")
            elif self.exists(path) and not overwrite:
                raise OutputError(f"{self.display_name(path)} exists: pass overwrite=True to replace it")

    def publish(
        self,
        journal: Journal,
        grid: Grid,
        blocks: Sequence[Window],
        *,
        tags: Mapping[str, str],
        when: str | None,
        compress: Compression,
        collection: str | None = None,
    ) -> dict[str, float]:
        """Assemble every file in the journal, then rename or upload all.

        Beside each other the EO image comes last, so that its presence says that all is done. In an object
        store the STAC item comes last: who finds it finds everything it links to.

        Parameters
        ----------
        journal, grid, blocks, tags, compress
            As of `sar2eo.results.cog.assemble`.
        when : str or None
            Acquisition time, ISO 8601; without it there is no STAC item.
        collection : str, optional
            Id of the STAC collection that the item belongs to.

        Returns
        -------
        dict
            Seconds by phase: ``assemble`` and, in an object store, ``upload``.

        Raises
        ------
        OutputError
            If a file cannot be made or published; published files are whole.
        """
        started = time.perf_counter()
        settings = {"tags": dict(tags), "when": when, "compress": compress, "collection": collection}
        if self.destination is None:
            files = self._assemble(journal, grid, blocks, settings)
            journal.begin_publishing()
            if self.item not in [target for _, target in files]:
                self.item.unlink(missing_ok=True)  # of a replaced result: it describes other pixels
            publish(files)
            return {"assemble": time.perf_counter() - started}
        if not self._is_ready(journal, settings):
            files = self._assemble(journal, grid, blocks, settings)
            self._keep(journal, settings, sorted(files, key=lambda pair: pair[1] == self.item))
        assembled = time.perf_counter()
        self._upload(journal, self.destination)
        return {"assemble": assembled - started, "upload": time.perf_counter() - assembled}

    def _assemble(
        self, journal: Journal, grid: Grid, blocks: Sequence[Window], settings: Mapping[str, Any]
    ) -> list[tuple[Path, Path]]:
        """Make every file in the journal; return them with their targets, the EO image last."""
        tags, when = settings["tags"], settings["when"]
        made = {
            name: assemble(journal, name, grid, blocks, tags=tags, compress=settings["compress"])
            for name in self.rasters
        }
        files = []
        if self.quicklook is not None:
            files.append((made["eo"].with_suffix(".png"), self.quicklook))
            write_quicklook(made["eo"], files[-1][0])
        if when is not None and grid.crs is not None:
            files.append((made["eo"].with_suffix(".json"), self.item))
            item = make_stac_item(
                self.rasters,
                grid,
                trace_footprint(read_valid_pixels(made["eo"]), grid),
                when,
                tags=tags,
                quicklook=self.quicklook,
                collection=settings["collection"],
                away=self.destination is not None,
            )
            write_stac_item(item, files[-1][0])
        return files + [(made[name], path) for name, path in self.rasters.items()][::-1]

    def _is_ready(self, journal: Journal, settings: Mapping[str, Any]) -> bool:
        """Whether an earlier run has assembled the same files and not uploaded them."""
        try:
            made = json.loads((_ready_folder(journal) / _FILES).read_bytes())
        except FileNotFoundError:
            return False
        names = {path.name for path in self.paths}
        return bool(
            made["settings"] == json_values(dict(settings))
            and {name for _, name in made["files"]} >= names - {self.item.name}
        )

    def _keep(
        self, journal: Journal, settings: Mapping[str, Any], files: Sequence[tuple[Path, Path]]
    ) -> None:
        """Keep assembled files for the upload: all of them by one rename, or none."""
        folder, ready = files[0][0].parent, _ready_folder(journal)
        content = {"settings": settings, "files": [[made.name, path.name] for made, path in files]}
        write_json(folder / _FILES, content)
        try:
            shutil.rmtree(ready, ignore_errors=True)  # of other settings
            folder.rename(ready)
        except OSError as error:
            refuse(error, ready)
        sync_folder(ready.parent)

    def _upload(self, journal: Journal, destination: Destination) -> None:
        ready = _ready_folder(journal)
        try:
            journal.begin_publishing()
            if self.exists(self.item):
                destination.delete(self.item.name)  # of a replaced result: it describes other pixels
            for file, name in json.loads((ready / _FILES).read_bytes())["files"]:
                destination.upload(ready / file, name)
        except OutputError as error:
            raise OutputError(
                f"{error}; the finished files wait in {ready}: the same command uploads them"
            ) from error


def _ready_folder(journal: Journal) -> Path:
    """Return the folder of files that wait to be uploaded: discarded together with their blocks."""
    return journal.blocks / "ready"


def check_tmp(tmp: Path | None) -> None:
    """Refuse a folder for unfinished work that does not exist or is not writable."""
    if tmp is not None and not tmp.is_dir():
        raise OutputError(f"--tmp {tmp}: there is no such folder: make it first")
    if tmp is not None and not os.access(tmp, os.W_OK | os.X_OK):
        raise OutputError(f"--tmp {tmp}: it is not writable")


def write_quicklook(cog: Path, png: Path, longest: int = 1024) -> None:
    """Write a small PNG of an EO image from its overviews; invalid pixels are transparent.

    The PNG appears whole or not at all. Its description is the COG's tag ``synthetic``.
    """
    with ignore_missing_georeference(), rasterio.open(cog) as raster:
        shape = _decimate_shape(raster, longest)
        rgb = raster.read((1, 2, 3), out_shape=(3, *shape), resampling=Resampling.average)
        alpha = raster.dataset_mask(out_shape=shape)
        synthetic = raster.tags().get("synthetic")
    with MemoryFile(ext=".png") as memory, ignore_missing_georeference():
        layout = {"driver": "PNG", "dtype": "uint8", "count": 4, "height": shape[0], "width": shape[1]}
        layout |= {} if synthetic is None else {"DESCRIPTION": f"synthetic={synthetic}"}
        with memory.open(**layout) as picture:
            picture.write(np.concatenate([rgb, alpha[None]]))
        write_file(png, memory.getbuffer())


def read_valid_pixels(cog: Path, longest: int = 1024) -> npt.NDArray[np.bool_]:
    """Read the valid mask of a COG, shape (row, col), decimated through its overviews."""
    with ignore_missing_georeference(), rasterio.open(cog) as raster:
        return np.asarray(raster.dataset_mask(out_shape=_decimate_shape(raster, longest)) > 0)


def _decimate_shape(raster: DatasetReader, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(raster.shape))
    rows, cols = (max(1, round(size * scale)) for size in raster.shape)
    return rows, cols
