"""Archive runs: many scenes into a folder, one beside the next, and nothing done twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pystac
import pytest
import rasterio
from support.command_line import SMALL, run
from support.scenes import amplitude, write_scene

from sar2eo.errors import ClusterError, OutputError, Sar2eoWarning, SettingsError
from sar2eo.model import loading
from sar2eo.model.spec import resolve_model
from sar2eo.results import cog, targets
from sar2eo.results.outputs import Outputs
from sar2eo.scenes.sources import expand_sources
from sar2eo.settings import TranslateRecipe, TranslateSettings
from sar2eo.store.journal import Journal
from sar2eo.translation import archive, dataset, region, writer
from sar2eo.translation import plan as planning
from sar2eo.translation.plan import Entry, find_target, plan
from sar2eo.translation.region import Region

SETTINGS = TranslateSettings(tile=128, overlap=16, scaling=(255.0,))
IDENTITY = resolve_model("identity")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of three small scenes."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number, name in enumerate("abc"):
        write_scene(folder / f"{name}.tif", amplitude((150, 140 + number), number))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def recipe(*scenes: object, out: Path, **values: object) -> TranslateRecipe:
    table = {"model": "identity", "settings": SETTINGS, **values}
    return TranslateRecipe(scenes=tuple(map(str, scenes)), out=str(out), **table)


def statuses(entries: list[Entry]) -> list[str]:
    return [entry.status for entry in entries]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def test_a_folder_becomes_a_folder_with_a_collection_and_a_report(scenes: Path, out: Path) -> None:
    report = out.parent / "report.json"
    broken = scenes / "b2.tif"
    broken.write_bytes(b"II*\0nothing")
    done = run("translate", scenes, "--out", out, *SMALL, "--report", report)
    assert done.exit_code == 1, done.output
    assert "1 of 4 scenes failed" in done.stderr
    assert f"{broken}: " in done.stdout.split("failed")[1]
    for name in "abc":
        np.testing.assert_array_equal(
            read(out / f"{name}_eo.tif"), np.repeat(read(scenes / f"{name}.tif"), 3, 0)
        )
    assert names(out) == sorted(
        [f"{name}_eo.{kind}" for name in "abc" for kind in ("tif", "json")] + ["collection.json"]
    )
    told = json.loads(report.read_text())
    assert told["counts"] == {"done": 3, "skipped": 0, "failed": 1, "pending": 0}
    assert told["megapixels"] == pytest.approx(0.15 * 0.423)
    assert [scene["status"] for scene in told["scenes"]] == ["done", "done", "failed", "done"]
    assert "b2.tif" in told["scenes"][2]["error"]
    assert told["scenes"][0]["report"]["scaling"]["p99"] == [255.0]
    assert {"open", "compute", "assemble", "total"} <= set(told["scenes"][0]["report"]["seconds"])
    collection = pystac.Collection.from_file(out / "collection.json")
    assert [item.id for item in collection.get_items()] == ["a_eo", "b_eo", "c_eo"]
    assert collection.id == "results"
    again = run("translate", scenes, "--out", out, "--model", "identity", "--scaling-from", report)
    assert again.exit_code == 2
    assert "a report of many scenes or of none" in again.stderr


def test_a_collection_of_the_users_own_is_left_as_it_is(scenes: Path, out: Path) -> None:
    own = json.dumps({"type": "Collection", "id": "mine", "title": "My scenes"})
    (out / "collection.json").write_text(own)
    with pytest.warns(Sar2eoWarning, match="was not written by sar2eo"):
        entries = archive.run(recipe(scenes, out=out), IDENTITY)
    assert statuses(entries) == ["done"] * 3
    assert (out / "collection.json").read_text() == own


def test_a_single_scene_that_is_skipped_is_reported(scenes: Path, tmp_path: Path) -> None:
    report, asked = tmp_path / "report.json", (scenes / "a.tif", "--out", tmp_path / "eo.tif", *SMALL)
    assert run("translate", *asked, "--report", report).exit_code == 0
    first = report.read_bytes()
    assert "scaling" in json.loads(first)
    # What another run has reported, which a second one cannot know, stays.
    assert run("translate", *asked, "--report", report).exit_code == 0
    assert report.read_bytes() == first
    report.write_text('{"software": "sar2eo 0.1", "output": "another.tif"}')
    assert run("translate", *asked, "--report", report).exit_code == 0
    counts = {"done": 0, "skipped": 1, "failed": 0, "pending": 0}
    assert json.loads(report.read_text())["counts"] == counts


def test_what_is_done_is_skipped_and_what_is_not_goes_on(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(scenes / "*.tif", out=out)
    with monkeypatch.context() as broken:
        finish = writer.ResultWriter.publish

        def fail(self: writer.ResultWriter) -> dict:
            if self.outputs.eo.name == "b_eo.tif":
                raise OutputError("disk full")
            return finish(self)

        broken.setattr(writer.ResultWriter, "publish", fail)
        assert statuses(archive.run(asked, IDENTITY)) == ["done", "failed", "done"]
    assert (out / "b_eo.tif.partial").is_dir()
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tif")}
    entries = archive.run(asked, IDENTITY)
    assert statuses(entries) == ["skipped", "done", "skipped"]
    assert entries[1].report["tiles"]["translated"] == 0, "its blocks were there"
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"tile": 64}, "settings.tile 128 -> 64"), ({"scaling": (99.0,)}, "settings.scaling")],
)
def test_results_of_other_settings_are_an_error_unless_they_may_be_replaced(
    scenes: Path, out: Path, change: dict, word: str
) -> None:
    archive.run(recipe(scenes, out=out), IDENTITY)
    before = read(out / "a_eo.tif")
    other = TranslateSettings(**{"tile": 128, "overlap": 16, "scaling": (255.0,), **change})
    entries = archive.run(recipe(scenes, out=out, settings=other), IDENTITY)
    assert statuses(entries) == ["failed"] * 3
    assert word in entries[0].reason
    assert "overwrite=True" in entries[0].reason
    np.testing.assert_array_equal(read(out / "a_eo.tif"), before)
    for expected in ("done", "skipped"):
        entries = archive.run(recipe(scenes, out=out, settings=other, overwrite=True), IDENTITY)
        assert statuses(entries) == [expected] * 3
    entries = archive.run(recipe(scenes, out=out, settings=other, overwrite=True, restart=True), IDENTITY)
    assert statuses(entries) == ["done"] * 3


def test_where_it_ran_does_not_matter_but_the_input_does(scenes: Path, out: Path) -> None:
    archive.run(recipe(scenes / "a.tif", out=out), IDENTITY)
    elsewhere = resolve_model("identity", batch=3)
    assert statuses(archive.run(recipe(scenes / "a.tif", out=out), elsewhere)) == ["skipped"]
    write_scene(scenes / "a.tif", amplitude((150, 140), 77))
    (entry,) = archive.run(recipe(scenes / "a.tif", out=out), IDENTITY)
    assert entry.status == "failed"
    assert "input.files" in entry.reason


def test_a_file_that_does_not_say_how_it_was_made_is_kept(scenes: Path, out: Path) -> None:
    (out / "a_eo.tif").write_bytes(b"precious")
    write_scene(out / "b_eo.tif", amplitude((50, 50), 1))
    entries = archive.run(recipe(scenes, out=out), IDENTITY)
    assert statuses(entries) == ["failed", "failed", "done"]
    assert (out / "a_eo.tif").read_bytes() == b"precious"
    assert "does not say" in entries[1].reason


def test_a_single_file_is_skipped_too_and_by_recipes(scenes: Path, tmp_path: Path) -> None:
    text = (
        f'[translate]\nscenes = ["{scenes / "a.tif"}"]\nout = "{tmp_path / "eo.tif"}"\nmodel = "identity"\n'
    )
    (tmp_path / "recipe.toml").write_text(text + "[translate.settings]\ntile = 128\noverlap = 16\n")
    first = run("run", tmp_path / "recipe.toml")
    assert first.exit_code == 0, first.output
    changed = (tmp_path / "eo.tif").stat().st_mtime_ns
    again = run("run", tmp_path / "recipe.toml")
    assert again.exit_code == 0, again.output
    assert "done before" in again.stdout
    assert (tmp_path / "eo.tif").stat().st_mtime_ns == changed
    other = run("run", tmp_path / "recipe.toml", "--set", "translate.settings.tile=64")
    assert other.exit_code == 1
    assert "tile 128 -> 64" in other.stderr


def test_a_run_stopped_when_all_was_done_leaves_nothing_in_the_end(scenes: Path, out: Path) -> None:
    asked = recipe(scenes / "a.tif", out=out)
    archive.run(asked, IDENTITY)
    leftover = out / "a_eo.tif.partial" / "blocks-0123"
    leftover.mkdir(parents=True)
    assert statuses(archive.run(asked, IDENTITY)) == ["skipped"]
    assert not leftover.parent.exists()


def test_names_come_from_a_template(scenes: Path, out: Path) -> None:
    asked = recipe(
        scenes, out=out, name="{date}T{time}_{polarisations}_{stem}", quicklook="{stem}.png", compress="zstd"
    )
    assert statuses(archive.run(asked, IDENTITY)) == ["done"] * 3
    assert (out / "20240506T070809_VV_a.tif").exists()
    assert (out / "a.png").exists()
    (entry,) = archive.run(recipe(scenes / "a.tif", out=out, name="like_{stem}.tif"), IDENTITY)
    assert (out / "like_a.tif").exists()
    (entry,) = archive.run(recipe(scenes / "a.tif", out=out, name="{platform}"), IDENTITY)
    assert entry.status == "failed"
    assert "does not say its platform" in entry.reason


@pytest.mark.parametrize("name", ["{date}", "same"])
def test_scenes_of_one_name_are_refused_before_work(scenes: Path, out: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"written twice, of .*a\.tif and .*b\.tif.*--name"):
        archive.run(recipe(scenes, out=out, name=name), IDENTITY)
    assert names(out) == []


@pytest.mark.parametrize(
    "name", ["{nonsense}", "{id.__class__}", "{id!r}", "{0}", "{id", "a/{id}", ".{id}", ""]
)
def test_templates_are_checked(scenes: Path, out: Path, name: str) -> None:
    for option in ("name", "quicklook"):
        with pytest.raises(SettingsError, match="name"):
            archive.run(recipe(scenes, out=out, **{option: name}), IDENTITY)
    assert names(out) == []


def test_item_collections_globs_and_repeated_scenes(scenes: Path, out: Path) -> None:
    items = []
    for name in "ab":
        item = pystac.Item(f"S1/{name}", None, None, datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC), {})
        item.add_asset("vv", pystac.Asset(f"./{name}.tif", media_type=pystac.MediaType.GEOTIFF))
        items.append(item)
    path = scenes / "items.json"
    pystac.ItemCollection(items).save_object(str(path))
    asked = recipe(path, scenes / "c*.tif", scenes / "c.tif", out=out, name="{id}_{date}")
    assert statuses(archive.run(asked, IDENTITY)) == ["done"] * 3
    assert sorted(path.name for path in out.glob("*.tif")) == [
        "S1_a_20210203.tif",
        "S1_b_20210203.tif",
        "c_20240506.tif",
    ]
    (scenes / "broken.json").write_text("{")
    entries = archive.run(recipe(scenes / "*.json", out=out, name="{id}_{date}"), IDENTITY)
    assert statuses(entries) == ["failed", "skipped", "skipped"], "one of a glob's matches is one scene"
    asked = recipe(scenes / "*.png", scenes / "absent.tif", scenes / "c.tif", out=out, name="{id}_{date}")
    assert statuses(archive.run(asked, IDENTITY)) == ["failed", "failed", "skipped"]


def test_a_collection_is_read_once_for_all_its_items_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    from_file = pystac.ItemCollection.from_file
    monkeypatch.setattr(
        pystac.ItemCollection, "from_file", lambda path, *rest: reads.append(path) or from_file(path, *rest)
    )
    for count in (9, 5):
        items = []
        for number in range(count):
            item = pystac.Item(f"s{number}", None, None, datetime(2021, 2, 3, tzinfo=UTC), {})
            item.add_asset("vv", pystac.Asset("./a.tif", media_type=pystac.MediaType.GEOTIFF))
            items.append(item)
        pystac.ItemCollection(items).save_object(str(tmp_path / "items.json"))
        reads.clear()
        assert len(expand_sources([str(tmp_path / "items.json")], "sar")) == count
        assert len(reads) <= 2


def test_results_among_the_scenes_are_not_scenes(scenes: Path) -> None:
    for expected in ("done", "skipped"):
        assert statuses(archive.run(recipe(scenes, out=scenes), IDENTITY)) == [expected] * 3


def test_a_second_run_into_the_folder_is_refused_until_the_first_is_killed(scenes: Path, out: Path) -> None:
    code = (
        "import sys, time\nfrom sar2eo.translation import archive\n"
        "from sar2eo.model.spec import resolve_model\n"
        "from sar2eo.settings import TranslateRecipe\n"
        "recipe = TranslateRecipe(scenes=(sys.argv[1],), out=sys.argv[2], model='identity')\n"
        "def wait(_):\n    print('planned', flush=True)\n    time.sleep(60)\n"
        "archive.run(recipe, resolve_model('identity'), planned=wait)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(scenes), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(archive.__file__).parents[1])}
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "planned\n"
    started = time.perf_counter()
    done = run("translate", scenes, "--out", out, *SMALL)
    assert done.exit_code == 1
    assert "another run is writing here" in done.stderr
    assert time.perf_counter() - started < 10
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert run("translate", scenes, "--out", out, *SMALL).exit_code == 0
    assert not list(out.glob("*.partial"))


def test_a_run_that_cannot_fit_is_refused_with_numbers_before_work(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three results of 2/3 of 4 bytes for 21,000 pixels each, and blocks of two scenes in full.
    monkeypatch.setattr(cog.shutil, "disk_usage", lambda _: SimpleNamespace(free=0.3e6))
    with pytest.raises(OutputError, match=r"0 MB are free, and this takes about 0 MB.*force=True"):
        archive.run(recipe(scenes, out=out), IDENTITY)
    assert names(out) == []
    monkeypatch.setattr(cog.shutil, "disk_usage", lambda _: SimpleNamespace(free=0.4e6))
    assert statuses(archive.run(recipe(scenes, out=out), IDENTITY)) == ["done"] * 3


def test_what_can_be_refused_is_refused_before_the_graph_is_built(
    scenes: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large scene the graph takes a minute."""
    built = Mock(side_effect=AssertionError("the graph was built"))
    monkeypatch.setattr(dataset, "build_arrays", built)
    one = recipe(scenes / "a.tif", out=out / "a.tif", tmp=str(tmp_path))

    def error() -> str:
        return str(archive.run(one, IDENTITY)[0].reason)

    assert error() == "AssertionError: the graph was built"
    built.side_effect = None
    built.reset_mock()
    with monkeypatch.context() as patch:
        patch.setattr(cog.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(OutputError, match="0 MB are free, and this takes about 0 MB"):
            archive.run(one, IDENTITY)
    with monkeypatch.context() as patch:
        patch.setattr(targets.os, "access", lambda path, _: Path(path) != out)
        assert error() == f"{out / 'a.tif'}: its folder is not writable"
        patch.setattr(targets.os, "access", lambda path, _: Path(path) != tmp_path)
        with pytest.raises(OutputError, match=f"--tmp {tmp_path}: it is not writable"):
            archive.run(one, IDENTITY)
    assert names(out) == []
    journal = Journal.open(out / "a.tif.partial", {})
    assert "a.tif.partial: another run is writing here" in error()
    journal.release()
    assert not built.called


def test_files_are_made_beside_the_next_scenes_computing_and_one_scene_waits_at_most(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    lock = threading.Lock()

    def note(text: str) -> None:
        with lock:
            events.append(text)

    compute, finish, begin = (
        writer.ResultWriter.compute,
        writer.ResultWriter.publish,
        writer.ResultWriter.__init__,
    )
    second = threading.Event()

    def noted_begin(self: writer.ResultWriter, dataset: object, outputs: object, **rest: object) -> None:
        begin(self, dataset, outputs, **rest)
        note(f"begun {outputs.eo.name[0]}")

    def noted_compute(self: writer.ResultWriter, progress: object = None) -> None:
        name = self.outputs.eo.name[0]
        note(f"compute {name}")
        if name == "b":
            second.set()
        compute(self, progress)

    def noted_finish(self: writer.ResultWriter) -> dict:
        name = self.outputs.eo.name[0]
        if name == "a":
            assert second.wait(30), "the first scene's files wait for the second's computing: it must begin"
        report = finish(self)
        note(f"finished {name}")
        return report

    monkeypatch.setattr(writer.ResultWriter, "__init__", noted_begin)
    monkeypatch.setattr(writer.ResultWriter, "compute", noted_compute)
    monkeypatch.setattr(writer.ResultWriter, "publish", noted_finish)
    assert statuses(archive.run(recipe(scenes, out=out), IDENTITY)) == ["done"] * 3
    assert events.index("compute b") < events.index("finished a")
    assert events.index("begun c") > events.index("begun b")
    assert events.index("compute c") > events.index("compute b")
    assert events.index("finished a") < events.index("finished b") < events.index("finished c")


def test_the_model_is_loaded_once_for_all_scenes(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    create = loading._create_translator
    monkeypatch.setattr(loading, "_create_translator", lambda spec: loaded.append(1) or create(spec))
    monkeypatch.setattr(loading, "_LOADED", type(loading._LOADED)())
    archive.run(recipe(scenes, out=out), IDENTITY)
    assert loaded == [1]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, out: Path) -> None:
    for number in range(4):
        write_scene(tmp_path / f"s{number}.tif", amplitude((700, 700), number))
    slow = (
        "import signal, time\nfrom sar2eo.model import loading as models; from sar2eo import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a shell's background
        "quick = models.IdentityTranslator.translate\n"
        "def slow(self, *args):\n    time.sleep(0.05)\n    return quick(self, *args)\n"
        "models.IdentityTranslator.translate = slow\ncli.main()"
    )
    command = ["translate", str(tmp_path / "s*.tif"), "--out", str(out), *SMALL, "--batch", "1"]
    for signal_number, results in ((signal.SIGKILL, 1), (signal.SIGINT, 2)):
        process = subprocess.Popen([sys.executable, "-c", slow, *command], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(list(out.glob("*_eo.tif"))) < results and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal_number)
        _, told = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 130)
        assert "Traceback" not in told
    report = tmp_path / "report.json"
    assert run(*command, "--report", report).exit_code == 0
    counts = json.loads(report.read_text())["counts"]
    assert counts["skipped"] >= 2
    assert counts["skipped"] + counts["done"] == 4
    for number in range(4):
        expected = np.repeat(read(tmp_path / f"s{number}.tif"), 3, 0)
        np.testing.assert_array_equal(read(out / f"s{number}_eo.tif"), expected)
    assert len(names(out)) == 9, "four results, their items, the collection, and nothing else"


def test_flags_of_names_and_temporary_space(scenes: Path, out: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    space.mkdir()
    flags = ("--name", "{stem}-{date}", "--quicklook", "{stem}.png", "--tmp", space)
    done = run("translate", scenes / "a.tif", "--out", out, *SMALL, *flags)
    assert done.exit_code == 0, done.output
    assert names(out) == ["a-20240506.json", "a-20240506.tif", "a.png", "collection.json"]
    assert not list(space.iterdir())


@pytest.mark.slow
def test_workers_make_the_same_files(scenes: Path, out: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for folder, workers in ((alone, 0), (out, 2)):
        done = run("translate", scenes, "--out", folder, *SMALL, "--workers", workers)
        assert done.exit_code == 0, done.output
    for path in alone.glob("*.tif"):
        np.testing.assert_array_equal(read(path), read(out / path.name))
    assert names(alone) == names(out)


def test_a_lost_cluster_ends_the_run_and_tells_what_is_pending(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise ClusterError("the cluster has had no workers")

    translate_region = archive.translate_region

    def slow(part: Region, *more: object) -> object:
        time.sleep(0.5 if part.scene.attrs["source"].endswith("b.tif") else 0)
        return translate_region(part, *more)

    monkeypatch.setattr(writer.ResultWriter, "compute", lost)
    monkeypatch.setattr(archive, "translate_region", slow)
    report = out.parent / "report.json"
    with pytest.raises(ClusterError):
        archive.run(recipe(scenes, out=out, report=str(report)), IDENTITY)
    # The next scene, which was being opened, is let go: it may be tried again at once.
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sar2eo-prepare")]
    assert json.loads(report.read_text())["counts"] == {"done": 0, "skipped": 0, "failed": 1, "pending": 2}
    monkeypatch.undo()
    assert statuses(archive.run(recipe(scenes, out=out), IDENTITY)) == ["done"] * 3


def test_an_unexpected_error_of_one_scene_is_reported_and_the_others_go_on(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = writer.ResultWriter.compute

    def odd(self: writer.ResultWriter, progress: object = None) -> None:
        if self.outputs.eo.name == "a_eo.tif":
            raise ZeroDivisionError("odd")
        compute(self, progress)

    monkeypatch.setattr(writer.ResultWriter, "compute", odd)
    entries = archive.run(recipe(scenes, out=out), IDENTITY)
    assert statuses(entries) == ["failed", "done", "done"]
    assert entries[0].reason == "ZeroDivisionError: odd"


def test_a_dry_run_of_an_archive_tells_and_writes_nothing(scenes: Path, out: Path) -> None:
    (scenes / "b.tif").write_bytes(b"II*\0nothing")
    done = run("translate", scenes, "--out", out, *SMALL, "--dry-run")
    assert done.exit_code == 1, done.output
    assert "1 of 3 scenes failed" in done.stderr
    for words in ("pending  2", "failed   1", "a_eo.tif", "disk, GB", "seconds at most"):
        assert words in done.stdout
    assert names(out) == []


def test_settings_no_scene_could_have_are_one_error(scenes: Path, out: Path) -> None:
    done = run("translate", scenes, "--out", out, "--model", "identity", "--tile", "100", "--overlap", "60")
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    asked = recipe(scenes, out=out, tmp=str(out / "absent"))
    with pytest.raises(OutputError, match="--tmp"):
        plan(asked, IDENTITY, find_target(asked))


@pytest.mark.parametrize("kept_open", [64, 1])
def test_a_scene_is_opened_once_and_its_outputs_are_checked_before_work_and_under_the_lock(
    scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch, kept_open: int
) -> None:
    opened: list[str] = []
    checked: list[str] = []
    open_scene, check = region.open_scene, Outputs.check
    monkeypatch.setattr(
        region, "open_scene", lambda source, **rest: opened.append(source) or open_scene(source, **rest)
    )
    monkeypatch.setattr(
        Outputs, "check", lambda self, **rest: checked.append(self.eo.name) or check(self, **rest)
    )
    monkeypatch.setattr(planning, "_KEPT_OPEN", kept_open)
    assert statuses(archive.run(recipe(scenes, out=out), IDENTITY)) == ["done"] * 3
    assert len(opened) == (3 if kept_open == 64 else 5), "of a long archive, scenes are opened again"
    assert sorted(checked) == [f"{name}_eo.tif" for name in "aabbcc"]
