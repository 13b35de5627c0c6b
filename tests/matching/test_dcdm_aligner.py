"""Pairs aligned by a trained matcher, through the protocol that the classical one goes through."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.dcdm_fixtures import untrained_matcher
from support.model_fixtures import simulate_pair
from support.pairs_scenes import SETTINGS, write_scenes

from sar2eo.cli import cli
from sar2eo.errors import CheckpointError, OutputError, PairsError, PolarisationError, SettingsError
from sar2eo.matching.dcdm.aligner import DcdmAligner
from sar2eo.matching.dcdm.matcher import match_dcdm
from sar2eo.model.card import MatcherCard
from sar2eo.model.folder import ModelFolder
from sar2eo.pairs.builder import build_pairs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matcher") / "model"
    return untrained_matcher(folder, threshold=0.0, false_accepts=0.5, polarisations=("VV",))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("given") / "scenes")


def test_the_shift_is_that_of_the_middle_of_the_neighbourhood(model):
    sar, eo = simulate_pair(64, 64, 3)
    grey = eo.mean(axis=0) * 255
    aligner = DcdmAligner(model)
    assert (aligner.neighbourhood_px, aligner.template_px, aligner.polarisations) == (64, 32, ("VV",))
    found = aligner.displacement(sar.reshape(1, 64, 64), grey)
    direct = match_dcdm(grey[16:48, 16:48], sar.reshape(64, 64), model=model, scaling=1.0)
    assert (found.rows, found.cols) == pytest.approx((direct.shift[0] - 16, direct.shift[1] - 16))
    assert found.score == direct.score
    # An untrained one that accepts everything: only a place at the edge of the search is not sure.
    assert found.sure == (max(abs(found.rows), abs(found.cols)) <= 15)
    empty = aligner.displacement(np.full((1, 64, 64), np.nan, np.float32), grey)
    assert not empty.sure
    assert np.isnan(empty.rows)


def test_pairs_depend_on_what_the_matcher_is_not_on_where_it_lies(model, tmp_path):
    aligner, again = DcdmAligner(model), DcdmAligner(model, threads=1)
    assert aligner == again
    assert aligner.sha256 == ModelFolder(model, MatcherCard).sha256()
    moved = pickle.loads(pickle.dumps(aligner))  # noqa: S301  (as Dask sends it to a worker)
    assert moved == aligner
    other = untrained_matcher(tmp_path / "other", threshold=0.1, polarisations=("VV",))
    assert DcdmAligner(other) != aligner


def test_build_pairs_takes_a_matcher_and_records_it(model, scenes, tmp_path):
    given = (scenes / "sar" / "a.tif", scenes / "eo" / "a.tif", tmp_path / "pairs")
    settings = {**SETTINGS, "align": "score", "val": 0.0, "test": 0.0}
    index = build_pairs(*given, matcher=model, **settings)
    assert len(index)
    record = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert record["fingerprint"]["aligner"]["kind"] == "DcdmAligner"
    assert record["fingerprint"]["aligner"]["sha256"] == ModelFolder(model, MatcherCard).sha256()
    assert str(model) not in json.dumps(record["fingerprint"]["aligner"])
    measured = record["scene_pairs"][0]["alignment"]["displacements"]
    assert len(measured) >= 9
    assert index.shift_rows.notna().all()
    # The same matcher goes on; another, or none, builds other pairs.
    assert build_pairs(*given, matcher=str(model), **settings).attrs["report"]["done_before"]
    with pytest.raises(OutputError, match="aligner"):
        build_pairs(*given, **settings)


@pytest.mark.parametrize(
    ("card", "error", "words"),
    [
        ({"threshold": None}, CheckpointError, "no threshold"),
        ({"threshold": 0.1, "scaling": 300.0}, SettingsError, "takes amplitude divided by 300"),
    ],
)
def test_a_matcher_that_cannot_align_is_refused(scenes, tmp_path, card, error, words):
    model = untrained_matcher(tmp_path / "model", polarisations=("VV",), **card)
    with pytest.raises(error, match=words):
        build_pairs(
            scenes / "sar", scenes / "eo", tmp_path / "pairs", matcher=model, align="shift", **SETTINGS
        )
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("card", "error", "words"),
    [
        (
            {"polarisations": ("VV", "VH")},
            PolarisationError,
            "has VV, and the matcher was trained on VV, VH",
        ),
        ({"polarisations": ("VV",), "gsd_m": 1.0}, PairsError, "its pixels are 10 x 10 m on the ground"),
    ],
)
def test_the_scene_must_be_as_the_matcher_was_trained_on(scenes, tmp_path, card, error, words):
    model = untrained_matcher(tmp_path / "model", threshold=0.1, **card)
    given = (scenes / "sar/a.tif", scenes / "eo/a.tif", tmp_path / "pairs")
    with pytest.raises(error, match=words):
        build_pairs(*given, matcher=model, align="shift", **SETTINGS)


def test_a_matcher_goes_with_aligning(scenes, tmp_path):
    arguments = ["--sar", str(scenes / "sar"), "--eo", str(scenes / "eo"), "--out", str(tmp_path / "pairs")]
    done = CliRunner().invoke(cli, ["build-pairs", *arguments, "--matcher", "somewhere"])
    assert done.exit_code == 2
    assert "goes with align score or shift" in done.stderr
    done = CliRunner().invoke(cli, ["build-pairs", *arguments, "--matcher", "somewhere", "--align", "shift"])
    assert done.exit_code == 1
    assert "somewhere: no such folder" in done.stderr
