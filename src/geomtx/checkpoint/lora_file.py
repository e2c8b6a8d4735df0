"""Adapters of linear layers (`geomtx.layers.lora`) in files of their own."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from geomtx.checkpoint.files import parse_json
from geomtx.checkpoint.key_table import drop_wrappers, unwrap_names
from geomtx.checkpoint.tensor_file import open_tensor_file
from geomtx.files import staged_folder, user_path
from geomtx.layers.lora import adapted_layers, add_lora, load_lora_state, lora_state, remove_lora

__all__ = ["load_lora", "save_lora"]

logger = logging.getLogger("geomtx")

LORA_KEY = "geomtx_lora"  # in a file's own metadata


def save_lora(model: nn.Module, file: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a model's adapters (`geomtx.layers.lora`), and nothing else of it.

    Args:
        model: Model with adapters.
        file: Path that ends in ".safetensors"; its folder is made if need be.
        overwrite: Whether a file that geomtx did not write may be replaced.

    Returns:
        The file.

    Raises:
        ValueError: Without adapters, or for another ending.
        FileExistsError: If there is a file that geomtx did not write, and `overwrite` is False.
        OSError: If the file can't be written.
    """
    path, layers = user_path(file), adapted_layers(model)
    if path.suffix != ".safetensors":
        raise ValueError(f"file must end in .safetensors, got '{path}'")
    if not layers:
        raise ValueError(f"model must have adapters to be saved, got {type(model).__name__} without any")
    numbers = {
        drop_wrappers(name): {"rank": adapter.rank, "alpha": adapter.alpha} for name, (_, adapter) in layers.items()
    }
    tensors = {drop_wrappers(name): tensor.contiguous() for name, tensor in lora_state(model).items()}
    with staged_folder(path.parent, (path.name,), overwrite=overwrite) as stage:
        save_file(tensors, stage / path.name, metadata={LORA_KEY: json.dumps(numbers)})
    return path


def load_lora(model: nn.Module, file: str | os.PathLike[str]) -> list[str]:
    """Adapt a model as `save_lora` found another one: the same layers, ranks, factors and values.

    Adapters of heads that the model was built without are passed over, which is logged.

    Args:
        model: Model without adapters, changed in place.
        file: File that `save_lora` wrote.

    Returns:
        Names of the adapted layers.

    Raises:
        ValueError: If the file holds something else or doesn't fit the model, which is unchanged then.
        FileNotFoundError: If there is no such file.
    """
    path = user_path(file)
    if not path.is_file():
        raise FileNotFoundError(f"adapters must be a file, got '{path}', which doesn't exist")
    if adapted_layers(model):
        raise ValueError("model must have no adapters yet, got some; merge or remove them before")
    source = open_tensor_file(path)
    if LORA_KEY not in source.metadata:
        raise ValueError(f"{path} must hold adapters that save_lora wrote, got none")
    # Either side may be wrapped, so names are compared without what wrappers add.
    own = {drop_wrappers(name): name for name, _ in model.named_modules()}
    try:
        stored = parse_json(source.metadata[LORA_KEY], path)
        layers = {name: stored[key] for key, name in unwrap_names(stored, own.__contains__).names.items()}
        absent = [name for name in layers if name not in own and _is_left_out(model, name)]
        tensors = unwrap_names(source.shapes, lambda name: name.rpartition(".")[0] in own).names
        for name, numbers in layers.items():
            if name not in absent:
                add_lora(model, [own.get(name, name)], rank=numbers["rank"], alpha=numbers["alpha"])
        state = {}
        for key, tensor in source.read(source.shapes):
            name, _, factor = tensors.get(key, "").rpartition(".")
            if name and name not in absent:
                state[f"{own.get(name, name)}.{factor}"] = tensor
        load_lora_state(model, state)
    except (ValueError, TypeError, KeyError) as error:
        remove_lora(model)
        raise ValueError(f"{path} doesn't fit the model: {error}") from error
    if absent:
        logger.warning(
            "%s: adapters of parts that the model doesn't have are passed over: %s.", path, ", ".join(absent)
        )
    return list(adapted_layers(model))


def _is_left_out(model: nn.Module, name: str) -> bool:
    """Whether a module's name leads to a part that is None in the model, or to none of a mapping of parts."""
    module: object = model
    for part in name.split("."):
        if module is None or (isinstance(module, nn.ModuleDict) and part not in module):
            return True
        module = getattr(module, part, module)
    return False
