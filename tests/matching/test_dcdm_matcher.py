"""The matcher's folder, what a match yields, and that it says when it cannot match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.dcdm_fixtures import untrained_matcher
from support.model_fixtures import simulate_pair

from sar2eo.cli import cli
from sar2eo.errors import CheckpointError, OutputError, SettingsError
from sar2eo.matching.dcdm import similarity
from sar2eo.matching.dcdm.checkpoint import load_matcher, save_matcher
from sar2eo.matching.dcdm.matcher import Matcher, match_dcdm
from sar2eo.matching.structure import compare_structure
from sar2eo.model.card import MatcherCard
from sar2eo.model.folder import SCHEDULER_CONFIG, WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_matcher(tmp_path_factory.mktemp("matcher") / "m", threshold=0.0)


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Matcher:
    return Matcher(folder, threads=1)


def images(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return a template of 36 x 44 pixels cut from row 9, column 20, and its search image."""
    sar, eo = simulate_pair(70, 90, seed)
    template = np.moveaxis(eo * 255, 0, -1)[9:45, 20:64]
    return np.ascontiguousarray(template), sar


def test_a_folder_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    found = load_matcher(folder)
    again = load_matcher(save_matcher(found, tmp_path / "again"))
    assert again.card == found.card
    assert again.schedule == found.schedule
    for one, other in ((found.denoiser, again.denoiser), (found.vae, again.vae)):
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())
    index = json.loads((folder / "model_index.json").read_text())
    assert index["denoiser"] == ["sar2eo", "MatchingDenoiser"]
    with pytest.raises(OutputError, match="exists already"):
        save_matcher(found, tmp_path / "again")


def test_a_packed_matcher_has_half_the_bytes_and_finds_the_same(
    folder: Path, matcher: Matcher, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    report.mkdir()
    figures = '{"settings": {"split": "val"}, "methods": {"dcdm": {"cmr_5": 0.5, "scenes": {}}}}'
    (report / "matches.json").write_text(figures)
    out = tmp_path / "packed"
    args = ["model", "pack", str(folder), "--out", str(out), "--report", str(report), "--licence", "CC0-1.0"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    packed = Matcher(out, threads=1)
    assert packed.card.licence == "CC0-1.0"
    assert packed.card.metrics == {**matcher.card.metrics, "validation_cmr_5": 0.5}
    for part in ("denoiser", "vae"):
        sizes = [(place / part / WEIGHTS).stat().st_size for place in (out, folder)]
        assert sizes[0] < 0.7 * sizes[1]
    template, search = images()
    found, expected = (match_dcdm(template, search, model=m) for m in (packed, matcher))
    np.testing.assert_allclose(found.surface, expected.surface, atol=0.02)
    refused = CliRunner().invoke(cli, [*args[:4], str(tmp_path / "other"), "--vae", str(folder)])
    assert refused.exit_code == 2
    assert "no other" in refused.output


def test_broken_folders_are_refused_in_a_line(folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return save_matcher(load_matcher(folder), tmp_path / name)

    with pytest.raises(CheckpointError, match=r"no such folder, and not a hub id"):
        Matcher(tmp_path / "nothing")
    exchanged = copy("exchanged")
    card = json.loads((exchanged / MatcherCard.file_name).read_text())
    (exchanged / MatcherCard.file_name).write_text(json.dumps(card | {"vae_sha256": "0"}))
    with pytest.raises(CheckpointError, match="not the one that the card names"):
        load_matcher(exchanged)
    (exchanged / MatcherCard.file_name).write_text(json.dumps(card | {"more": 1}))
    with pytest.raises(CheckpointError, match="unknown or missing fields more"):
        Matcher(exchanged)
    pickled = copy("pickled")
    (pickled / "denoiser" / WEIGHTS).rename(pickled / "denoiser" / "weights.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        Matcher(pickled)
    other = copy("other")
    scheduler = json.loads((other / SCHEDULER_CONFIG).read_text())
    (other / SCHEDULER_CONFIG).write_text(json.dumps(scheduler | {"prediction_type": "epsilon"}))
    with pytest.raises(CheckpointError, match="must be 'sample'"):
        load_matcher(other)
    lacking = copy("lacking")
    (lacking / MatcherCard.file_name).unlink()
    with pytest.raises(CheckpointError, match="not a matcher"):
        Matcher(lacking)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("steps", 0),
            ("steps", 2.5),
            ("threshold", -0.1),
            ("pixel_weight", -1.0),
            ("structure_weight", None),
            ("scaling", 0),
        ],
        *[("polarisations", ()), ("polarisations", ("XX",)), ("gsd_m", -1), ("quantity", "grey")],
    ],
)
def test_a_card_refuses_what_cannot_be(field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=field):
        MatcherCard(**{"name": "x", field: value})  # type: ignore[arg-type]


def test_what_a_match_yields(matcher: Matcher) -> None:
    template, search = images()
    found = match_dcdm(template, search, model=matcher)
    assert found.matched
    assert found.shift is not None
    assert 0 <= found.shift[0] <= 70 - 36
    assert 0 <= found.shift[1] <= 90 - 44
    assert found.surface.shape == (70 - 36 + 1, 90 - 44 + 1)
    assert found.translated.shape == (36, 44, 3)
    assert found.translated.dtype == np.uint8
    # Sides are padded to multiples of 16 pixels, tokens are 8 wide.
    assert found.before.shape == found.after.shape == (6, 6, 12, 12)
    assert found.after.sum(axis=(2, 3)) == pytest.approx(np.ones((6, 6)), abs=1e-4)
    # The untrained block starts as the identity.
    assert found.after == pytest.approx(found.before, abs=1e-5)
    again = match_dcdm(template, search, model=Matcher(matcher.folder, threads=1))
    assert again.shift == found.shift
    assert again.score == found.score
    other = match_dcdm(template, search, model=matcher, seed=1)
    assert not np.array_equal(other.translated, found.translated)


def test_below_the_threshold_there_is_no_shift(tmp_path: Path) -> None:
    template, search = images()
    strict = untrained_matcher(tmp_path / "strict", threshold=1.5)
    found = match_dcdm(template, search, model=Matcher(strict, threads=1))
    assert not found.matched
    assert found.shift is None
    assert found.score < found.threshold == 1.5
    with pytest.raises(CheckpointError, match="no threshold"):
        match_dcdm(template, search, model=untrained_matcher(tmp_path / "new"))


def test_constant_factors_and_scaling_do_not_matter_or_do(matcher: Matcher) -> None:
    template, search = images()
    found = match_dcdm(template, search, model=matcher)
    brighter = match_dcdm(template, search * 7, model=matcher)
    assert np.allclose(brighter.surface, found.surface, atol=1e-4)
    darker = match_dcdm(template, search, model=matcher, scaling=4 * float(np.percentile(search, 99)))
    assert not np.allclose(darker.surface, found.surface, atol=1e-3)


def test_what_cannot_be_matched_is_refused(matcher: Matcher) -> None:
    template, search = images()
    with pytest.raises(SettingsError, match="must be larger"):
        match_dcdm(template, search[:36], model=matcher)
    with pytest.raises(SettingsError, match="polarisations VH"):
        match_dcdm(template, np.stack([search, search]), model=matcher)
    with pytest.raises(SettingsError, match="no valid pixel"):
        match_dcdm(template, np.full_like(search, np.nan), model=matcher)
    with pytest.raises(SettingsError, match=r"must be \(rows, cols\)"):
        match_dcdm(template[..., :2], search, model=matcher)
    with pytest.raises(SettingsError, match="steps=1001"):
        match_dcdm(template, search, model=matcher, steps=1001)


def test_grey_templates_are_three_equal_bands(matcher: Matcher) -> None:
    template, search = images()
    grey = template[..., 0]
    found = match_dcdm(grey, search, model=matcher)
    expected = match_dcdm(np.dstack([grey] * 3), search, model=matcher)
    assert np.array_equal(found.surface, expected.surface)


def test_invalid_pixels_have_no_influence_on_the_map_of_pixels(matcher: Matcher) -> None:
    template, search = images()
    holed = search.copy()
    holed[:20, :20] = np.nan
    found = match_dcdm(template, holed, model=matcher)
    assert np.isfinite(found.surface).all()
    assert np.isfinite(found.score)


def test_a_perfect_translation_is_found_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the true SAR for the translation, the place is found whatever the phase against the latents."""
    # The untrained features say nothing.
    made = untrained_matcher(tmp_path / "m", threshold=0.0, pixel_weight=100.0)
    matcher = Matcher(made, threads=1)
    search, _ = simulate_pair(96, 90, 11)
    original = similarity.compare_images

    def perfect(checkpoint, images, **options):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(similarity, "decode_latents", lambda *_: images.template)
        return original(checkpoint, images, **options)

    monkeypatch.setattr("sar2eo.matching.dcdm.matcher.compare_images", perfect)
    scale = float(np.percentile(search, 99))
    for row, col in ((0, 0), (5, 14), (31, 22), (46, 42)):
        patch = np.clip(search / scale, 0, 1)[row : row + 50, col : col + 48] * 255
        found = match_dcdm(patch, search, model=matcher)
        assert found.shift == pytest.approx((row, col), abs=0.3)


@pytest.mark.parametrize("size", [(64, 64), (50, 61)])
def test_edges_are_compared_as_without_learning(tmp_path: Path, size: tuple[int, int]) -> None:
    """With a weight that drowns what an untrained network says, also where images are padded."""
    made = untrained_matcher(tmp_path / "m", threshold=0.0, pixel_weight=0.0, structure_weight=1e4)
    sar, eo = simulate_pair(128, 120, 5)
    rows, cols = size
    template = np.ascontiguousarray(np.moveaxis(eo * 255, 0, -1)[30 : 30 + rows, 41 : 41 + cols])
    found = match_dcdm(template, sar, model=Matcher(made, threads=1))
    surface = compare_structure(np.clip(sar / np.percentile(sar, 99), 0, 1), template)
    assert found.surface.shape == surface.shape == (128 - rows + 1, 120 - cols + 1)
    np.testing.assert_allclose(found.surface, surface, atol=0.02)
    assert found.shift == pytest.approx(np.unravel_index(surface.argmax(), surface.shape), abs=0.6)


def test_where_less_is_known_than_the_template_covers_edges_tell_nothing(tmp_path: Path) -> None:
    made = untrained_matcher(tmp_path / "m", threshold=0.0, structure_weight=8.0)
    sar, eo = simulate_pair(96, 96, 5)
    half = sar.copy()
    half[:, 50:] = np.nan
    template = np.ascontiguousarray(np.moveaxis(eo * 255, 0, -1)[:64, :64])
    found = match_dcdm(template, half, model=Matcher(made, threads=1))
    assert found.surface.shape == (33, 33)
    assert np.isfinite(found.surface).all()


def test_one_step_is_one_pass_and_more_go_on_from_it(folder: Path) -> None:
    found = load_matcher(folder)
    calls: list[int] = []
    original = found.denoiser.denoise

    def counting(noisy, optical, context, timesteps):  # type: ignore[no-untyped-def]
        calls.append(int(timesteps[0]))
        return original(noisy, optical, context, timesteps)

    found.denoiser.denoise = counting  # type: ignore[method-assign]
    optical = torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        context = found.denoiser.encode_search(torch.zeros(1, 4, 16, 16), torch.ones(1, 1, 16, 16))
        for steps in (1, 5, 7):
            calls.clear()
            similarity.translate_latents(found.denoiser, optical, context, found.schedule, steps, 1)
            assert len(calls) == steps
            assert calls[0] == 999
            assert calls == sorted(calls, reverse=True)


def test_sampling_a_known_clean_latent_goes_straight_to_it(folder: Path) -> None:
    """A network that always predicts the same x0 ends there, from noise that fades as the schedule says."""
    found = load_matcher(folder)
    clean = torch.full((1, 4, 8, 8), 0.3)
    seen: list[torch.Tensor] = []

    class Constant:
        def denoise(self, noisy, optical, context, timesteps):  # type: ignore[no-untyped-def]
            seen.append(noisy)
            return similarity.Denoised(clean, clean, clean, clean)

    last = similarity.translate_latents(Constant(), clean, None, found.schedule, 2, 7)  # type: ignore[arg-type]
    assert torch.equal(last.clean, clean)
    bars = similarity.compute_alpha_bars(found.schedule)
    noise = (seen[0] - bars[999].sqrt() * clean) / (1 - bars[999]).sqrt()
    expected = bars[499].sqrt() * clean + (1 - bars[499]).sqrt() * noise
    assert torch.allclose(seen[1], expected, atol=1e-5)
