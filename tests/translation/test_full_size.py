"""The architecture of Stable Diffusion 2.1 in full size, with random weights."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.base_fixtures import stable_diffusion_folder
from support.model_fixtures import simulate_pair, to_model_input

from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model.checkpoint import describe_checkpoint, load_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.network import decode_latents, encode_images
from sar2eo.model.noise import draw_scene_noise
from sar2eo.model.spec import resolve_model
from sar2eo.model.translator import DiffusionTranslator

pytestmark = pytest.mark.slow

UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
# As wide as Stable Diffusion's text encoder, and shallow: it is used once.
TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 256,
    "num_attention_heads": 16,
    "num_hidden_layers": 1,
    "max_position_embeddings": 77,
}
TILE, ORIGIN, SEED = 512, (1024, 448), 2025
WEIGHTS = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full-size")
    yield stable_diffusion_folder(folder / "base", unet=UNET, vae=VAE, text=TEXT, half=True)
    shutil.rmtree(folder)  # 6 GB


@pytest.fixture(scope="module")
def full(base: Path) -> Path:
    return init_checkpoint(base.with_name("checkpoint"), base=base)


def test_a_base_of_full_size_becomes_a_checkpoint(base: Path, full: Path) -> None:
    facts = describe_checkpoint(full)
    assert facts["parameters"]["unet"] == 865_910_724 + 4 * 320 * 9 + 320 * 9 + 1
    assert facts["vae"]["factor"] == 8
    with (
        safe_open(base / f"{WEIGHTS}.fp16.safetensors", framework="pt") as before,
        safe_open(full / f"{WEIGHTS}.safetensors", framework="pt") as after,
    ):
        assert set(before.keys()) == set(after.keys())
        weight = before.get_tensor("conv_in.weight").float()
        assert torch.equal(after.get_tensor("conv_in.weight"), torch.cat([weight, weight], dim=1) / 2)
        assert torch.equal(after.get_tensor("conv_in.bias"), before.get_tensor("conv_in.bias").float())
        for name in ("conv_out.weight", "conv_out.bias"):
            old, new = before.get_tensor(name).float(), after.get_tensor(name)
            assert len(new) == 5
            assert torch.equal(new[:4], old)
            assert not new[4].any()
        for name in before.keys():  # noqa: SIM118
            if not name.startswith(("conv_in.", "conv_out.")):
                assert torch.equal(after.get_tensor(name), before.get_tensor(name).float()), name


def test_one_tile_in_two_steps_equals_a_plain_loop(full: Path) -> None:
    sar = to_model_input(simulate_pair(TILE, TILE, seed=4)[0])[None]
    spec = resolve_model(full, steps=2, device="cpu", dtype="float32", seed=SEED)
    found = DiffusionTranslator(spec).translate(sar, [ORIGIN])

    # DDIM with eta 0 by its equations, trailing steps of 999 and 499, epsilon prediction.
    parts = load_checkpoint(full)
    alpha_bars = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    rows, cols = (range(start // 8, start // 8 + TILE // 8) for start in ORIGIN)
    with torch.inference_mode():
        condition = encode_images(parts.vae, torch.from_numpy(sar))
        latents = torch.from_numpy(draw_scene_noise(SEED, rows, cols, 4))[None]
        for timestep, after in ((999, 499), (499, None)):
            inputs = torch.cat([condition, latents], dim=1)
            output = parts.unet(inputs, timestep, encoder_hidden_states=parts.prompt_embeds).sample
            noise = output[:, :4]
            here, there = float(alpha_bars[timestep]), 1.0 if after is None else float(alpha_bars[after])
            clean = (latents - (1 - here) ** 0.5 * noise) / here**0.5
            latents = there**0.5 * clean + (1 - there) ** 0.5 * noise
        expected = to_eo_bytes(decode_latents(parts.vae, latents).numpy())
    assert np.abs(found.eo.astype(int) - expected).max() <= 1
    assert (found.eo != expected).mean() < 0.001
    assert expected.std() > 1
    assert found.variance is not None
    np.testing.assert_allclose(found.variance, 1, rtol=1e-5)  # untrained: the fifth channel is zero


def test_one_tile_in_the_processors_precision(full: Path) -> None:
    sar = to_model_input(simulate_pair(TILE, TILE, seed=4)[0])[None]
    exact, fast = (
        DiffusionTranslator(resolve_model(full, steps=2, device="cpu", dtype=dtype)).translate(sar, [ORIGIN])
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(exact.eo.astype(int) - fast.eo).mean() < 2
