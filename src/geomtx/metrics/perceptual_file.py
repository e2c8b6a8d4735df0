"""Weights of networks that compare pictures, from files that don't come with geomtx."""

from __future__ import annotations

import os
from typing import Literal

from torch import Tensor

from geomtx.files import user_path
from geomtx.layers.vgg import VGGFeatures
from geomtx.tensor_file import open_tensor_file

__all__ = ["read_tensors", "read_vgg"]


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or a pickle without code, by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken or something else.
    """
    if not user_path(path).is_file():
        raise FileNotFoundError(f"weights must be a file, got '{path}', which is none")
    file = open_tensor_file(user_path(path))
    # Copies: what is read may be the file itself.
    return {name: tensor.clone() for name, tensor in file.read(list(file.shapes))}


def read_vgg(
    path: str | os.PathLike[str], num_layers: Literal[16, 19], taps: tuple[tuple[int, int], ...]
) -> VGGFeatures:
    """VGG-16 or VGG-19 with the weights of a file, `features.0.weight` and so on.

    Args:
        path: A .safetensors file or a pickle without code.
        num_layers: 16 or 19.
        taps: See `VGGFeatures`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, or not of that network.
    """
    network = VGGFeatures(num_layers, taps)
    try:
        network.load_weights(read_tensors(path))
    except ValueError as error:
        raise ValueError(f"{path} must hold the weights of VGG-{num_layers}: {error}") from error
    return network.eval()
