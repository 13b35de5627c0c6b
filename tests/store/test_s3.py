"""Scenes over HTTP: what is transferred, and what becomes of it when the server does not do as it should."""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.command_line import run
from support.scene_fixtures import speckle, write_raster
from support.servers import PROXIES, Fault, RangeServer, Request, closed_port, serving
from support.stac_items import TIFF, write_item

from sar2eo.errors import SceneError
from sar2eo.geo.windows import Window
from sar2eo.scenes import find_reader, gdal, open_scene
from sar2eo.scenes.identity import identify_file
from sar2eo.store import http

SMALL = ("--model", "identity", "--tile", "256", "--overlap", "32", "--scaling-from", "500", "--pol", "VH")
TILED = {"tiled": True, "blockxsize": 256, "blockysize": 256}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies, and short waits between retries."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "DELAY_SECONDS", 0.02)
    monkeypatch.setitem(gdal.REMOTE_OPTIONS, "GDAL_HTTP_RETRY_DELAY", 0.02)


@pytest.fixture
def server(tmp_path: Path):
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as server:
        yield server


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def pixels(request: Request) -> bool:
    """Whether a request is for pixels, which lie behind the header."""
    return request.method == "GET" and request.start > 0


def beginning(request: Request) -> bool:
    return request.method == "GET" and request.start == 0 and request.bytes > 1


def whole(scene) -> np.ndarray:
    return find_reader(scene)[0].read(Window(0, 0, *scene.shape[1:]))[0]


def test_a_window_takes_a_small_part_and_few_requests(server: RangeServer, tmp_path: Path) -> None:
    values = speckle((3072, 3072))
    size = write_raster(server.folder / "big_vh.tif", values, **TILED, compress="deflate").stat().st_size
    window = ("--window", "1000,1200,256,300")
    done = run(
        "translate", server.url("big_vh.tif?key=secret"), "--out", tmp_path / "eo.tif", *SMALL, *window
    )
    assert done.exit_code == 0, done.output
    assert size > 10_000_000
    assert server.sent < size / 7, "a dozen of 144 blocks, and eight to find out where there is fill"
    assert len(server.requests) <= 20
    assert Counter(request.method for request in server.requests)["HEAD"] <= 1
    assert {asked.partition("?")[0] for asked in server.asked} == {"/big_vh.tif"}, "no listing, no side files"
    assert b"secret" not in (tmp_path / "eo.tif").read_bytes()


@pytest.mark.parametrize("layout", [TILED, {"blockysize": 4}], ids=["tiles", "strips"])
def test_the_whole_scene_takes_not_much_more_than_its_size(
    server: RangeServer, tmp_path: Path, layout: dict
) -> None:
    values = speckle((2000, 1800))
    size = write_raster(server.folder / "whole_vh.tif", values, **layout).stat().st_size
    local = server.folder / "whole_vh.tif"
    done = run("translate", server.url("whole_vh.tif"), "--out", tmp_path / "eo.tif", *SMALL)
    assert done.exit_code == 0, done.output
    assert server.sent < 1.05 * size + 2**21, "GDAL reads up to 2 MiB ahead"
    assert len(server.requests) < 80, "of 64 blocks, or 500 strips"
    assert Counter(request.method for request in server.requests)["HEAD"] <= 1
    assert run("translate", local, "--out", tmp_path / "local.tif", *SMALL).exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "eo.tif"), read(tmp_path / "local.tif"))


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 3},
        {"status": 429, "times": 2, "headers": {"Retry-After": "3600"}},
        {"drop": True, "times": 2},
        {"truncate": 0.5, "times": 2},
        {"truncate": 0.0, "times": 1},
    ],
    ids=["503", "429", "drop", "half", "nothing"],
)
@pytest.mark.parametrize("where", [beginning, pixels])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_what_passes_is_waited_for(server: RangeServer, fault: dict, where, compress: str) -> None:
    values = speckle((700, 800))
    write_raster(server.folder / "a_vv.tif", values, **TILED, compress=compress)
    server.faults.append(Fault(where, **fault))
    started = time.monotonic()
    scene = open_scene(server.url("a_vv.tif"))
    np.testing.assert_array_equal(whole(scene), values)
    assert server.faults[0].times == 0, "it did happen"
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}], ids=["503", "drop"])
def test_the_first_request_is_repeated_too(server: RangeServer, fault: dict) -> None:
    write_raster(server.folder / "a_vv.tif", speckle((20, 30)))
    server.faults.append(Fault(times=2, **fault))
    assert identify_file(gdal.gdal_path(server.url("a_vv.tif")))["etag"]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_truncated_transfer_is_an_error_and_never_a_picture_with_holes(
    server: RangeServer, tmp_path: Path, share: float, compress: str
) -> None:
    write_raster(server.folder / "a_vh.tif", speckle((700, 800)), **TILED, compress=compress)
    server.faults.append(Fault(pixels, times=10_000, truncate=share))
    done = run("translate", server.url("a_vh.tif?key=secret"), "--out", tmp_path / "eo.tif", *SMALL)
    assert done.exit_code == 1
    assert server.url("a_vh.tif") in done.stderr
    assert "cannot be read" in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1:]) == 1
    assert not (tmp_path / "eo.tif").exists()
    # When the server has recovered, the same command is enough.
    server.faults.clear()
    assert run("translate", server.url("a_vh.tif?key=2"), "--out", tmp_path / "eo.tif", *SMALL).exit_code == 0
    local = server.folder / "a_vh.tif"
    assert run("translate", local, "--out", tmp_path / "local.tif", *SMALL).exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "eo.tif"), read(tmp_path / "local.tif"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nothing_vh.tif?key=secret", "no such file"),
        ("refused_vh.tif?key=secret", "refused"),
        ("http://127.0.0.1:{closed}/a_vh.tif?key=secret", "cannot be reached"),
        ("https://no-such-host.invalid/a_vh.tif?key=secret", "cannot be reached"),
        ("item.json", "no such file"),
        ("no-item.json?key=secret", "not a STAC item"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line_and_soon(
    server: RangeServer, tmp_path: Path, url: str, words: str
) -> None:
    server.faults.append(Fault(lambda request: "refused" in request.path, times=99, status=403))
    (server.folder / "no-item.json").write_text("{}")
    url = url.format(closed=closed_port())
    url = url if "://" in url else server.url(url)
    started = time.monotonic()
    done = run("translate", url, "--out", tmp_path / "eo.tif", *SMALL)
    assert time.monotonic() - started < 60
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert url.partition("?")[0] in line
    assert words in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(lambda request: True, id="all"),
        pytest.param(beginning, id="header", marks=pytest.mark.slow),
        pytest.param(pixels, id="pixels", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_does_not_answer_is_given_up(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, where
) -> None:
    monkeypatch.setattr(http, "READ_SECONDS", 1)
    monkeypatch.setitem(gdal.REMOTE_OPTIONS, "GDAL_HTTP_LOW_SPEED_TIME", 1)
    write_raster(server.folder / "a_vv.tif", speckle((300, 400)), **TILED)
    server.faults.append(Fault(where, times=99, stall=10))
    started = time.monotonic()
    with pytest.raises(SceneError, match=r"a_vv\.tif: "):
        whole(open_scene(server.url("a_vv.tif")))
    assert time.monotonic() - started < 60


def test_the_query_of_a_signed_url_stays_secret(server: RangeServer, tmp_path: Path) -> None:
    write_raster(server.folder / "a_vh.tif", speckle((300, 400)), **TILED)
    out, report = tmp_path / "results", tmp_path / "report.json"
    out.mkdir()
    signed = [server.url(f"{name}_vh.tif?expires=3600&key=secret,more") for name in "ab"]
    done = run("translate", *signed, "--out", out, *SMALL, "--report", report)
    assert done.exit_code == 1
    assert (out / "a_vh_eo.tif").is_file()
    assert f"Error: {server.url('b_vh.tif')}: " in done.stderr
    for text in (done.output, report.read_text(), (out / "a_vh_eo.tif").read_bytes().decode("latin-1")):
        assert "secret" not in text


def test_a_server_without_ranges_is_told_as_that(server: RangeServer) -> None:
    server.ranged = False
    write_raster(server.folder / "a_vv.tif", speckle((300, 400)), **TILED)
    with pytest.raises(SceneError, match=r"a_vv\.tif: .*Range downloading not supported"):
        open_scene(server.url("a_vv.tif"))


@pytest.mark.parametrize(("tagged", "dated", "key"), [(True, True, "etag"), (False, True, "modified")])
def test_a_file_is_known_by_what_the_server_says_of_it(
    server: RangeServer, tagged: bool, dated: bool, key: str
) -> None:
    server.tagged, server.dated = tagged, dated
    (server.folder / "a.tif").write_bytes(b"a" * 300_000)
    found = identify_file(gdal.gdal_path(server.url("a.tif?key=secret")))
    assert found == {"href": server.url("a.tif"), "bytes": 300_000, key: found[key]}
    assert len(server.requests) == 1
    assert server.sent <= 1


def test_a_file_of_which_the_server_says_nothing_is_known_by_its_beginning(server: RangeServer) -> None:
    server.tagged = False
    (server.folder / "a.tif").write_bytes(b"a" * 300_000)
    path = gdal.gdal_path(server.url("a.tif"))
    first = identify_file(path)
    assert len(server.requests) == 2
    assert server.sent <= 2**17
    (server.folder / "a.tif").write_bytes(b"b" * 300_000)
    assert first != identify_file(path)
    (server.folder / "a.tif").write_bytes(b"")
    assert identify_file(path)["bytes"] == 0


def test_a_file_that_changed_between_two_runs_is_noticed(server: RangeServer, tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    asked = ("translate", server.url("a_vh.tif"), "--out", out, *SMALL)
    write_raster(server.folder / "a_vh.tif", speckle((300, 400)), **TILED)
    assert run(*asked).exit_code == 0
    assert "skipped        1" in run(*asked).stdout
    write_raster(server.folder / "a_vh.tif", speckle((300, 400), seed=2), **TILED)
    done = run(*asked)
    assert done.exit_code == 1
    assert "etag" in done.stderr
    assert run(*asked, "--overwrite").exit_code == 0
    assert (
        run("translate", server.folder / "a_vh.tif", "--out", tmp_path / "local.tif", *SMALL).exit_code == 0
    )
    np.testing.assert_array_equal(read(out / "a_vh_eo.tif"), read(tmp_path / "local.tif"))


def test_an_item_and_its_assets(server: RangeServer) -> None:
    values = speckle((300, 400))
    write_raster(server.folder / "a.tif", values, **TILED)
    write_item(server.folder, {"vv": {"href": "a.tif", "type": TIFF, "roles": ["data"]}})
    server.faults.append(Fault(lambda request: request.path.endswith(".json"), truncate=0.5))
    server.faults.append(Fault(lambda request: request.path.endswith(".json"), status=503))
    np.testing.assert_array_equal(open_scene(server.url("item.json")).values[0], values)


def test_an_item_that_is_cut_short_for_good(server: RangeServer) -> None:
    write_item(server.folder, {"vv": {"href": "a.tif", "type": TIFF, "roles": ["data"]}})
    server.faults.append(Fault(times=99, truncate=0.5))
    with pytest.raises(SceneError, match=r"item\.json: cannot be read"):
        open_scene(server.url("item.json"))
    assert json.loads((server.folder / "item.json").read_text())
