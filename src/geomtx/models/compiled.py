"""A model with its repeated parts compiled, while a context is open; compiled code is kept for the process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.block import TransformerBlock

__all__ = ["compiled_parts"]

_PARTS: dict[type[nn.Module], tuple[str, ...]] = {
    TransformerBlock: ("forward", "project_keys", "attend_to"),
    DPTDecoder: ("merge",),
}
# Blocks differ by their norms, widths, masks and whether there is one sequence; models add up, as all share one code.
_VARIANTS = 64


@contextmanager
def compiled_parts(model: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Run what matters of a model compiled: transformer blocks, whole or in pieces, and the merging of dense decoders.

    What is compiled is the code of a class, not a module: all blocks of a kind share one program, for any number of
    views and any size of images, and so do later calls and other models with the same numbers. The model itself is as
    before once the context is left, and its parameters may change in between.

    Args:
        model: With any of these parts.
        backend: Of `torch.compile`; "inductor" needs a C++ compiler on a CPU.

    Raises:
        ValueError: For a model without such parts.
    """
    import torch._dynamo

    methods = [
        (module, name) for module in model.modules() for kind in _PARTS if isinstance(module, kind)
        for name in _PARTS[kind]
    ]  # fmt: skip
    if not methods:
        raise ValueError(f"model must have transformer blocks or dense decoders to compile, got {type(model).__name__}")
    own = [vars(module).get(name) for module, name in methods]
    try:
        for module, name in methods:
            vars(module)[name] = MethodType(_compile(getattr(type(module), name), backend), module)
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            yield
    finally:
        for (module, name), method in zip(methods, own, strict=True):
            if method is not None:
                vars(module)[name] = method
            else:
                vars(module).pop(name, None)


@functools.cache
def _compile(function: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    # Sizes are symbols from the start: with the default, each function would be compiled a second time for the second
    # number of views.
    return torch.compile(function, dynamic=True, backend=backend)
