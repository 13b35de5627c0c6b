from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rio_cogeo.cogeo import cog_validate

from sar2eo.errors import JournalError, OutputError
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.results import cog
from sar2eo.results.cog import LAYERS
from sar2eo.results.outputs import read_valid_pixels, write_quicklook
from sar2eo.results.targets import check_raster
from sar2eo.store.journal import Journal

SHARED = Path(__file__).parents[2].parent / "shared/data"
TAGS = {"SAR2EO_MODEL": 'identity "<&>"', "TIFFTAG_DATETIME": "2020:11:07 01:50:18", "synthetic": "yes"}


def grid_of(rows: int, cols: int, crs: str | None = "EPSG:32611") -> Grid:
    return Grid(crs, (10.0, 0.0, 380_000.0, 0.0, -10.0, 3_770_000.0), (rows, cols))


def partition(grid: Grid, width: int = 1024) -> list[Window]:
    rows, cols = grid.shape
    return [
        Window(row, col, min(512, rows - row), min(width, cols - col))
        for row in range(0, rows, 512)
        for col in range(0, cols, width)
    ]


def picture(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """A smooth RGB picture and a mask with a hole, an edge and single pixels, as one array of 4 bands."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :cols]
    rgb = np.stack([127 + 100 * np.sin((y + k * x) / (7 + k)) for k in range(3)]).astype(np.uint8)
    valid = (x + y) % max(9, (rows + cols) // 3) > 5
    valid[rows // 3 : rows // 2, cols // 4 : cols // 2] = False
    valid &= rng.random((rows, cols)) > 0.02
    rgb[:, ~valid] = 0
    return np.concatenate([rgb, valid[None].astype(np.uint8) * np.uint8(255)])


def filled(folder: Path, variable: str, grid: Grid, pixels: np.ndarray) -> Journal:
    journal = Journal.open(folder, {"grid": grid.shape}, restart=True)
    writer = journal.writer()
    for window in partition(grid):
        writer.write(variable, window, pixels[(slice(None), *window.slices)])
    return journal


@pytest.fixture(scope="module")
def eo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, np.ndarray, Grid]]:
    grid = grid_of(1100, 1500)
    pixels = picture(*grid.shape)
    folder = tmp_path_factory.mktemp("eo") / "Läufe #1? & more!.partial"
    journal = filled(folder, "eo", grid, pixels)
    yield cog.assemble(journal, "eo", grid, partition(grid), tags=TAGS, threads=2), pixels, grid
    journal.remove()


def test_the_eo_cog_is_what_the_blocks_were(eo) -> None:
    path, pixels, grid = eo
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(), pixels[:3])
        np.testing.assert_array_equal(raster.dataset_mask(), pixels[3])
        assert Grid.create(raster.crs, raster.transform, raster.shape) == grid
        assert raster.crs.to_epsg() == 32611
        assert raster.profile["compress"] == "deflate"
        assert raster.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"] == "PIXEL"
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.block_shapes == [(512, 512)] * 3
        assert raster.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert raster.descriptions == ("red", "green", "blue")
        assert raster.mask_flag_enums == ([MaskFlags.per_dataset],) * 3
        assert raster.nodata is None
        assert raster.overviews(1) == [2, 4]
        assert TAGS.items() <= raster.tags().items()
        assert raster.files == [str(path)], "no sidecar"
    assert not list(path.parent.glob("*.tmp")) + list(path.parent.glob("*.aux.xml"))


def halved_average(rgb: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the valid ones of 2 x 2 pixels, and how many there are; even sizes."""
    count = valid.reshape(valid.shape[0] // 2, 2, -1, 2).sum((1, 3))
    total = (rgb * valid).reshape(3, rgb.shape[1] // 2, 2, -1, 2).sum((2, 4))
    return total / np.maximum(count, 1), count


def test_overviews_average_valid_pixels_only(eo) -> None:
    path, pixels, _ = eo
    expected, valid = pixels[:3].astype(float), pixels[3] > 0
    for level in (0, 1):
        expected, count = halved_average(expected, valid)
        with rasterio.open(path, overview_level=level) as raster:
            read, mask = raster.read(), raster.dataset_mask() > 0
        assert not (mask & (count == 0)).any(), "what has no valid pixel is not valid"
        assert mask[count == 4].all(), "what is valid throughout is valid"
        assert np.abs(read[:, mask] - expected[:, mask]).max() <= 2 + level
        # The next level is made from this one.
        expected, valid = read.astype(float), mask


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 1200), cols=st.integers(1, 1200), seed=st.integers(0, 9))
@example(rows=533, cols=1, seed=0)
@example(rows=1, cols=1100, seed=0)
@example(rows=1100, cols=3, seed=0)
def test_any_shape_reads_back_and_is_valid(tmp_path: Path, rows: int, cols: int, seed: int) -> None:
    grid = grid_of(rows, cols)
    pixels = picture(rows, cols, seed)
    journal = filled(tmp_path / "p", "eo", grid, pixels)
    path = cog.assemble(journal, "eo", grid, partition(grid), tags={}, threads=1)
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(), pixels[:3])
        np.testing.assert_array_equal(raster.dataset_mask(), pixels[3])
        levels = raster.overviews(1)
    # The numbers of the levels are derived from the width, and say nothing of the height of a narrow raster.
    with rasterio.open(path, **({"overview_level": len(levels) - 1} if levels else {})) as raster:
        assert max(raster.shape) <= 512, "the smallest overview is one block"
    for level in range(len(levels)):
        with rasterio.open(path, overview_level=level) as raster:
            assert not raster.read()[:, raster.dataset_mask() == 0].any(), "invalid pixels stay 0"
    journal.remove()


@pytest.mark.parametrize("variable", ["confidence", "spread"])
def test_float_layers_have_nan_for_nodata(tmp_path: Path, variable: str) -> None:
    grid = grid_of(700, 1030)
    rng = np.random.default_rng(0)
    values = (10.0 ** rng.uniform(-1, 6, (1, *grid.shape))).astype(np.float32)
    values[:, 100:400, 300:900] = np.nan
    values[:, ::7, ::5] = np.nan
    journal = filled(tmp_path / "p", variable, grid, values)
    path = cog.assemble(journal, variable, grid, partition(grid), tags=TAGS, compress="jpeg")
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(), values)
        assert raster.dtypes == ("float32",)
        assert np.isnan(raster.nodata)
        assert raster.descriptions == LAYERS[variable].bands
        assert raster.profile["compress"] == "deflate"
        np.testing.assert_array_equal(raster.dataset_mask() > 0, np.isfinite(values[0]))
    with rasterio.open(path, overview_level=0) as raster:
        small = raster.read(1)
    pairs = values[0].reshape(350, 2, 515, 2)
    if variable == "spread":
        expected = np.nanmean(np.where(np.isnan(pairs).all((1, 3), keepdims=True), -1, pairs), axis=(1, 3))
        expected[expected == -1] = np.nan
        np.testing.assert_allclose(small, expected, rtol=1e-5)
    else:
        finite = small[np.isfinite(small)]
        assert np.isin(finite, values).all(), "confidence is never averaged"
        assert finite.size > 0.4 * small.size


@pytest.mark.parametrize("compress", ["zstd", "jpeg", "webp"])
def test_other_compressions_keep_the_mask(tmp_path: Path, compress) -> None:
    grid = grid_of(600, 600)
    pixels = picture(*grid.shape)
    journal = filled(tmp_path / "p", "eo", grid, pixels)
    path = cog.assemble(journal, "eo", grid, partition(grid), tags=TAGS, compress=compress)
    with rasterio.open(path) as raster:
        assert raster.profile["compress"] == compress
        np.testing.assert_array_equal(raster.dataset_mask(), pixels[3])
        error = np.abs(raster.read().astype(int) - pixels[:3])[:, pixels[3] > 0]
        assert error.max() == 0 if compress == "zstd" else 0 < error.mean() < 12
        assert TAGS.items() <= raster.tags().items()


@pytest.mark.parametrize(
    "crs",
    ["EPSG:4326", "EPSG:3395", "+proj=laea +lat_0=80 +lon_0=10 +ellps=WGS84 +units=m", None],
)
def test_georeference_survives(tmp_path: Path, crs: str | None) -> None:
    transform = (0.1, 0.0, 1 / 3, 0.0, -0.1, 50 + 1 / 7)
    grid = Grid(crs and Grid.create(crs, rasterio.Affine(*transform), (1, 1)).crs, transform, (20, 30))
    journal = filled(tmp_path / "p", "eo", grid, picture(20, 30))
    path = cog.assemble(journal, "eo", grid, partition(grid), tags={})
    with rasterio.open(path) as raster:
        assert tuple(raster.transform)[:6] == pytest.approx(transform, rel=1e-15)
        if crs is None:
            assert raster.crs is None
        else:
            assert CRS.from_wkt(raster.crs.to_wkt()).equals(CRS(crs), ignore_axis_order=True)
    target = tmp_path / "eo.tif"
    cog.publish([(path, target)])
    write_quicklook(target, tmp_path / "eo.png")


def test_a_missing_georeference_altogether(tmp_path: Path) -> None:
    grid = Grid(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (20, 30))
    journal = filled(tmp_path / "p", "eo", grid, picture(20, 30))
    path = cog.assemble(journal, "eo", grid, partition(grid), tags={})
    write_quicklook(path, tmp_path / "eo.png")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        raster = rasterio.open(path)
    with raster:
        assert raster.crs is None


def test_a_missing_block_is_an_error(tmp_path: Path) -> None:
    grid = grid_of(1100, 600)
    journal = filled(tmp_path / "p", "eo", grid, picture(*grid.shape))
    journal.paths("eo")[Window(512, 0, 512, 600)].unlink()
    with pytest.raises(JournalError, match="1 of 3 blocks of 'eo' are missing"):
        cog.assemble(journal, "eo", grid, partition(grid), tags={})


def test_a_tag_that_gdal_would_split_is_refused(tmp_path: Path) -> None:
    grid = grid_of(20, 30)
    journal = filled(tmp_path / "p", "eo", grid, picture(20, 30))
    with pytest.raises(ValueError, match="sar2eo:model"):
        cog.assemble(journal, "eo", grid, partition(grid), tags={"sar2eo:model": "x"})


def test_a_full_disk_while_assembling_is_one_line(tmp_path: Path) -> None:
    program = """
        import sys, resource, numpy as np
        from pathlib import Path
        from sar2eo.results import cog
        from sar2eo.errors import OutputError
        from sar2eo.geo.grid import Grid
        from sar2eo.store.journal import Journal
        from sar2eo.geo.windows import Window
        grid, window = Grid("EPSG:32611", (10, 0, 0, 0, -10, 0), (700, 900)), Window(0, 0, 700, 900)
        journal = Journal.open(Path(sys.argv[1]), {})
        rng = np.random.default_rng(0)
        journal.writer().write("eo", window, rng.integers(0, 255, (4, 700, 900), np.uint8))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        try:
            cog.assemble(journal, "eo", grid, [window], tags={})
        except OutputError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "eo.tif.partial")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert done.stdout.count("\n") == 1
    assert "eo.tif.partial" in done.stdout
    assert "4 MB free" in done.stdout


def test_publish_replaces_and_clears_stale_sidecars(tmp_path: Path) -> None:
    sources = [tmp_path / "a", tmp_path / "b"]
    targets = [tmp_path / "confidence.tif", tmp_path / "eo.tif"]
    for source in sources:
        source.write_text(f"new {source.name}")
    targets[1].write_text("old")
    (tmp_path / "eo.tif.aux.xml").write_text("statistics of the old one")
    cog.publish(list(zip(sources, targets, strict=True)))
    assert [target.read_text() for target in targets] == ["new a", "new b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confidence.tif", "eo.tif"]


def test_publish_to_another_file_system_leaves_old_or_new(tmp_path: Path, monkeypatch) -> None:
    source, target = tmp_path / "assembled.tif", tmp_path / "eo.tif"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    rename = Path.replace

    def across(self: Path, to: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", across)
    with monkeypatch.context() as patch:
        patch.setattr(cog.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OutputError, match="no space"):
            cog.publish([(source, target)])
    assert target.read_bytes() == b"old"
    cog.publish([(source, target)])
    assert target.read_bytes() == b"new"
    assert not list(tmp_path.glob(".*"))


def test_a_kill_while_publishing_leaves_old_or_new(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from sar2eo.results.cog import publish
        folder = Path(sys.argv[1])
        print("go", flush=True)
        for number in range(10**6):
            source = folder / "source"
            source.write_bytes(bytes([number % 256]) * 200_000)
            publish([(source, folder / "eo.tif")])
    """
    target = tmp_path / "eo.tif"
    target.write_bytes(b"old" * 1000)
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert run.stdout is not None
    run.stdout.readline()
    time.sleep(0.05)
    run.kill()
    run.wait()
    run.stdout.close()
    content = target.read_bytes()
    assert content == b"old" * 1000 or (len(content) == 200_000 and len(set(content)) == 1)


def test_targets_are_checked_before_work(tmp_path: Path) -> None:
    there = tmp_path / "eo.tif"
    there.write_text("")
    (tmp_path / "folder.tif").mkdir()
    check_raster(tmp_path / "new.TIFF", overwrite=False)
    check_raster(there, overwrite=True)
    for path, message in (
        (there, "exists: pass overwrite=True"),
        (tmp_path / "eo.png", r"must end in \.tif or \.tiff"),
        (tmp_path / "absent" / "eo.tif", "no folder .*absent"),
        (there / "eo.tif", "no folder"),
        (tmp_path / "folder.tif", "is a folder"),
        (tmp_path / os.fsdecode(b"caf\xe9") / "eo.tif", "not valid UTF-8"),
    ):
        with pytest.raises(OutputError, match=message):
            check_raster(path, overwrite=False)


@pytest.mark.parametrize("shape", [(2048, 1024), (1200, 512)])
def test_a_raster_or_overview_as_wide_as_its_tiles_is_valid(tmp_path: Path, shape: tuple[int, int]) -> None:
    grid = grid_of(*shape)
    journal = filled(tmp_path / "j", "eo", grid, picture(*shape))
    path = cog.assemble(journal, "eo", grid, partition(grid), tags={}, threads=1)
    for level in range(2):
        with rasterio.open(path, overview_level=level) as raster:
            assert raster.block_shapes[0] == (512, 512)
    journal.remove()


def test_space_is_estimated_and_checked(tmp_path: Path, monkeypatch) -> None:
    grid = grid_of(1000, 1000)
    eo = sum(cog.estimate_bytes(grid, ["eo"], "deflate"))
    assert 4e6 < eo < 8e6
    assert sum(cog.estimate_bytes(grid, ["eo"], "jpeg")) < eo
    assert sum(cog.estimate_bytes(grid, ["eo", "confidence"], "deflate")) == pytest.approx(2 * eo)
    assert cog.estimate_bytes(grid, ["eo"], "deflate") == (4_000_000, eo - 4_000_000)
    cog.check_space([(tmp_path, eo)])
    message = r"MB are free, and this takes about 1000000000 MB: .*--tmp.*force=True"
    with pytest.raises(OutputError, match=message):
        cog.check_space([(tmp_path, 10**15 // 2)] * 2)


def test_the_quicklook_is_a_small_rgba_picture(eo, tmp_path: Path) -> None:
    path, pixels, _ = eo
    png = tmp_path / "eo.png"
    write_quicklook(path, png, longest=150)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        raster = rasterio.open(png)
    with raster:
        assert raster.driver == "PNG"
        assert (raster.count, *raster.shape) == (4, 110, 150)
        drawn = raster.read()
    valid = drawn[3] > 0
    share = (pixels[3] > 0).mean()
    assert abs(valid.mean() - share) < 0.05
    middle = drawn[:3, valid].mean(axis=1)
    np.testing.assert_allclose(middle, pixels[:3, pixels[3] > 0].mean(axis=1), atol=6)
    assert [p.name for p in tmp_path.iterdir()] == ["eo.png"]


def test_valid_pixels_are_read_small(eo) -> None:
    path, pixels, _ = eo
    whole = read_valid_pixels(path, longest=4000)
    np.testing.assert_array_equal(whole, pixels[3] > 0)
    assert read_valid_pixels(path, longest=150).shape == (110, 150)


# Fills a journal with an EO scene repeated to a size, in one process, and assembles it in another.
COST = """
import resource, sys, time, numpy as np, rasterio, rasterio.windows, rio_cogeo
from pathlib import Path
from sar2eo.results import cog
from sar2eo.geo.grid import Grid
from sar2eo.store.journal import Journal
from sar2eo.geo.windows import Window

task, source, folder, size = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
grid = Grid("EPSG:3395", (10, 0, 0, 0, -10, 0), (size, size))
windows = [Window(r, c, 512, 4096) for r in range(0, size, 512) for c in range(0, size, 4096)]
journal = Journal.open(folder, {})
if task == "fill":
    with rasterio.open(source) as scene:
        for window in windows:
            part = rasterio.windows.Window(window.col % 8192, window.row % 8192, 4096, 512)
            bands = np.concatenate([scene.read(window=part), scene.read_masks(1, window=part)[None]])
            journal.writer().write("eo", window, bands)
else:
    started = time.perf_counter()
    cog.assemble(journal, "eo", grid, windows, tags={}, threads=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.perf_counter() - started, peak)
"""


def cost(task: str, source: Path, folder: Path, size: int) -> list[float]:
    command = [sys.executable, "-c", COST, task, str(source), str(folder), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    return [float(value) for value in done.stdout.split()]


@pytest.fixture
def real_eo() -> Path:
    path = SHARED / "scenes/la_west_eo.tif"
    if not path.exists():
        pytest.skip("needs ../shared/data")
    return path


@pytest.mark.slow
@pytest.mark.realdata
def test_assembly_takes_no_longer_than_a_plain_conversion(real_eo: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.tif"
    with rasterio.open(real_eo) as scene, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "photometric": "RGB"}
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 8192, "width": 8192}
        window = rasterio.windows.Window(0, 0, 8192, 8192)
        placed = {"crs": scene.crs, "transform": scene.transform, "interleave": "pixel"}
        with rasterio.open(plain, "w", **profile, **layout, **placed) as raster:
            raster.write(scene.read(window=window))
            raster.write_mask(scene.read_masks(1, window=window))
    cost("fill", real_eo, tmp_path / "p", 8192)
    ours, plainly = [], []
    for _ in range(2):
        started = time.perf_counter()
        options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": 512, "NUM_THREADS": 2}
        rasterio.shutil.copy(plain, tmp_path / "cog.tif", driver="COG", **options)
        plainly.append(time.perf_counter() - started)
        ours.append(cost("assemble", real_eo, tmp_path / "p", 8192)[0])
    assert min(ours) < 1.2 * min(plainly)


@pytest.mark.slow
@pytest.mark.realdata
def test_the_memory_of_assembly_does_not_grow_with_the_scene(real_eo: Path, tmp_path: Path) -> None:
    peaks = []
    for size in (4096, 16384):
        cost("fill", real_eo, tmp_path / "p", size)
        peaks.append(cost("assemble", real_eo, tmp_path / "p", size)[1])
    assert peaks[1] - peaks[0] < 40, "MB"


def test_errors_that_gdal_only_signals_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    grid = grid_of(600, 600)
    journal = filled(tmp_path / "j", "eo", grid, picture(600, 600))
    copy = cog.rasterio.shutil.copy

    def flaky(*arguments: object, **options: object) -> None:
        copy(*arguments, **options)
        other = threading.Thread(target=log.info, args=("GDAL signalled an error: of another thread",))
        other.start()
        other.join()
        log.info("GDAL signalled an error: err_no=%r, msg=%r", 1, "TIFFAppendToStrip:Write error")

    log = cog.logging.getLogger("rasterio._env")
    assert cog.assemble(journal, "eo", grid, partition(grid), tags={}).exists()
    monkeypatch.setattr(cog.rasterio.shutil, "copy", flaky)
    with pytest.raises(OutputError, match=r"Write error.*Finished work is kept"):
        cog.assemble(journal, "eo", grid, partition(grid), tags={})
    assert not caplog.records


def test_a_cog_whose_end_is_missing_is_not_valid(tmp_path: Path) -> None:
    path = tmp_path / "short.tif"
    profile = {"driver": "COG", "dtype": "uint8", "count": 1, "height": 1100, "width": 1100}
    place = {"crs": "EPSG:32611", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)}
    with rasterio.open(path, "w", **profile, **place, compress="deflate") as raster:
        raster.write(np.random.default_rng(1).integers(0, 255, (1, 1100, 1100), np.uint8))
    cog.validate(path)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 3000)
    with pytest.raises(OutputError, match="lacks its end"):
        cog.validate(path)
