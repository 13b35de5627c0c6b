"""Training of a matcher: planted offsets, negatives, resuming, and the measured threshold."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.dataset_fixtures import built_pairs
from support.dcdm_fixtures import untrained_matcher

from sar2eo.cli import cli
from sar2eo.cli.commands import read_stages
from sar2eo.errors import CheckpointError, SettingsError, TrainingError, TrainingWarning
from sar2eo.matching.dcdm.checkpoint import load_matcher
from sar2eo.matching.dcdm.matcher import match_dcdm
from sar2eo.matching.dcdm.similarity import plant_templates
from sar2eo.model.card import MatcherCard
from sar2eo.model.network import create_vae, encode_images
from sar2eo.model.weights import write_network
from sar2eo.settings import DataSettings, MatcherRecipe, MatcherSettings
from sar2eo.training import matcher_task
from sar2eo.training.matcher_run import prepare_matcher_training, threshold_for, train_matcher
from sar2eo.training.matcher_task import MatcherTask

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "widths": (16, 32),
    "template": 32,
    "crop": 64,
    "batch": 3,
    "steps": 2,
    "warmup": 1,
    "trials": 4,
    "threads": 1,
    "dtype": "float32",
    "device": "cpu",
    "validate_every": 0,
    "save_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matcher")
    built_pairs(root / "pairs", counts={"train": 4, "val": 3}, size=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        write_network(create_vae("tiny"), root / "base" / "vae")
    return root


def prepared_task(folder: Path, out: Path, **changes: Any) -> tuple[MatcherTask, dict[str, Any]]:
    recipe = MatcherRecipe(
        data=DataSettings(pairs=str(folder / "pairs")),
        out=str(out),
        vae=str(folder / "base"),
        settings=MatcherSettings(**SMALL | changes),
    )
    prepared = prepare_matcher_training(recipe)
    return prepared.task, next(iter(prepared.batches(0, 1)))  # type: ignore[call-overload]


def test_templates_are_cut_where_their_offsets_say() -> None:
    sar = torch.arange(2 * 3 * 20 * 24.0).view(2, 3, 20, 24)
    batch = {"sar": sar, "eo": -sar, "valid": (sar[:, :1] % 7 > 0).float()}
    planted = plant_templates(batch, 8, torch.Generator().manual_seed(4))
    assert planted.images.search is sar
    for index, (row, col) in enumerate(planted.offsets.tolist()):
        part = sar[index, :, row : row + 8, col : col + 8]
        assert torch.equal(planted.truth[index], part)
        assert torch.equal(planted.images.template[index], -part)
        assert torch.equal(planted.images.template_valid[index], (part[:1] % 7 > 0).float())


def test_every_offset_is_drawn_and_none_beyond() -> None:
    image = torch.zeros(64, 3, 10, 9)
    batch = {"sar": image, "eo": image, "valid": image[:, :1]}
    drawn = [plant_templates(batch, 8, torch.Generator().manual_seed(k)).offsets for k in range(4)]
    offsets = torch.cat(drawn)
    assert set(offsets[:, 0].tolist()) == {0, 1, 2}
    assert set(offsets[:, 1].tolist()) == {0, 1}


def test_some_templates_are_shown_with_another_pairs_search_image(folder: Path, tmp_path: Path) -> None:
    task, _ = prepared_task(folder, tmp_path / "run", negatives=0.5)
    assert not task._apart(0, 0)  # as the pairs themselves know
    task._apart = operator.ne
    shown, searched = task._choose_searches([7, 8, 9, 5])
    assert shown.tolist() == [0, 1, 2, 3, 0, 1]
    assert searched.tolist() == [0, 1, 2, 3, 1, 2]
    # One and the same pair twice, where two passes meet, is no negative.
    shown, searched = task._choose_searches([7, 7, 9, 5])
    assert list(zip(shown.tolist(), searched.tolist(), strict=True))[4:] == [(0, 2), (1, 2)]
    # Nor is the same ground on another date.
    task._apart = lambda one, other: {one, other} == {5, 9}
    shown, searched = task._choose_searches([7, 8, 9, 5])
    assert list(zip(shown.tolist(), searched.tolist(), strict=True))[4:] == [(2, 3), (3, 2)]
    none, _ = prepared_task(folder, tmp_path / "run", negatives=0.0)
    assert none._choose_searches([1, 2])[0].tolist() == [0, 1]


def test_the_loss_is_the_weighted_sum_of_its_parts(folder: Path, tmp_path: Path) -> None:
    task, batch = prepared_task(folder, tmp_path / "run", ssim=0.5, position=0.25, similarity=0.125)
    loss, facts = task.loss("denoiser", batch, 0, torch.Generator().manual_seed(1))
    expected = (
        facts["squared_error"]
        + 0.5 * facts["structure"]
        + 0.25 * facts["position"]
        + 0.125 * facts["similarity"]
    )
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    again, _ = task.loss("denoiser", batch, 0, torch.Generator().manual_seed(1))
    assert torch.equal(loss, again)
    loss.backward()
    trained = dict(task.phases["denoiser"].named_parameters())
    assert all(p.grad is not None for p in trained.values())
    assert all(p.grad is None for p in task.checkpoint.vae.parameters())


def test_latents_of_search_images_are_kept_and_the_loss_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, batch = prepared_task(folder, tmp_path / "run")
    first, _ = task.loss("denoiser", batch, 0, torch.Generator().manual_seed(1))
    encoded: list[tuple[int, int]] = []

    def counted(vae: Any, images: torch.Tensor) -> torch.Tensor:
        encoded.append((len(images), images.shape[-1]))
        return encode_images(vae, images)

    monkeypatch.setattr(matcher_task, "encode_images", counted)
    again, _ = task.loss("denoiser", batch, 0, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    count = len(batch["sar"])
    small = (2 * count, SMALL["template"])
    assert encoded == [small]  # templates and truths only
    others = {**batch, "sar": batch["sar"].clone()}
    others["sar"][1:] *= 0.5
    task.loss("denoiser", others, 0, torch.Generator().manual_seed(1))
    assert encoded[1:] == [small, (count - 1, SMALL["crop"])]


def test_most_templates_are_noised_as_in_sampling(folder: Path, tmp_path: Path) -> None:
    count, shape = 60, (60, 4, 8, 8)
    clean, optical = torch.ones(shape), torch.randn(shape, generator=torch.Generator().manual_seed(2))
    given = optical, torch.zeros(60, 4, 16, 16), torch.ones(60, 1, 16, 16)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    task, _ = prepared_task(folder, tmp_path / "run", truth=0.25)
    noisy, timesteps, sampled = task._add_noise(clean, given, torch.Generator().manual_seed(3))
    assert 0.6 * count < int(sampled.sum()) < 0.9 * count
    signal = task._bars[timesteps].sqrt()[:, None, None, None]
    source = (noisy - (1 - signal**2).sqrt() * drawn) / signal
    # From the truth, Eq. 2; else from pure noise, or from what the network makes of that.
    assert torch.allclose(source[~sampled], clean[~sampled], atol=2e-3)
    pure = sampled & (timesteps == 999)
    assert 0.2 * count < int(pure.sum()) < 0.6 * count
    assert torch.equal(noisy[pure], drawn[pure])
    own = sampled & ~pure
    with torch.no_grad():
        last = torch.full((int(own.sum()),), 999)
        network = task.phases["denoiser"]
        guess = network(drawn[own], *(part[own] for part in given), last)[0].clean
    assert torch.allclose(source[own], guess, atol=2e-2)
    alone, _ = prepared_task(folder, tmp_path / "run", truth=1.0)
    assert not alone._add_noise(clean, given, torch.Generator().manual_seed(3))[2].any()


def test_a_batch_is_learnt_by_heart(folder: Path, tmp_path: Path) -> None:
    task, batch = prepared_task(folder, tmp_path / "run")
    optimiser = torch.optim.AdamW(task.phases["denoiser"].parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, facts = task.loss("denoiser", batch, 0, torch.Generator().manual_seed(1))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.phases["denoiser"].parameters(), 1.0)
        optimiser.step()
        losses.append((float(loss.detach()), float(facts["position"]), float(facts["similarity"])))
    first, last = np.array(losses[0]), np.array(losses[-1])
    assert (last < 0.85 * first).all(), (first, last)


def test_a_base_is_gone_on_from_with_its_own_networks(folder: Path, tmp_path: Path) -> None:
    base = untrained_matcher(tmp_path / "base", polarisations=("VH",), threshold=0.5)
    settings = MatcherSettings(**SMALL | {"widths": (64, 64)})
    data = DataSettings(pairs=str(folder / "pairs"))
    recipe = MatcherRecipe(data=data, out=str(tmp_path / "run"), base=str(base), settings=settings)
    task = prepare_matcher_training(recipe).task
    begun = task.checkpoint.denoiser.state_dict()
    assert all(
        torch.equal(value, begun[name]) for name, value in load_matcher(base).denoiser.state_dict().items()
    )
    # The card speaks of these pairs, and of the base's VAE alone.
    assert (task.card.polarisations, task.card.threshold) == (("VV",), None)
    assert task.card.vae_sha256 == MatcherCard.read(base).vae_sha256
    final = train_matcher(folder / "pairs", tmp_path / "run", base=base, **SMALL)
    trained = load_matcher(final)
    assert trained.denoiser.config.features == 4  # the base's, which no setting names
    assert not torch.equal(trained.denoiser.conv_out.weight, begun["conv_out.weight"])
    with pytest.raises(TrainingError, match="was begun with base"):
        train_matcher(folder / "pairs", tmp_path / "run", base=final, **SMALL)
    with pytest.raises(CheckpointError, match="no such folder"):
        train_matcher(folder / "pairs", tmp_path / "new", base=tmp_path / "missing", **SMALL)
    assert not (tmp_path / "new").exists()


def test_a_run_its_threshold_and_going_on(folder: Path, tmp_path: Path) -> None:
    args = {"vae": folder / "base", **SMALL}
    final = train_matcher(folder / "pairs", tmp_path / "run", **args)
    card = MatcherCard.read(final)
    assert card.threshold is not None
    assert card.false_accepts == 0.005
    assert card.polarisations == ("VV",)
    assert (card.template_px, card.search_px, card.steps) == (32, 64, 5)
    assert card.metrics["calibration_trials"] == 4
    assert card.metrics["calibration_false_accepts"] == 0
    assert card.metrics["calibration_false_accepts_elsewhere"] == 0
    assert 0 <= card.metrics["validation_cmr_2"] <= card.metrics["validation_cmr_5"] <= 1
    assert (tmp_path / "run" / "pictures" / "step-000002.png").is_file()
    assert MatcherCard.read(tmp_path / "run" / "best").threshold is None
    found = match_dcdm(
        np.full((32, 32, 3), 90.0), np.random.default_rng(1).rayleigh(size=(64, 64)), model=final
    )
    assert found.matched == (found.score >= card.threshold)

    # Stopped after its first step and gone on with: the same weights.
    def stop(counts: Any) -> None:
        if counts.get("steps") == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_matcher(folder / "pairs", tmp_path / "again", progress=stop, **args)
    assert not (tmp_path / "again" / "final").exists()
    again = train_matcher(folder / "pairs", tmp_path / "again", **args)
    weights = "denoiser/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (final / weights).read_bytes()
    assert MatcherCard.read(again).threshold == card.threshold
    with pytest.raises(TrainingError, match="was begun with"):
        train_matcher(folder / "pairs", tmp_path / "again", **args | {"position": 0.3})


def test_the_command_shows_what_it_would_train_and_trains(folder: Path, tmp_path: Path) -> None:
    words: list[Any] = ["train-matcher", "--pairs", folder / "pairs", "--vae", folder / "base"]
    words += ["--out", tmp_path / "run"]
    for name, value in SMALL.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words += [f"--{name.replace('_', '-')}", text]

    def run(*more: str) -> str:
        done = CliRunner().invoke(cli, [*map(str, words), *more])
        assert done.exit_code == 0, done.output
        return done.output

    planned = " ".join(run("--dry-run").split())
    for fact in ("template 32", "4 train pairs", "factor 4", "parameters "):
        assert fact in planned, fact
    assert not (tmp_path / "run").exists()
    assert "final: 2 steps in " in run()
    assert "all 2 steps were done before" in run()


def test_without_validation_pairs_there_is_no_threshold(folder: Path, tmp_path: Path) -> None:
    built_pairs(tmp_path / "pairs", counts={"train": 3}, size=64)
    with pytest.warns(TrainingWarning, match="without validation"):
        final = train_matcher(
            tmp_path / "pairs", tmp_path / "run", vae=folder / "base", **SMALL | {"steps": 1}
        )
    assert MatcherCard.read(final).threshold is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"template": 64, "crop": 64}, "must be smaller than crop=64"),
        ({"template": 40}, "template=40: must be a multiple of 32"),
        ({"widths": (16,)}, "must be two numbers"),
        ({"negatives": 1.5}, "negatives"),
        ({"false_accepts": 0.0}, "false_accepts"),
        ({"position": -1.0}, "position"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        MatcherSettings(**changes)


def test_images_smaller_than_the_search_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="build larger pairs"):
        prepared_task(folder, tmp_path / "run", crop=96)
    assert not (tmp_path / "run").exists()


def test_a_recipe_has_a_stage_for_it() -> None:
    table = {"train-matcher": {"data": {"pairs": "p"}, "out": "o", "settings": {"widths": [64, 128]}}}
    (stage,) = read_stages(table)
    assert stage.recipe.settings.widths == (64, 128)
    assert stage.recipe.vae == "bundled"


@given(arrays(float, st.integers(1, 60), elements=st.floats(0, 1)), st.floats(0, 1))
def test_a_threshold_lets_pass_no_more_than_its_share(scores: np.ndarray, share: float) -> None:
    threshold = threshold_for(scores, share)
    assert (scores >= threshold).sum() <= share * len(scores) + 1e-6
    if threshold > 0:
        # A lower one, at the next score below, would let pass too many.
        below = scores[scores < threshold]
        assert (scores >= below.max()).sum() > np.floor(share * len(scores) + 1e-9)


def test_thresholds_by_hand() -> None:
    scores = [0.9, 0.1, 0.5, 0.7]
    assert threshold_for(scores, 0.25) == np.nextafter(0.7, 1)
    assert threshold_for(scores, 0.0) == np.nextafter(0.9, 1)
    assert threshold_for(scores, 1.0) == 0.0
    assert json.loads(json.dumps(threshold_for(scores, 0.5))) == np.nextafter(0.5, 1)
