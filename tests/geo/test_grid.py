"""What rasterio says of rasters without a georeference, said from several threads."""

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from rasterio.errors import NotGeoreferencedWarning

from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.translation.region import _rasterise


@pytest.fixture
def unplaced(tmp_path: Path) -> Path:
    path = tmp_path / "unplaced.tif"
    with (
        ignore_missing_georeference(),
        rasterio.open(path, "w", driver="GTiff", count=1, dtype="uint8", width=4, height=4) as raster,
    ):
        raster.write(np.ones((1, 4, 4), np.uint8))
    return path


def test_only_what_is_within_is_silent(unplaced: Path) -> None:
    with ignore_missing_georeference(), ignore_missing_georeference(), rasterio.open(unplaced) as raster:
        assert raster.count == 1
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(unplaced):
        pass


def test_a_thread_that_leaves_does_not_take_anothers_silence(unplaced: Path) -> None:
    # Without a lock the filters that the first restores are those from before both, while the second reads.
    inside, leave = threading.Event(), threading.Event()
    before = list(warnings.filters)

    def first() -> None:
        with ignore_missing_georeference():
            inside.set()
            leave.wait(0.2)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with ignore_missing_georeference():
        leave.set()
        thread.join()
        with rasterio.open(unplaced) as raster:
            assert raster.count == 1
    assert list(warnings.filters) == before


def test_areas_are_masked_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.create("EPSG:32611", rasterio.Affine(10, 0, 500000, 0, -10, 4000000), (8, 8))
    inside: list[int] = []
    most: list[int] = []
    original = rasterio.features.rasterize

    def watched(*arguments: object, **options: object) -> object:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.01)
        found = original(*arguments, **options)
        inside.pop()
        return found

    monkeypatch.setattr("rasterio.features.rasterize", watched)
    areas = np.array([shapely.box(*grid.bounds)])
    threads = [threading.Thread(target=_rasterise, args=(areas, grid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
