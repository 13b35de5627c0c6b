"""Each experiment runs, small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.dataset_fixtures import built_pairs
from support.dcdm_fixtures import untrained_matcher

from sar2eo.model.checkpoint import load_checkpoint, save_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(script: str, *arguments: object) -> str:
    program = [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)]
    return subprocess.run(program, check=True, capture_output=True, text=True, timeout=900).stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint whose variance varies."""
    out = tmp_path_factory.mktemp("model")
    card = {"prediction_type": "v_prediction", "spacing": "trailing", "steps": 1, "polarisations": ("VH",)}
    checkpoint = load_checkpoint(init_checkpoint(out / "plain", size="tiny", **card))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checkpoint.unet.conv_out.weight.data[-1].normal_(std=0.1)
    return save_checkpoint(checkpoint, out / "model")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scene with discrepancies; its height is no multiple of the model's factor."""
    out = tmp_path_factory.mktemp("simulated") / "scene"
    write_pair(simulate_pair(SimulationSettings(size=(381, 384), seed=5)), out)
    return out


def test_the_confidence_report_compares_changed_with_unchanged_objects(
    model: Path, scene: Path, tmp_path: Path
) -> None:
    common = ("report", "--model", model, "--threads", 1, "--timesteps", 250)
    run("confidence/confidence.py", *common, "--scenes", scene, "--out", tmp_path / "report")
    found = json.loads((tmp_path / "report/report.json").read_text())
    assert set(found["calibration"]) == {"250", "500"}  # the card's own is added
    by_group = {(group["kind"], group["discrepancy"]): group for group in found["groups"]}
    assert len(by_group) == 5
    for (kind, discrepancy), group in by_group.items():
        assert group["changed"] > 0
        assert group["unchanged"] > 0
        scores = [
            [row["scores"] for row in found["objects"] if (row["kind"], row["state"]) == (kind, state)]
            for state in (discrepancy, "unchanged")
        ]
        for name, area in group["areas"].items():
            changed, unchanged = ([row[name] for row in rows] for rows in scores)
            order = [1.0 if c > u else 0.5 if c == u else 0.0 for c in changed for u in unchanged]
            assert area["value"] == pytest.approx(np.mean(order))
            assert 0 <= area["low"] <= area["value"] <= area["high"] <= 1
    # The contrasts see just the objects that their sensor saw.
    for kind in ("ship", "vehicle"):
        assert by_group[kind, "eo-only"]["areas"]["sar contrast"]["value"] < 0.1
        assert by_group[kind, "sar-only"]["areas"]["eo contrast"]["value"] < 0.1
    assert "| ships, sar-only |" in (tmp_path / "report/report.md").read_text()


def test_confidence_of_a_real_pair_is_drawn(model: Path, scene: Path, tmp_path: Path) -> None:
    pair, window = (scene / "sar.tif", scene / "eo.tif"), (100, 150, 100, 120)
    out = tmp_path / "pair.png"
    common = ("picture", "--model", model, "--threads", 1)
    run("confidence/confidence.py", *common, "--pair", *pair, "--window", *window, "--out", out)
    with Image.open(out) as picture:
        assert np.asarray(picture).std() > 20


def test_parts_of_a_matcher_are_switched_off(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"val": 3}, size=64)
    # Of what an untrained network knows any part may be missed or not: here it only has to run.
    model = untrained_matcher(tmp_path / "model", polarisations=("VV",), threshold=0.5)
    lines = run("switched_off/switched_off.py", pairs, "--model", model).splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("without nothing: learned 0.")
    assert lines[3].startswith("without calibration: learned 0.")
    assert all(len(line.rpartition("all maps ")[2].split()) == 2 for line in lines)


def test_planted_shifts_are_recovered_and_other_places_refused(tmp_path: Path) -> None:
    program = ("misregistration/misregistration.py", tmp_path, "--shifts", 3, "--strangers", 3,
               "--size", 768, "--grid", 150)  # fmt: skip
    shown = run(*program)
    study = json.loads((tmp_path / "study.json").read_text())
    found = study["methods"]["structure"]
    assert (found["accepted"]["count"], found["accepted"]["of"]) == (3, 3)
    assert found["within_1_px"]["count"] == 3
    assert found["largest_px"] < 1
    # Three of three says little, and the table says so.
    assert found["within_1_px"]["low"] < 0.3
    assert (found["false_accepts"]["count"], found["false_accepts"]["of"]) == (0, 3)
    assert "| structure | 3 of 3 (29.2 to 100.0 %) |" in shown
    planted = [case for case in study["cases"] if case["planted"] is not None]
    lengths = [np.hypot(*case["planted"]) for case in planted]
    np.testing.assert_allclose(lengths, [0, 10, 20], atol=0.01)
    for case in planted:
        assert case["error_px"] == np.hypot(*np.subtract(case["found"], case["planted"]))
    assert {(case["eo"], case["sar"]) for case in study["cases"]} == {
        (0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0),
    }  # fmt: skip
    # The same command has nothing left to do.
    before = (tmp_path / "cases.jsonl").read_bytes()
    again = run(*program)
    assert again == shown
    assert (tmp_path / "cases.jsonl").read_bytes() == before
