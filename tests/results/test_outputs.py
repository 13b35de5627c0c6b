"""Result files: what is written, what is never replaced, and uploads to an S3-compatible store."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
from rasterio.io import MemoryFile
from support.command_line import run
from support.scene_fixtures import speckle, write_raster
from support.scenes import CRS, TRANSFORM, amplitude, write_scene
from support.servers import Fault, closed_port, serving, storing
from support.stac_items import TIFF, write_item

import sar2eo
from sar2eo.errors import OutputError, SceneError, SettingsError
from sar2eo.results import outputs
from sar2eo.results.outputs import Destination, Outputs
from sar2eo.scenes import open_scene
from sar2eo.store import s3
from sar2eo.translation import writer as storing_blocks

SMALL = ("--model", "identity", "--tile", "128", "--overlap", "16", "--scaling-from", "500", "--pol", "VH")
DATED = (*SMALL, "--datetime", "2026-05-06T07:08:09Z")
TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:

        def environment(name: str, value: str | None) -> None:
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)

        with storing(environment, "scenes", "results") as client:
            yield client


@pytest.fixture
def work(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, beside three scenes, which also are in the store."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for number, name in enumerate("abc"):
        path = write_raster(scenes / f"{name}.tif", speckle((300, 200 + number), seed=number), **TILED)
        client.upload_file(str(path), "scenes", f"{tmp_path.name}/{name}.tif")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path


@pytest.fixture
def prefix(work: Path) -> str:
    """Where the results of a test go."""
    return f"s3://results/{work.name}/"


def pixels(client: Any, url: str) -> np.ndarray:
    bucket, key = s3.split_url(url)
    with MemoryFile(client.get_object(Bucket=bucket, Key=key)["Body"].read()) as file, file.open() as raster:
        return raster.read()


def local(work: Path, name: str) -> np.ndarray:
    """What the same translation makes of local files."""
    out = work / f"local_{name}.tif"
    assert run("translate", work / "scenes" / f"{name}.tif", "--out", out, *DATED).exit_code == 0
    with rasterio.open(out) as raster:
        return raster.read()


def left() -> list[Path]:
    return sorted(Path().rglob("*"))


def test_one_scene_to_one_object(client: Any, work: Path, prefix: str) -> None:
    scene = f"s3://scenes/{work.name}/a.tif"
    asked = ("translate", scene, "--out", f"{prefix}eo.tif", "--quicklook", f"{prefix}eo.png", *DATED)
    done = run(*asked)
    assert done.exit_code == 0, done.output
    assert f"{prefix}eo.tif: " in done.stdout
    assert set(s3.list_objects(prefix)) == {"eo.tif", "eo.json", "eo.png"}
    assert left() == []
    np.testing.assert_array_equal(pixels(client, f"{prefix}eo.tif"), local(work, "a"))
    head = client.head_object(Bucket="results", Key=f"{work.name}/eo.tif")
    assert head["ContentType"] == "image/tiff; application=geotiff; profile=cloud-optimized"
    item = pystac.Item.from_dict(json.loads(s3.fetch(f"{prefix}eo.json")))
    assert {asset.href for asset in item.assets.values()} == {"./eo.tif", "./eo.png"}
    assert "done before" in run(*asked).stdout
    assert "status" in run(*asked, "--dry-run").stdout
    refused = run(*asked, "--tile", "256")
    assert refused.exit_code == 1
    assert f"{prefix}eo.tif exists, and differs in settings.tile 128 -> 256" in refused.stderr
    assert "2 tiles translated" in run(*asked, "--tile", "256", "--overwrite").stdout
    assert "2 tiles translated" in run(*asked, "--tile", "256", "--overwrite", "--restart").stdout
    assert left() == []


def test_an_archive(client: Any, work: Path, prefix: str) -> None:
    stored = [f"s3://scenes/{work.name}/{name}.tif" for name in ("a", "b", "nothing")]
    report = work / "report.json"
    done = run("translate", *stored, "--out", prefix, *DATED, "--report", report)
    assert done.exit_code == 1
    assert f"s3://scenes/{work.name}/nothing.tif: no such object" in done.stderr
    told = json.loads(report.read_text())
    assert told["counts"] == {"done": 2, "skipped": 0, "failed": 1, "pending": 0}
    assert told["scenes"][0]["output"] == f"{prefix}a_eo.tif"
    assert told["scenes"][0]["report"]["seconds"]["upload"] > 0
    both = {"a_eo.tif", "a_eo.json", "b_eo.tif", "b_eo.json", "collection.json"}
    assert set(s3.list_objects(prefix)) == both
    before = s3.list_objects(prefix)
    # A folder of local files may join them, and the collection knows all.
    again = run("translate", work / "scenes", "--out", prefix, *DATED, "--overwrite", "--dry-run")
    assert again.exit_code == 0, again.output
    assert s3.list_objects(prefix) == before, "a dry run changes nothing"
    assert left() == []
    more = run("translate", *stored[:2], f"s3://scenes/{work.name}/c.tif", "--out", prefix, *DATED)
    assert more.exit_code == 0, more.output
    assert "skipped        2" in more.stdout
    after = s3.list_objects(prefix)
    assert {name: after[name].etag for name in both - {"collection.json"}} == {
        name: before[name].etag for name in both - {"collection.json"}
    }
    collection = json.loads(s3.fetch(f"{prefix}collection.json"))
    assert collection["id"] == work.name
    hrefs = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    assert hrefs == ["./a_eo.json", "./b_eo.json", "./c_eo.json"]
    for name in "abc":
        np.testing.assert_array_equal(pixels(client, f"{prefix}{name}_eo.tif"), local(work, name))
    assert left() == []


@pytest.mark.parametrize("broken", ["a_eo.tif", "a_eo.json", "collection.json"])
def test_after_a_failing_upload_the_same_command_only_uploads(
    client: Any, work: Path, prefix: str, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    asked = ("translate", f"s3://scenes/{work.name}/a.tif", "--out", prefix, *DATED)
    upload, uploaded = Destination.upload, []

    def fail(self: Destination, path: Path, name: str) -> None:
        uploaded.append(name)
        with monkeypatch.context() as lost:
            if name == broken:
                lost.setattr(s3, "RETRIES", 0)
                lost.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
            upload(self, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "upload", fail)
        done = run(*asked)
    assert done.exit_code == 1
    assert f"{prefix}{broken}: the store cannot be reached" in done.stderr
    everything = ["a_eo.tif", "a_eo.json", "collection.json"]
    assert uploaded[: everything.index(broken) + 1] == everything[: everything.index(broken) + 1]
    (folder,) = Path().iterdir()
    assert folder.name.startswith(f"{work.name}-")
    if broken != "collection.json":
        assert "the same command uploads them" in done.stderr

    def never(*_: object, **__: object) -> None:
        raise AssertionError("all was computed and assembled before")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "assemble", never)
        patch.setattr(storing_blocks, "_store_block", never)
        done = run(*asked)
    assert done.exit_code == 0, done.output
    assert set(s3.list_objects(prefix)) == {"a_eo.tif", "a_eo.json", "collection.json"}
    np.testing.assert_array_equal(pixels(client, f"{prefix}a_eo.tif"), local(work, "a"))
    assert left() == []


def test_what_waits_is_made_anew_for_other_settings(
    work: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("translate", work / "scenes" / "a.tif", "--out", f"{prefix}eo.tif", *DATED)

    def fail(path: Path, url: str) -> None:
        raise ConnectionError(f"{url}: lost")

    with monkeypatch.context() as patch:
        patch.setattr(s3, "upload", fail)
        assert run(*asked).exit_code == 1
    refused = run(*asked, "--tile", "256")
    assert refused.exit_code == 1
    assert "unfinished work of another run" in refused.stderr
    assert "0 tiles translated" in run(*asked, "--compress", "zstd").stdout
    with MemoryFile(s3.fetch(f"{prefix}eo.tif")) as file, file.open() as raster:
        assert raster.compression.name == "zstd"
    assert left() == []


def test_a_replaced_result_takes_its_item_along(work: Path, prefix: str) -> None:
    scene = work / "scenes" / "a.tif"
    assert run("translate", scene, "--out", f"{prefix}eo.tif", *DATED).exit_code == 0
    assert run("translate", scene, "--out", f"{prefix}eo.tif", *SMALL, "--overwrite").exit_code == 0
    assert set(s3.list_objects(prefix)) == {"eo.tif"}, "an undated result has no item"


def test_unfinished_work_may_lie_elsewhere(work: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    upload = Destination.upload

    def look(self: Destination, path: Path, name: str) -> None:
        seen.append(path)
        upload(self, path, name)

    monkeypatch.setattr(Destination, "upload", look)
    space = work / "space"
    space.mkdir()
    scene = work / "scenes" / "a.tif"
    assert run("translate", scene, "--out", f"{prefix}eo.tif", *DATED, "--tmp", space).exit_code == 0
    assert len(seen) == 2
    assert all(path.is_relative_to(space) for path in seen)
    assert list(space.iterdir()) == left() == []


def test_the_library_writes_there_too(client: Any, work: Path, prefix: str) -> None:
    scene = open_scene(f"s3://scenes/{work.name}/a.tif", polarisations="VH", datetime="2026-05-06T07:08:09Z")
    lazy = sar2eo.translate(scene, model="identity", tile=128, overlap=16, scaling=(500.0,))
    report = sar2eo.write_cog(lazy, f"{prefix}eo.tif", quicklook=f"{prefix}eo.png")
    assert report["tiles"]["translated"] == 6
    assert set(s3.list_objects(prefix)) == {"eo.tif", "eo.json", "eo.png"}
    np.testing.assert_array_equal(pixels(client, f"{prefix}eo.tif"), local(work, "a"))
    with pytest.raises(OutputError, match=r"eo\.json exists|eo\.tif exists"):
        sar2eo.write_cog(lazy, f"{prefix}eo.tif")
    with pytest.raises(OutputError, match="is a file of the scene itself"):
        sar2eo.write_cog(lazy, f"s3://scenes/{work.name}/a.tif", overwrite=True)
    assert left() == []


def test_an_item_in_the_store(client: Any, work: Path) -> None:
    item = write_item(work, {"vv": {"href": "a.tif", "type": TIFF, "roles": ["data"]}})
    client.upload_file(str(item), "scenes", f"{work.name}/item.json")
    scene = open_scene(f"s3://scenes/{work.name}/item.json")
    np.testing.assert_array_equal(scene.values[0], speckle((300, 200), seed=0))


def test_a_scene_that_changed_is_noticed(client: Any, work: Path, prefix: str) -> None:
    asked = ("translate", f"s3://scenes/{work.name}/a.tif", "--out", f"{prefix}eo.tif", *DATED)
    assert run(*asked).exit_code == 0
    client.upload_file(str(work / "scenes" / "b.tif"), "scenes", f"{work.name}/a.tif")
    assert "etag" in run(*asked).stderr
    assert run(*asked, "--overwrite").exit_code == 0
    np.testing.assert_array_equal(pixels(client, f"{prefix}eo.tif"), local(work, "b"))


@pytest.mark.slow
def test_workers_read_there_too(client: Any, work: Path, prefix: str) -> None:
    scenes = [f"s3://scenes/{work.name}/{name}.tif" for name in "abc"]
    done = run("translate", *scenes, "--out", prefix, *DATED, "--workers", "2")
    assert done.exit_code == 0, done.output
    for name in "abc":
        np.testing.assert_array_equal(pixels(client, f"{prefix}{name}_eo.tif"), local(work, name))
    assert left() == []


@pytest.mark.parametrize(
    ("out", "further", "words"),
    [
        ("s3://", {}, "must be s3://bucket/key.tif"),
        ("s3:///eo.tif", {}, "must be s3://bucket/key.tif"),
        ("s3://b//eo.tif", {}, "must be s3://bucket/key.tif"),
        ("s3://b/../eo.tif", {}, "must be s3://bucket/key.tif"),
        ("s3://b/eo.tif", {"quicklook": "eo.png"}, "together, or not at all"),
        ("eo.tif", {"quicklook": "s3://b/eo.png"}, "together, or not at all"),
        ("s3://b/eo.tif", {"quicklook": "s3://b/other/eo.png"}, "must be beside the EO image"),
    ],
)
def test_names_that_cannot_be_written_to(out: str, further: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Outputs.from_paths(out, further)


def test_one_folder_for_one_output(tmp_path: Path) -> None:
    names = ("s3://b/x/eo.tif", "s3://b/y/eo.tif", "s3://b/x/", "s3://b/x/other.tif", "s3://b")
    folders = [Destination.from_url(name, tmp_path).folder for name in names]
    assert len(set(folders)) == len(names)
    assert folders == [Destination.from_url(name, tmp_path).folder for name in names]
    assert Destination.from_url("s3://b/x", tmp_path) == Destination.from_url("s3://b/x/", tmp_path)
    assert {folder.parent for folder in folders} == {tmp_path}


def test_what_cannot_be_written_is_told_before_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = work / "scenes" / "a.tif"

    def told(out: str, *words: str) -> None:
        done = run("translate", scene, "--out", out, *DATED)
        assert done.exit_code == 1
        (line,) = done.stderr.strip().splitlines()
        assert all(word in line for word in (out, *words)), line
        assert left() == []

    told("s3://no-such-bucket/eo/", "there is no bucket no-such-bucket")
    taken = run(
        "translate", f"s3://scenes/{work.name}/a.tif", "--out", f"s3://scenes/{work.name}/a.tif", *DATED
    )
    assert "is the scene itself" in taken.stderr
    monkeypatch.setattr(s3, "RETRIES", 0)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
        told("s3://results/", "cannot be reached", "AWS_ENDPOINT_URL")
    with monkeypatch.context() as patch, serving(work) as server:
        server.faults.append(Fault(times=99, status=403))
        patch.setenv("AWS_ENDPOINT_URL_S3", server.url("").rstrip("/"))
        told("s3://results/", "refused (403", "credentials")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(work / "none"))
        patch.setenv("AWS_CONFIG_FILE", str(work / "none"))
        told("s3://results/", "there are no credentials", "AWS_ACCESS_KEY_ID")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        patch.setenv("AWS_ANOTHER", "so that a client is made anew")
        done = run("translate", scene, "--out", "s3://results/", *DATED)
        assert done.stderr == "Error: s3:// needs boto3, the extra s3: pip install boto3\n"
        with pytest.raises(SceneError, match="pip install"):
            open_scene("s3://scenes/a.tif")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"ContentLength": 4}, "4 of 9 bytes arrived"),
        ({"ContentLength": 9, "ChecksumCRC32": "AAAAAA=="}, "has the checksum AAAAAA=="),
        ({"ContentLength": 9, "ChecksumCRC32": "y/Q5Jg==", "ChecksumType": "FULL_OBJECT"}, None),
        ({"ContentLength": 9, "ChecksumCRC32": "AAAAAA==-3"}, None),
    ],
)
def test_what_arrived_is_compared_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: dict, words: str | None
) -> None:
    class Store:
        def upload_file(self, *_: object, ExtraArgs: dict) -> None:  # noqa: N803  (boto3's own name)
            assert ExtraArgs["ChecksumCRC32"] == "y/Q5Jg==", "CBF43926, the check value of CRC-32"

        def head_object(self, **_: object) -> dict:
            return head

    monkeypatch.setattr(s3, "_client", Store)
    path = tmp_path / "a.tif"
    path.write_bytes(b"123456789")
    if words is None:
        s3.upload(path, "s3://bucket/a.tif")
        return
    with pytest.raises(OSError, match=words):
        s3.upload(path, "s3://bucket/a.tif")


def test_a_file_of_several_parts_arrives_whole(client: Any, work: Path) -> None:
    path = work / "large.bin"
    path.write_bytes(np.random.default_rng(1).bytes(9 * 2**20))  # parts are of 8 MiB
    s3.upload(path, f"s3://results/{work.name}/large.bin")
    assert s3.fetch(f"s3://results/{work.name}/large.bin") == path.read_bytes()
    assert s3.list_objects(f"s3://results/{work.name}/")["large.bin"].etag.endswith('-2"')


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"AWS_VIRTUAL_HOSTING": "TRUE", "AWS_REGION": "us-east-1"}),
        (
            {"AWS_ENDPOINT_URL": "https://minio:9000", "AWS_REGION": "eu-1"},
            {
                "AWS_S3_ENDPOINT": "minio:9000",
                "AWS_HTTPS": "YES",
                "AWS_VIRTUAL_HOSTING": "FALSE",
                "AWS_REGION": "eu-1",
            },
        ),
        (
            {"AWS_S3_ENDPOINT": "minio:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "YES"},
            {"AWS_S3_ENDPOINT": "minio:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "TRUE"},
        ),
        (
            {
                "AWS_ENDPOINT_URL_S3": "http://one",
                "AWS_ENDPOINT_URL": "http://two",
                "AWS_S3_ENDPOINT": "three",
            },
            {"AWS_S3_ENDPOINT": "one", "AWS_HTTPS": "NO"},
        ),
        ({"AWS_NO_SIGN_REQUEST": "YES"}, {"AWS_NO_SIGN_REQUEST": "YES"}),
    ],
)
def test_gdal_and_the_upload_reach_the_same_store(
    client: Any, monkeypatch: pytest.MonkeyPatch, environment: dict, expected: dict
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_REGION")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    session, options = s3.gdal_environment()
    found = {**session.get_credential_options(), **options}
    assert {name: found[name] for name in expected} == expected
    assert ("AWS_ACCESS_KEY_ID" in found) is ("AWS_NO_SIGN_REQUEST" not in environment)
    told = s3._client().meta.endpoint_url
    assert ("AWS_S3_ENDPOINT" in found) is ("amazonaws" not in told)
    assert found.get("AWS_S3_ENDPOINT", "") in told


def test_a_window_of_an_object_takes_few_requests(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    (work / "bucket").mkdir()
    values = speckle((1024, 1024))
    size = write_raster(work / "bucket" / "big_vh.tif", values, **TILED).stat().st_size
    with serving(work) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url("").rstrip("/"))
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
        scene = open_scene("s3://bucket/big_vh.tif", quantity="amplitude")
        part = scene.isel(y=slice(300, 400), x=slice(500, 600)).values[0]
        np.testing.assert_array_equal(part, values[300:400, 500:600])
        assert len(server.requests) <= 12
        assert server.sent < size / 3, "blocks of the window, and eight to find out where there is fill"
        assert {asked.partition("?")[0] for asked in server.asked} == {"/bucket/big_vh.tif"}, "no listing"
        server.faults.append(Fault(lambda request: request.start > 0, times=99, truncate=0.5))
        with pytest.raises(SceneError, match=r"s3://bucket/big_vh\.tif: cannot be read"):
            _ = scene.values
        assert outputs.COLLECTION not in server.asked


@pytest.mark.parametrize("shape", [(600, 1), (1, 600), (1, 1), (2100, 2)])
def test_scenes_of_one_row_or_column_are_written(shape: tuple[int, int], tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene.tif", amplitude(shape, 3))
    eo = sar2eo.translate(sar2eo.open_scene(source), "identity", scaling=(255.0,))
    sar2eo.write_cog(eo, tmp_path / "eo.tif")
    with rasterio.open(tmp_path / "eo.tif") as raster, rasterio.open(source) as scene:
        assert (raster.shape, raster.transform, raster.crs) == (
            shape,
            TRANSFORM,
            rasterio.CRS.from_string(CRS),
        )
        np.testing.assert_array_equal(raster.read(1), scene.read(1))


@pytest.mark.parametrize("name", ["plain", "url", "link", "warped", "vrt"])
def test_a_file_of_the_scene_is_never_replaced(name: str, tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene_vv.tif", amplitude((60, 70), 3))
    (tmp_path / "link_vv.tif").symlink_to(source)
    rasterio.shutil.copy(source, tmp_path / "scene_vv.vrt", driver="VRT")
    named = {"url": f"file://{source}", "link": tmp_path / "link_vv.tif", "vrt": tmp_path / "scene_vv.vrt"}
    crs = "EPSG:3857" if name == "warped" else None
    scene = sar2eo.open_scene(named.get(name, source), crs=crs)
    before = source.read_bytes()
    with pytest.raises(OutputError, match="the scene itself"):
        sar2eo.write_cog(sar2eo.translate(scene, "identity"), source, overwrite=True)
    assert source.read_bytes() == before


def test_a_quicklook_is_a_png_and_says_so(tmp_path: Path) -> None:
    asked = Outputs(eo=tmp_path / "eo.tif", quicklook=tmp_path / "eo.jpg")
    with pytest.raises(SettingsError, match=r"eo\.jpg: must end with \.png"):
        asked.check(overwrite=False)
