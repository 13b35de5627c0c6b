"""One denoising step at full size (the U-Net of Stable Diffusion 2.1), against a bare diffusers loop."""

import gc
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from measuring import Baseline, cpu_features, matrix_products
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, save_checkpoint
from sar2eo.model.diffusion import create_scheduler, read_schedule, sample
from sar2eo.model.network import SarCondition, create_vae
from sar2eo.model.spec import resolve_model
from sar2eo.model.translator import DiffusionTranslator

ARCHITECTURE = {
    "sample_size": 64,
    "in_channels": 8,
    "out_channels": 5,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
TOKENS = 6  # "electro-optical image" without padding
LATENT = (1, 4, 64, 64)
EQUAL = 1.02  # as far as medians of a few rounds can tell


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = UNet2DConditionModel(**ARCHITECTURE)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {"unet": unet, "vae": create_vae("small"), "prompt_embeds": torch.randn(1, TOKENS, 1024)}
    schedule = read_schedule(DDIMScheduler().config, set_alpha_to_one=True)
    whole = Checkpoint(**parts, schedule=schedule, card=TranslatorCard(name="random"))
    folder = save_checkpoint(whole, tmp_path_factory.mktemp("models") / "full")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def flops():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURE)
        inputs = torch.randn(1, 8, 64, 64), torch.ones(1), torch.randn(1, TOKENS, 1024)
    # The counter knows matrix products, of which attention then consists.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet(*inputs)
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def room():
    yield
    torch.compiler.reset()
    gc.collect()


def our_step(folder, **options):
    """One step of the sampler as the translator takes it."""
    translator = DiffusionTranslator(resolve_model(folder, device="cpu", **options))
    scheduler = create_scheduler("ddim", "trailing", "epsilon", translator._schedule)
    sar, noise = torch.randn(2, *LATENT)

    @torch.inference_mode()
    def step():
        return sample(translator._networks.predict, SarCondition(sar), noise, scheduler, 1, 500)

    return step


def bare_step(folder, *, dtype, compiled):
    """One step as one would write it with diffusers alone."""
    kind = getattr(torch, dtype)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=kind)
    prompt, (sar, noise) = torch.randn(1, TOKENS, 1024).to(kind), torch.randn(2, *LATENT).to(kind)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    call = torch.compile(unet) if compiled else unet

    @torch.inference_mode()
    def step():
        timestep = scheduler.timesteps[0]
        output = call(torch.cat([sar, noise], dim=1), timestep, encoder_hidden_states=prompt).sample
        return scheduler.step(output[:, :4], timestep, noise).prev_sample

    return step


@pytest.mark.parametrize(
    ("dtype", "compiled", "rounds"),
    [("float32", False, 5), ("bfloat16", False, 7), ("bfloat16", True, 7)],
    ids=["float32", "bfloat16", "bfloat16-compiled"],
)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch and of diffusers
def test_unet_step(compare, checkpoint, flops, dtype, compiled, rounds):
    def share(step, products):
        return f"{products / step:.0%} of {flops / products / 1e12:.2f} TFLOP/s, {_features()}"

    kind = f"{dtype}, compiled" if compiled else dtype
    compare(
        f"U-Net step, full size, {kind}",
        our_step(checkpoint, dtype=dtype, compile=compiled),
        [
            Baseline(
                f"bare diffusers, {kind}",
                bare_step(checkpoint, dtype=dtype, compiled=compiled),
                goal=EQUAL,
            ),
            Baseline(
                "as many FLOP of bf16 matrix products", matrix_products(flops, torch.bfloat16), note=share
            ),
        ],
        rounds=rounds,
        warmups=1,
    )


def _features():
    found = cpu_features()
    return f"CPU with {', '.join(found)}" if found else "CPU without AVX2"
