"""What fine-tuning starts from: a checkpoint of ours, or a Stable-Diffusion folder that is adapted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sar2eo.card import CARD_NAME, Card
from sar2eo.checkpoint import Checkpoint, load_checkpoint
from sar2eo.diffusion import schedule_config
from sar2eo.layout import files_sha256, folder_sha256, wants_prompt
from sar2eo.network import adapt_unet
from sar2eo.pretrained import embed_prompt, find_base, pretrained_schedule, pretrained_unet, pretrained_vae

__all__ = ["Base", "open_base", "parts_sha256"]

_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")


class Base(NamedTuple):
    """A base found and not yet loaded."""

    folder: Path
    sha256: str

    def vae_sha256(self) -> str:
        """Hash the VAE alone: what latents come from."""
        return parts_sha256(self.folder, ("vae",))

    def load(self) -> Checkpoint:
        """Load it in float32, adapting what is not yet a C-DiffSET network.

        Raises
        ------
        CheckpointError
            If it is not what it should be.
        """
        if (self.folder / CARD_NAME).is_file():
            return load_checkpoint(self.folder)
        raw = pretrained_schedule(self.folder)
        unet = adapt_unet(pretrained_unet(self.folder))
        return Checkpoint(
            unet=unet,
            vae=pretrained_vae(self.folder),
            schedule=schedule_config(raw, set_alpha_to_one=True),
            prompt_embeds=embed_prompt(self.folder) if wants_prompt(unet.config) else None,
            card=Card(name=self.folder.name, prediction_type=raw.get("prediction_type", "epsilon")),
        )


def open_base(base: str | Path, revision: str | None = None) -> Base:
    """Find a base, fetching it if it is a hub id, and hash it.

    Raises
    ------
    CheckpointError
        If it cannot be found, or is incomplete.
    """
    folder = find_base(base, revision)
    if (folder / CARD_NAME).is_file():
        return Base(folder, folder_sha256(folder))
    return Base(folder, parts_sha256(folder, _PARTS))


def parts_sha256(folder: Path, parts: Iterable[str]) -> str:
    """Hash the files of some parts of a checkpoint, such as its ``vae/``."""
    found = (path for part in parts for path in (folder / part).glob("*") if path.is_file())
    return files_sha256(folder, sorted(found))
