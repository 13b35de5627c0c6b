"""What is lost around the model: a device that waits, assembly, an archive's joints, workers that wait.

The model is a stand-in that sleeps, so that two cores are enough for any number of devices.
"""

import time

import psutil
import pytest
import rasterio.shutil
from material import plain_copy
from measuring import Ratio
from stand_in import stand_in

import sar2eo
from sar2eo.compute.cluster import connect_cluster
from sar2eo.compute.dask_run import collect_telemetry
from sar2eo.results.outputs import Outputs
from sar2eo.settings import TranslateRecipe, TranslateSettings
from sar2eo.translation import archive
from sar2eo.translation.writer import ResultWriter

WINDOWS_A_SECOND = 20
BUSY = 0.95
WORKERS, FASTER = 8, 7.5
SMALL_WINDOWS_SIZE = 17_920  # 320 x 320 windows
SLOW_SECONDS, SLOW_SIZE = 1.0, 7232  # 16 x 16 windows, 32 for each of eight workers


def written(path, out, spec):
    """Translate a scene into a COG; returns the report."""
    return sar2eo.write_cog(sar2eo.translate(sar2eo.open_scene(path), spec), out, overwrite=True)


def test_busy_device_and_assembly(benchmark, ratios, scene, tmp_path):
    size, spec = 16384, stand_in(1 / WINDOWS_A_SECOND, batch=4)
    source, out, copy = scene(size), tmp_path / "eo.tif", tmp_path / "copy.tif"
    with connect_cluster():
        report = benchmark.pedantic(written, (source, out, spec), rounds=1)
    seconds = report["seconds"]
    share = seconds["model"] / seconds["compute"]
    ratios.append(
        Ratio(
            case=f"stand-in, {WINDOWS_A_SECOND} windows a second, {size} squared: translating",
            value=seconds["compute"],
            baseline="the device busy",
            against=seconds["model"],
            goal=1 / BUSY,
            note=f"busy {share:.1%} of {report['tiles']['translated']} windows, goal {BUSY:.0%}",
        )
    )
    plain = plain_copy(out, tmp_path / "plain.tif")
    options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": 512, "NUM_THREADS": 2, "OVERVIEW_RESAMPLING": "AVERAGE"}
    usual = benchmark._timer()
    rasterio.shutil.copy(plain, copy, driver="COG", **options)
    usual = benchmark._timer() - usual
    ratios.append(
        Ratio(
            case="assembly of its COG from the journal",
            value=seconds["assemble"],
            baseline="GDAL's COG of the same picture, averaging overviews",
            against=usual,
            goal=1.2,
        )
    )
    for large in (out, copy, plain):
        large.unlink()


def test_archive_hides_assembly(benchmark, ratios, scene, tmp_path):
    size, count, spec = 8192, 3, stand_in(1 / WINDOWS_A_SECOND, batch=4)
    scenes = []
    for number in range(count):
        scenes.append(tmp_path / f"scene-{number}.tif")
        scenes[-1].symlink_to(scene(size))
    (tmp_path / "out").mkdir()
    recipe = TranslateRecipe(
        scenes=tuple(map(str, scenes)), out=str(tmp_path / "out"), settings=TranslateSettings()
    )
    with connect_cluster():
        entries = benchmark.pedantic(archive.run, (recipe, spec), rounds=1)
    reports = [entry.report["seconds"] for entry in entries]
    ratios.append(
        Ratio(
            case=f"stand-in, archive of {count} scenes of {size} squared",
            value=benchmark.stats.stats.total,
            baseline="the device busy, and one assembly",
            against=sum(each["model"] for each in reports) + reports[-1]["assemble"],
            goal=1.05,
            note=f"assembly takes {reports[-1]['assemble']:.1f} s a scene",
        )
    )


@pytest.mark.parametrize("workers", [WORKERS])
def test_scaling(benchmark, ratios, scene, tmp_path, workers):
    path, took = scene(SLOW_SIZE), {}
    for count in (1, workers):
        with connect_cluster(workers=count):
            written(path, tmp_path / "warm.tif", stand_in(SLOW_SECONDS / 10, batch=1))  # workers import first
            report = written(path, tmp_path / f"{count}.tif", stand_in(SLOW_SECONDS, batch=1))
            took[count] = report["seconds"]["compute"]
    benchmark.pedantic(dict, (took,), rounds=1)
    ratios.append(
        Ratio(
            case=f"stand-in, {SLOW_SECONDS:g} s a window, {workers} workers",
            value=took[workers],
            baseline="one worker",
            against=took[1],
            goal=1 / FASTER,
            note=f"{took[1] / took[workers]:.2f} times faster, goal {FASTER}",
        )
    )


def test_hundred_thousand_windows(benchmark, ratios, scene, tmp_path):
    """As many windows as a continent has, each so small that next to nothing but Dask is measured."""
    settings = TranslateSettings(tile=64, overlap=8)
    path, spec = scene(SMALL_WINDOWS_SIZE), stand_in(0.0, batch=1)
    with connect_cluster(workers=2):
        written(scene(1024), tmp_path / "warm.tif", spec)
        before = psutil.Process().memory_info().rss

        def compute():
            dataset = sar2eo.translate(sar2eo.open_scene(path), spec, settings=settings, block=(64, 512))
            writer = ResultWriter(dataset, Outputs(eo=tmp_path / "eo.tif"))
            writer.compute()
            return writer

        started = time.process_time()
        writer = benchmark.pedantic(compute, rounds=1)
        spent = time.process_time() - started
        peak = collect_telemetry()["peak_rss_bytes"]
        windows = writer.publish()["tiles"]["total"]
    ratios.append(
        Ratio(
            case=f"{windows} windows of 64 pixels: CPU time of driver and scheduler",
            value=spent,
            baseline="1 ms a window",
            against=windows / 1000,
            goal=1,
        )
    )
    ratios.append(
        Ratio(
            case="the same: their memory at the most",
            value=peak / 1e6,
            baseline="1 GB more than before",
            against=before / 1e6 + 1000,
            unit="MB",
            goal=1,
        )
    )
