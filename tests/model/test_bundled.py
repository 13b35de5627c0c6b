"""The model that comes with the package."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from click.testing import CliRunner
from support.model_fixtures import simulate_pair
from support.scene_fixtures import speckle, write_raster

import sar2eo
from sar2eo.cli import cli
from sar2eo.errors import CheckpointError, FitWarning, SceneError
from sar2eo.matching.dcdm.matcher import Matcher, match_dcdm
from sar2eo.model import folder
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.folder import BUNDLED
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import resolve_model


def test_without_a_bundled_model_another_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "model" / "folder.py"))
    with pytest.raises(CheckpointError, match="has no model of its own: name a checkpoint folder"):
        resolve_model(BUNDLED)
    told = CliRunner().invoke(cli, ["model", "info", "bundled"])
    assert told.exit_code == 1
    assert len(told.stderr.splitlines()) == 1


def test_the_bundled_model_is_known_by_its_name_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine has it elsewhere, so no path may travel in the spec."""
    for place in ("here", "there"):
        init_checkpoint(tmp_path / place / BUNDLED, size="tiny", name="x")
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "here" / "model" / "folder.py"))
    spec = resolve_model(BUNDLED, device="cpu", dtype="float32")
    assert (spec.path, spec.folder) == (BUNDLED, tmp_path / "here" / BUNDLED)
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "there" / "model" / "folder.py"))
    assert spec.folder == tmp_path / "there" / BUNDLED
    assert load_translator(spec) is load_translator(spec)
    told = CliRunner().invoke(cli, ["model", "info", "bundled"])
    assert told.exit_code == 0
    assert spec.sha256 in told.stdout


def test_its_card_says_what_it_is_and_it_is_small() -> None:
    spec = resolve_model(BUNDLED, device="cpu", dtype="float32")
    card = spec.card
    assert card is not None
    assert (card.polarisations, card.scaling, card.encoder) == (("VV", "VH"), "db", True)
    assert card.gsd_m == 10
    assert card.steps <= 8
    assert "contains modified Copernicus Sentinel data 2016-2021" in card.training_data
    assert card.licence != "unknown"
    assert card.metrics
    assert sum(path.stat().st_size for path in spec.folder.rglob("*")) < 40e6


def test_the_bundled_matcher_is_small_calibrated_and_finds_a_planted_template() -> None:
    matcher = Matcher(BUNDLED, device="cpu", threads=1)
    card = matcher.card
    assert (card.polarisations, card.scaling, card.template_px) == (("VH",), "p99", 128)
    assert "contains modified Copernicus Sentinel data 2020" in card.training_data
    assert {"calibration_accepted", "test_cmr_5"} <= set(card.metrics)
    assert sum(path.stat().st_size for path in matcher.folder.rglob("*")) < 20e6
    sar, eo = simulate_pair(256, 256, 3)
    template = np.ascontiguousarray(np.moveaxis(eo * 255, 0, -1)[41:169, 90:218])
    found = match_dcdm(template, sar, model=matcher)
    top = np.unravel_index(found.surface.argmax(), found.surface.shape)
    assert top == pytest.approx((41, 90), abs=3)
    told = CliRunner().invoke(cli, ["model", "info", "bundled_matcher", "--json"])
    described = json.loads(told.stdout)
    counted = sum(value.numel() for value in matcher.checkpoint.denoiser.parameters())
    assert described["parameters"]["denoiser"] == counted
    assert described["card"] == card.to_dict()


@pytest.fixture
def scene_file(tmp_path: Path) -> Callable[..., Path]:
    def write(pixel_m: float, polarisation: str) -> Path:
        placed = Affine(pixel_m, 0.0, 500_000.0, 0.0, -pixel_m, 4_000_000.0)
        return write_raster(
            tmp_path / f"scene_{polarisation}.tif", speckle((96, 96)), transform=placed, names=[polarisation]
        )

    return write


@pytest.mark.parametrize(
    ("pixel_m", "polarisation", "words"),
    [
        (0.5, "VH", r"0\.5 x 0\.5 m on the ground, the model was trained at 10 m"),
        (60.0, "VH", r"open it with resolution=10"),
    ],
)
def test_what_its_card_cannot_serve_is_refused_in_words_that_help(
    scene_file: Callable[..., Path], pixel_m: float, polarisation: str, words: str
) -> None:
    scene = sar2eo.open_scene(scene_file(pixel_m, polarisation), quantity="amplitude")
    with pytest.raises(SceneError, match=words) as refused:
        sar2eo.translate(scene)
    assert "force=True" in str(refused.value)
    with pytest.warns(FitWarning, match=words):
        assert sar2eo.translate(scene, force=True)["eo"].shape == (3, 96, 96)
