"""``sar2eo match``: files of any kind, one kind of answer for every method, pictures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from PIL import Image
from support.dataset_fixtures import write_tif
from support.dcdm_fixtures import untrained_matcher
from support.model_fixtures import simulate_pair

from sar2eo.cli import cli
from sar2eo.errors import SettingsError
from sar2eo.matching.match_files import METHODS, match_files, merge_polarisations

ROW, COL, SIDE = 21, 37, 96
PLACE = Affine(10.0, 0.0, 400_000.0, 0.0, -10.0, 3_800_000.0)
SAR = {"quantity": "dn", "polarisations": "VH"}
FLAGS = ["--quantity", "dn", "--pol", "VH"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a template that lies 3 rows and -2 columns off its georeference, and plain pictures."""
    root = tmp_path_factory.mktemp("match")
    sar, eo = simulate_pair(160, 176, 5)
    sar = (sar * 1000 + 1).astype(np.uint16)
    eo = (eo[:, ROW : ROW + SIDE, COL : COL + SIDE] * 255).astype(np.uint8)
    write_tif(root / "sar.tif", sar, transform=PLACE)
    write_tif(root / "eo.tif", eo, transform=PLACE @ Affine.translation(COL + 2, ROW - 3))
    Image.fromarray((sar // 4).astype(np.uint8)).save(root / "sar.png")
    Image.fromarray(np.moveaxis(eo, 0, -1)).save(root / "eo.png")
    noise = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "noise.png")
    return root


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["match", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_command_offers_the_methods_there_are() -> None:
    options = {option.name: option for option in cli.get_command(click.Context(cli), "match").params}
    assert tuple(options["method"].type.choices) == METHODS  # type: ignore[attr-defined]
    assert options["method"].default == "structure"


def test_a_template_is_found_and_against_its_georeference(folder: Path) -> None:
    found = match_files(folder / "sar.tif", folder / "eo.tif", **SAR)
    assert found["matched"]
    assert found["shift"] == pytest.approx([ROW, COL], abs=1)
    assert found["expected"] == pytest.approx([ROW - 3, COL + 2])
    assert found["displacement"] == pytest.approx([3, -2], abs=1)
    assert found["displacement_crs"] == pytest.approx(
        [-10 * found["displacement"][0], 10 * found["displacement"][1]]
    )
    assert found["score"] >= found["threshold"]


@pytest.mark.parametrize("method", ["structure", "ncc", "phase"])
def test_pictures_without_a_georeference_are_matched_too(folder: Path, method: Any) -> None:
    found = match_files(folder / "sar.png", folder / "eo.png", method=method, **SAR)
    assert found["expected"] is None
    assert found["displacement"] is None
    if found["matched"]:
        assert found["ratio"] >= found["ratio_threshold"]
    else:
        assert found["shift"] is None
    if method == "structure":
        assert found["shift"] == pytest.approx([ROW, COL], abs=1)


def test_what_cannot_be_matched_has_no_shift(folder: Path, tmp_path: Path) -> None:
    code, told = run(
        *("--search", folder / "sar.png", "--template", folder / "noise.png", "--out", tmp_path / "m"), *FLAGS
    )
    assert code == 0, told
    assert "cannot be matched (score" in told
    report = json.loads((tmp_path / "m" / "match.json").read_text())
    assert not report["matched"]
    assert report["shift"] is None
    assert report["displacement"] is None


def test_the_folder_has_report_and_pictures(folder: Path, tmp_path: Path) -> None:
    command = [
        "--search",
        folder / "sar.tif",
        "--template",
        folder / "eo.tif",
        *FLAGS,
        "--out",
        tmp_path / "m",
    ]
    code, told = run(*command)
    assert code == 0, told
    assert "found at row 2" in told
    assert "from where its georeference puts it" in told
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {"match.json", "place.png", "similarity.png"}
    assert np.asarray(Image.open(tmp_path / "m" / "similarity.png")).std() > 10
    code, told = run(*command)
    assert code == 1
    assert "is not empty" in told
    code, told = run(*command, "--overwrite", "--json")
    assert code == 0
    assert json.loads(told)["matched"]


def test_dcdm_answers_in_the_same_way_and_shows_what_it_saw(folder: Path, tmp_path: Path) -> None:
    model = untrained_matcher(tmp_path / "model", threshold=0.0, false_accepts=0.005)
    found = match_files(
        *(folder / "sar.tif", folder / "eo.tif"),
        **SAR,
        method="dcdm",
        model=model,
        out=tmp_path / "m",
        steps=2,
        threads=1,
    )
    assert found["matched"]
    assert (found["steps"], found["false_accepts"], found["model"]) == (2, 0.005, "tiny")
    assert found["expected"] == pytest.approx([ROW - 3, COL + 2])
    translated = np.asarray(Image.open(tmp_path / "m" / "translated.png"))
    assert translated.shape == (SIDE, SIDE, 3)
    assert (tmp_path / "m" / "attention.png").stat().st_size > 1000
    strict = untrained_matcher(tmp_path / "strict", threshold=1.5)
    refused = match_files(
        folder / "sar.tif", folder / "eo.tif", **SAR, method="dcdm", model=strict, steps=1, threads=1
    )
    assert not refused["matched"]
    assert refused["shift"] is None
    code, told = run(
        *("--search", folder / "sar.tif", "--template", folder / "eo.tif", "--quantity", "dn", "--pol", "VV"),
        *("--method", "dcdm", "--model", model, "--threads", "1"),
    )
    assert code == 1
    assert "has VV, the matcher was trained on VH" in told


@pytest.mark.parametrize("method", ["structure", "phase", "ncc"])
def test_methods_that_are_not_learned_ask_for_no_polarisation_and_no_quantity(
    folder: Path, tmp_path: Path, method: str
) -> None:
    expected = match_files(folder / "sar.tif", folder / "eo.tif", method=method, **SAR)
    with rasterio.open(folder / "sar.tif") as file:
        write_tif(tmp_path / "s.tif", file.read().astype(np.float32), transform=file.transform)
    found = match_files(tmp_path / "s.tif", folder / "eo.tif", method=method)
    told = ("matched", "shift", "score")
    assert [found[name] for name in told] == [expected[name] for name in told]


def test_what_does_not_go_together_is_refused(folder: Path, tmp_path: Path) -> None:
    sar, eo = folder / "sar.tif", folder / "eo.tif"
    with pytest.raises(SettingsError, match="must be one of"):
        match_files(sar, eo, method="other", **SAR)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="goes with method dcdm"):
        match_files(sar, eo, model="m", **SAR)
    for name, value in (("steps", 3), ("scaling", 4.0)):
        with pytest.raises(SettingsError, match=f"{name}={value}: goes with method dcdm"):
            match_files(sar, eo, **{name: value}, **SAR)
    half = np.zeros((3, 32, 32), np.uint8)
    write_tif(tmp_path / "fine.tif", half, transform=PLACE @ Affine.scale(0.5))
    with pytest.raises(SettingsError, match="must be the same"):
        match_files(sar, tmp_path / "fine.tif", **SAR)
    write_tif(tmp_path / "deep.tif", half.astype(np.uint16), transform=PLACE)
    with pytest.raises(SettingsError, match="one or three bands of bytes"):
        match_files(sar, tmp_path / "deep.tif", **SAR)
    code, told = run("--search", sar, "--template", tmp_path / "nothing.tif", *FLAGS)
    assert code == 1
    assert "cannot be read" in told


def test_polarisations_count_alike_however_loud_they_are() -> None:
    amplitude = np.random.default_rng(1).random((2, 60, 50), np.float32)
    expected = (amplitude / np.percentile(amplitude, 99, axis=(1, 2), keepdims=True)).mean(axis=0)
    loud = amplitude * np.float32([[[1000]], [[1]]])
    np.testing.assert_allclose(merge_polarisations(loud), expected, rtol=1e-5)
    loud[1, 3, 4] = np.nan
    assert np.isnan(merge_polarisations(loud)).sum() == 1
    np.testing.assert_array_equal(merge_polarisations(loud[:1]), loud[0])
