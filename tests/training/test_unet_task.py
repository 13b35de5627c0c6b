"""Fine-tuning of the U-Net on tiny pairs: what learns when, what does not count, what is written."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file
from support.base_fixtures import stable_diffusion_folder
from support.dataset_fixtures import built_pairs

import sar2eo
from sar2eo.datasets import Augmentation, build_latent_cache, collate, open_dataset
from sar2eo.errors import CheckpointError, PairsError, SettingsError, TrainingError, TrainingWarning
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, load_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.network import encode_images, split_prediction
from sar2eo.settings import DataSettings, TrainSettings, VaeSettings
from sar2eo.training.loop import create_accelerator
from sar2eo.training.phase import Phase
from sar2eo.training.task import Batch, contact_sheet
from sar2eo.training.unet_run import train
from sar2eo.training.unet_task import UNetTask, add_adapters, merge_adapters

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "batch": 2,
    "crop": 32,
    "lr": 1e-3,
    "warmup": 0,
    "ema": 0.5,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "validate_every": 0,
    "save_every": 0,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_pairs(tmp_path_factory.mktemp("pairs"), counts={"train": 4, "val": 1, "test": 1}, size=40)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_checkpoint(tmp_path_factory.mktemp("base") / "base", size="tiny", spacing="trailing")


def settings_of(**changes: Any) -> TrainSettings:
    return TrainSettings(**SETTINGS | changes)


def task_of(base: Path, **changes: Any) -> UNetTask:
    checkpoint = load_checkpoint(base)
    settings = settings_of(**changes)
    kind = settings.prediction_type or checkpoint.card.prediction_type
    card = dataclasses.replace(checkpoint.card, prediction_type=kind)
    return UNetTask(checkpoint, card, settings, torch.device("cpu"))


def some_batch(count: int = 2, size: int = 32) -> Batch:
    draw = torch.Generator().manual_seed(3)
    images = torch.rand((2, count, 3, size, size), generator=draw) * 2 - 1
    return {"sar": images[0], "eo": images[1], "valid": torch.ones(count, 1, size, size)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_fifth_channel_learns_from_the_first_step_and_tells_the_trunk_from_the_second(
    base: Path,
) -> None:
    task = task_of(base)
    unet, trunk = task.phases["unet"], task.phases["unet"].conv_in.weight
    phase = Phase("unet", task, create_accelerator(settings_of()), settings_of())

    def through_the_variance() -> torch.Tensor:
        inputs = torch.randn((1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
        output = unet(inputs, torch.tensor([500]), encoder_hidden_states=None, return_dict=False)[0]
        (gradient,) = torch.autograd.grad(split_prediction(output)[1].sum(), trunk)
        return gradient

    assert not unet.conv_out.weight[-1].any()
    assert not through_the_variance().any()
    phase.update(0, [some_batch()], [torch.Generator().manual_seed(0)])
    assert unet.conv_out.weight[-1].any()
    assert unet.conv_out.bias[-1] != 0
    assert through_the_variance().any()


def test_figures_stay_on_the_device_until_a_step_is_done(base: Path) -> None:
    _, facts = task_of(base).loss("unet", some_batch(), 0, torch.Generator().manual_seed(0))
    assert facts.keys() == {"squared_error", "variance"}
    assert all(isinstance(fact, torch.Tensor) and not fact.requires_grad for fact in facts.values())


def test_squared_error_leaves_the_fifth_channel_alone(base: Path) -> None:
    task = task_of(base, loss="l2")
    phase = Phase("unet", task, create_accelerator(settings_of()), settings_of())
    before = task.phases["unet"].conv_in.weight.detach().clone()
    for step in range(2):
        phase.update(step, [some_batch()], [torch.Generator().manual_seed(step)])
    assert not torch.equal(task.phases["unet"].conv_in.weight, before)
    assert not task.phases["unet"].conv_out.weight[-1].any()


@pytest.mark.parametrize("loss", ["c-diff", "c-diff-timestep", "l2"])
def test_what_is_not_valid_counts_in_no_loss(base: Path, loss: str) -> None:
    task, batch = task_of(base, loss=loss), dict(some_batch())
    batch |= task.encode_batch(batch)
    batch["valid_latents"] = torch.ones_like(batch["valid_latents"])
    batch["valid_latents"][:, :, :4] = 0
    spoilt = dict(batch)
    # Truth and noise enter the network as well, so only the target may differ here: v of another truth.
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    value, _ = task.loss("unet", batch, 0, draws[0])
    target = torch.randn_like(batch["eo_latents"], dtype=torch.float32)
    unet = task.phases["unet"]
    held: dict[str, Any] = {}
    unet.register_forward_hook(lambda *_: held["output"])
    held["output"] = (torch.cat([target, torch.zeros_like(target[:, :1])], dim=1),)
    flat, _ = task.loss("unet", batch, 0, torch.Generator().manual_seed(5))
    held["output"] = (held["output"][0].clone(),)
    held["output"][0][:, :, :4] += 100.0
    wrong, _ = task.loss("unet", spoilt, 0, draws[1])
    assert torch.equal(flat, wrong)
    assert value.isfinite()


def test_latents_are_valid_where_every_pixel_is(base: Path) -> None:
    batch = dict(some_batch())
    batch["valid"] = torch.ones(2, 1, 32, 32)
    batch["valid"][0, 0, 5, 9] = 0
    found = task_of(base).encode_batch(batch)["valid_latents"]
    expected = torch.ones(2, 1, 8, 8)
    expected[0, 0, 1, 2] = 0
    assert torch.equal(found, expected)


def test_cached_latents_train_like_the_same_crops_encoded_in_time(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    task, data = task_of(base), DataSettings(pairs=str(pairs))
    opened = open_dataset(data, "train")
    cache = build_latent_cache(
        opened,
        lambda images: encode_images(task.vae, images),
        tmp_path / "latents",
        crops=2,
        crop=32,
        factor=4,
        seed=7,
        model_sha256="0",
    )
    same = Augmentation(crop=32, flips=True, turns=True, seed=7, fixed=2, align=4)
    images = open_dataset(data, "train", augmentation=same)
    losses = []
    for samples in (cache, images):
        batch = collate([samples.sample(index, 3) for index in range(4)])
        losses.append(task.loss("unet", batch, 0, torch.Generator().manual_seed(1))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    other = collate([images.sample(index, 4) for index in range(4)])
    assert task.loss("unet", other, 0, torch.Generator().manual_seed(1))[0].item() != pytest.approx(
        losses[0], rel=1e-5
    )


def test_validation_is_the_same_every_time_and_leaves_the_training_weights(base: Path) -> None:
    task = task_of(base)
    with torch.no_grad():
        first, second = (task.validate([some_batch(1), some_batch(2)]) for _ in range(2))
    assert first == second
    assert set(first) == {"score", "squared_error", "variance", "psnr"}


def test_dropout_depends_on_the_step_alone_and_not_on_what_was_drawn_before(base: Path) -> None:
    def norm(dropout: float, disturbed: int) -> float:
        torch.manual_seed(disturbed)
        task = task_of(base, dropout=dropout)
        phase = Phase("unet", task, create_accelerator(settings_of()), settings_of())
        return float(phase.update(0, [some_batch()], [torch.Generator().manual_seed(0)])["grad_norm"])

    assert norm(0.5, 1) == norm(0.5, 2)
    assert norm(0.5, 1) != pytest.approx(norm(0.0, 1), rel=1e-3)
    with torch.no_grad():  # nothing is left out of what is validated, and kept
        found = [task_of(base, dropout=dropout).validate([some_batch(1)]) for dropout in (0.5, 0.0)]
    assert found[0] == found[1]


def test_gradient_checkpointing_changes_no_gradient(base: Path) -> None:
    norms = []
    for checkpointing in (False, True):
        task = task_of(base, gradient_checkpointing=checkpointing)
        phase = Phase("unet", task, create_accelerator(settings_of()), settings_of())
        norms.append(phase.update(0, [some_batch()], [torch.Generator().manual_seed(0)])["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_training_writes_a_checkpoint_that_translates(base: Path, pairs: Path, tmp_path: Path) -> None:
    final = train(str(pairs), base, tmp_path / "run", TrainSettings(**SETTINGS), validate_every=2)
    card = TranslatorCard.read(final)
    assert (card.name, card.quantity, card.polarisations) == ("run", "dn", ("VV",))
    assert card.gsd_m == pytest.approx(10, rel=0.01)
    assert "4 train pairs" in card.training_data
    assert card.metrics["validation_psnr"] > 0
    assert card.spacing == "trailing"
    assert weights(final).keys() == weights(base).keys()
    assert not torch.equal(weights(final)["conv_in.weight"], weights(base)["conv_in.weight"])
    assert load_checkpoint(tmp_path / "run" / "best").card.metrics
    chip = next((pairs / "chips").glob("*_sar.tif"))
    scene = sar2eo.open_scene(str(chip), polarisations=("VV",), quantity="dn")
    eo = sar2eo.translate(scene, model=str(final), tile=32, overlap=8, steps=2)["eo"].compute()
    assert eo.shape == (3, 40, 40)
    state = json.loads((tmp_path / "run/run.json").read_text())
    assert state["environment"]["threads"] == 1
    with pytest.raises(TrainingError, match=r"base.sha256"):
        train(str(pairs), final, tmp_path / "run", TrainSettings(**SETTINGS), validate_every=2)


def test_stable_diffusion_is_adapted_and_may_learn_to_predict_something_else(
    pairs: Path, tmp_path: Path
) -> None:
    base = stable_diffusion_folder(tmp_path / "sd")
    changes = SETTINGS | {"steps": 1, "prediction_type": "v_prediction"}
    final = train(str(pairs), base, tmp_path / "run", **changes)
    checkpoint = load_checkpoint(final)
    assert checkpoint.card.prediction_type == "v_prediction"
    assert checkpoint.unet.config.in_channels == 8
    assert checkpoint.prompt_embeds is not None
    # The second stage begins where the first ended.
    second = train(str(pairs), final, tmp_path / "second", **changes | {"loss": "c-diff-timestep"})
    assert load_checkpoint(second).card.prediction_type == "v_prediction"


def test_runs_on_the_same_vae_share_a_cache_of_latents(base: Path, pairs: Path, tmp_path: Path) -> None:
    changes = SETTINGS | {"steps": 1, "cache_latents": True, "crops": 1, "gain_jitter": 0.2}
    cache = tmp_path / "latents"
    first = train(str(pairs), base, tmp_path / "first", latents=cache, **changes)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert written
    assert not (tmp_path / "first" / "latents").exists()
    train(str(pairs), first, tmp_path / "second", latents=cache, **changes)  # another U-Net, one VAE
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    with pytest.raises(PairsError, match="latents of another gain"):
        train(str(pairs), base, tmp_path / "third", latents=cache, **changes | {"gain_jitter": 0.1})
    with pytest.raises(SettingsError, match="goes with cache_latents"):
        train(str(pairs), base, tmp_path / "third", latents=cache, **changes | {"cache_latents": False})


def test_a_base_of_other_polarisations_is_told_and_an_untrained_one_is_not(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    changes = SETTINGS | {"steps": 1}
    first = train(str(pairs), base, tmp_path / "first", **changes)
    card = json.loads((first / "sar2eo.json").read_text())
    card |= {"polarisations": ["VV", "VH"], "channels": [["VV"], ["VH"], ["VV", "VH"]]}
    (first / "sar2eo.json").write_text(json.dumps(card))
    with pytest.warns(TrainingWarning, match=r"base was trained on VV, VH, VV\+VH, these pairs have"):
        train(str(pairs), first, tmp_path / "second", **changes)


def test_a_schedule_that_ends_in_pure_noise_wants_v_prediction(tmp_path: Path) -> None:
    base = init_checkpoint(tmp_path / "base", size="tiny", zero_terminal_snr=True)
    task = task_of(base)
    assert float(task._alpha_bars[-1]) == 0
    loss, _ = task.loss("unet", some_batch(), 0, torch.Generator().manual_seed(0))
    assert loss.isfinite()
    with pytest.raises(CheckpointError, match="zero terminal SNR needs v_prediction"):
        task_of(base, prediction_type="epsilon")


def test_adapters_start_without_effect_and_are_merged_for_use(tmp_path: Path) -> None:
    base = init_checkpoint(tmp_path / "base", base=stable_diffusion_folder(tmp_path / "sd"))
    plain: Checkpoint = load_checkpoint(base)
    inputs = torch.randn(1, 8, 8, 8), torch.tensor([3])
    prompt = plain.prompt_embeds
    with torch.no_grad():
        expected = plain.unet(*inputs, encoder_hidden_states=prompt, return_dict=False)[0]
        unet = load_checkpoint(base).unet
        add_adapters(unet, rank=2, seed=1)
        assert torch.equal(unet(*inputs, encoder_hidden_states=prompt, return_dict=False)[0], expected)
        trained = {name for name, p in unet.named_parameters() if p.requires_grad}
        assert {"conv_in.weight", "conv_out.bias"} <= trained
        assert all("lora_" in name or name.startswith("conv_") for name in trained)
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter += 0.1
        adapted = unet(*inputs, encoder_hidden_states=prompt, return_dict=False)[0]
        merged = merge_adapters(unet).eval()
        assert merged.state_dict().keys() == plain.unet.state_dict().keys()
        assert not torch.allclose(adapted, expected, atol=1e-4)
        assert torch.allclose(
            merged(*inputs, encoder_hidden_states=prompt, return_dict=False)[0], adapted, atol=1e-5
        )


def test_training_adapters_trains_and_keeps_little(pairs: Path, base: Path, tmp_path: Path) -> None:
    adapted = init_checkpoint(tmp_path / "base", base=stable_diffusion_folder(tmp_path / "sd"))
    changes = SETTINGS | {"steps": 2, "lora": 2}
    found, before = weights(train(str(pairs), adapted, tmp_path / "run", **changes)), weights(adapted)
    assert found.keys() == before.keys()
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert any("to_q" in name for name in changed)
    assert not any("resnets" in name for name in changed)
    state = load_file(tmp_path / "run/states/step-000002/weights.safetensors")
    assert sum(t.numel() for t in state.values()) < sum(t.numel() for t in found.values()) / 5
    with pytest.raises(SettingsError, match="no attention to adapt"):
        train(str(pairs), base, tmp_path / "other", **changes)


def test_what_cannot_be_is_refused_before_a_folder_is_made(base: Path, pairs: Path, tmp_path: Path) -> None:
    region = init_checkpoint(tmp_path / "region", size="region")
    refusals: list[tuple[Any, dict[str, Any], str]] = [
        (base, {"crop": 30}, "30 x 30 pixels: with this base the sides must be multiples of 4"),
        (region, {"crop": 40}, "40 x 40 pixels: with this base the sides must be multiples of 32"),
        (base, {"stepz": 1}, "stepz"),
    ]
    for model, changes, message in refusals:
        with pytest.raises(SettingsError, match=message):
            train(str(pairs), model, tmp_path / "run", **SETTINGS | changes)
    with pytest.raises(CheckpointError, match="no such folder"):
        train(str(pairs), tmp_path / "nothing", tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_no_validation_pairs_are_told_and_do_not_stop_a_run(base: Path, tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"train": 2}, size=32)
    with pytest.warns(TrainingWarning, match="trains without validation"):
        final = train(str(pairs), base, tmp_path / "run", **SETTINGS | {"steps": 1})
    assert TranslatorCard.read(final).metrics == {}


def test_a_contact_sheet_shows_pairs_in_rows_and_nothing_of_what_is_not_valid() -> None:
    image = torch.full((2, 3, 8, 8), 0.5)
    variance = torch.tensor([[[[0.1, 1.0], [1.0, 1.0]]], [[[9.0, 9.0], [3.0, 3.0]]]])
    valid = torch.ones(2, 1, 8, 8)
    valid[1, :, :4] = 0
    sheet = contact_sheet(image, -image, image, variance, valid)
    assert sheet.dtype == torch.uint8
    assert sheet.shape == (3, 2 * 8 + 4, 4 * 8 + 3 * 4)
    assert sheet[0, 0, 0] == 191
    assert sheet[0, 12, 0] == 0
    assert (sheet[:, :4, 36:40] == 255).all()  # where the variance is smallest
    assert (sheet[:, :4, 40:44] < 200).all()


RUN = """
import json, sys
from sar2eo.training.unet_run import train
def told(counts):
    print(counts["steps"], flush=True)
train(*sys.argv[1:4], progress=told, **json.loads(sys.argv[4]))
"""


def test_a_killed_run_goes_on_to_the_very_same_weights(base: Path, pairs: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"steps": 12, "warmup": 2, "validate_every": 5, "save_every": 3}
    train(str(pairs), base, tmp_path / "whole", **settings)
    arguments = [str(pairs), str(base), str(tmp_path / "cut"), json.dumps(settings)]
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 8:
                process.kill()
                break
    assert not (tmp_path / "cut/final").exists()
    assert (tmp_path / "cut/states/step-000006").exists()
    train(str(pairs), base, tmp_path / "cut", **settings)
    for name in ("weights", "average", "optimiser"):
        whole, cut = (
            load_file(tmp_path / run / f"states/step-000012/{name}.safetensors") for run in ("whole", "cut")
        )
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    one, other = (weights(tmp_path / run / "final") for run in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_four_pairs_can_be_overfitted(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"train": 4, "val": 1}, size=64, holes=False)
    common: dict[str, Any] = SETTINGS | {"batch": 4, "crop": 64, "lr": 2e-3, "warmup": 20, "ema": 0.99}
    data = DataSettings(pairs=str(pairs))
    # A VAE of its own, since one of other images is what would bound the result.
    vae = VaeSettings(**common | {"steps": 400, "widths": (16, 32, 48), "latent_channels": 4})
    trained = sar2eo.train_vae(data, tmp_path / "vae", vae) and tmp_path / "vae" / "final"
    card = {"prediction_type": "v_prediction", "spacing": "trailing"}
    base = init_checkpoint(tmp_path / "base", size="tiny", vae=trained, **card)
    changes = common | {"steps": 1200, "cache_latents": True, "crops": 1}
    final = sar2eo.train(data, base, tmp_path / "run", **changes)
    errors = []
    for sar_path in sorted((pairs / "chips").glob("*_sar.tif"))[:4]:
        with rasterio.open(str(sar_path).replace("_sar", "_eo")) as file:
            truth = file.read().astype(float)
        scene = sar2eo.open_scene(str(sar_path), polarisations=("VV",), quantity="dn")
        found = sar2eo.translate(
            scene, model=str(final), tile=64, overlap=0, steps=10, scaling=(600.0,), dtype="float32"
        )
        errors.append(np.mean((found["eo"].values - truth) ** 2))
    assert 10 * np.log10(255**2 / np.mean(errors)) > 22
