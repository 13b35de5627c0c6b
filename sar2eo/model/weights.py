"""Networks on disk: built from configurations, filled strictly from safetensors, written whole or not."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sar2eo.errors import CheckpointError, OutputError, SettingsError, one_line
from sar2eo.model.card import ModelCard
from sar2eo.model.folder import (
    CONFIG,
    MODEL_INDEX,
    SCHEDULER_CONFIG,
    WEIGHTS,
    ModelFolder,
    read_headers,
    write_json,
)
from sar2eo.store.atomic import atomic_folder

# Far beyond the largest networks of this kind. A tampered number could keep the constructor busy for hours,
# or fill the memory, before any shape is compared.
_MOST_LAYERS = 64
_LARGEST_SIZE = 1 << 16
_FLOATS = ("F64", "F32", "F16", "BF16")
_ON_DISK = ("float16", "bfloat16", "float32")
_STATISTICS = ("latents_mean", "latents_std")  # not every VAE class of diffusers has these arguments


def create_empty(model_class: Any, config: Mapping[str, Any]) -> Any:
    """Create a network of diffusers on the device "meta": shapes without values."""
    _check_sizes(model_class.__name__, config)
    known = inspect.signature(model_class.__init__).parameters
    extra = {name: config[name] for name in _STATISTICS if name in config and name not in known}
    try:
        with torch.device("meta"):
            model = model_class.from_config({k: v for k, v in config.items() if k not in extra}).eval()
        model.register_to_config(**extra)
        return model
    except Exception as error:  # a tampered value can raise anything inside the constructor
        raise CheckpointError(
            f"{model_class.__name__}: {CONFIG} makes no network: {one_line(error, 200)}"
        ) from error


def _check_sizes(name: str, config: Mapping[str, Any]) -> None:
    """Refuse numbers and lists that are too large for any network."""
    for key, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        limit = _MOST_LAYERS if "layers" in key else _LARGEST_SIZE
        sizes = [v for v in values if isinstance(v, int)]
        if len(values) > _MOST_LAYERS and key not in _STATISTICS:
            raise CheckpointError(
                f"{name}: {CONFIG} says {key} with {len(values)} entries, at most {_MOST_LAYERS}"
            )
        if any(size > limit for size in sizes):
            raise CheckpointError(f"{name}: {CONFIG} says {key}={max(sizes)}, must be at most {limit}")


def check_weights(module: nn.Module, path: Path, names: Mapping[str, str] | None = None) -> None:
    """Check the header of a safetensors file against a network.

    Parameters
    ----------
    names : mapping or None
        Names of tensors in the file, to those in the network; None: the same.
    """
    headers = read_headers(path)
    shapes = {names[name] if names else name: header.shape for name, header in headers.items()}
    state = module.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for problem, keys in {"lacks": wanted.keys() - shapes, "has unexpected": shapes.keys() - wanted}.items():
        if keys:
            raise CheckpointError(f"{path} {problem} {len(keys)} tensors, such as {min(keys)}")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise CheckpointError(f"{path}: {name} has shape {shapes[name]}, must be {shape} by {CONFIG}")
    for name, header in headers.items():
        if header.dtype not in _FLOATS and state[names[name] if names else name].is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {header.dtype}, must be one of {', '.join(_FLOATS)}")


def fill(
    module: nn.Module,
    path: Path,
    names: Mapping[str, str] | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Read the weights of a network on the device "meta", after `check_weights`."""
    check_weights(module, path, names)
    tensors = read_tensors(path, device=device, dtype=dtype)
    module.load_state_dict(
        {names[name] if names else name: tensor for name, tensor in tensors.items()}, assign=True
    )


def read_tensors(path: Path, *, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read a safetensors file into memory; values must be finite.

    safetensors would map the file, and a process that maps a file dies when another writes over it.
    """
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in load_file(path, device=device).items()}
    for name, tensor in tensors.items():
        if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite in {dtype}")
    return tensors


def parse_disk_dtype(name: str) -> torch.dtype:
    """Return the dtype of weights on disk, one of float16, bfloat16 and float32."""
    if name not in _ON_DISK:
        raise SettingsError(f"dtype={name!r}: must be one of {', '.join(_ON_DISK)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def narrow(modules: Iterable[nn.Module], dtype: torch.dtype, source: str | Path) -> None:
    """Turn networks into what takes less room on disk.

    Parameters
    ----------
    dtype : torch.dtype
        From `parse_disk_dtype`.
    source : str or Path
        Where they are from, for messages.
    """
    for module in modules:
        nn.Module.to(module, dtype)
        if not all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values()):
            name = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{source}: weights do not fit into {name}: try bfloat16")


def create_networks(folder: ModelFolder[Any], classes: Mapping[str, Any]) -> dict[str, Any]:
    """Create the networks of a folder without values, after checking that their weights fit.

    Parameters
    ----------
    classes : mapping of str to type
        Classes of diffusers by the networks' names.
    """
    networks = {name: create_empty(kind, folder.config(name)) for name, kind in classes.items()}
    for name, network in networks.items():
        check_weights(network, folder.path / name / WEIGHTS)
    return networks


def refuse_existing(out: Path) -> None:
    """Raise OutputError if a path exists."""
    if out.exists():
        raise OutputError(f"{out} exists already: choose another folder or remove it")


@contextmanager
def new_model_folder(
    out: Path, pipeline: str, networks: Mapping[str, Any], scheduler: Mapping[str, Any], card: ModelCard
) -> Iterator[Path]:
    """Write a model's folder in diffusers' layout; it gets its name when it is whole.

    Parameters
    ----------
    pipeline : str
        Class name in ``model_index.json``.
    networks : mapping of str to ModelMixin
        By the names of their subfolders.
    scheduler : mapping
        Configuration of a DDIMScheduler.

    Yields
    ------
    Path
        The unfinished folder, for files beyond these.
    """
    refuse_existing(out)
    with atomic_folder(out) as partial:
        index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": version("diffusers")}
        for name, network in networks.items():
            write_network(network, partial / name)
            kind = type(network)
            index[name] = [kind.__module__.partition(".")[0], kind.__name__]  # library and class
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        write_json(partial / MODEL_INDEX, index)
        config = {"_class_name": "DDIMScheduler", **scheduler}
        if "_use_default_values" in config:  # listed by diffusers in the order of a set, which varies
            config["_use_default_values"] = sorted(config["_use_default_values"])
        (partial / SCHEDULER_CONFIG).parent.mkdir()
        write_json(partial / SCHEDULER_CONFIG, config)
        card.write(partial)
        yield partial


def write_network(network: Any, folder: Path, **changes: Any) -> None:
    """Write one network in diffusers' layout: its configuration and its weights.

    Parameters
    ----------
    folder : Path
        New.
    **changes
        Other values for fields of the configuration.
    """
    folder.mkdir(parents=True)
    config = json.loads(network.to_json_string())
    config.pop("_name_or_path", None)  # where the base lay on this machine
    write_json(folder / CONFIG, config | changes)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
