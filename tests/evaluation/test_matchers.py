"""The evaluation of matches: measures by hand, the bootstrap, the report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.dataset_fixtures import built_pairs, changed_index
from support.dcdm_fixtures import untrained_matcher

from sar2eo.cli import cli
from sar2eo.errors import CheckpointError, OutputError, PairsError, SettingsError
from sar2eo.evaluation.matchers import _add_noise, bootstrap_error_ratio, evaluate_matcher, figures
from sar2eo.matching.dcdm.similarity import Images, PlantedTemplates
from sar2eo.settings import DataSettings, MatchEvaluationSettings


def test_measures_by_hand() -> None:
    found = figures([0.0, 3.0, 4.0, 5.0, 12.0])
    assert found["cmr_5"] == 0.8
    assert found["cmr_2"] == 0.2
    assert found["rmse_5"] == pytest.approx(math.sqrt((9 + 16 + 25) / 4))
    assert found["rmse_all"] == pytest.approx(math.sqrt((9 + 16 + 25 + 144) / 5))
    assert math.isnan(figures([9.0])["rmse_5"])


def test_the_bootstrap_draws_places_and_pairs_methods() -> None:
    draw = np.random.default_rng(1)
    places = [f"p{i // 10}" for i in range(400)]
    wrong = draw.random(400) < 0.5
    same = bootstrap_error_ratio(wrong, wrong, places, resamples=200, seed=1)
    assert same == {"ratio": 1.0, "low": 1.0, "high": 1.0, "places": 40.0}
    fewer = wrong & (draw.random(400) < 0.5)
    found = bootstrap_error_ratio(fewer, wrong, places, resamples=500, seed=1)
    assert found["ratio"] == pytest.approx(fewer.sum() / wrong.sum())
    assert found["low"] < found["ratio"] < found["high"] < 1
    # All of one place: nothing is drawn anew.
    one = bootstrap_error_ratio(fewer, wrong, ["p"] * 400, resamples=50, seed=1)
    assert one["low"] == one["ratio"] == one["high"]
    assert math.isnan(bootstrap_error_ratio(wrong, wrong & False, places, resamples=9, seed=1)["ratio"])


def test_noise_has_the_variance_of_an_image_from_0_to_1() -> None:
    grey = torch.zeros(1, 3, 64, 64)
    planted = PlantedTemplates(Images(grey, grey[:, :1], grey, grey[:, :1]), grey, torch.zeros(1, 2))
    noisy = _add_noise(planted, 1.0, 5).images.template / 2  # as from 0 to 1, less a half
    assert float(noisy.var()) == pytest.approx(0.01, rel=0.05)
    assert _add_noise(planted, 0.0, 5) is planted
    assert float(_add_noise(planted, 30.0, 5).images.template.abs().max()) <= 1


def test_the_report_has_every_method_on_the_same_templates(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"test": 3}, size=64)
    model = untrained_matcher(tmp_path / "model", threshold=0.0, polarisations=("VV",))
    settings = MatchEvaluationSettings(
        against=("structure", "ncc"), noise=(0.0, 5.0), sweep_steps=(1,), offsets=2, resamples=20, threads=1
    )
    seen: list[int] = []
    found = evaluate_matcher(
        *(model, pairs, tmp_path / "out", settings), progress=lambda _, done, total: seen.append(total - done)
    )
    assert seen == [5, 4, 3, 2, 1, 0]
    assert set(found["methods"]) == {"dcdm", "structure", "ncc"}
    for values in found["methods"].values():
        assert values["matches"] == 6
        assert set(values["noise"]) == {"0", "5"}
        assert values["noise"]["0"]["cmr_5"] == values["cmr_5"]
        assert set(values["scenes"]) == {"sar.tif"}
        assert values["rmse_all"] <= math.hypot(32, 32)
    # At a threshold of 0 all is accepted, so all that is wrong is a false accept.
    dcdm = found["methods"]["dcdm"]
    assert dcdm["accepted"] == dcdm["false_accepts_elsewhere"] == 1
    assert dcdm["false_accepts"] == pytest.approx(1 - dcdm["cmr_5"])
    assert found["comparison"]["against"] in ("structure", "ncc")
    assert found["comparison"]["places"] == 3
    assert json.loads((tmp_path / "out" / "matches.json").read_text()) == found
    told = (tmp_path / "out" / "report.md").read_text()
    assert "| dcdm |" in told
    assert "## By number of steps" in told
    with pytest.raises(OutputError, match="exists already"):
        evaluate_matcher(model, pairs, tmp_path / "out", settings)


def test_templates_are_as_large_as_in_training_and_scenes_keep_apart(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"test": 3}, size=64)
    changed_index(pairs, sar_href=[f"{name}/sar.tif" for name in "aab"])
    model = untrained_matcher(
        tmp_path / "model", threshold=0.0, polarisations=("VV",), search_px=48, template_px=32
    )
    settings = MatchEvaluationSettings(against=("ncc",), resamples=5, threads=1)
    found = evaluate_matcher(model, pairs, tmp_path / "out", settings)
    assert (found["data"]["search_px"], found["data"]["template_px"]) == (48, 32)
    assert all(v["rmse_all"] <= math.hypot(16, 16) for v in found["methods"].values())
    told = (tmp_path / "out" / "report.md").read_text()
    assert told.count("| a/sar.tif: ") == told.count("| b/sar.tif: ") == 2
    odd = untrained_matcher(
        tmp_path / "odd", threshold=0.0, polarisations=("VV",), search_px=64, template_px=24
    )
    with pytest.raises(SettingsError, match="multiples of 16"):
        evaluate_matcher(odd, pairs, tmp_path / "other", settings)


def test_pairs_of_one_place_have_no_strangers(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"test": 3}, size=64)
    changed_index(pairs, block="a", transform=lambda table: [list(table["transform"].iloc[0])] * 3)
    model = untrained_matcher(tmp_path / "model", threshold=0.0, polarisations=("VV",))
    with pytest.raises(PairsError, match="3 pairs of one place"):
        evaluate_matcher(model, pairs, tmp_path / "out", MatchEvaluationSettings(threads=1))


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"test": 2}, size=64)
    model = untrained_matcher(tmp_path / "model", polarisations=("VV",))
    with pytest.raises(CheckpointError, match="no threshold"):
        evaluate_matcher(model, DataSettings(pairs=str(pairs)), tmp_path / "out")
    calibrated = untrained_matcher(tmp_path / "calibrated", threshold=0.5, polarisations=("VV",))
    with pytest.raises(SettingsError, match="search=128"):
        evaluate_matcher(calibrated, pairs, tmp_path / "out", MatchEvaluationSettings(search=128))
    with pytest.raises(SettingsError, match="multiple of 64"):
        MatchEvaluationSettings(search=100)
    with pytest.raises(SettingsError, match="begin with 0"):
        MatchEvaluationSettings(noise=(1.0, 5.0))
    done = CliRunner().invoke(
        cli, ["evaluate-matcher", "--model", "m", "--pairs", "p", "--out", "o", "--noise", "0,5", "--dry-run"]
    )
    assert done.exit_code == 0, done.output
    assert "0, 5" in done.output
