"""Write a conditioned run as a checkpoint of the package: ``export.py --run RUN --bundled DIR --out DIR``."""

import argparse
import dataclasses
from pathlib import Path

from conditioned import Conditioned
from safetensors.torch import load_file

from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import load_checkpoint, save_checkpoint
from sar2eo.model.encoder import SarEncoder
from sar2eo.model.weights import narrow, parse_disk_dtype

TRAINING = (
    "contains modified Copernicus Sentinel data 2016-2021: Sentinel-1 IW GRDH VH and Sentinel-2 L1C of "
    "Los Angeles and San Antonio (USA), 2020, and chips of 21 other places (SEN1-2, OMBRIA and a desert), VV"
)


def main():
    """Run."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--bundled", type=Path, required=True, help="a checkpoint folder, for its VAE")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--start", type=int, default=500)
    p.add_argument("--steps", type=int, default=1)
    o = p.parse_args()
    direct, whole = load_file(o.run / "direct.safetensors"), load_file(o.run / "average.safetensors")
    encoder = SarEncoder()
    names = {
        "adapter.down.": "shrink.",
        "adapter.blocks.": "blocks.",
        "adapter.norm.": "norm.",
        "adapter.out.": "out.",
    }
    weights = {k.replace("last.0.", "last."): v for k, v in direct.items()
               if not k.startswith(("head.", "norm.")) and k not in ("gain", "bias")}  # fmt: skip
    for name, value in whole.items():
        for old, new in names.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = value
    encoder.load_state_dict(weights)
    unet = Conditioned().unet
    unet.load_state_dict({k.removeprefix("unet."): v for k, v in whole.items() if k.startswith("unet.")})
    base = load_checkpoint(o.bundled)
    card = TranslatorCard(
        name="sar2eo-s1", quantity="intensity", calibration="sigma0", polarisations=("VV", "VH"), gsd_m=10.0,
        scaling="db", training_data=TRAINING, licence="Apache-2.0", prediction_type="v_prediction",
        sampler="ddim", spacing="trailing", steps=o.steps, encoder=True, start=o.start,
    )  # fmt: skip
    made = dataclasses.replace(base, unet=unet.eval(), encoder=encoder.eval(), card=card, prompt_embeds=None)
    narrow([made.unet, made.vae, made.encoder], parse_disk_dtype("float16"), o.run)
    print(save_checkpoint(made, o.out))


if __name__ == "__main__":
    main()
