"""A worker that dies is replaced, and what it had not written is done again."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from distributed import get_client
from support.scenes import amplitude, write_scene

import sar2eo
from sar2eo.compute import cluster
from sar2eo.compute.dask_run import WorkerLostError
from sar2eo.errors import ClusterError, Sar2eoWarning
from sar2eo.translation import writer

OPTIONS = {"tile": 128, "overlap": 16, "scaling": (255.0,), "batch": 1, "block": (512, 2048)}
ROWS = 4096
# Every process leaves a byte for each window, so that what a killed one had done is counted, too.
SLOW = """
import os, time
from sar2eo.model import loading as models
quick = models.IdentityTranslator.translate
def slow(self, *arguments):
    time.sleep(0.01)
    with open(f"{folder}/{os.getpid()}", "a") as file:
        file.write("x")
    return quick(self, *arguments)
models.IdentityTranslator.translate = slow
"""


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", amplitude((ROWS, 1100), 5))


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def test_a_killed_worker_costs_what_it_had_not_written(scene_file: Path, tmp_path: Path) -> None:
    counts, out = tmp_path / "counts", tmp_path / "eo.tif"
    counts.mkdir()
    lazy = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", **OPTIONS)
    undisturbed = sar2eo.write_cog(lazy, tmp_path / "whole.tif")["tiles"]["total"]
    with cluster.connect_cluster(workers=2):
        client = get_client()
        pids = client.run(os.getpid)
        client.run(exec, SLOW, {"folder": str(counts)})

        def kill() -> None:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and len(list(tmp_path.glob("eo.tif.partial/b*/eo*.tif"))) < 6:
                time.sleep(0.01)
            os.kill(min(pids.values()), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.warns(Sar2eoWarning, match="was lost: the . blocks"):
            sar2eo.write_cog(lazy, out)
        killer.join()
        client.wait_for_workers(2, timeout=60)
        assert not set(client.run(os.getpid).values()) <= set(pids.values()), "it was replaced"
    assert not psutil.pid_exists(min(pids.values()))
    np.testing.assert_array_equal(pixels(out), pixels(tmp_path / "whole.tif"))
    assert not (tmp_path / "eo.tif.partial").exists()
    # Left to Dask, at least the half of them that the dead worker had done would be done again.
    redone = sum(path.stat().st_size for path in counts.iterdir()) - undisturbed
    assert redone < 130


def test_losses_without_progress_are_an_error(
    scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", **OPTIONS)
    run, calls = writer.ResultWriter._run, []

    def lose(self: writer.ResultWriter, pending: list) -> None:
        calls.append(len(pending))
        if len(calls) == 3:
            run(self, pending[:1])
        raise WorkerLostError("tcp://a")

    monkeypatch.setattr(writer.ResultWriter, "_run", lose)
    with pytest.warns(Sar2eoWarning), pytest.raises(ClusterError, match=r"died 4 times .*tcp://a"):
        sar2eo.write_cog(lazy, tmp_path / "eo.tif")
    assert calls == [8, 8, 8, 7, 7, 7]
