import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import rasterio
from scene_fixtures import speckle, write_raster

from sar2eo.errors import SceneError
from sar2eo.scene import open_scene, reader_of
from sar2eo.scene.handles import gdal_path, is_remote
from sar2eo.windows import Window


class RangeServer(ThreadingHTTPServer):
    """Serves the files of one folder, ranges included, and remembers what it sent."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked = []
        self.sent = 0

    def url(self, name):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.server.folder / self.path.partition("?")[0].strip("/")
        self.server.asked.append(self.path)
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        stop = min(int(wanted[2]) + 1 if wanted and wanted[2] else len(data), len(data))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.server.sent += stop - start
            self.wfile.write(data[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = RangeServer(tmp_path)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_small_window_of_a_remote_file_needs_a_small_part_of_it(server, tmp_path):
    values = speckle((1536, 1536))
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    path = write_raster(tmp_path / "vv.tif", values, **tiled)
    size = path.stat().st_size
    scene = open_scene(server.url("vv.tif") + "?token=secret")
    assert "secret" not in scene.attrs["source"]
    part = scene.isel(y=slice(700, 760), x=slice(900, 950))
    reader, window = reader_of(part)
    assert window == Window(700, 900, 60, 50)
    np.testing.assert_array_equal(reader.read(window)[0], values[700:760, 900:950])
    assert size > 4_000_000
    assert server.sent < size / 8
    assert {asked.partition("?")[0] for asked in server.asked} == {"/vv.tif"}  # no listing, no side files


def test_a_changed_remote_file_has_another_name(server, tmp_path):
    write_raster(tmp_path / "vv.tif", speckle((20, 30)))
    first = open_scene(server.url("vv.tif"))
    assert open_scene(server.url("vv.tif?again")).data.name == first.data.name
    write_raster(tmp_path / "vv.tif", speckle((20, 30), seed=2))
    assert open_scene(server.url("vv.tif?later")).data.name != first.data.name


def test_a_missing_remote_file(server):
    with rasterio.Env(GDAL_HTTP_MAX_RETRY=0), pytest.raises(SceneError, match="GDAL cannot open"):
        open_scene(server.url("nothing_vv.tif"))


def test_a_remote_stac_item(server, tmp_path):
    from test_scene_stac import TIFF, write_item

    write_raster(tmp_path / "a.tif", speckle((20, 30)))
    write_item(tmp_path, {"vv": {"href": "a.tif", "type": TIFF, "roles": ["data"]}})
    scene = open_scene(server.url("item.json"))
    np.testing.assert_array_equal(scene.values[0], speckle((20, 30)))


@pytest.mark.parametrize(
    ("source", "path", "remote"),
    [
        ("https://host/a.tif", "/vsicurl/https://host/a.tif", True),
        ("s3://bucket/key.tif", "/vsis3/bucket/key.tif", True),
        ("/vsis3/bucket/key.tif", "/vsis3/bucket/key.tif", True),
        ("file:///data/a.tif", "/data/a.tif", False),
        ("/vsizip/a.zip/b.tif", "/vsizip/a.zip/b.tif", False),
        ("a.tif", "a.tif", False),
    ],
)
def test_urls_are_put_as_gdal_wants_them(source, path, remote):
    assert gdal_path(source) == path
    assert is_remote(path) is remote
