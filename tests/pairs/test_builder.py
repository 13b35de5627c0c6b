"""Building a folder of pairs: what is in it, going on after a stop, and what is refused."""

import json
import shutil
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from support.pairs_scenes import SETTINGS, SIDE, ground, world, write_scenes
from support.scene_fixtures import write_raster, write_safe

import sar2eo
from sar2eo.errors import JournalError, OutputError, PairsError, PairsWarning, RadiometryError, SettingsError
from sar2eo.matching.shifts import Displacement, LocalShift
from sar2eo.pairs import builder
from sar2eo.pairs.chips import cut_run
from sar2eo.pairs.index import COLUMNS, name_passes, read_index
from sar2eo.scenes.sources import Source
from sar2eo.settings import PairsSettings, SceneSettings
from sar2eo.store.journal import Journal
from sar2eo.store.task_results import TaskResults, keep_result

CRS = "EPSG:32633"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes that tests only read."""
    return write_scenes(tmp_path_factory.mktemp("given") / "scenes")


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of them that tests only read."""
    out = tmp_path_factory.mktemp("built") / "pairs"
    build(scenes, out)
    return out


def build(scenes: Path, out: Path, **changes: object) -> gpd.GeoDataFrame:
    return sar2eo.build_pairs(scenes / "sar", scenes / "eo", out, **{**SETTINGS, **changes})


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_folder_holds_what_the_index_says(whole):
    out, index = whole, read_index(whole)
    assert {path.name for path in out.iterdir()} == {"audit.json", "chips", "pairs.json", "pairs.parquet"}
    assert tuple(index.columns) == COLUMNS
    assert index.crs.to_epsg() == 4326
    assert set(index["split"]) == {"train", "val", "test"}
    named = {Path(name).name for column in ("sar_chip", "eo_chip") for name in index[column]}
    assert {path.name for path in (out / "chips").iterdir()} == named
    assert len(named) == 2 * len(index)
    row = index.iloc[0]
    assert (row.quantity, row.calibration, list(row.polarisations)) == ("dn", "none", ["VV"])
    assert row.sar_datetime == pd.Timestamp("2024-05-06T07:07:09Z")
    assert row.eo_datetime == pd.Timestamp("2024-05-04T19:08:09Z")
    assert row.day_gap == pytest.approx(1.499, abs=1e-3)
    assert pd.isna(row.cloud_share)
    assert pd.isna(row.shift_rows)
    record = json.loads((out / "pairs.json").read_text())
    assert record["settings"]["size"] == 32
    assert sum(record["chips"].values()) == len(index)
    assert json.loads((out / "audit.json").read_text()) == record["audit"]
    np.testing.assert_allclose(index.geometry.to_crs(CRS).area, 320.0**2, rtol=1e-3)


def test_a_chip_is_the_pixels_of_both_scenes_at_its_place(whole):
    for row in read_index(whole).itertuples():
        with rasterio.open(whole / row.sar_chip) as chip:
            sar, transform = chip.read(1), chip.transform
            valid = chip.dataset_mask() > 0
        with rasterio.open(whole / row.eo_chip) as chip:
            eo = chip.read()
        assert list(transform)[:6] == row.transform.tolist()
        expected = world(*ground((transform.c, transform.f), (32, 32)))
        np.testing.assert_array_equal(sar[valid], expected[valid])
        np.testing.assert_array_equal(eo[1], expected)
        assert row.valid_share == valid.mean() >= 0.99
        with rasterio.open(row.sar_href) as scene:
            stored = scene.read(1)
        np.testing.assert_array_equal(sar, stored[row.row : row.row + 32, row.col : row.col + 32])
        assert row.scaling.tolist() == pytest.approx([np.percentile(stored[stored > 0], 99)], rel=0.02)
        np.testing.assert_allclose(row.eo_mean, eo.reshape(3, -1).mean(axis=1))
        np.testing.assert_allclose(row.eo_std, eo.reshape(3, -1).std(axis=1))


def test_the_same_place_of_one_pass_is_there_once(tmp_path):
    """The scenes overlap by 160 x 96 pixels, in which the lattice has cells that lie in both."""
    scenes = write_scenes(tmp_path / "scenes")
    index = build(scenes, tmp_path / "pairs", buffer=0.0)
    centres = index.geometry.to_crs(CRS).centroid
    places = Counter(zip(centres.x.round(-1), centres.y.round(-1), strict=True))
    assert max(places.values()) == 1
    assert index.attrs["report"]["refused"]["duplicate"] > 4
    assert index.sar_href.nunique() == 2
    # Another day is another pair.
    with rasterio.open(scenes / "sar/b.tif", "r+") as late:
        late.update_tags(ACQUISITION_DATETIME="2024:05:18 07:08:09")
    apart = build(scenes, tmp_path / "apart", buffer=0.0)
    assert apart.attrs["report"]["refused"]["duplicate"] < index.attrs["report"]["refused"]["duplicate"]
    assert len(apart) > len(index)


def test_no_cell_without_enough_valid_pixels_is_a_pair(scenes, tmp_path):
    index = build(scenes, tmp_path / "pairs", min_valid=1.0, buffer=0.0)
    loose = build(scenes, tmp_path / "loose", min_valid=0.3, buffer=0.0)
    assert (index.valid_share == 1).all()
    assert 0.3 <= loose.valid_share.min() < 1
    assert len(loose) > len(index)


def test_the_same_command_changes_nothing(scenes, whole):
    before = state(whole)
    again = build(scenes, whole)
    assert state(whole) == before
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(read_index(whole)))
    assert again.attrs["report"]["done_before"]
    sar, eo = ([scenes / role / f"{name}.tif" for name in "ba"] for role in ("sar", "eo"))
    assert len(sar2eo.build_pairs(sar, eo, whole, **SETTINGS)) == len(again)
    assert state(whole) == before


def test_other_settings_are_refused_unless_told_to_overwrite(tmp_path):
    scenes = write_scenes(tmp_path / "scenes")
    build(scenes, tmp_path / "pairs")
    before = state(tmp_path / "pairs")
    with pytest.raises(OutputError, match=r"settings\.seed 2025 -> 1: pass overwrite=True"):
        build(scenes, tmp_path / "pairs", seed=1)
    assert state(tmp_path / "pairs") == before
    replaced = build(scenes, tmp_path / "pairs", seed=1, size=48, stride=48, overwrite=True)
    assert set(replaced.height) == {48}
    assert len(list((tmp_path / "pairs/chips").iterdir())) == 2 * len(replaced)
    assert not (tmp_path / "pairs/chips.partial").exists()
    with rasterio.open(scenes / "sar/a.tif", "r+") as changed:
        changed.update_tags(COMMENT="touched")
    with pytest.raises(OutputError, match="differ in sar"):
        build(scenes, tmp_path / "pairs", seed=1, size=48, stride=48)


@pytest.mark.parametrize("stop", ["cut", "index", "publish"])
def test_a_stopped_build_goes_on_and_ends_as_if_it_had_not_stopped(
    scenes, whole, tmp_path, monkeypatch, stop
):

    class Killed(BaseException):
        pass

    count = []

    def failing(*arguments, original):
        count.append(1)
        if len(count) > 3:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        if stop == "cut":
            original = cut_run
            patch.setattr(builder, "_RUN_CELLS", 8)
            patch.setattr(builder, "cut_run", lambda *a: failing(*a, original=original))
        elif stop == "index":
            patch.setattr(builder, "write_index", lambda *a: (_ for _ in ()).throw(Killed))
        else:
            original_rename = Path.replace

            def replace(self, target):
                if Path(target).parent.name == "pairs":
                    return failing(self, target, original=original_rename)
                return original_rename(self, target)

            count += [1, 1]  # one of three files gets through
            patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            build(scenes, tmp_path / "pairs")
    assert not (tmp_path / "pairs/pairs.json").exists()

    done = []
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_RUN_CELLS", 8 if stop == "cut" else builder._RUN_CELLS)
        original = cut_run
        patch.setattr(builder, "cut_run", lambda *a: done.append(a[-1].label) or original(*a))
        resumed = build(scenes, tmp_path / "pairs")
    pd.testing.assert_frame_equal(pd.DataFrame(resumed), pd.DataFrame(read_index(whole)))
    # How long it took is not told without what was done before.
    assert (resumed.attrs["report"]["cells_resumed"] > 0) == (stop != "publish")
    chips, expected = state(tmp_path / "pairs/chips"), state(whole / "chips")
    assert {name: data for name, (_, data) in chips.items()} == {n: d for n, (_, d) in expected.items()}
    assert not (tmp_path / "pairs/chips.partial").exists()
    if stop == "cut":
        assert done
    else:
        assert not done


def test_a_damaged_chip_or_part_is_made_again(scenes, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write_index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(scenes, tmp_path / "pairs")
    (work,) = (tmp_path / "pairs/chips.partial").glob("blocks-*")
    chip = sorted((work / "chips").iterdir())[0]
    chip.write_bytes(chip.read_bytes()[:-10])
    part = next(path for path in sorted((work / "parts").iterdir()) if path.name.startswith("cut-s0001e0001"))
    part.write_bytes(b"[]")
    done = []
    original = cut_run
    with monkeypatch.context() as patch:
        patch.setattr(builder, "cut_run", lambda *a: done.append(a[-1].label) or original(*a))
        resumed = build(scenes, tmp_path / "pairs")
    assert set(done) == {chip.name.split("_")[0], "s0001e0001"}
    assert len(done) == 2
    pd.testing.assert_frame_equal(pd.DataFrame(resumed), pd.DataFrame(read_index(whole)))
    assert state(tmp_path / "pairs/chips").keys() == state(whole / "chips").keys()


def test_a_missing_chip_is_noticed_and_made_again(scenes, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "pairs")
    index = read_index(whole)
    before = state(tmp_path / "pairs/chips")
    (tmp_path / "pairs" / index.sar_chip[0]).unlink()
    build(scenes, tmp_path / "pairs")
    assert {n: d for n, (_, d) in state(tmp_path / "pairs/chips").items()} == {
        n: d for n, (_, d) in before.items()
    }


def test_files_that_viewers_leave_beside_chips_are_no_damage(scenes, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "pairs")
    index = read_index(whole)
    (tmp_path / "pairs" / f"{index.eo_chip[0]}.aux.xml").write_text("<PAMDataset/>")
    before = state(tmp_path / "pairs")
    assert build(scenes, tmp_path / "pairs").attrs["report"]["done_before"]
    assert state(tmp_path / "pairs") == before


def test_what_a_kill_after_the_last_file_leaves_goes_with_the_next_run(scenes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(scenes, tmp_path / "pairs")
    before = state(tmp_path / "pairs/chips")
    assert (tmp_path / "pairs/chips.partial").exists()
    assert build(scenes, tmp_path / "pairs").attrs["report"]["done_before"]
    assert not (tmp_path / "pairs/chips.partial").exists()
    assert state(tmp_path / "pairs/chips") == before
    # Unfinished work of other settings is not its business.
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write_index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(scenes, tmp_path / "pairs", seed=1, overwrite=True)
    assert build(scenes, tmp_path / "pairs").attrs["report"]["done_before"]
    assert list((tmp_path / "pairs/chips.partial").glob("blocks-*/chips/*"))


def test_what_a_table_says_of_scenes_is_part_of_what_was_built(scenes, tmp_path):
    def table(day: int, size: float) -> Path:
        rows = gpd.GeoDataFrame(
            {"href": [str(scenes / "eo/a.tif")], "datetime": [f"2024-05-{day:02}T10:00:00Z"]},
            geometry=[shapely.box(500_003, 5_000_004 - size, 500_003 + size, 5_000_004)],
            crs=CRS,
        )
        rows.to_parquet(tmp_path / "eo.parquet")
        return tmp_path / "eo.parquet"

    def built(day: int = 4, size: float = 2560.0, **more: object) -> gpd.GeoDataFrame:
        given = scenes / "sar/a.tif", table(day, size), tmp_path / "pairs"
        return sar2eo.build_pairs(*given, **{**SETTINGS, "val": 0.0, "test": 0.0}, **more)

    first = built()
    with pytest.raises(OutputError, match="differ in"):
        built(day=1)
    assert built(day=1, overwrite=True).day_gap[0] == pytest.approx(first.day_gap[0] + 3)
    with pytest.raises(OutputError, match="differ in"):
        built(day=1, size=1500.0)


def test_records_are_json_for_every_reader(scenes, tmp_path):
    def strictly(path: Path) -> dict:
        return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))

    build(scenes, tmp_path / "pairs", max_days=float("inf"), report=tmp_path / "report.json")
    assert strictly(tmp_path / "pairs/pairs.json")["settings"]["max_days"] is None
    assert strictly(tmp_path / "report.json")["scene_pairs"]
    again = build(scenes, tmp_path / "pairs", max_days=float("inf"))
    assert again.attrs["report"]["done_before"]


def test_a_report_that_is_a_folder_is_refused_before_the_work(scenes, tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        build(scenes, tmp_path / "pairs", report=tmp_path)
    assert not (tmp_path / "pairs").exists()


def test_a_scene_that_cannot_be_scaled_is_named(tmp_path):
    scenes = write_scenes(tmp_path / "scenes")
    with rasterio.open(scenes / "sar/b.tif", "r+") as raster:
        raster.nodata = 255
        raster.write(np.zeros((SIDE, SIDE), np.uint8), 1)
    with pytest.raises(RadiometryError, match=r"sar/b\.tif: the 99th percentile"):
        build(scenes, tmp_path / "pairs")


def test_unfinished_work_of_other_settings_is_refused(scenes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write_index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(scenes, tmp_path / "pairs")
    with pytest.raises(JournalError, match=r"settings\.size 32 -> 48.*overwrite=True"):
        build(scenes, tmp_path / "pairs", size=48)
    index = build(scenes, tmp_path / "pairs", size=48, stride=48, overwrite=True, val=0.0, test=0.0)
    assert set(index.width) == {48}
    assert len(list((tmp_path / "pairs/chips").iterdir())) == 2 * len(index)


def test_a_dry_run_writes_nothing(scenes, whole, tmp_path):
    plan = build(scenes, tmp_path / "pairs", dry_run=True)
    assert not (tmp_path / "pairs").exists()
    assert plan.attrs["scenes"] == {"sar": 2, "eo": 2}
    assert len(plan) == 4  # they all overlap
    assert plan.cells.sum() > len(read_index(whole))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"max_days": 1.0}, PairsError, "none taken within max_days=1"),
        ({"size": 2000}, PairsError, "no chip is left"),
        ({"sise": 32}, SettingsError, "unknown sise"),
        ({"size": "32"}, SettingsError, "size='32': must be a whole number"),
        ({"align": "rigid"}, SettingsError, "'off', 'score', 'shift'"),
        ({"scene": SceneSettings(resolution=20.0)}, SettingsError, "scene.resolution=20"),
        ({"scene": SceneSettings(allow_ungeoreferenced=True)}, SettingsError, "without a georeference"),
        ({"resolution": 0.001, "scene": SceneSettings(crs="EPSG:4326")}, SettingsError, "degree"),
        ({"report": "missing/report.json"}, OutputError, "there is no folder missing"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(scenes, tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as found:
        build(scenes, tmp_path / "pairs", **changes)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "pairs").exists()


def test_folders_that_hold_something_else_are_refused(scenes, tmp_path):
    with pytest.raises(SettingsError, match="lies in --out"):
        build(scenes, scenes)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letters.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds letters\.txt, so it is no folder of pairs"):
        build(scenes, other)
    with pytest.raises(OutputError, match="is a file"):
        build(scenes, other / "letters.txt")
    with pytest.raises(OutputError, match="no folder"):
        build(scenes, tmp_path / "no/pairs")
    assert [path.name for path in other.iterdir()] == ["letters.txt"]
    (tmp_path / "empty").mkdir()
    assert len(build(scenes, tmp_path / "empty"))


def test_scenes_that_are_not_terrain_corrected_are_named(tmp_path):
    folder, _ = write_safe(tmp_path, shape=(120, 140), polarisations=("VV",))
    eo = write_raster(
        tmp_path / "S2A_20190305T100000.tif", np.full((3, 400, 400), 90, np.uint8), crs="EPSG:32633",
        transform=Affine(10, 0, 262_000, 0, -10, 4_990_000), names=("red", "green", "blue"),
    )  # fmt: skip
    with pytest.warns(PairsWarning, match="not terrain-corrected"):
        plan = sar2eo.build_pairs(folder, eo, tmp_path / "pairs", size=32, stride=32, dry_run=True)
    assert len(plan) == 1


def test_a_split_without_chips_is_warned_of(scenes, tmp_path):
    with pytest.warns(PairsWarning, match=r"no chips for .*blocks of 1e\+06 m"):
        build(scenes, tmp_path / "pairs", block=1e6)


@dataclass(frozen=True)
class FixedDrift:
    rows: float
    cols: float

    def at(self, row: float, col: float) -> tuple[float, float]:
        return self.rows + row / 1000, self.cols

    def facts(self) -> dict[str, object]:
        return {"order": 1, "residual_px": 0.1, "used": 5, "of": 6}


@dataclass(frozen=True)
class FakeAligner:
    """Tells a constant; says what it was given by the score."""

    neighbourhood_px: int = 96
    thin: bool = False
    blind: bool = False

    def displacement(self, sar: np.ndarray, eo: np.ndarray) -> LocalShift:
        assert sar.shape == eo.shape == (96, 96)
        if self.blind:
            return LocalShift(np.nan, np.nan, 0.0, False)
        both = np.isfinite(sar) & np.isfinite(eo)
        return LocalShift(2.0, -3.0, float(np.corrcoef(sar[both], eo[both])[0, 1]), True)

    def drift(self, displacements: list[Displacement]) -> FixedDrift | None:
        return None if self.thin else FixedDrift(2.0, -3.0)


def built(scenes: Path, out: Path, align: str, aligner: FakeAligner) -> gpd.GeoDataFrame:
    settings = PairsSettings(**SETTINGS, align=align)
    sar, eo = [str(scenes / "sar")], [str(scenes / "eo")]
    return builder.build(sar, eo, out, settings=settings, scene=SceneSettings(), aligner=aligner)


def test_shift_moves_the_sar_window_by_the_drift_at_the_chip(scenes, tmp_path):
    index = built(scenes, tmp_path / "pairs", "shift", FakeAligner())
    for row in index.itertuples():
        assert row.shift_rows == pytest.approx(2.0 + (row.row + 16) / 1000)
        assert row.shift_cols == -3.0
        with rasterio.open(tmp_path / "pairs" / row.sar_chip) as chip:
            sar, transform = chip.read(1).astype(float), chip.transform
        corner = transform.c + 10 * row.shift_cols, transform.f - 10 * row.shift_rows
        expected = world(*ground(corner, (32, 32)))
        valid = sar > 0
        assert np.abs(sar - expected)[valid].max() <= 2  # rounding of scene and chip, and the kernel
        with rasterio.open(tmp_path / "pairs" / row.eo_chip) as chip:
            np.testing.assert_array_equal(chip.read(2), world(*ground((transform.c, transform.f), (32, 32))))
    # pandas copies attributes with every selection: thousands of measurements stay in the file.
    assert "displacements" not in index.attrs["report"]["scene_pairs"][0]["alignment"]
    pair = json.loads((tmp_path / "pairs/pairs.json").read_text())["scene_pairs"][0]["alignment"]
    assert pair["drift"] == {"order": 1, "residual_px": 0.1, "used": 5, "of": 6}
    assert len(pair["displacements"]) > 10
    # EO green and SAR are the same picture: the neighbourhoods were read at the same place.
    assert min(one["score"] for one in pair["displacements"]) > 0.5


def test_score_records_and_moves_nothing(scenes, whole, tmp_path):
    index = built(scenes, tmp_path / "pairs", "score", FakeAligner())
    plain = read_index(whole)
    assert (index.shift_rows == 2.0).all()
    assert (index.shift_cols == -3.0).all()
    assert index.align_score.notna().all()
    assert index.sar_chip.tolist() == plain.sar_chip.tolist()
    for name in index.sar_chip[:10]:
        with (
            rasterio.open(tmp_path / "pairs" / name) as one,
            rasterio.open(whole / name) as other,
        ):
            np.testing.assert_array_equal(one.read(), other.read())


def test_thin_evidence_leaves_the_scene_pair_out_and_says_so(scenes, tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", PairsWarning)
        with pytest.raises(PairsError, match=r"no chip is left \(\d+ not aligned\)"):
            built(scenes, tmp_path / "pairs", "shift", FakeAligner(thin=True))
    assert len(told) == 4
    assert all("too thin evidence" in str(one.message) for one in told)
    assert not (tmp_path / "pairs").exists()


def test_what_cannot_be_compared_is_null_in_the_records(scenes, tmp_path):
    with pytest.warns(PairsWarning, match=r"none of \d+ local shifts is sure"):
        index = built(scenes, tmp_path / "pairs", "score", FakeAligner(blind=True))
    assert index.shift_rows.isna().all()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    record = json.loads((tmp_path / "pairs/pairs.json").read_text(), parse_constant=refuse)
    pair = record["scene_pairs"][0]["alignment"]
    assert {one["rows"] for one in pair["displacements"]} == {None}


def test_worker_processes_make_the_same_chips(scenes, whole, tmp_path):
    from sar2eo.compute import cluster

    told = []
    with cluster.connect_cluster(workers=1):
        together = build(scenes, tmp_path / "together", progress=told.append)
    pd.testing.assert_frame_equal(pd.DataFrame(read_index(whole)), pd.DataFrame(together))
    one, other = state(whole / "chips"), state(tmp_path / "together/chips")
    assert {name: data for name, (_, data) in one.items()} == {n: d for n, (_, d) in other.items()}
    assert told[-1]["cells_done"] == told[-1]["cells_total"]


def test_resolution_in_metres_makes_chips_of_it(scenes, tmp_path):
    index = build(scenes, tmp_path / "pairs", resolution=20, buffer=0.0, block=2000.0, size=16, stride=16)
    assert {row[0] for row in index["transform"]} == {20.0}
    with rasterio.open(tmp_path / "pairs" / index.sar_chip[0]) as chip:
        assert chip.dtypes == ("float32",)
        # The lattice of a resolution starts at the origin of the CRS, in every scene.
        assert chip.transform.c % (16 * 20) == pytest.approx(0, abs=10)


def test_scenes_of_one_orbit_are_one_pass():
    times = [
        "2024-05-06T07:07:09Z",
        "2024-05-06T07:20:00Z",
        None,
        "2024-05-06T07:15:00Z",
        None,
        "2024-05-18T07:07:09Z",
    ]
    found = name_passes([Source(f"{at}.tif", datetime=time) for at, time in enumerate(times)])
    # Each is less than ten minutes from the next of its pass, even if not from the first.
    assert found[0] == found[1] == found[3]
    assert len(set(found)) == 4


def test_passes_are_those_over_one_place(tmp_path):
    """Archives have scenes elsewhere at all times of the day, which make no pass of two days one."""
    scenes = write_scenes(tmp_path / "scenes")
    for path in (scenes / "sar/b.tif", scenes / "eo/b.tif"):
        path.unlink()
    start = datetime(2024, 5, 6, 7, 7, 9, tzinfo=UTC)
    shutil.copy(scenes / "sar/a.tif", scenes / "sar/later.tif")
    with rasterio.open(scenes / "sar/later.tif", "r+") as later:
        later.update_tags(ACQUISITION_DATETIME=f"{start + timedelta(hours=2):%Y:%m:%d %H:%M:%S}")
    alone = build(scenes, tmp_path / "alone", val=0.0, test=0.0)
    assert len(alone) > 8
    for step in range(1, 15):  # far away, one every eight minutes
        write_raster(
            scenes / f"sar/x{step:02}.tif", np.ones((40, 40), np.uint8), names=("VV",), crs=CRS,
            transform=Affine(10, 0, 300_000, 0, -10, 4_000_000),
            tags={"ACQUISITION_DATETIME": f"{start + timedelta(minutes=8 * step):%Y:%m:%d %H:%M:%S}"},
        )  # fmt: skip
    among = build(scenes, tmp_path / "among", val=0.0, test=0.0)
    assert len(among) == len(alone)


def test_satellites_that_meet_are_two_passes():
    time = "2024-05-06T07:07:09Z"
    found = name_passes([Source(f"{name}.tif", datetime=time, platform=name) for name in ("S1A", "S1C")])
    assert len(set(found)) == 2


def test_the_index_names_scenes_so_that_anybody_finds_them(scenes, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(scenes)
    before = state(whole)
    index = sar2eo.build_pairs("sar", ["eo/a.tif", "eo/b.tif"], whole, **SETTINGS)
    assert state(whole) == before
    assert set(index.sar_href) == {str(scenes / "sar/a.tif"), str(scenes / "sar/b.tif")}


def test_the_index_is_refused_where_it_is_none(tmp_path):
    with pytest.raises(PairsError, match=r"holds no pairs\.parquet"):
        read_index(tmp_path)
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(PairsError, match="not a readable GeoParquet"):
        read_index(tmp_path)
    shutil.rmtree(tmp_path)


def test_a_file_that_gets_its_final_name_meanwhile_stops_nothing(tmp_path, monkeypatch):
    """A thread of an interrupted call may still be writing when the next call looks around."""
    keep_result(tmp_path, "one", b"[1]")
    leftover = tmp_path / ".0123.tmp"
    leftover.touch()
    listed = list(tmp_path.iterdir())
    leftover.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda self: iter(listed))
        assert TaskResults(tmp_path).known == {"one": [1]}
