from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pystac
import pytest
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from pystac.validation import JsonSchemaSTACValidator
from shapely.geometry import Polygon, box, shape

from sar2eo.errors import GeoreferenceError, OutputError, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.results.stac_output import make_stac_item, write_stac_collection, write_stac_item

GRID = Grid("EPSG:32611", (10.0, 0.0, 380_000.0, 0.0, -10.0, 3_770_000.0), (300, 400))
TAGS = {"model": "identity", "seed": "2025", "synthetic": "yes", "TIFFTAG_SOFTWARE": "sar2eo"}


@pytest.fixture
def rasters(tmp_path: Path) -> dict[str, Path]:
    paths = {"eo": tmp_path / "scene_eo.tif", "confidence": tmp_path / "more" / "confidence.tif"}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    return paths


def item_of(rasters: dict[str, Path], grid: Grid = GRID, when: datetime | str = "2020-11-07T01:50:18Z"):
    return make_stac_item(
        rasters, grid, box(*grid.bounds), when, tags=TAGS, quicklook=rasters["eo"].with_suffix(".png")
    )


def check_core_schema(content: dict) -> None:
    """Against the core schema that pystac carries; nothing is fetched."""
    pytest.importorskip("jsonschema")
    validator = JsonSchemaSTACValidator()
    with pytest.raises(pystac.STACValidationError):
        validator.validate_core(content | {"assets": 1}, pystac.STACObjectType.ITEM, content["stac_version"])
    validator.validate_core(content, pystac.STACObjectType.ITEM, content["stac_version"])


def test_the_item_is_valid_and_says_what_it_is(rasters, tmp_path: Path) -> None:
    path = tmp_path / "scene_eo.json"
    write_stac_item(item_of(rasters), path)
    content = json.loads(path.read_text())
    check_core_schema(content)
    assert content["id"] == "scene_eo"
    assert content["properties"]["datetime"] == "2020-11-07T01:50:18Z"
    assert content["properties"]["sar2eo:synthetic"] is True
    assert content["properties"]["sar2eo:seed"] == "2025"
    assert not [name for name in content["properties"] if "TIFFTAG" in name]
    assert content["properties"]["processing:level"] == "L4"
    assert list(content["properties"]["processing:software"]) == ["sar2eo"]
    assert {uri.split("/")[3] for uri in content["stac_extensions"]} == {"projection", "raster", "processing"}
    assert content["properties"]["gsd"] == pytest.approx(10, abs=0.02)
    hrefs = {name: asset["href"] for name, asset in content["assets"].items()}
    assert hrefs == {
        "eo": "./scene_eo.tif",
        "confidence": "./more/confidence.tif",
        "quicklook": "./scene_eo.png",
    }
    assert content["assets"]["eo"]["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"
    assert [band["name"] for band in content["assets"]["eo"]["bands"]] == ["red", "green", "blue"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["more", "scene_eo.json", "scene_eo.tif"]


def test_pystac_reads_the_extensions_back(rasters, tmp_path: Path) -> None:
    path = tmp_path / "scene_eo.json"
    write_stac_item(item_of(rasters), path)
    item = pystac.Item.from_file(path)
    projection = ProjectionExtension.ext(item)
    assert (projection.code, projection.shape) == ("EPSG:32611", [300, 400])
    assert projection.transform == list(GRID.transform)
    eo = RasterExtension.ext(item.assets["eo"]).bands
    assert [(band.data_type, band.nodata) for band in eo] == [("uint8", None)] * 3
    confidence = RasterExtension.ext(item.assets["confidence"]).bands
    assert [(band.data_type, band.nodata) for band in confidence] == [("float32", "nan")]
    assert item.assets["eo"].get_absolute_href() == str(rasters["eo"])


@pytest.mark.parametrize("away", [False, True])
def test_sources_are_named_by_relative_or_public_hrefs(rasters, tmp_path: Path, away: bool) -> None:
    for name in ("a b.tif", "items.json"):
        (tmp_path / name).touch()
    hrefs = {
        "VV": (f"{tmp_path}/a b.tif", "a b.tif" if away else "./a b.tif"),
        "VH+HV": (f"{tmp_path}/items.json#x", "items.json#x" if away else "./items.json#x"),
        "HH": ("https://host/c,d.tif", "https://host/c,d.tif"),
    }
    source = ",".join(f"{name}={href}" for name, (href, _) in hrefs.items())
    facts = {"platform": "Sentinel-1A", "orbit_direction": "ascending", "polarisations": "VV,VH"}
    item = make_stac_item(
        rasters, GRID, box(*GRID.bounds), "2020-11-07", tags=TAGS | facts | {"source": source}, away=away
    )
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    check_core_schema(content)
    assert str(tmp_path) not in json.dumps(content)
    assert content["properties"]["sar2eo:source"] == ",".join(f"{n}={h}" for n, (_, h) in hrefs.items())
    linked = [link["href"] for link in content["links"] if link["rel"] == "derived_from"]
    assert linked == [href for _, href in hrefs.values() if not away or "://" in href]
    assert content["properties"]["sat:orbit_state"] == "ascending"
    assert content["properties"]["sar:polarizations"] == ["VV", "VH"]
    assert "sar2eo:platform" not in content["properties"]
    assert len(content["geometry"]["coordinates"][0]) == 5, "a rectangle is one"


def test_geometry_and_bbox_lie_where_the_grid_lies(rasters) -> None:
    item = item_of(rasters)
    area = shape(item.geometry)
    assert area.exterior.is_ccw
    assert item.bbox == pytest.approx(area.bounds)
    assert -119 < item.bbox[0] < item.bbox[2] < -118
    assert 34 < item.bbox[1] < item.bbox[3] < 34.2


def test_a_scene_across_the_antimeridian_has_two_parts(rasters) -> None:
    grid = Grid("EPSG:32760", (1000.0, 0.0, 600_000.0, 0.0, -1000.0, 8_100_000.0), (200, 300))
    content = item_of(rasters, grid).to_dict()
    check_core_schema(content)
    assert content["geometry"]["type"] == "MultiPolygon"
    assert content["bbox"][0] > content["bbox"][2]


def test_a_crs_without_a_code_is_given_as_wkt(rasters) -> None:
    crs = "+proj=laea +lat_0=34 +lon_0=-118 +ellps=WGS84 +units=m"
    grid = Grid.create(crs, Grid("EPSG:1", (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), (1, 1)).affine, (30, 40))
    content = item_of(rasters, grid).to_dict()
    assert content["properties"]["proj:wkt2"].startswith("PROJCRS")
    assert content["properties"].get("proj:code") is None
    check_core_schema(content)


@pytest.mark.parametrize(
    "when",
    [
        "2020-11-07T01:50:18",
        "2020-11-07T02:50:18+01:00",
        datetime(2020, 11, 7, 1, 50, 18),
        datetime(2020, 11, 7, 0, 50, 18, tzinfo=timezone(-timedelta(hours=1))),
    ],
)
def test_times_become_utc(rasters, when: datetime | str) -> None:
    assert item_of(rasters, when=when).datetime == datetime(2020, 11, 7, 1, 50, 18, tzinfo=UTC)


def test_what_cannot_be_described_is_refused(rasters, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="yesterday"):
        item_of(rasters, when="yesterday")
    with pytest.raises(GeoreferenceError, match="no CRS"):
        item_of(rasters, Grid(None, GRID.transform, GRID.shape))
    with pytest.raises(OutputError, match="cannot be written"):
        write_stac_item(item_of(rasters), tmp_path / "absent" / "item.json")


def test_nothing_valid_gives_no_geometry(rasters) -> None:
    content = make_stac_item(rasters, GRID, Polygon(), "2020-11-07", tags={}).to_dict()
    check_core_schema(content)
    assert content["geometry"] is None
    assert "bbox" not in content


@pytest.mark.parametrize("bbox", [[1, 2, 3], "text", [-180, -80, 0, 170, 80, 9], [1, None, 3, 4]])
def test_other_files_in_the_folder_of_results_are_no_hindrance(tmp_path: Path, bbox: object) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").touch()
        item = make_stac_item(
            {"eo": tmp_path / f"{name}.tif"}, GRID, box(*GRID.bounds), "2020-11-07", tags=TAGS
        )
        write_stac_item(item, tmp_path / f"{name}.json")
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content | {"bbox": bbox}))
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with (tmp_path / "giant.json").open("wb") as file:
        file.truncate(2**31)
    written = write_stac_collection(tmp_path, "archive")
    found = json.loads(written.read_text())["extent"]["spatial"]["bbox"][0]
    assert found == ([-180, -80, 170, 80] if len(bbox) == 6 else content["bbox"])


def test_a_collection_holds_the_results_of_its_folder(tmp_path: Path) -> None:
    far = Grid("EPSG:32760", (1000.0, 0.0, 600_000.0, 0.0, -1000.0, 8_100_000.0), (200, 300))
    for name, grid, when in (("a", GRID, "2020-11-07"), ("b", GRID, "2021-01-02"), ("c", far, "2020-12-01")):
        path = tmp_path / f"{name}.tif"
        path.write_bytes(b"")
        item = make_stac_item({"eo": path}, grid, box(*grid.bounds), when, tags=TAGS, collection="archive")
        write_stac_item(item, path.with_suffix(".json"))
        check_core_schema(json.loads(path.with_suffix(".json").read_text()))
        (tmp_path / "report.json").write_text('{"properties": {}}')
        written = write_stac_collection(tmp_path, "archive")
        assert written == tmp_path / "collection.json"
        collection = pystac.Collection.from_file(written)
        west, south, east, north = collection.extent.spatial.bboxes[0]
        assert (west, east) == (-180, 180) if name == "c" else (-119 < west < east < -118)
        assert south < north
    content = json.loads(written.read_text())
    assert {link["href"] for link in content["links"] if link["rel"] == "item"} == {
        "./a.json",
        "./b.json",
        "./c.json",
    }
    assert "/" not in content["links"][0]["href"].removeprefix("./"), "all links are relative"
    assert str(tmp_path) not in written.read_text()
    JsonSchemaSTACValidator().validate_core(
        content, pystac.STACObjectType.COLLECTION, content["stac_version"]
    )
    assert [item.id for item in collection.get_items()] == ["a", "b", "c"]
    # Items that others have edited: a time without its zone counts as UTC, no time at all leaves it out.
    for name, when in (("a", "2019-11-07T00:00:00"), ("b", "last winter")):
        item = json.loads((tmp_path / f"{name}.json").read_text())
        item["properties"]["datetime"] = when
        (tmp_path / f"{name}.json").write_text(json.dumps(item))
    again = json.loads(write_stac_collection(tmp_path, "archive").read_text())
    assert [link["href"] for link in again["links"] if link["rel"] == "item"] == ["./a.json", "./c.json"]
    assert again["extent"]["temporal"]["interval"][0][0] == "2019-11-07T00:00:00Z"
    assert all(item.get_collection().id == "archive" for item in collection.get_items())
    assert collection.extent.temporal.to_dict()["interval"] == [
        ["2020-11-07T00:00:00Z", "2021-01-02T00:00:00Z"]
    ]
    (tmp_path / "b.tif").unlink()
    write_stac_collection(tmp_path, "archive")
    assert [item.id for item in pystac.Collection.from_file(written).get_items()] == ["a", "c"]


def test_a_folder_without_results_has_no_collection(tmp_path: Path) -> None:
    assert write_stac_collection(tmp_path, "archive") is None
    assert not list(tmp_path.iterdir())
