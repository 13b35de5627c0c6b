"""The command line from outside: how soon it answers, and what the raster side costs."""

import json
from statistics import median as median_of

import pytest
import rasterio
from material import plain_copy
from measuring import Baseline, Ratio, python, run, sar2eo

GDAL_COG = """
import sys, rasterio.shutil
more = dict(option.split("=") for option in sys.argv[3:])
rasterio.shutil.copy(*sys.argv[1:3], driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=512, NUM_THREADS=2, **more)
"""
SIZE = 8192
SMALLER, LARGER, GROWTH_MB = 4096, 16384, 64


def test_help(compare):
    click = Baseline('python -c "import click"', lambda: run(python("import click")), goal=3)
    compare("sar2eo --help", lambda: run(sar2eo("--help")), [click], rounds=25, warmups=3)


def test_identity_throughput(compare, scene, tmp_path):
    source, out, copy = scene(SIZE), tmp_path / "eo.tif", tmp_path / "copy.tif"
    anew = ["--overwrite", "--restart"]  # a result of the same settings would be kept
    command = sar2eo("translate", source, "--out", out, "--model", "identity", *anew)
    run(command)
    plain = plain_copy(out, tmp_path / "plain.tif")
    usual = python(GDAL_COG, plain, copy)
    averaging = [*usual, "OVERVIEW_RESAMPLING=AVERAGE"]
    spent: dict[str, list[float]] = {}

    def measured(command):
        spent.setdefault(" ".join(command), []).append(run(command).cpu_seconds)

    def cpu_seconds(other):
        ours, theirs = (median_of(spent[" ".join(each)]) for each in (command, other))
        return f"CPU: {ours:.1f} s against {theirs:.1f} s"

    compare(
        f"translate --model identity, {SIZE} squared",
        lambda: measured(command),
        [
            Baseline(
                "GDAL's COG of the same picture",
                lambda: measured(usual),
                goal=1.5,
                note=lambda *_: cpu_seconds(usual),
            ),
            Baseline(
                "the same with averaging overviews, as ours",
                lambda: measured(averaging),
                note=lambda *_: cpu_seconds(averaging),
            ),
        ],
        rounds=5,
        warmups=1,
    )
    with rasterio.open(out) as ours, rasterio.open(copy) as theirs:
        assert [ours.checksum(i) for i in (1, 2, 3)] == [theirs.checksum(i) for i in (1, 2, 3)]
    for large in (out, copy, plain):
        large.unlink()


def test_identity_memory(benchmark, ratios, scene, tmp_path):
    def peak(size):
        out = tmp_path / f"eo-{size}.tif"
        usage = run(sar2eo("translate", scene(size), "--out", out, "--model", "identity"))
        out.unlink()
        return usage.peak_mb

    small, large = [], []
    benchmark.pedantic(
        lambda: large.append(peak(LARGER)), setup=lambda: small.append(peak(SMALLER)), rounds=3
    )
    small, large = median_of(small), median_of(large)
    ratios.append(
        Ratio(
            case=f"peak memory, identity, {LARGER} squared",
            value=large,
            baseline=f"{SMALLER} squared",
            against=small,
            unit="MB",
            goal=(small + GROWTH_MB) / small,
            note=f"grows by {large - small:.0f} MB, goal {GROWTH_MB} MB",
        )
    )


@pytest.fixture
def small_model(tmp_path):
    folder = tmp_path / "small"
    run(sar2eo("model", "init", "--size", "small", "--out", folder, "--pol", "VH"))
    return folder


def test_pipeline_overhead(benchmark, ratios, scene, small_model, tmp_path):
    size, steps, told = 1536, 10, tmp_path / "report.json"
    where = ["--out", tmp_path / "eo.tif", "--report", told]
    command = sar2eo("translate", scene(size), *where, "--model", small_model, "--steps", steps)
    benchmark.pedantic(run, (command,), rounds=1)
    report = json.loads(told.read_text())
    seconds, windows = report["seconds"], report["tiles"]["translated"]
    ratios.append(
        Ratio(
            case=f"translate, small model, {size} squared, but loading and assembly",
            value=seconds["total"] - seconds["assemble"] - seconds["load"],
            baseline="seconds inside the model",
            against=seconds["model"],
            goal=1.05,
            note=f"{windows} windows of {steps} steps in {report['settings']['dtype']}; "
            f"loading took {seconds['load']:.1f} s",
        )
    )
