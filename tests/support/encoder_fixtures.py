"""A tiny untrained checkpoint with a SAR encoder."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, save_checkpoint
from sar2eo.model.diffusion import read_schedule
from sar2eo.model.encoder import SarEncoder
from sar2eo.model.network import create_vae


def encoder_checkpoint(out: Path, *, start: int = 500, steps: int = 2) -> Path:
    """Write one whose numbers are random, always the same; its tiles are multiples of 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2025)
        vae = create_vae("small")
        encoder = SarEncoder(sar_channels=4, latent_channels=4, widths=(8, 16), inner=16)
        for block in encoder.modules():
            if isinstance(getattr(block, "conv2", None), torch.nn.Conv2d):
                torch.nn.init.normal_(block.conv2.weight, std=0.05)
        unet = UNet2DConditionModel(
            in_channels=4 + 4 + 1 + 4,
            out_channels=5,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )
    card = TranslatorCard(
        name="tiny-encoder",
        polarisations=("VV", "VH"),
        scaling="db",
        gsd_m=None,
        prediction_type="v_prediction",
        spacing="trailing",
        steps=steps,
        encoder=True,
        start=start,
    )
    schedule = read_schedule({"rescale_betas_zero_snr": True}, set_alpha_to_one=True)
    made = Checkpoint(unet=unet, vae=vae, encoder=encoder, schedule=schedule, prompt_embeds=None, card=card)
    return save_checkpoint(made, out)
