"""Whether the variance tells planted discrepancies from unchanged objects: areas, scores, the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sar2eo
from sar2eo.cli import cli
from sar2eo.errors import OutputError, PairsError, PolarisationError, SceneError, SettingsError
from sar2eo.evaluation.confidence.objects import RING_PX, Truth, contrasts, read_truth, score_objects
from sar2eo.evaluation.confidence.roc import GROUPS, compare_groups, roc_curve
from sar2eo.evaluation.confidence.study import judge_confidence, picture_confidence
from sar2eo.evaluation.confidence.variance_maps import ScenePair, VarianceMaps, map_variance, open_scene_pair
from sar2eo.geo.blending import upsample
from sar2eo.model.card import Card
from sar2eo.model.checkpoint import load_checkpoint, save_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.spec import resolve_model
from sar2eo.settings.confidence import ConfidenceRecipe, ConfidenceSettings
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ConfidenceSettings(threads=1, device="cpu", dtype="float32", steps=2, timesteps=(250,), tile=192)
CARD = {"prediction_type": "v_prediction", "spacing": "trailing", "steps": 1, "polarisations": ("VH",)}

SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scene with discrepancies; its height is no multiple of the model's factor."""
    out = tmp_path_factory.mktemp("simulated") / "scene"
    write_pair(simulate_pair(SimulationSettings(size=(381, 384), seed=5)), out)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint, whose variance is 1 everywhere."""
    return init_checkpoint(tmp_path_factory.mktemp("plain") / "plain", size="tiny", **CARD)


@pytest.fixture(scope="module")
def model(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a variance that varies."""
    checkpoint = load_checkpoint(plain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checkpoint.unet.conv_out.weight.data[-1].normal_(std=0.1)
    return save_checkpoint(checkpoint, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def report(model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report"
    returned = judge_confidence(model, (folder,), out, QUICK)
    assert returned == json.loads((out / "report.json").read_text())
    return out


# Areas


def in_order(changed: list[float], unchanged: list[float]) -> float:
    """The share of pairs in the right order."""
    return float(np.mean([1.0 if c > u else 0.5 if c == u else 0.0 for c in changed for u in unchanged]))


def objects(kind: str, state: str, **scores: list[float]) -> list[dict[str, Any]]:
    columns = zip(*scores.values(), strict=True)
    rows = [dict(zip((name.replace("_", " ") for name in scores), column, strict=True)) for column in columns]
    return [{"kind": kind, "state": state, "pixels": 9, "scores": row} for row in rows]


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_the_right_order(
    changed: list[float], unchanged: list[float]
) -> None:
    both = [*objects("ship", "sar-only", forced=changed), *objects("ship", "unchanged", forced=unchanged)]
    area = compare_groups(both, "none", seed=1)[0]["areas"]["forced"]["value"]
    assert area == pytest.approx(in_order(changed, unchanged))
    wrong, found = roc_curve(changed, unchanged)
    assert np.trapezoid(found, wrong) == pytest.approx(area)
    assert (wrong[0], found[0], wrong[-1], found[-1]) == (0, 0, 1, 1)


def test_groups_are_of_one_kind_and_the_lead_counts_the_better_direction_of_the_contrast() -> None:
    draw = np.random.default_rng(1)
    ships = [
        *objects("ship", "sar-only", forced=[4.0, 5.0, 6.0, 7.0] * 10, sar_contrast=[0.0] * 40),
        *objects("ship", "unchanged", forced=draw.normal(4, 1, 60), sar_contrast=[1.0] * 57 + [0.0] * 3),
        # What lies on land must not count among ships.
        *objects("vehicle", "unchanged", forced=[99.0] * 50, sar_contrast=[-99.0] * 50),
    ]
    groups = {(g["kind"], g["discrepancy"]): g for g in compare_groups(ships, "forced", seed=3)}
    assert tuple(groups) == GROUPS
    found = groups["ship", "sar-only"]
    assert (found["changed"], found["unchanged"], found["pixels"]) == (40, 60, [9, 9])
    forced, contrast = found["areas"]["forced"], found["areas"]["sar contrast"]
    assert contrast["value"] == pytest.approx(0.5 * 3 / 60)
    assert forced["low"] < forced["value"] < forced["high"] < 1
    # The textbook's standard error of an area (Hanley and McNeil) is not far from the bootstrap's.
    area = forced["value"]
    error = np.sqrt(
        (area * (1 - area) + 39 * (area / (2 - area) - area**2) + 59 * (2 * area**2 / (1 + area) - area**2))
        / 2400
    )
    assert (forced["high"] - forced["low"]) / (2 * 1.96) == pytest.approx(error, rel=0.3)
    assert found["margin"]["value"] == pytest.approx(area - (1 - contrast["value"]))
    assert found["margin"]["low"] < found["margin"]["value"] < found["margin"]["high"]
    assert groups["field", "changed"]["areas"] == {}
    assert groups["field", "changed"]["margin"] is None
    again = {(g["kind"], g["discrepancy"]): g for g in compare_groups(ships, "forced", seed=3)}
    assert again == groups


# Scores


def test_a_variance_that_knows_scores_one_and_a_constant_one_half(folder: Path) -> None:
    truth = read_truth(folder)
    pair = open_scene_pair(folder / "sar.tif", folder / "eo.tif", Card(name="x", polarisations=("VH",)))
    knows = np.isin(truth.label, truth.numbers[truth.changed])
    maps = VarianceMaps(
        forced={500: np.where(knows, 3.0, 0.5).astype(np.float32)},
        error={500: np.ones_like(pair.sar[0])},
        sampled=np.full_like(pair.sar[0], 0.7),
        valid=pair.valid,
    )
    rows = score_objects(truth, pair, maps, factor=1)
    groups = compare_groups(rows, "forced 500 mean", seed=1)
    assert all(group["changed"] > 1 and group["unchanged"] > 1 for group in groups)
    for group in groups:
        for name in ("forced 500 mean", "forced 500 max"):
            assert group["areas"][name] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert group["areas"]["sampled mean"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    by_group = {(group["kind"], group["discrepancy"]): group["areas"] for group in groups}
    # The contrasts see just the objects that their sensor saw.
    for kind in ("ship", "vehicle"):
        assert by_group[kind, "eo-only"]["sar contrast"]["value"] < 0.1
        assert by_group[kind, "sar-only"]["eo contrast"]["value"] < 0.1


def test_surprise_is_the_squared_error_over_the_variance_and_finds_what_is_more_wrong_than_said(
    folder: Path,
) -> None:
    truth = read_truth(folder)
    pair = open_scene_pair(folder / "sar.tif", folder / "eo.tif", Card(name="x", polarisations=("VH",)))
    changed = np.isin(truth.label, truth.numbers[truth.changed])
    flat = np.full_like(pair.sar[0], 0.5)
    flat[0, 0] = 0.0  # where nothing was run
    maps = VarianceMaps(
        forced={999: flat},
        error={999: np.where(changed, 2.0, 0.25).astype(np.float32)},
        sampled=flat,
        valid=pair.valid,
    )
    found = maps.surprise(999)
    assert set(np.unique(found).tolist()) == {0.0, 0.5, 4.0}
    rows = score_objects(truth, pair, maps, factor=1)
    for row in rows:
        expected = np.log10(0.5 if row["state"] == "unchanged" else 4.0)
        assert row["scores"]["surprise 999 mean"] == pytest.approx(expected)
    for group in compare_groups(rows, "forced 999 mean", seed=1):
        assert group["areas"]["surprise 999 mean"]["value"] == 1.0
        assert group["areas"]["forced 999 mean"]["value"] == 0.5


def test_objects_over_pixels_without_data_are_left_out(folder: Path) -> None:
    truth = read_truth(folder)
    pair = open_scene_pair(folder / "sar.tif", folder / "eo.tif", Card(name="x", polarisations=("VH",)))
    flat = np.ones_like(pair.sar[0])
    valid = pair.valid.copy()
    first = truth.label == truth.numbers[0]
    valid.flat[np.flatnonzero(first)[0]] = False
    maps = VarianceMaps(forced={500: flat}, error={500: flat}, sampled=flat, valid=valid)
    numbers = {row["number"] for row in score_objects(truth, pair, maps, factor=1)}
    assert set(truth.numbers.tolist()) - numbers == {int(truth.numbers[0])}


def test_contrasts_are_taken_against_ground_that_is_no_object_and_valid() -> None:
    amplitude, levels = np.full((60, 60), 0.2, np.float32), np.full((3, 60, 60), 100.0, np.float32)
    label, valid = np.zeros((60, 60), np.uint16), np.ones((60, 60), bool)
    label[20:24, 20:24], label[20:24, 27:30] = 1, 2
    amplitude[20:24, 20:24], levels[:, 20:24, 20:24] = 0.8, 130.0
    amplitude[19, 20] = 1.0  # beside the object: within the guard
    amplitude[20:24, 27:30] = 0.9  # another object
    amplitude[:, 16:18], valid[:, 16:18] = 0.9, False
    amplitude[20 - RING_PX - 1] = 1.0  # beyond the ring
    truth = Truth(
        settings={},
        label=label,
        numbers=np.array([1, 2]),
        kinds=np.array([1, 1]),
        states=np.array([1, 2]),
    )
    pair = ScenePair(sar=np.stack([amplitude * 2 - 1] * 3), eo=levels / 127.5 - 1, valid=valid)
    sar, eo = contrasts(truth, pair)
    assert sar[0] == pytest.approx(20 * np.log10(4), abs=1e-3)
    assert eo[0] == pytest.approx(30 * np.sqrt(3), abs=1e-2)
    valid[:] = False
    assert np.isnan(contrasts(truth, pair)[0]).all()


# Maps


def test_the_sampled_variance_is_the_translators(model: Path, tmp_path: Path) -> None:
    write_pair(simulate_pair(SimulationSettings(size=128, seed=2, nodata_edges=False)), tmp_path)
    spec = resolve_model(model, device="cpu", dtype="float32", steps=2, threads=1)
    pair = open_scene_pair(tmp_path / "sar.tif", tmp_path / "eo.tif", spec.card)
    maps = map_variance(pair, spec, timesteps=(500,), tile=128, overlap=0)
    scene = sar2eo.open_scene(tmp_path / "sar.tif")
    translated = sar2eo.translate(scene, spec, tile=128, overlap=0)
    whole = upsample(maps.sampled, spec.factor, slice(0, 128), slice(0, 128))
    np.testing.assert_allclose(1 / translated["confidence"].values, whole, rtol=1e-5)
    assert maps.valid.all()
    assert maps.forced[500].shape == maps.sampled.shape == (128 // spec.factor,) * 2
    assert (maps.forced[500] != maps.sampled).any()


def test_latent_pixels_that_reach_past_the_scene_or_its_data_are_not_valid(model: Path, folder: Path) -> None:
    spec = resolve_model(model, device="cpu", dtype="float32", steps=1, threads=1)
    pair = open_scene_pair(folder / "sar.tif", folder / "eo.tif", spec.card)
    maps = map_variance(pair, spec, timesteps=(500,), tile=192, overlap=32)
    height, width = (-(-side // spec.factor) for side in pair.valid.shape)
    assert maps.valid.shape == maps.sampled.shape == (height, width)
    assert not maps.valid[-1].any()
    whole = pair.valid[: (height - 1) * spec.factor].reshape(height - 1, spec.factor, width, spec.factor)
    np.testing.assert_array_equal(maps.valid[:-1], whole.all(axis=(1, 3)))
    assert (maps.forced[500][maps.valid] > 0).all()


# The report


def test_the_report_has_all_it_promises(report: Path, model: Path, folder: Path) -> None:
    found = json.loads((report / "report.json").read_text())
    assert {"software", "settings", "model", "scenes", "left_out", "groups", "calibration", "objects"} <= set(
        found
    )
    assert found["timesteps"] == [250, 500]  # the card's own is added
    assert found["model"]["sha256"] == resolve_model(model).sha256
    assert found["scenes"][0]["settings"]["seed"] == 5
    assert [(group["kind"], group["discrepancy"]) for group in found["groups"]] == list(GROUPS)
    names = ("forced 250", "forced 500", "surprise 250", "surprise 500", "sampled")
    detectors = {f"{name} {s}" for name in names for s in ("mean", "max")}
    detectors |= {"sar contrast", "eo contrast", "size"}
    for group in found["groups"]:
        assert set(group["areas"]) == detectors
        for area in group["areas"].values():
            assert 0 <= area["low"] <= area["value"] <= area["high"] <= 1
        assert set(group["margin"]) == {"value", "low", "high"}
        rows = [row for row in found["objects"] if row["kind"] == group["kind"]]
        scores = [
            [row["scores"]["forced 500 mean"] for row in rows if row["state"] == state]
            for state in (group["discrepancy"], "unchanged")
        ]
        assert group["areas"]["forced 500 mean"]["value"] == pytest.approx(in_order(*scores))
    assert set(found["calibration"]) == {"250", "500"}
    for table in found["calibration"].values():
        assert len(table["quantiles"]) == 10
        assert table["ratio"] > 0
    text = (report / "report.md").read_text()
    pictures = {"ships.png", "vehicles.png", "fields.png", "roc.png", "calibration.png"}
    assert {path.name for path in report.iterdir()} == pictures | {"report.json", "report.md"}
    for name in pictures:
        assert f"({name})" in text
        with Image.open(report / name) as picture:
            assert np.asarray(picture).std() > 5


def test_a_model_without_a_trained_variance_gets_words_and_no_number(
    plain: Path, folder: Path, tmp_path: Path
) -> None:
    found = judge_confidence(plain, (folder,), tmp_path / "report", replace(QUICK, steps=1, tile=384))
    assert "loss l2" in found["left_out"]["variance"]
    assert found["calibration"] == {}
    for group in found["groups"]:
        # Surprise is then the squared error alone.
        surprises = {f"surprise {t} {s}" for t in found["timesteps"] for s in ("mean", "max")}
        assert set(group["areas"]) == surprises | {"sar contrast", "eo contrast", "size"}
        assert group["margin"] is None
    assert "loss l2" in (tmp_path / "report/report.md").read_text()


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["confidence", *map(str, arguments)])


def test_the_command_line_plans_and_refuses_in_one_line(
    report: Path, model: Path, folder: Path, tmp_path: Path
) -> None:
    common = ("--model", model, "--scenes", folder, "--threads", 1, "--tile", 128)
    planned = run(*common, "--out", tmp_path / "new", "--timesteps", "100,900", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "100, 500, 900" in planned.stdout
    assert not (tmp_path / "new").exists()
    before = (report / "report.json").read_bytes()
    for arguments, words, code in (
        ((*common, "--out", report), "exists already", 1),
        (("--model", "identity", "--scenes", folder, "--out", tmp_path / "new"), "no variance", 2),
        (("--model", model, "--scenes", report, "--out", tmp_path / "new"), "folder of sar2eo simulate", 1),
        (("--model", model, "--out", tmp_path / "new"), "scenes", 2),
        ((*common, "--timesteps", "1000", "--out", tmp_path / "new"), "timesteps=(1000,)", 2),
        ((*common, "--tile", 102, "--overlap", 0, "--out", tmp_path / "new"), "tile=102", 2),
    ):
        told = run(*arguments)
        assert told.exit_code == code, told.output
        assert told.stderr.startswith("Error: ")
        assert words in told.stderr
        assert len(told.stderr.splitlines()) == 1
    assert (report / "report.json").read_bytes() == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"shift": (2.0, 0.0)}, "without --shift"), ({"discrepancies": False}, "without --no-discrepancies")],
)
def test_scenes_that_prove_nothing_are_refused(
    change: dict[str, Any], words: str, model: Path, tmp_path: Path
) -> None:
    write_pair(simulate_pair(SimulationSettings(size=128, seed=2, **change)), tmp_path / "scene")
    with pytest.raises(SceneError, match=words):
        judge_confidence(model, (tmp_path / "scene",), tmp_path / "report", QUICK)
    assert not (tmp_path / "report").exists()


def test_the_picture_of_a_real_pair_needs_no_truth(model: Path, folder: Path, tmp_path: Path) -> None:
    pair, out = (folder / "sar.tif", folder / "eo.tif"), tmp_path / "pair.png"
    told = run("--model", model, "--pair", *pair, "--window", "100,150,100,120", "--out", out, "--threads", 1)
    assert told.exit_code == 0, told.output
    with Image.open(out) as picture:
        assert np.asarray(picture).std() > 20
    with pytest.raises(OutputError, match="exists already"):
        picture_confidence(model, pair, (0, 0, 64, 64), out, QUICK)
    out = tmp_path / "new.png"
    with pytest.raises(SettingsError, match="381 x 384"):
        picture_confidence(model, pair, (350, 0, 64, 64), out, QUICK)
    with pytest.raises(PairsError, match="red, green, blue"):
        picture_confidence(model, (pair[0], pair[0]), (0, 0, 64, 64), out, QUICK)
    with pytest.raises(PairsError, match="cannot be read"):
        picture_confidence(model, (pair[0], tmp_path / "none.tif"), (0, 0, 64, 64), out, QUICK)
    elsewhere = tmp_path / "elsewhere.tif"
    with rasterio.open(pair[1]) as source:
        profile = {**source.profile, "transform": source.transform @ source.transform.translation(1, 0)}
        with rasterio.open(elsewhere, "w", **profile) as moved:
            moved.write(source.read())
    with pytest.raises(PairsError, match="grid"):
        picture_confidence(model, (pair[0], elsewhere), (0, 0, 64, 64), out, QUICK)
    with pytest.raises(PolarisationError, match="VV"):
        open_scene_pair(*pair, Card(name="x", polarisations=("VV",)))
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"scenes": ("a",), "pair": ("b", "c"), "window": (0, 0, 1, 1)},
        {"pair": ("b",), "window": (0, 0, 1, 1)},
        {"pair": ("b", "c")},
        {"scenes": ("a",), "window": (0, 0, 1, 1)},
        {"pair": ("b", "c"), "window": (0, 0, 1)},
    ],
)
def test_recipes_name_scenes_or_a_pair_with_its_window(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        ConfidenceRecipe(model="m", out="o", **wrong)
