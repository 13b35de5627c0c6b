"""The VAE's losses, its adversary, and the task that the training loop is given."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.errors import SettingsError
from sar2eo.model.creation import load_vae
from sar2eo.model.network import decode_latents, encode_images
from sar2eo.settings import DataSettings, VaeRecipe, VaeSettings
from sar2eo.training.vae_losses import (
    PatchDiscriminator,
    absolute_error,
    balance_errors,
    discriminator_loss,
    divergence,
    generator_loss,
    gradient_error,
    replace_invalid,
    squared_error,
)
from sar2eo.training.vae_task import NOTES, VaeTask

SETTINGS: dict[str, Any] = {"latent_channels": 2, "widths": (8, 16), "steps": 10, "warmup": 1, "crop": 32}


def batch_of(count: int = 2, size: int = 32, seed: int = 0, holes: bool = True) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, count, 3, size // 8, size // 8, generator=draw) * 1.6 - 0.8
    smooth = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=size, mode="bilinear")
    eo, sar = smooth.view(2, count, 3, size, size)
    valid = torch.ones(count, 1, size, size)
    if holes:
        valid[0, :, :5, :7] = 0
    return {"eo": eo, "sar": sar, "valid": valid, "id": [str(i) for i in range(count)]}


def task_of(batch: dict[str, Any] | None = None, base: Any = None, **changes: Any) -> VaeTask:
    return VaeTask(VaeSettings(**SETTINGS | changes), lambda: [batch or batch_of()], base)


def loss_of(task: VaeTask, batch: dict[str, Any], phase: str = "vae", step: int = 0) -> Any:
    return task.loss(phase, batch, step, torch.Generator().manual_seed(7))


def test_errors_by_hand() -> None:
    truth = torch.zeros(1, 1, 2, 3)
    prediction = torch.tensor([[[[1.0, 3.0, 3.0], [0.0, -2.0, 8.0]]]])
    valid = torch.tensor([[[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]]])
    assert absolute_error(prediction, truth, valid).item() == pytest.approx((1 + 3 + 3 + 0 + 2) / 5)
    # Down: 1 -> 0 and 3 -> -2; across: 1 -> 3, 3 -> 3, 0 -> -2. What the hole touches does not count.
    expected = (1 + 5) / 2 + (2 + 0 + 2) / 3
    assert gradient_error(prediction, truth, valid).item() == pytest.approx(expected)
    assert absolute_error(prediction, truth, torch.zeros_like(valid)).item() == 0
    assert gradient_error(prediction, truth, torch.zeros_like(valid)).item() == 0


@given(seed=st.integers(0, 999), height=st.integers(1, 6), width=st.integers(1, 6), bands=st.integers(1, 3))
def test_errors_agree_with_numpy(seed: int, height: int, width: int, bands: int) -> None:
    draw = np.random.default_rng(seed)
    prediction, truth = draw.normal(size=(2, 2, bands, height, width)).astype(np.float32)
    valid = (draw.random((2, 1, height, width)) < 0.7).astype(np.float32)
    error = np.ma.array(prediction - truth, mask=np.broadcast_to(valid == 0, truth.shape))
    slopes = (np.ma.abs(np.ma.array(np.diff(error, axis=a), mask=_pairs(error, a))) for a in (-2, -1))
    tensors = [torch.from_numpy(array) for array in (prediction, truth, valid)]

    def plain(values: Any) -> float:
        return 0.0 if not values.size or values.mask.all() else float(values.mean())

    assert absolute_error(*tensors).item() == pytest.approx(plain(np.ma.abs(error)), abs=1e-5)
    assert gradient_error(*tensors).item() == pytest.approx(sum(map(plain, slopes)), abs=1e-5)


def _pairs(error: Any, axis: int) -> Any:
    mask = np.moveaxis(error.mask, axis, 0)
    return np.moveaxis(mask[1:] | mask[:-1], 0, axis)


def test_divergence_by_hand() -> None:
    mean = torch.tensor([1.0, 0.0, 50.0]).view(1, 1, 1, 3)
    log_variance = torch.tensor([0.0, np.log(4.0), 9.0]).view(1, 1, 1, 3)
    valid = torch.ones(1, 1, 2, 6)
    valid[..., 1, 5] = 0  # so the third latent does not count
    # 0.5 (1 + 1 - 1 - 0) and 0.5 (0 + 4 - 1 - log 4), over 8 pixels of 3 bands
    expected = (0.5 + 0.5 * (3 - np.log(4))) / 24
    assert divergence(mean, log_variance, valid, 3).item() == pytest.approx(expected)
    assert divergence(mean, log_variance, torch.zeros_like(valid), 3).item() == 0


def test_squared_error_counts_valid_pixels_alone() -> None:
    prediction, truth = torch.zeros(1, 3, 1, 2), torch.tensor([1.0, 9.0]).expand(1, 3, 1, 2)
    valid = torch.tensor([[[[1.0, 0.0]]]])
    assert squared_error(prediction, truth, valid).item() == 1
    assert squared_error(prediction, truth, torch.ones(1, 1, 1, 2)).item() == 41


def test_balanced_errors_have_their_mean_and_the_gradient_of_their_logarithms() -> None:
    errors = torch.tensor([0.1, 0.4], requires_grad=True)
    loss = balance_errors(list(errors), (1, 1))
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    # Their mean, 0.25, times that of d log(e) = 1 / e: the same pull in proportion.
    torch.testing.assert_close(errors.grad, torch.tensor([0.25 / 0.1, 0.25 / 0.4]) / 2)
    perfect = torch.zeros(2, requires_grad=True)
    assert balance_errors(list(perfect), (1, 1)).item() == 0


def test_shares_divide_the_gradient() -> None:
    errors = torch.tensor([0.1, 0.4], requires_grad=True)
    balance_errors(list(errors), (3, 1)).backward()
    torch.testing.assert_close(errors.grad, torch.tensor([0.75 * 0.25 / 0.1, 0.25 * 0.25 / 0.4]))


def test_hinge_losses_by_hand_weigh_by_validity() -> None:
    real = torch.tensor([[[[2.0, 0.5]]]])
    fake = torch.tensor([[[[-0.5, 3.0]]]])
    valid = torch.ones(1, 1, 4, 8)
    assert discriminator_loss(real, fake, valid).item() == pytest.approx(0.5 * (0 + 0.5 + 0.5 + 4) / 2)
    assert generator_loss(fake, valid).item() == pytest.approx(-1.25)
    valid[..., 4:] = 0  # the right-hand score
    assert discriminator_loss(real, fake, valid).item() == pytest.approx(0.5 * (0 + 0.5))
    assert generator_loss(fake, valid).item() == pytest.approx(0.5)


def test_a_patch_sees_24_pixels_and_invalid_ones_tell_nothing() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator()
    # Without its normalisation, which looks at the whole image.
    plain = torch.nn.Sequential(
        *(layer for layer in discriminator.layers if not isinstance(layer, torch.nn.GroupNorm))
    )
    images = torch.zeros(1, 3, 96, 96, requires_grad=True)
    scores = plain(images)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = images.grad.abs().sum(1)[0].nonzero()  # type: ignore[union-attr]
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [24, 24]
    truth, reconstruction = torch.rand(2, 1, 3, 8, 8)
    valid = torch.ones(1, 1, 8, 8)
    valid[..., :3] = 0
    shown = replace_invalid(reconstruction, truth, valid)
    assert torch.equal(shown[..., :3], truth[..., :3])
    assert torch.equal(shown[..., 3:], reconstruction[..., 3:])


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    batch = batch_of()
    weights = {"l1": 2.0, "gradient": 0.5, "texture": 0.125, "kl": 0.25}
    loss, facts = loss_of(task_of(**weights), batch)
    errors = [
        2.0 * facts[f"{kind}_l1"] + 0.5 * facts[f"{kind}_gradient"] + 0.125 * facts[f"{kind}_texture"]
        for kind in ("eo", "sar")
    ]
    assert loss.item() == pytest.approx((sum(errors) / 2 + 0.25 * facts["kl"]).item(), rel=1e-5)
    assert facts["posterior_std"].item() == pytest.approx(np.exp(-3), rel=0.1)
    again, _ = loss_of(task_of(**weights), batch)
    assert torch.equal(loss, again)
    other, _ = task_of(**weights).loss("vae", batch, 0, torch.Generator().manual_seed(8))
    assert not torch.equal(loss, other)


@pytest.mark.parametrize(("images", "kinds"), [("eo", ["eo"]), ("sar", ["sar"]), ("both", ["eo", "sar"])])
def test_images_are_those_asked_for(images: str, kinds: list[str]) -> None:
    batch, task = batch_of(), task_of(images=images)
    loss, _ = loss_of(task, batch)
    for kind in ("eo", "sar"):
        changed, _ = loss_of(task, batch | {kind: -batch[kind]})
        assert torch.equal(loss, changed) == (kind not in kinds)
    metrics = task.validate([batch])
    assert {name.partition("_")[0] for name in metrics} == {*kinds, "score"}
    assert task.picture(batch).shape == (3, 2 * 32, 2 * len(kinds) * 32)


def test_figures_stay_on_the_device_until_a_step_is_done() -> None:
    batch = batch_of()
    task = task_of(batch, adversarial=0.5, adversarial_from=0.0)
    for phase in ("vae", "discriminator"):
        _, facts = loss_of(task, batch, phase)
        assert facts
        assert all(isinstance(fact, torch.Tensor) and not fact.requires_grad for fact in facts.values())


def test_invalid_pixels_count_in_no_error() -> None:
    # Through the network they still reach their neighbours, so the reconstruction is taken as given.
    batch, task = batch_of(), task_of()
    seen: list[torch.Tensor] = []
    task.phases["vae"].register_forward_hook(lambda *found: seen.append(found[2][0]))
    loss_of(task, batch)
    images = torch.cat([batch["eo"], batch["sar"]])
    valid = batch["valid"].repeat(2, 1, 1, 1)
    assert valid[2, 0, 0, 0] == 0
    spoiled = torch.where(valid > 0, seen[0], 9.0)
    for error in (absolute_error, gradient_error):
        assert torch.equal(error(spoiled, images, valid), error(seen[0], images, valid))


def test_the_adversary_joins_from_its_share_of_the_steps() -> None:
    assert list(task_of().phases) == ["vae"]
    task, batch = task_of(adversarial=0.5, adversarial_from=0.55), batch_of()
    assert list(task.phases) == ["vae", "discriminator"]
    assert [task.active("discriminator", step) for step in (0, 5, 6, 9)] == [False, False, True, True]
    assert "adversarial" not in loss_of(task, batch, step=5)[1]
    before, _ = loss_of(task, batch, step=5)
    joined, facts = loss_of(task, batch, step=6)
    assert joined.item() == pytest.approx(before.item() + 0.5 * facts["adversarial"].item(), rel=1e-4)
    assert facts["adversarial"] != 0


def test_the_discriminator_judges_what_the_vae_made_and_learns_alone() -> None:
    task, batch = task_of(adversarial=1.0, adversarial_from=0.0), batch_of()
    loss_of(task, batch)
    kept, facts = loss_of(task, batch, "discriminator")
    anew, _ = loss_of(task, batch, "discriminator")  # made again, by the same weights and noise
    assert kept.item() == pytest.approx(anew.item(), rel=1e-5)
    assert kept.item() > 0
    kept.backward()
    assert all(p.grad is None for p in task.phases["vae"].parameters())
    assert all(p.grad is not None for p in task.phases["discriminator"].parameters())
    assert set(facts) == {"real", "fake"}


@pytest.mark.parametrize(("images", "judged"), [("both", "eo"), ("sar", "sar")])
def test_the_adversary_judges_eo_where_there_is_any(images: str, judged: str) -> None:
    task, batch = task_of(adversarial=1.0, adversarial_from=0.0, images=images), batch_of()
    seen: list[torch.Tensor] = []
    task.phases["discriminator"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss_of(task, batch)
    loss_of(task, batch, "discriminator")
    assert torch.equal(seen[1], batch[judged])
    hole = batch["valid"] == 0
    for fake in (seen[0], seen[2]):
        assert torch.equal(fake.detach(), seen[0].detach())
        assert torch.equal(fake[hole.expand_as(fake)], batch[judged][hole.expand_as(fake)])


def test_validation_measures_psnr_and_octaves(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = task_of(), batch_of(size=64)
    for kind, error in {"eo": 0.02, "sar": 0.2}.items():
        # In the hole anything may be.
        off = torch.where(batch["valid"] > 0, error, 0.5)
        monkeypatch.setattr(task, "_decode_mean", lambda images, off=off: images + off)
        metrics = task.validate([batch])
        assert metrics[f"{kind}_psnr"] == pytest.approx(-20 * np.log10(error / 2), abs=1e-3)
    powers = [metrics[f"eo_power_{index}"] for index in range(4)]
    np.testing.assert_allclose(powers, 1, atol=1e-3)  # a constant has no spectrum
    assert metrics["score"] == pytest.approx(-metrics["eo_psnr"], abs=0.01)
    monkeypatch.setattr(task, "_decode_mean", lambda images: images / 2)
    metrics = task.validate([batch, batch])
    np.testing.assert_allclose([metrics[f"sar_power_{index}"] for index in range(4)], 0.25, rtol=1e-5)
    assert metrics["score"] == pytest.approx(20 * np.log10(2) - metrics["eo_psnr"], abs=1e-3)


def test_the_picture_shows_truth_beside_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = task_of(), batch_of(count=6)
    monkeypatch.setattr(task, "_decode_mean", lambda images: -images)
    picture = task.picture(batch)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 4 * 32, 4 * 32)
    second = picture[:, 32:64].float()
    for column, expected in enumerate((batch["eo"], -batch["eo"], batch["sar"], -batch["sar"])):
        shown = second[:, :, 32 * column : 32 * (column + 1)] / 127.5 - 1
        torch.testing.assert_close(shown, expected[1], atol=0.005, rtol=0)


@pytest.mark.parametrize("architecture", ["kl", "dc"])
def test_exported_latents_have_mean_0_and_deviation_1(tmp_path: Path, architecture: str) -> None:
    batch = batch_of(count=4, size=64, holes=False)
    task = task_of(batch, architecture=architecture)
    out = task.export(tmp_path / "final", {"steps": 3, "metrics": {"eo_psnr": 30.0}})
    vae = load_vae(out).eval()
    task.vae.eval()
    with torch.no_grad():
        latents = encode_images(vae, batch["eo"])
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(decode_latents(vae, latents).clamp(-1, 1), task._decode_mean(batch["eo"]))
    notes = json.loads((out / NOTES).read_text())
    assert (notes["steps"], notes["metrics"], notes["factor"]) == (3, {"eo_psnr": 30.0}, 2)
    assert notes["parameters"] == sum(p.numel() for p in vae.parameters())
    assert notes["latents"]["eo"] == {"mean": vae.config.latents_mean, "std": vae.config.latents_std}
    assert notes["latents"]["sar"]["mean"] != notes["latents"]["eo"]["mean"]


def test_a_deep_compression_autoencoder_is_trained_with_noise_on_its_latents() -> None:
    batch = batch_of(holes=False)
    task = task_of(batch, architecture="dc")
    images = torch.cat([batch["eo"], batch["sar"]])
    noise = torch.randn(len(images), 2, *(side // 2 for side in images.shape[-2:]))
    with torch.no_grad():
        found, mean, log_variance = task.phases["vae"](images, noise)
        assert (log_variance == -6).all()
        expected = task.vae.decode(task.vae.encode(images).latent + math.exp(-3) * noise).sample
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mean, task.vae.encode(images).latent)
    loss, facts = loss_of(task, batch)
    loss.backward()
    assert facts["posterior_std"].item() == pytest.approx(math.exp(-3))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.vae.decoder.conv_in.parameters())


@pytest.mark.parametrize("architecture", ["kl", "dc"])
def test_a_decoder_alone_is_trained_on_the_latents_that_are_there(tmp_path: Path, architecture: str) -> None:
    batch = batch_of(count=4, size=64, holes=False)
    first = task_of(batch, architecture=architecture).export(tmp_path / "first", {"steps": 1})
    base = load_vae(first)
    task = task_of(batch_of(seed=5), base=base, decoder_only=True, latent_channels=7)  # the base's are taken
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in base.parameters() if p.requires_grad], lr=0.1)
    loss, _ = loss_of(task, batch)
    loss.backward()
    optimiser.step()
    changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    # Other images would give other statistics, but latents that someone knows stay what they are.
    again = load_vae(task.export(tmp_path / "again", {"steps": 1}))
    assert again.config.latents_std == load_vae(first).config.latents_std
    with torch.no_grad():
        torch.testing.assert_close(
            encode_images(again, batch["eo"]), encode_images(load_vae(first), batch["eo"])
        )


def test_a_vae_that_goes_on_measures_its_latents_anew(tmp_path: Path) -> None:
    first = task_of(batch_of(), architecture="dc").export(tmp_path / "first", {"steps": 1})
    task = task_of(batch_of(seed=5), base=load_vae(first))
    assert all(parameter.requires_grad for parameter in task.vae.parameters())
    again = load_vae(task.export(tmp_path / "again", {"steps": 1}))
    assert again.config.latents_mean != load_vae(first).config.latents_mean


def test_what_a_base_cannot_be_is_refused() -> None:
    blocks = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,), decoder_block_out_channels=(8,), **blocks)
    with pytest.raises(SettingsError, match="AutoencoderTiny cannot be trained"):
        task_of(base=tiny)
    with pytest.raises(SettingsError, match="decoder_only: goes with a base"):
        VaeRecipe(data=DataSettings(pairs="pairs"), out="out", settings=VaeSettings(decoder_only=True))


def test_latents_that_see_invalid_pixels_are_not_measured(tmp_path: Path) -> None:
    batch = batch_of(holes=False)
    spoiled = {kind: batch[kind].clone() for kind in ("eo", "sar")}
    spoiled["valid"] = batch["valid"].clone()
    spoiled["valid"][1] = 0
    spoiled["eo"][1] = 50.0
    alone = {key: value[:1] for key, value in batch.items()}
    measured = [task_of(found)._measure_latents()["eo"]["mean"] for found in (spoiled, alone)]
    np.testing.assert_allclose(*measured, rtol=1e-6)
