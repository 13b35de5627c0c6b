"""New checkpoints: from a Stable-Diffusion base, from the authors' release, untrained, or packed for others.

Any base in diffusers' layout of the 1.x and 2.x families serves (``unet/``, ``vae/``, ``scheduler/``,
``text_encoder/``, ``tokenizer/``), with plain or fp16 file names; safetensors only.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, UNet2DConditionModel
from diffusers.utils import logging
from torch import Tensor

from sar2eo.errors import CheckpointError, SettingsError, one_line
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sar2eo.model.diffusion import read_schedule
from sar2eo.model.folder import (
    CONFIG,
    MODEL_INDEX,
    PROMPT_EMBEDS,
    SCHEDULER_CONFIG,
    WEIGHTS,
    find_folder,
    read_headers,
    read_json,
    refuse_pickle,
    wants_prompt,
)
from sar2eo.model.network import (
    SIZES,
    Vae,
    adapt_unet,
    add_variance_channel,
    create_unet,
    create_vae,
    find_vae_class,
)
from sar2eo.model.weights import create_empty, fill, narrow, parse_disk_dtype, refuse_existing

PROMPT = "electro-optical image"
"""The fixed prompt (C-DiffSET, section 3.3)."""

_BASE_FILES = [
    f"{part}/{pattern}"
    for part in ("unet", "vae", "encoder", "scheduler", "text_encoder", "tokenizer")
    for pattern in ("*.json", "*.safetensors", "*.txt")
] + [TranslatorCard.file_name, MODEL_INDEX, PROMPT_EMBEDS]  # of a base that is a checkpoint already
_HALF_PRECISION = ["*.fp16.safetensors"]
_NOT_NEEDED = ["*non_ema*"]
_PREFIXES = re.compile(r"^(module\.|unet\.)+")
_TEXT_WEIGHTS = "model.safetensors"


_INIT_SEED = 2025
_MEASURED_BY = ("sampler", "steps", "temperature")


def init_checkpoint(
    out: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    size: str | None = None,
    vae: str | Path | None = None,
    zero_terminal_snr: bool = False,
    untrained: bool = False,
    **card: Any,
) -> Path:
    """Create a checkpoint to train: from a Stable-Diffusion base, or a small untrained one.

    Parameters
    ----------
    out : str or Path
        New folder.
    base : str, Path or None
        Folder in diffusers' layout, or hub id; its U-Net is adapted (`sar2eo.model.network.adapt_unet`) and
        the prompt embedded.
    revision : str or None
        Branch, tag or commit of a hub id.
    size : {"tiny", "small", "region"} or None
        Instead of a base: an untrained checkpoint without cross-attention, always the same.
    vae : str, Path or None
        With a size: folder with a trained ``vae/``, of `sar2eo.train_vae` or any checkpoint; the untrained
        U-Net is made for its latents.
    zero_terminal_snr : bool
        Let the noise schedule end in pure noise (https://arxiv.org/abs/2305.08891); the card's defaults
        are then v_prediction and trailing spacing.
    untrained : bool
        With a base: its architecture, VAE and prompt, but new weights for the U-Net (C-DiffSET, Table 3,
        first row).
    **card
        Fields of the card; the default name is the folder's, the default prediction type the base's.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SettingsError
        If both or neither of base and size are given, a VAE with a base, `untrained` without one, or a
        field that the card lacks.
    CheckpointError
        If base or VAE are incomplete, or noise schedule and prediction type do not go together.
    OutputError
        If the folder exists.
    """
    if (base is None) == (size is None):
        raise SettingsError(f"give either a base or a size ({', '.join(SIZES)})")
    if vae is not None and base is not None:
        raise SettingsError(
            f"vae={str(vae)!r}: goes with a size; a base has its own VAE, which its U-Net was trained with"
        )
    if untrained and base is None:
        raise SettingsError("untrained: goes with a base; a size is always untrained")
    refuse_existing(Path(out))
    if base is not None:
        made = adapt_base(find_base(base, revision), untrained=untrained)
    else:
        made = _create_untrained(str(size), vae)
    schedule = made.schedule
    fields: dict[str, Any] = {"name": Path(out).name, "prediction_type": made.card.prediction_type}
    if zero_terminal_snr:
        schedule = schedule | {"rescale_betas_zero_snr": True}
        fields |= {"prediction_type": "v_prediction", "spacing": "trailing"}
    return save_checkpoint(dataclasses.replace(made, schedule=schedule, card=_make_card(fields | card)), out)


def adapt_base(folder: Path, *, untrained: bool = False) -> Checkpoint:
    """Adapt a Stable-Diffusion base: its U-Net takes a SAR latent too, and its prompt is embedded.

    Parameters
    ----------
    untrained : bool
        Fresh weights for the U-Net.
    """
    raw = read_json(folder / SCHEDULER_CONFIG)
    pretrained: UNet2DConditionModel = _load(UNet2DConditionModel, folder / "unet")
    unet = adapt_unet(_fresh(pretrained) if untrained else pretrained)
    return Checkpoint(
        unet=unet,
        vae=load_vae(folder),
        schedule=read_schedule(raw, set_alpha_to_one=True),
        prompt_embeds=embed_prompt(folder) if wants_prompt(unet.config) else None,
        card=TranslatorCard(name=folder.name, prediction_type=raw.get("prediction_type", "epsilon")),
    )


def _fresh(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Create a U-Net of the same architecture with untrained weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_INIT_SEED)
        return UNet2DConditionModel.from_config(unet.config)


def _create_untrained(size: str, vae: str | Path | None) -> Checkpoint:
    """Create a U-Net, the same every time, and a VAE for it unless a folder has one."""
    with torch.random.fork_rng(devices=[]):
        trained = None if vae is None else load_vae(Path(vae))
        torch.manual_seed(_INIT_SEED)
        autoencoder = create_vae(size) if trained is None else trained
        unet = create_unet(size, autoencoder.config.latent_channels)
    return Checkpoint(
        unet=unet,
        vae=autoencoder,
        schedule=read_schedule({}, set_alpha_to_one=True),
        prompt_embeds=None,
        card=TranslatorCard(name=size),
    )


def import_checkpoint(
    out: str | Path, *, unet: str | Path, base: str | Path, revision: str | None = None, **card: Any
) -> Path:
    """Make a checkpoint from the authors' release: its U-Net weights, and a base for the rest.

    Parameters
    ----------
    out : str or Path
        New folder.
    unet : str or Path
        ``model.safetensors`` of U-Net keys, perhaps prefixed ``module.`` or ``unet.``; of the first
        stage (C channels out: the variance channel is added) or the second (C + 1).
    base, revision
        The model that the release was trained from; see `init_checkpoint`.
    **card
        Fields of the card. Defaults are the release's: noise prediction, 50 DDIM steps of leading spacing,
        confidence at the middle one (timestep 481).

    Raises
    ------
    SettingsError, CheckpointError, OutputError
        As in `init_checkpoint`; CheckpointError too if a key is missing, unexpected or misshapen.
    """
    refuse_existing(Path(out))
    folder = find_base(base, revision)
    imported = load_release_unet(Path(unet), folder)
    vae = load_vae(folder)
    defaults: dict[str, Any] = {
        "name": Path(out).name,
        "prediction_type": "epsilon",
        "sampler": "ddim",
        "spacing": "leading",
        "steps": 50,
        "confidence_timestep": 481,
    }
    checkpoint = Checkpoint(
        unet=imported,
        vae=vae,
        schedule=read_schedule(read_json(folder / SCHEDULER_CONFIG), set_alpha_to_one=False),
        prompt_embeds=embed_prompt(folder) if wants_prompt(imported.config) else None,
        card=_make_card(defaults | card),
    )
    return save_checkpoint(checkpoint, out)


def pack_checkpoint(
    folder: str | Path,
    out: str | Path,
    *,
    dtype: str = "float16",
    vae: str | Path | None = None,
    **card: Any,
) -> Path:
    """Copy a checkpoint for publishing: weights in half precision, and a final card.

    Parameters
    ----------
    folder : str or Path
        A trained checkpoint.
    out : str or Path
        New folder.
    dtype : {"float16", "bfloat16", "float32"}
        Of the weights on disk.
    vae : str, Path or None
        Folder of a VAE whose decoder was trained further (``sar2eo.train_vae`` with ``decoder_only``); it
        replaces the checkpoint's.
    **card
        Fields of the card to change.

    Raises
    ------
    SettingsError, CheckpointError, OutputError
        As in `init_checkpoint`; CheckpointError too if a weight is too large for the dtype, or the VAE has
        other latents than the U-Net knows.
    """
    refuse_existing(Path(out))
    kept = parse_disk_dtype(dtype)
    loaded = load_checkpoint(folder)
    changed = loaded.card.with_changes(**card)
    resampled = any(getattr(changed, name) != getattr(loaded.card, name) for name in _MEASURED_BY)
    if (resampled or vae is not None) and "metrics" not in card:
        changed = changed.with_changes(metrics={})  # they were measured with another decoder or sampling
    autoencoder = loaded.vae if vae is None else load_vae(Path(vae))
    if not _same_latents(autoencoder, loaded.vae):
        raise CheckpointError(
            f"{vae}: its encoder is not that of {folder}: the U-Net does not know its latents"
        )
    packed = dataclasses.replace(loaded, vae=autoencoder, card=changed)
    narrow([getattr(packed, name) for name in changed.networks], kept, folder)
    return save_checkpoint(packed, out)


def _same_latents(one: Vae, other: Vae) -> bool:
    """Whether two VAEs have the same encoder and scale latents alike."""
    scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    if any(one.config.get(name) != other.config.get(name) for name in scaling):
        return False
    mine, theirs = (
        {k: v for k, v in vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
        for vae in (one, other)
    )
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _make_card(fields: dict[str, Any]) -> TranslatorCard:
    try:
        return TranslatorCard(**fields)
    except TypeError as error:
        raise SettingsError(f"card: {error}") from error


def find_base(base: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a base model, fetching it if it is a hub id."""
    folder = find_folder(base, revision=revision, allow=_BASE_FILES, ignore=_NOT_NEEDED + _HALF_PRECISION)
    if folder != Path(base).resolve() and not (folder / "unet" / WEIGHTS).is_file():
        # Some ids hold half-precision files only; others hold both, of which one is enough.
        folder = find_folder(base, revision=revision, allow=_BASE_FILES, ignore=_NOT_NEEDED)
    return folder


def load_vae(folder: Path) -> Vae:
    """Load the VAE of a folder in diffusers' layout, in float32."""
    config = read_json(folder / "vae" / CONFIG)
    kind = find_vae_class(config)
    if kind is not AutoencoderDC:
        return _load(kind, folder / "vae")
    module: Vae = create_empty(kind, config)  # diffusers' way would warn of latents_mean
    fill(module, folder / "vae" / WEIGHTS)
    return module


def embed_prompt(folder: Path) -> Tensor:
    """Embed `PROMPT` with the base's text encoder, tokenised without padding.

    Returns
    -------
    Tensor of float32, shape (1, tokens, dimensions)
    """
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder} has no {part}/, which the U-Net's prompt needs")
    variant = _variant(folder / "text_encoder", _TEXT_WEIGHTS)
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder, info = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
        )
    except Exception as error:  # transformers lets any exception of its parsers through
        raise CheckpointError(
            f"{folder}: tokenizer or text encoder cannot be read: {one_line(error, 200)}"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if info["missing_keys"]:
        raise CheckpointError(f"{folder}: the text encoder lacks {sorted(info['missing_keys'])[0]}")
    tokens = tokenizer(PROMPT, padding=False, truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        embedded: Tensor = encoder.float().eval()(tokens).last_hidden_state
    return embedded.clone()


def load_release_unet(path: Path, base: Path) -> UNet2DConditionModel:
    """Read U-Net weights of the authors' release into the architecture of their base, in float32.

    Parameters
    ----------
    path : Path
        A safetensors file of U-Net keys, perhaps prefixed ``module.`` or ``unet.``, with 2 C channels
        in and C (first stage: a variance channel is added) or C + 1 out.
    base : Path
        Folder of the base, of which only the configuration is read.
    """
    headers = read_headers(path)
    names = {key: _PREFIXES.sub("", key) for key in headers}
    shapes = {names[key]: header.shape for key, header in headers.items()}
    if "conv_in.weight" not in shapes or "conv_out.weight" not in shapes:
        raise CheckpointError(f"{path} holds no U-Net: it has no conv_in.weight or no conv_out.weight")
    config = read_json(base / "unet" / CONFIG)
    latent = config.get("in_channels", 4)
    channels_in, channels_out = shapes["conv_in.weight"][1], shapes["conv_out.weight"][0]
    if channels_in != 2 * latent or channels_out not in (latent, latent + 1):
        raise CheckpointError(
            f"{path}: its U-Net has {channels_in} channels in and {channels_out} out, must be {2 * latent} "
            f"in and {latent} (first stage) or {latent + 1} out"
        )
    config |= {"in_channels": channels_in, "out_channels": channels_out}
    unet = create_empty(UNet2DConditionModel, config)
    fill(unet, path, names)
    return add_variance_channel(unet) if channels_out == latent else unet


def _load(model_class: Any, folder: Path) -> Any:
    create_empty(model_class, read_json(folder / CONFIG))  # a clear error where diffusers' is not
    variant = _variant(folder, WEIGHTS)
    logging.disable_progress_bar()
    try:
        module, info = model_class.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # else diffusers asks for another package
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: weights do not fit {CONFIG}: {one_line(error, 200)}") from error
    finally:
        logging.enable_progress_bar()
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"{folder}: weights do not fit {CONFIG}: {len(wrong)} keys, such as {wrong[0]}")
    return module.float()


def _variant(folder: Path, weights: str) -> str | None:
    """Return which files a folder has, None for plain, "fp16" or "bf16"; and check that they are sound."""
    stem, _, suffix = weights.rpartition(".")
    for variant, dot in ((None, ""), ("fp16", ".fp16"), ("bf16", ".bf16")):
        whole, index = folder / f"{stem}{dot}.{suffix}", folder / f"{weights}.index{dot}.json"
        # What says which of the shards holds which weights; diffusers prefers it to a file of all.
        shards = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else []
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent:
            also = f": remove this index of other files, {whole.name} holds all" if whole.is_file() else ""
            raise CheckpointError(f"{index} names {absent[0]}, which is missing{also}")
        if shards or whole.is_file():
            for name in shards or [whole.name]:
                read_headers(folder / name)
            return variant
    for path in sorted(folder.glob("*")):
        refuse_pickle(path)
    raise CheckpointError(f"{folder / weights} is missing")
