"""Schedules as measured, losses by hand, and the sampling loop against the equations."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.model.diffusion import (
    add_noise,
    c_diff_loss,
    compute_target,
    create_scheduler,
    l2_loss,
    read_schedule,
    set_timesteps,
)
from sar2eo.model.diffusion import sample as sample_latents
from sar2eo.model.network import SarCondition, split_prediction

CONFIG = read_schedule({}, set_alpha_to_one=True)
RELEASE = read_schedule({}, set_alpha_to_one=False)
ZERO_SNR = read_schedule({"rescale_betas_zero_snr": True}, set_alpha_to_one=True)


def sample(predict, noise, *settings):  # type: ignore[no-untyped-def]
    """Sample with a network that needs no radar."""
    nothing = SarCondition(torch.empty(len(noise), 0, *noise.shape[2:]))
    return sample_latents(lambda _, *given: predict(*given), nothing, noise, *settings)


def timesteps(sampler: str, spacing: str, steps: int) -> list[int]:
    scheduler = create_scheduler(sampler, spacing, "epsilon", CONFIG)
    set_timesteps(scheduler, steps)
    return [int(t) for t in scheduler.timesteps]


def oracle(clean: torch.Tensor, alpha_bars: torch.Tensor, kind: str = "epsilon"):  # type: ignore[no-untyped-def]
    """Return a perfect network: it knows the clean latent, and solves Eq. 1 for the noise."""

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha_bar = alpha_bars[int(timestep)]
        noise = (latents - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        prediction = compute_target(clean, noise, alpha_bar.expand(len(clean)), kind)
        raw = torch.full_like(latents[:, :1], float(timestep) / 1000)
        return prediction, raw

    return predict


def test_fifty_leading_steps_are_the_papers() -> None:
    assert timesteps("ddim", "leading", 50) == list(range(981, 0, -20))


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_there_are_as_many_timesteps_as_steps(sampler: str) -> None:
    for steps in (*range(1, 130), 201, 397, 500, 998, 999, 1000):
        scheduler = create_scheduler(sampler, "trailing", "v_prediction", ZERO_SNR)
        set_timesteps(scheduler, steps)
        found = [int(t) for t in scheduler.timesteps]
        assert len(found) == steps
        assert found[0] == 999
        assert min(found) >= 0
        assert found == sorted(set(found), reverse=True)


@pytest.mark.parametrize("steps", [60, 61, 103])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_any_number_of_steps_gives_the_clean_latent(sampler: str, steps: int) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = create_scheduler(sampler, "trailing", "v_prediction", CONFIG)
    network = oracle(clean, scheduler.alphas_cumprod, "v_prediction")
    seen: list[int] = []

    def watched(latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(int(timestep))
        return network(latents, timestep)

    found, _ = sample(watched, noise, scheduler, steps, 500)
    torch.testing.assert_close(found, clean, atol=2e-3, rtol=0)
    assert len(seen) == steps
    assert seen[-1] >= 0


def test_leading_spacing_breaks_down_for_few_steps() -> None:
    assert timesteps("ddim", "leading", 1) == [1]
    assert timesteps("ddim", "trailing", 1) == [999]
    assert timesteps("ddim", "trailing", 4) == [999, 749, 499, 249]


def test_dpm_solver_timesteps() -> None:
    found = timesteps("dpm++", "leading", 50)
    assert (len(found), found[0], found[-1]) == (50, 951, 20)
    assert timesteps("dpm++", "trailing", 4) == [999, 749, 499, 249]


def test_latents_are_never_clipped() -> None:
    clean = torch.full((1, 4, 2, 2), 5.0)
    for sampler in ("ddim", "dpm++"):
        scheduler = create_scheduler(sampler, "trailing", "epsilon", CONFIG)
        found, _ = sample(
            oracle(clean, scheduler.alphas_cumprod), torch.randn_like(clean), scheduler, 10, 500
        )
        torch.testing.assert_close(found, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", 50), ("trailing", 1), ("trailing", 7), ("trailing", 25)]
)
def test_a_perfect_network_gives_the_clean_latent(sampler: str, kind: str, spacing: str, steps: int) -> None:
    clean = torch.linspace(-2, 2, 64).view(1, 4, 4, 4)
    scheduler = create_scheduler(sampler, spacing, kind, CONFIG)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found, _ = sample(oracle(clean, scheduler.alphas_cumprod, kind), noise, scheduler, steps, 500)
    torch.testing.assert_close(found, clean, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_the_releases_schedule_leaves_a_residual(sampler: str) -> None:
    clean = torch.zeros(1, 4, 16, 16)
    scheduler = create_scheduler(sampler, "leading", "epsilon", RELEASE)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found, _ = sample(oracle(clean, scheduler.alphas_cumprod), noise, scheduler, 50, 500)
    residual = math.sqrt(1 - float(scheduler.alphas_cumprod[0]))
    assert residual == pytest.approx(0.029, abs=5e-4)
    assert found.std().item() == pytest.approx(residual * noise.std().item(), rel=0.02)


@given(
    steps=st.sampled_from([1, 2, 4, 5, 10, 20, 50, 100]),
    spacing=st.sampled_from(["leading", "trailing"]),
    kind=st.sampled_from(["epsilon", "v_prediction"]),
    to_one=st.booleans(),
)
def test_ddim_equals_diffusers_where_steps_divide_the_schedule(
    steps: int, spacing: str, kind: str, to_one: bool
) -> None:
    config = read_schedule({}, set_alpha_to_one=to_one)
    ours = create_scheduler("ddim", spacing, kind, config)
    theirs = DDIMScheduler(
        **config, timestep_spacing=spacing, prediction_type=kind, clip_sample=False, steps_offset=1
    )
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    latents = torch.linspace(-3, 3, 32).view(1, 2, 4, 4)
    for timestep in ours.timesteps:
        output = torch.sin(latents * 7)
        expected = theirs.step(output, timestep, latents).prev_sample
        latents = ours.step(output, timestep, latents, return_dict=False)[0]
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_zero_terminal_snr_needs_v_prediction() -> None:
    with pytest.raises(CheckpointError, match="zero terminal SNR needs v_prediction"):
        create_scheduler("ddim", "trailing", "epsilon", ZERO_SNR)
    clean = torch.linspace(-2, 2, 64).view(1, 4, 4, 4)
    for sampler in ("ddim", "dpm++"):
        scheduler = create_scheduler(sampler, "trailing", "v_prediction", ZERO_SNR)
        found, _ = sample(
            oracle(clean, scheduler.alphas_cumprod, "v_prediction"),
            torch.randn_like(clean),
            scheduler,
            10,
            500,
        )
        torch.testing.assert_close(found, clean, atol=2e-3, rtol=0)


def test_variance_is_taken_at_the_step_nearest_to_the_cards() -> None:
    clean = torch.zeros(1, 4, 2, 2)
    for spacing, wanted, taken in (("leading", 481, 481), ("leading", 500, 501), ("trailing", 0, 19)):
        scheduler = create_scheduler("ddim", spacing, "epsilon", CONFIG)
        _, variance = sample(
            oracle(clean, scheduler.alphas_cumprod), torch.randn_like(clean), scheduler, 50, wanted
        )
        shift = math.log(math.expm1(1 - 1e-6))
        expected = math.log1p(math.exp(taken / 1000 + shift)) + 1e-6
        assert variance.flatten().tolist() == pytest.approx([expected] * 4, rel=1e-5), (spacing, wanted)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_scheduler_starts_afresh_and_latents_stay_float32(sampler: str) -> None:
    scheduler = create_scheduler(sampler, "trailing", "epsilon", CONFIG)
    noise = torch.linspace(-2, 2, 64).view(1, 4, 4, 4)
    seen = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(latents.dtype)
        return split_prediction(torch.cat([latents.tanh(), latents[:, :1]], dim=1).bfloat16())

    first, _ = sample(predict, noise, scheduler, 5, 500)
    second, _ = sample(predict, noise, scheduler, 5, 500)
    assert torch.equal(first, second)
    assert set(seen) == {torch.float32}
    assert first.dtype == torch.float32


def test_schedule_of_another_length_is_refused() -> None:
    with pytest.raises(CheckpointError, match="num_train_timesteps=500, must be 1000"):
        read_schedule({"num_train_timesteps": 500}, set_alpha_to_one=True)
    with pytest.raises(CheckpointError, match="cannot make this noise schedule"):
        create_scheduler("ddim", "leading", "epsilon", CONFIG | {"beta_schedule": "odd"})


@pytest.mark.parametrize(
    ("sampler", "spacing", "kind"),
    [("euler", "leading", "epsilon"), ("ddim", "linspace", "epsilon"), ("ddim", "leading", "sample")],
)
def test_unknown_choices_are_refused(sampler: str, spacing: str, kind: str) -> None:
    with pytest.raises(SettingsError, match="must be one of"):
        create_scheduler(sampler, spacing, kind, CONFIG)


def test_noisy_latents_and_targets_by_hand() -> None:
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0)
    alpha_bar = torch.tensor([0.64])
    assert add_noise(latents, noise, alpha_bar).item() == pytest.approx(0.8 * 2 + 0.6 * -1)
    assert compute_target(latents, noise, alpha_bar, "epsilon").item() == -1
    assert compute_target(latents, noise, alpha_bar, "v_prediction").item() == pytest.approx(
        0.8 * -1 - 0.6 * 2
    )


def test_c_diff_loss_by_hand() -> None:
    # Two latent pixels, two channels; raw 0 is variance 1, and the other raw value is variance 4.
    raw_of_four = math.log(math.expm1(4 - 1e-6)) - math.log(math.expm1(1 - 1e-6))
    prediction = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    target = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])
    raw = torch.tensor([[[[0.0, raw_of_four]]]])
    tau = math.log(2 * math.pi)
    terms = [
        0.5 * (4 / 1 + 0 + tau),
        0.5 * (0 / 1 + 0 + tau),
        0.5 * (0 / 4 + math.log(4) + tau),
        0.5 * (1 / 4 + math.log(4) + tau),
    ]
    plain = c_diff_loss(prediction, raw, target, torch.tensor([0.25]), "none")
    assert plain.item() == pytest.approx(sum(terms) / 4, rel=1e-5)
    weighted = c_diff_loss(prediction, raw, target, torch.tensor([0.25]))
    factors = [1, 1, 4**0.5, 4**0.5]  # sqrt(alpha_bar) is 0.5
    assert weighted.item() == pytest.approx(
        sum(t * f for t, f in zip(terms, factors, strict=True)) / 4, rel=1e-5
    )


def test_masked_losses_by_hand() -> None:
    # Two latent channels, four pixels; the second and the last do not count, however wrong they are.
    prediction = torch.tensor([[[[1.0, 9.0], [2.0, 9.0]], [[0.0, 9.0], [1.0, 9.0]]]])
    raw = torch.zeros(1, 1, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    target = torch.zeros(1, 2, 2, 2)
    assert l2_loss(prediction, target, mask).item() == pytest.approx((1 + 4 + 0 + 1) / 4)
    likelihood = 0.5 * (1 + 4 + 0 + 1) / 4 + 0.5 * math.log(2 * math.pi)
    alpha_bar = torch.tensor([0.5])
    assert c_diff_loss(prediction, raw, target, alpha_bar, "none", mask).item() == pytest.approx(likelihood)
    assert l2_loss(prediction, target, torch.zeros_like(mask)).item() == 0


def test_c_diff_loss_at_variance_one_is_half_the_squared_error() -> None:
    prediction, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    raw, alpha_bar = torch.zeros(2, 1, 3, 3), torch.tensor([0.1, 0.9])
    expected = 0.5 * l2_loss(prediction, target).item() + 0.5 * math.log(2 * math.pi)
    for weighting in ("timestep", "none"):
        assert c_diff_loss(prediction, raw, target, alpha_bar, weighting).item() == pytest.approx(
            expected, rel=1e-5
        )


def test_c_diff_loss_is_smallest_at_the_squared_error_and_its_weight_has_no_gradient() -> None:
    prediction, target = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    raw_of_error = math.log(math.expm1(4 - 1e-6)) - math.log(math.expm1(1 - 1e-6))
    for weighting in ("timestep", "none"):
        raw = torch.full((1, 1, 1, 1), raw_of_error, requires_grad=True)
        c_diff_loss(prediction, raw, target, torch.tensor([0.5]), weighting).backward()
        assert raw.grad is not None
        # d/dvar of the weight would leave a slope here: the likelihood itself is flat at var = error.
        assert raw.grad.item() == pytest.approx(0, abs=1e-6)


def test_loss_is_float32_and_refuses_other_weightings() -> None:
    half = torch.full((1, 4, 2, 2), 3.0, dtype=torch.bfloat16)
    loss = c_diff_loss(half, half[:, :1], torch.zeros(1, 4, 2, 2), torch.tensor([0.5]))
    assert loss.dtype == l2_loss(half, half).dtype == torch.float32
    with pytest.raises(SettingsError, match="weighting='beta': must be one of timestep, none"):
        c_diff_loss(half, half[:, :1], half, torch.tensor([0.5]), "beta")
