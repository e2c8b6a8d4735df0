"""Weights of fewer bits, for less memory, at inference. Only this file may import torchao."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from geomtx.checks import check_divisible, check_option
from geomtx.layers.attention import MaskedBiasLinear
from geomtx.layers.block import DecoderBlock, TransformerBlock
from geomtx.layers.lora import adapted_layers

__all__ = ["QuantizedType", "is_quantized", "quantize_model", "quantized_type"]

QuantizedType = Literal["int8", "fp8"]
Model = TypeVar("Model", bound=nn.Module)

_FP8_CAPABILITY = (8, 9)
_FP8_MULTIPLE = 16  # of both sides of a weight; torchao leaves others as they are, without a word


def quantize_model(model: Model, kind: QuantizedType, *, keep: Sequence[str] = ()) -> Model:
    """Quantise the linear layers of a model's transformer blocks, in place, one after the other.

    These hold nearly all of the weights of encoder and camera head. Norms, biases, embeddings, decoders, the tracker
    and what computes in float32 stay as they are. Weights are rounded to nearest with one scale an output channel,
    without calibration. The model can be copied and moved, but neither trained nor saved.

    Args:
        model: Model whose weights have the precision that it will compute in.
        kind: "int8" rounds weights, and every product is computed in the model's precision; it runs anywhere. "fp8"
            (e4m3) rounds inputs too, one scale a token, and multiplies in fp8: for bfloat16 models on GPUs of compute
            capability 8.9 or more.
        keep: Patterns of names of linear layers that are left alone ("camera_head.*", "*.attention.out").

    Returns:
        The model.

    Raises:
        ValueError: For another `kind`, a pattern that matches nothing, a model with adapters (see
            `geomtx.layers.lora.merge_lora`), without such layers or quantised before;
            with "fp8", for another device or precision or sides that are no multiples of 16. The model is unchanged.
        ImportError: Without torchao.
    """
    check_option("quantize", kind, ("int8", "fp8"))
    if isinstance(keep, str):
        raise ValueError(f"keep must be a sequence of patterns, got {keep!r}")
    if is_quantized(model):
        raise ValueError(f"model must not be quantised already, got {type(model).__name__} with quantised weights")
    adapted = list(adapted_layers(model))
    if adapted:
        raise ValueError(f"model must have its adapters merged to be quantised, got one on {adapted[0]}")
    layers = _choose_layers(model, keep)
    if kind == "fp8":
        _check_fp8(layers)
    if importlib.util.find_spec("torchao") is None:
        raise ImportError('torchao is not installed; `pip install "geomtx[quant]"` brings it')
    with _quiet("torchao", "torch.utils._pytree"):
        # It warns of libraries of its own for other kinds of weights, and of what it asks of torch.
        from torchao.quantization import quantize_

        config = _config(kind)
    chosen = set(layers.values())
    quantize_(model, config, filter_fn=lambda module, _: module in chosen)
    return model


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight of a transformer block is."""
    return any(type(layer.weight).__module__.startswith("torchao.") for layer in _linear_layers(model).values())


def quantized_type(model: nn.Module) -> QuantizedType | None:
    """Return the kind of weights that `quantize_model` gave to a model; None for a model that isn't quantised."""
    if not is_quantized(model):
        return None
    kinds = {type(layer.weight).__name__ for layer in _linear_layers(model).values()}
    return "fp8" if any("float8" in kind.lower() for kind in kinds) else "int8"


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name → linear layer of a block; other subclasses have a precision of their own."""
    return {
        f"{name}.{inner}" if name else inner: layer
        for name, block in model.named_modules()
        if isinstance(block, (TransformerBlock, DecoderBlock))
        for inner, layer in block.named_modules()
        if type(layer) in (nn.Linear, MaskedBiasLinear)
    }


def _choose_layers(model: nn.Module, keep: Sequence[str]) -> dict[str, nn.Linear]:
    layers = _linear_layers(model)
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(f"keep must match linear layers of the model's blocks, got {pattern!r}")
    layers = {n: layer for n, layer in layers.items() if not any(fnmatchcase(n, pattern) for pattern in keep)}
    if not layers:
        raise ValueError(
            f"model must have linear layers in transformer blocks that are not kept, got {type(model).__name__}"
        )
    return layers


def _check_fp8(layers: dict[str, nn.Linear]) -> None:
    weight = next(iter(layers.values())).weight
    ask = getattr(torch.get_device_module(weight.device), "get_device_capability", None)
    capability = None if ask is None else ask(weight.device)
    if not isinstance(capability, tuple) or capability < _FP8_CAPABILITY:
        got = weight.device.type if not isinstance(capability, tuple) else ".".join(map(str, capability))
        raise ValueError(f"quantize must not be 'fp8' without a GPU of compute capability 8.9 or more, got {got}")
    for name, layer in layers.items():
        if layer.weight.dtype != torch.bfloat16:
            raise ValueError(f"{name} must be torch.bfloat16 for 'fp8', got {layer.weight.dtype}")
        for side in layer.weight.shape:
            check_divisible(f"sides of {name} for 'fp8'", side, _FP8_MULTIPLE)


def _config(kind: QuantizedType) -> Any:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow

    # Otherwise torchao changes the settings of torch.compile for the whole process.
    if kind == "int8":
        return Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Loggers that tell errors only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
