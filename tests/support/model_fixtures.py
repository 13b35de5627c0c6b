"""A tiny checkpoint that means something, trained in under a minute on simulated pairs.

It predicts v, which learns to follow the SAR image in a tenth of the steps that the noise takes.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from scipy.ndimage import gaussian_filter

from sar2eo.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.diffusion import add_noise, c_diff_loss, compute_target, create_scheduler
from sar2eo.model.network import encode_images, split_prediction

FloatArray = npt.NDArray[np.float32]

# Water, forest, bare field, green field, town: backscatter (amplitude) and colour. The two kinds of
# field look alike to the SAR, so their colour is for the noise to decide and the variance to admit.
AMPLITUDE = np.array([0.08, 0.45, 0.25, 0.25, 0.85], dtype=np.float32)
COLOUR = np.array(
    [[0.05, 0.15, 0.35], [0.08, 0.28, 0.10], [0.70, 0.60, 0.35], [0.50, 0.65, 0.25], [0.65, 0.62, 0.62]],
    dtype=np.float32,
)
LOOKS = 6
SMOOTHNESS_PX = 9.0

CROP_PX = 64
VAE_STEPS, UNET_STEPS = 200, 300


def simulate_pair(rows: int, cols: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Simulate SAR amplitude, shape (rows, cols), 0 to 1, and its EO image, shape (3, rows, cols), 0 to 1."""
    draw = np.random.default_rng(seed)
    fields = draw.standard_normal((len(COLOUR), rows, cols), dtype=np.float32)
    cover = gaussian_filter(fields, (0, SMOOTHNESS_PX, SMOOTHNESS_PX), mode="wrap").argmax(axis=0)
    speckle = np.sqrt(draw.gamma(LOOKS, 1 / LOOKS, (rows, cols))).astype(np.float32)
    shade = 1 + 0.18 * gaussian_filter(draw.standard_normal((rows, cols), dtype=np.float32), 1.0)
    sar = np.clip(AMPLITUDE[cover] * speckle, 0, 1)
    return sar, np.clip(COLOUR[cover].transpose(2, 0, 1) * shade, 0, 1).astype(np.float32)


def to_model_input(sar: FloatArray) -> FloatArray:
    """Amplitude (rows, cols) to the model's three channels in [-1, 1]."""
    return np.repeat(sar[None] * 2 - 1, 3, axis=0)


def training_crops(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return SAR and EO crops, each of shape (count, 3, CROP_PX, CROP_PX), in [-1, 1]."""
    side = int(np.ceil(np.sqrt(count)))
    sar, eo = simulate_pair(side * CROP_PX, side * CROP_PX, seed=1)

    def cut(image: FloatArray) -> torch.Tensor:
        blocks = image.reshape(3, side, CROP_PX, side, CROP_PX).transpose(1, 3, 0, 2, 4)
        return torch.from_numpy(blocks.reshape(-1, 3, CROP_PX, CROP_PX)[:count].copy())

    return cut(to_model_input(sar)), cut(eo * 2 - 1)


def trained_checkpoint(folder: Path) -> Path:
    """Return the trained checkpoint kept under a folder, training it if it is not there yet."""
    with FileLock(folder / "trained-tiny.lock"):
        return _trained_checkpoint(folder / "trained-tiny")


def _trained_checkpoint(out: Path) -> Path:
    if out.exists():
        return out
    card = {"name": "trained-tiny", "prediction_type": "v_prediction", "spacing": "trailing", "steps": 10}
    with TemporaryDirectory() as scratch:
        checkpoint = load_checkpoint(init_checkpoint(Path(scratch) / "untrained", size="tiny", **card))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights whatever the cores; networks this small gain little from two
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2025)
            sar, eo = training_crops(576)
            train_vae(checkpoint, torch.cat([sar, eo]))
            train_unet(checkpoint, sar, eo)
    finally:
        torch.set_num_threads(threads)
    return save_checkpoint(checkpoint, out)


def train_vae(checkpoint: Checkpoint, images: torch.Tensor) -> None:
    """Train the VAE as an autoencoder with slightly noisy latents, then scale its latents to deviation 1."""
    vae = checkpoint.vae.train()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=VAE_STEPS)
    for _ in range(VAE_STEPS):
        batch = images[torch.randint(len(images), (8,))]
        latents = vae.encode(batch).latent_dist.mode()
        decoded = vae.decode(latents + 0.05 * torch.randn_like(latents)).sample
        loss = (decoded - batch).abs().mean() + 1e-3 * latents.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    vae.eval()
    vae.register_to_config(scaling_factor=1.0)
    with torch.no_grad():
        deviation = encode_images(vae, images[-64:]).std().item()
    vae.register_to_config(scaling_factor=1 / deviation)


def train_unet(checkpoint: Checkpoint, sar: torch.Tensor, eo: torch.Tensor) -> None:
    """Train the U-Net with the C-Diff loss on the pairs' latents."""
    vae, unet, kind = checkpoint.vae, checkpoint.unet.train(), checkpoint.card.prediction_type
    with torch.no_grad():
        pairs = [torch.cat([encode_images(vae, part) for part in images.split(64)]) for images in (sar, eo)]
    alpha_bars = create_scheduler("ddim", "trailing", kind, checkpoint.schedule).alphas_cumprod
    optimiser = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=UNET_STEPS)
    for _ in range(UNET_STEPS):
        chosen = torch.randint(len(sar), (16,))
        sar_latents, latents = (p[chosen] for p in pairs)
        timesteps = torch.randint(1000, (len(chosen),))
        noise = torch.randn_like(latents)
        noisy = add_noise(latents, noise, alpha_bars[timesteps])
        output = unet(torch.cat([sar_latents, noisy], dim=1), timesteps, encoder_hidden_states=None).sample
        target = compute_target(latents, noise, alpha_bars[timesteps], kind)
        loss = c_diff_loss(*split_prediction(output), target, alpha_bars[timesteps])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    unet.eval()
