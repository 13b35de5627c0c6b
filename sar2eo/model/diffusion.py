"""Noise schedules, the C-Diff loss, and the sampling loop.

Latents and all arithmetic of schedules and losses are float32, whatever the network's precision: in
bfloat16 the rounding of fifty steps adds up to several levels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.model.card import PREDICTION_TYPES, SAMPLERS, SPACINGS, TRAIN_TIMESTEPS
from sar2eo.model.network import SarCondition, to_variance

Weighting = Literal["timestep", "none"]
"""Factor on the likelihood: variance to the power sqrt(alpha_bar), or none."""

WEIGHTINGS: tuple[str, ...] = get_args(Weighting)

_STABLE_DIFFUSION_SCHEDULE = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


class ScheduledDDIM(DDIMScheduler):  # type: ignore[misc]
    """DDIM with eta 0 whose steps go where its own schedule says.

    diffusers' steps down by ``1000 // steps`` timesteps: with trailing spacing and a number of steps that
    does not divide 1000 this misses the next timestep, and leaves noise at the end.
    """

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """Take one step (DDIM, Eq. 12 with sigma 0, https://arxiv.org/abs/2010.02502)."""
        index = int((self.timesteps == timestep).nonzero().item())
        last = index + 1 == len(self.timesteps)
        alpha_bar = self.alphas_cumprod[self.timesteps[index]]
        after = self.final_alpha_cumprod if last else self.alphas_cumprod[self.timesteps[index + 1]]
        clean, noise = _clean_and_noise(model_output, sample, alpha_bar, self.config.prediction_type)
        previous = after.sqrt() * clean + (1 - after).sqrt() * noise
        return {"prev_sample": previous} if return_dict else (previous, clean)


def _clean_and_noise(
    output: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Solve Eq. 1 for the clean latent and the noise, given what the network predicts."""
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (noisy - sigma * output) / signal, output
    return signal * noisy - sigma * output, signal * output + sigma * noisy


def read_schedule(config: Mapping[str, Any], *, set_alpha_to_one: bool) -> dict[str, Any]:
    """Reduce a scheduler's configuration to the noise schedule of training, and complete it.

    Parameters
    ----------
    config : mapping
        ``scheduler_config.json`` of any Stable-Diffusion folder; what it lacks is Stable Diffusion's.
    set_alpha_to_one : bool
        Whether the last step leaves no noise. False leaves 0.029 of it, which belongs to checkpoints
        that were made for it.
    """
    schedule = {name: config.get(name, default) for name, default in _STABLE_DIFFUSION_SCHEDULE.items()}
    if schedule["num_train_timesteps"] != TRAIN_TIMESTEPS:
        raise CheckpointError(
            f"scheduler: num_train_timesteps={schedule['num_train_timesteps']}, must be {TRAIN_TIMESTEPS}"
        )
    betas = schedule["beta_start"], schedule["beta_end"]
    if not all(type(beta) is float and 0 < beta < 1 for beta in betas):
        raise CheckpointError(f"scheduler: beta_start, beta_end={betas}, must be between 0 and 1")
    return schedule | {"set_alpha_to_one": set_alpha_to_one}


def create_scheduler(sampler: str, spacing: str, prediction_type: str, config: Mapping[str, Any]) -> Any:
    """Create a scheduler for sampling.

    Parameters
    ----------
    sampler : {"ddim", "dpm++"}
    spacing : {"leading", "trailing"}
        Spacing of the timesteps; leading has an offset of 1, so that 50 DDIM steps are 981 ... 1.
    prediction_type : {"epsilon", "v_prediction"}
    config : mapping
        As `read_schedule` returns it.

    Returns
    -------
    ScheduledDDIM or DPMSolverMultistepScheduler
        Latents are never clipped.
    """
    choices = {"sampler": SAMPLERS, "spacing": SPACINGS, "prediction_type": PREDICTION_TYPES}
    given = {"sampler": sampler, "spacing": spacing, "prediction_type": prediction_type}
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise SettingsError(f"{name}={given[name]!r}: must be one of {', '.join(allowed)}")
    if config["rescale_betas_zero_snr"] and prediction_type == "epsilon":
        raise CheckpointError(
            "scheduler: zero terminal SNR needs v_prediction; with epsilon the first step is not finite"
        )
    common = {name: config[name] for name in _STABLE_DIFFUSION_SCHEDULE}
    common |= {"prediction_type": prediction_type, "timestep_spacing": spacing, "steps_offset": 1}
    to_one = config["set_alpha_to_one"]
    try:
        if sampler == "ddim":
            return ScheduledDDIM(**common, set_alpha_to_one=to_one, clip_sample=False)
        return DPMSolverMultistepScheduler(
            **common, solver_order=2, final_sigmas_type="zero" if to_one else "sigma_min"
        )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise CheckpointError(f"scheduler: diffusers cannot make this noise schedule: {error}") from error


def set_timesteps(scheduler: Any, steps: int, start: int = TRAIN_TIMESTEPS) -> None:
    """Set exactly `steps` timesteps of a scheduler, with trailing spacing perhaps from `start` - 1 on.

    With trailing spacing diffusers counts down from 1000 in floating point. For 62 numbers of steps (61, 103,
    121, ...) this adds a timestep of -1, which would mean pure noise.
    """
    scheduler.set_timesteps(steps)
    wanted = scheduler.timesteps[:steps]
    if start < TRAIN_TIMESTEPS:
        places = {round(start * (steps - step) / steps) - 1 for step in range(steps)}
        wanted = torch.tensor(sorted(places, reverse=True))
    if torch.equal(wanted, scheduler.timesteps):
        return
    if isinstance(scheduler, DDIMScheduler):
        scheduler.timesteps = wanted
    else:
        scheduler.set_timesteps(timesteps=wanted.tolist())


def sample(
    predict: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    condition: SarCondition,
    noise: Tensor,
    scheduler: Any,
    steps: int,
    confidence_timestep: int,
    temperature: float = 1.0,
    start: int = TRAIN_TIMESTEPS,
) -> tuple[Tensor, Tensor]:
    """Denoise latents from noise (C-DiffSET, section 3.4, Eq. 4).

    Parameters
    ----------
    predict : callable
        `sar2eo.model.checkpoint.Checkpoint.predict`.
    condition : SarCondition
        Of the tiles.
    noise : Tensor of float32, shape (B, C, h, w)
    scheduler
        From `create_scheduler`; its state is reset.
    confidence_timestep : int
        The variance is taken at the step nearest to it; of a model that starts from a guess, in a step of its
        own without trust in the guess.
    temperature : float, optional (default: 1)
        Factor on the noise.
    start : int, optional (default: 1000)
        Timestep + 1 of the start; 1000 is pure noise, less is the condition's guess under noise.

    Returns
    -------
    latents : Tensor of float32, shape (B, C, h, w)
    variance : Tensor of float32, shape (B, 1, h, w)
    """
    set_timesteps(scheduler, steps, start)
    nearest = int((scheduler.timesteps - confidence_timestep).abs().argmin())
    latents = noise.float() * (temperature * scheduler.init_noise_sigma)
    if condition.guess is not None and start < TRAIN_TIMESTEPS:
        latents = add_noise(condition.guess, latents, _alpha_bars(scheduler, start - 1, noise))
    for index, timestep in enumerate(scheduler.timesteps):
        prediction, raw_variance = predict(condition.latents, latents, timestep)
        if index == nearest:
            variance = to_variance(raw_variance)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    if condition.guess is not None:
        noisy = add_noise(condition.guess, noise, _alpha_bars(scheduler, confidence_timestep, noise))
        asked = torch.tensor(confidence_timestep)
        variance = to_variance(predict(condition.with_trust(0), noisy, asked)[1])
    return latents, variance


def _alpha_bars(scheduler: Any, timestep: int, like: Tensor) -> Tensor:
    """Return the schedule's alpha-bar at a timestep, one for each item of a batch."""
    alpha_bars: Tensor = scheduler.alphas_cumprod
    return alpha_bars[timestep].to(like.device).expand(len(like))


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noisy latents (C-DiffSET, Eq. 1): sqrt(alpha_bar) z + sqrt(1 - alpha_bar) epsilon.

    Parameters
    ----------
    latents, noise : Tensor, shape (B, C, h, w)
    alpha_bar : Tensor, shape (B,)
        Product of 1 - beta up to each item's timestep.
    """
    weight = alpha_bar.float().view(-1, 1, 1, 1)
    return weight.sqrt() * latents + (1 - weight).sqrt() * noise


def compute_target(latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """Return what the network should predict: the noise, or v = sqrt(ab) epsilon - sqrt(1 - ab) z.

    Shapes as in `add_noise`; v after Salimans and Ho (https://arxiv.org/abs/2202.00512).
    """
    if prediction_type == "epsilon":
        return noise
    weight = alpha_bar.float().view(-1, 1, 1, 1)
    return weight.sqrt() * noise - (1 - weight).sqrt() * latents


def l2_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error, in float32: the loss of the first stage, without a variance.

    Parameters
    ----------
    prediction, target : Tensor, shape (B, C, h, w)
    mask : Tensor or None, shape (B, 1, h, w)
        1 where a latent pixel counts, else 0; None: all count. Of nothing the mean is 0.
    """
    return _mean((target.float() - prediction.float()).square(), mask)


def c_diff_loss(
    prediction: Tensor,
    raw_variance: Tensor,
    target: Tensor,
    alpha_bar: Tensor,
    weighting: str = "timestep",
    mask: Tensor | None = None,
) -> Tensor:
    """Confidence-guided diffusion loss (C-DiffSET, Eq. 3, as a Gaussian negative log likelihood).

    ``0.5 ((target - prediction)**2 / var + log var + log 2 pi)``, with one variance per latent pixel;
    "timestep" multiplies it by ``var ** sqrt(alpha_bar)``, without gradient (the beta-NLL of Seitzer
    et al., https://arxiv.org/abs/2203.09168, with a beta that grows as the noise falls). The mean is
    over all that counts. At variance 1 it is half the squared error plus a constant.

    Parameters
    ----------
    prediction, target : Tensor, shape (B, C, h, w)
    raw_variance : Tensor, shape (B, 1, h, w)
        The U-Net's last channel.
    alpha_bar : Tensor, shape (B,)
    weighting : {"timestep", "none"}
    mask : Tensor or None, shape (B, 1, h, w)
        As in `l2_loss`.
    """
    if weighting not in WEIGHTINGS:
        raise SettingsError(f"weighting={weighting!r}: must be one of {', '.join(WEIGHTINGS)}")
    variance = to_variance(raw_variance)
    error = (target.float() - prediction.float()).square()
    likelihood = 0.5 * (error / variance + variance.log() + math.log(2 * math.pi))
    if weighting == "timestep":
        likelihood = likelihood * variance.detach() ** alpha_bar.float().view(-1, 1, 1, 1).sqrt()
    return _mean(likelihood, mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the pixels that count; values (B, C, h, w), mask (B, 1, h, w)."""
    if mask is None:
        return values.mean()
    counting = mask.expand_as(values)
    return (values * counting).sum() / counting.sum().clamp(min=1)
