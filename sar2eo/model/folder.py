"""A model's folder: found by its name, checked, hashed and described, without torch.

::

    model_index.json                       what diffusers' tools look for
    sar2eo.json or sar2eo-matcher.json     the card
    unet/ or denoiser/, and vae/           config.json  diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json        the noise schedule of training
    prompt_embeds.safetensors              the fixed prompt's embedding, where the U-Net wants one

Weights are safetensors only: reading a pickle can run code, so pickles are refused by name and content.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open

from sar2eo.errors import CheckpointError, one_line
from sar2eo.model.card import ModelCard

BUNDLED = "bundled"
"""Name of the model that comes with the package, and of its folder there."""

BUNDLED_MATCHER = "bundled_matcher"
"""Folder of the matcher that comes with the package."""

CONFIG = "config.json"
MODEL_INDEX = "model_index.json"
PROMPT_EMBEDS = "prompt_embeds.safetensors"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

_VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # a bare pickle; torch's zip of pickles
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

CardT = TypeVar("CardT", bound=ModelCard)


class TensorHeader(NamedTuple):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class VaeFacts(NamedTuple):
    """What the pipeline needs to know of a VAE, from its configuration."""

    class_name: str
    factor: int
    latent_channels: int


@dataclass(frozen=True)
class ModelFolder(Generic[CardT]):
    """A model on disk: networks by name, a noise schedule and a card.

    Parameters
    ----------
    card_class : type of ModelCard
        `TranslatorCard` or `MatcherCard`; it names the card's file and the networks.
    """

    path: Path
    card_class: type[CardT]

    def files(self) -> list[Path]:
        """List the files of the model, sorted, after checking that all are there."""
        path, card = self.path, self.card_class
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder ({card.kind} is a folder with {card.file_name})")
        if not (path / card.file_name).is_file():
            raise CheckpointError(f"{path} has no {card.file_name}: not {card.kind} (see {card.made_by})")
        networks = self.card().networks
        names = [MODEL_INDEX, card.file_name, SCHEDULER_CONFIG]
        names += [f"{network}/{name}" for network in networks for name in (CONFIG, WEIGHTS)]
        for name in names:
            if not (path / name).is_file():
                for other in sorted((path / name).parent.glob("*")):
                    refuse_pickle(other)
                raise CheckpointError(f"{path} is incomplete: {name} is missing")
        if "unet" in networks and wants_prompt(self.config("unet")):
            names.append(PROMPT_EMBEDS)
            if not (path / PROMPT_EMBEDS).is_file():
                raise CheckpointError(
                    f"{path} is incomplete: its U-Net attends to a prompt, {PROMPT_EMBEDS} is missing"
                )
        return [path / name for name in sorted(names)]

    def card(self) -> CardT:
        """Read the card."""
        return self.card_class.read(self.path)

    def config(self, network: str) -> dict[str, Any]:
        """Read the configuration of a network."""
        return read_json(self.path / network / CONFIG)

    def scheduler(self) -> dict[str, Any]:
        """Read the configuration of the noise schedule."""
        return read_json(self.path / SCHEDULER_CONFIG)

    def count_parameters(self) -> dict[str, int]:
        """Count the values in the weights of each network."""
        counts = {}
        for network in self.card().networks:
            headers = read_headers(self.path / network / WEIGHTS).values()
            counts[network] = sum(math.prod(header.shape) for header in headers)
        return counts

    def sha256(self) -> str:
        """Hash weights, configurations and card.

        It is the sha256 of the text that ``sha256sum`` prints for `files`, named relative to the folder;
        other files in the folder (a README) do not count.
        """
        return hash_files(self.path, self.files())

    def describe(self, **networks: dict[str, Any]) -> dict[str, Any]:
        """Describe the model as JSON values: sha256, parameters, networks, schedule and card.

        Parameters
        ----------
        **networks : dict
            Facts of the networks other than the VAE.
        """
        vae, counts = self.config("vae"), self.count_parameters()
        facts = read_vae_facts(vae)
        return {
            "path": str(self.path),
            "sha256": self.sha256(),
            "parameters": counts | {"total": sum(counts.values())},
            **networks,
            "vae": {
                "class": facts.class_name,
                "factor": facts.factor,
                "latent_channels": facts.latent_channels,
                "scaling_factor": vae.get("scaling_factor"),
            },
            "schedule": self.scheduler(),
            "card": self.card().to_dict(),
        }


def find_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    allow: Sequence[str] = ("*.json", "*.safetensors"),
    ignore: Sequence[str] = (),
    own: str = BUNDLED,
) -> Path:
    """Return a local folder, or fetch one where the source is no folder but looks like a hub id.

    Parameters
    ----------
    source : str or Path
        "bundled", a folder, or "owner/name". (A folder that is called bundled is ``./bundled``.)
    revision : str or None
        Branch, tag or commit of a hub id.
    allow, ignore : sequence of str
        Patterns of the files to fetch and not to fetch.
    own : str
        Folder in the package that "bundled" stands for.

    Raises
    ------
    CheckpointError
        If there is no such folder and no such id, or the hub cannot be reached (offline mode, set by
        ``HF_HUB_OFFLINE=1``, uses what was fetched before).
    """
    if source == BUNDLED:
        return _bundled(own)
    path = Path(source)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        single = path.suffix in {".safetensors", *_PICKLE_SUFFIXES}
        hint = ", or of one file of all networks the folder that diffusers converts it to" if single else ""
        raise CheckpointError(f"{source} is a file: give the folder that holds it{hint}")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(
            source, revision=revision, allow_patterns=list(allow), ignore_patterns=list(ignore)
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no such folder here, and fetching it from the hub failed: {one_line(error, 200)}"
        ) from error
    return Path(found)


def _bundled(own: str) -> Path:
    """Return where the package keeps a model; in another process perhaps elsewhere."""
    folder = Path(__file__).parents[1] / own
    if not folder.is_dir():
        raise CheckpointError(
            f"this installation has no {'model' if own == BUNDLED else 'matcher'} of its own: name a "
            "checkpoint folder (see 'sar2eo model' and 'sar2eo train-matcher') or an id on a hub with --model"
        )
    return folder


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError if a file is a pickle, by name or by content."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its header, eight bytes that may look like a pickle's.
    pickled = start.startswith(_PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix in _PICKLE_SUFFIXES or pickled:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when read: convert it to safetensors first"
        )


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(raw).__name__}")
    return raw


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Read names, dtypes and shapes of a safetensors file, not its tensors."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    refuse_pickle(path)
    try:
        with safe_open(path, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: TensorHeader(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def hash_files(folder: Path, paths: Iterable[Path]) -> str:
    """Hash files in a folder, by their names in it: the sha256 of what ``sha256sum`` prints for them."""
    lines = [f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_vae_facts(config: Mapping[str, Any]) -> VaeFacts:
    """Read downsampling factor and latent channels from a VAE's configuration."""
    class_name = config.get("_class_name")
    if class_name not in _VAE_CLASSES:
        raise CheckpointError(f"vae: _class_name={class_name!r}, must be one of {', '.join(_VAE_CLASSES)}")
    blocks = config.get(
        "block_out_channels" if class_name == "AutoencoderKL" else "encoder_block_out_channels"
    )
    channels = config.get("latent_channels")
    if not isinstance(blocks, list | tuple) or not blocks or type(channels) is not int or channels < 1:
        raise CheckpointError(f"vae: {CONFIG} says latent_channels={channels!r}, block channels {blocks!r}")
    _check_scaling(config)
    # In every class each block but one halves the resolution.
    return VaeFacts(str(class_name), 2 ** (len(blocks) - 1), channels)


def _check_scaling(config: Mapping[str, Any]) -> None:
    """Refuse a scale of latents that would make all of them nothing, or not finite."""
    factor = config.get("scaling_factor", 1.0)
    if type(factor) not in (int, float) or not 0 < factor <= sys.float_info.max:
        raise CheckpointError(f"vae: {CONFIG} says scaling_factor={factor!r}, must be a positive number")


def wants_prompt(unet_config: Mapping[str, Any]) -> bool:
    """Tell from a U-Net's configuration whether it attends to a prompt."""
    down, up = (unet_config.get(f"{way}_block_types", ()) for way in ("down", "up"))
    if not isinstance(down, list | tuple) or not isinstance(up, list | tuple):
        raise CheckpointError(f"unet: {CONFIG} says block types {down!r} and {up!r}, must be lists")
    blocks = [*down, *up]
    blocks.append(unet_config.get("mid_block_type", "UNetMidBlock2DCrossAttn"))
    return any("CrossAttn" in str(block) for block in blocks)


def check_fit(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    prompt: Sequence[int] | None,
    encoder: Mapping[str, Any] | None = None,
) -> None:
    """Check that the parts of a checkpoint fit each other.

    Parameters
    ----------
    unet, vae : mapping
        Their configurations.
    prompt : sequence of int or None
        Shape of the prompt's embedding.
    encoder : mapping or None
        Configuration of the SAR encoder, whose guess of the EO latents is one more input, and the trust in
        it a channel.
    """
    latent, sar = vae["latent_channels"], vae["latent_channels"]
    if encoder is not None:
        sar = encoder["sar_channels"] + latent + 1
        if encoder["latent_channels"] != latent:
            raise CheckpointError(
                f"the encoder guesses {encoder['latent_channels']} latent channels: the VAE has {latent}"
            )
    channels = (unet["in_channels"], unet["out_channels"])
    if channels != (sar + latent, latent + 1):
        raise CheckpointError(
            f"the U-Net has {channels[0]} channels in and {channels[1]} out: must be {sar + latent} and "
            f"{latent + 1} for a VAE of {latent} latent channels (see 'sar2eo model init')"
        )
    _check_scaling(vae)
    images = (vae["in_channels"], vae.get("out_channels", vae["in_channels"]))
    if images != (3, 3):
        raise CheckpointError(f"the VAE has {images[0]} channels in and {images[1]} out: must be 3 and 3")
    width = unet["cross_attention_dim"]
    if wants_prompt(unet) and (prompt is None or len(prompt) != 3 or (prompt[0], prompt[2]) != (1, width)):
        shape = None if prompt is None else tuple(prompt)
        raise CheckpointError(
            f"the prompt's embedding has shape {shape}: the U-Net wants (1, tokens, {width})"
        )
