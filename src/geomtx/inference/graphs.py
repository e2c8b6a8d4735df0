"""Compiled blocks, and forward passes recorded as graphs of the device, for inference."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from geomtx.layers.block import TransformerBlock

__all__ = ["CompiledBlock", "check_can_capture", "check_can_compile", "many_variants", "run_captured"]

_WARM_UPS = 3  # kernels are chosen and workspaces allocated before anything is recorded
_KEPT = 4  # recordings of a model, each with memory of its own
# Blocks differ by norms, widths, masks and whether there is one sequence; models add up, as all share one program.
_VARIANTS = 64


class CompiledBlock:
    """A transformer block whose methods run compiled; the block itself is as before.

    What is compiled is the code of the class: all blocks share one program, for any number of views and any size of
    images, and so do later calls and other models of the same widths.

    Args:
        block: The block.
        backend: Backend of `torch.compile`; "inductor" needs a C++ compiler on a CPU.
    """

    def __init__(self, block: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> None:
        self.block = block
        self.backend = backend

    def __call__(self, x: Tensor, **options: Any) -> Tensor:
        """Return `block(x, **options)`."""
        return _compile(type(self.block).forward, self.backend)(self.block, x, **options)

    def project_keys(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Return `block.project_keys(x, **options)`."""
        return _compile(self._method("project_keys"), self.backend)(self.block, x, **options)

    def attend_to(self, x: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        """Return `block.attend_to(x, keys, values, **options)`."""
        return _compile(self._method("attend_to"), self.backend)(self.block, x, keys, values, **options)

    def _method(self, name: str) -> Callable[..., Any]:
        """Return a method as a function of the block, the same for all blocks of the class."""
        method: Callable[..., Any] = getattr(type(self.block), name)
        return method


@functools.cache
def _compile(function: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    # Sizes are symbols from the start: by default each function would be compiled again for a second number of views.
    return torch.compile(function, dynamic=True, backend=backend)


@contextmanager
def many_variants() -> Iterator[None]:
    """Let torch keep as many variants of a compiled function as the blocks of a model need."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
        yield


def check_can_compile(model: nn.Module) -> None:
    """Require a model with transformer blocks.

    Raises:
        ValueError: For another one.
    """
    if not any(isinstance(module, TransformerBlock) for module in model.modules()):
        raise ValueError(f"model must have transformer blocks to compile, got {type(model).__name__}")


def check_can_capture(device: torch.device) -> None:
    """Require a device that records graphs.

    Raises:
        ValueError: For another one.
    """
    if not hasattr(torch.get_device_module(device), "CUDAGraph"):
        raise ValueError(f"compile must not be 'graphs' on a device that records none, got {device.type}")


class _Recording(NamedTuple):
    graph: Any
    inputs: dict[str, Tensor]
    outputs: Any


class _Recordings(NamedTuple):
    """Recordings of one model: the addresses of its weights, and its passes, the last used at the end."""

    weights: tuple[Any, ...]
    passes: OrderedDict[Any, _Recording]


_RECORDINGS: weakref.WeakKeyDictionary[nn.Module, _Recordings] = weakref.WeakKeyDictionary()


def run_captured(model: nn.Module, run: Callable[..., Any], inputs: dict[str, Tensor | None], options: Hashable) -> Any:
    """Return `run(**inputs)`; the first call for a size records the pass, later ones replay it.

    A recording is for one set of sizes and precisions of inputs, and one value of `options`. It reads the weights where
    they are: their values may change, and weights at other addresses are recorded anew.

    Args:
        model: The model that `run` runs, on a device for which `check_can_capture` passes.
        run: The pass, without autocast and gradients, never waiting for a value; called with `inputs` as keywords.
        inputs: Tensors on the model's device; None is left out.
        options: Hashable value of all else that the pass depends on.

    Returns:
        Outputs with memory of their own.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    weights = tuple((p.data_ptr(), p.dtype) for p in (*model.parameters(), *model.buffers()))
    recordings = _RECORDINGS.get(model)
    if recordings is None or recordings.weights != weights:
        recordings = _RECORDINGS[model] = _Recordings(weights, OrderedDict())
    passes = recordings.passes
    key = (tuple((name, t.shape, t.dtype) for name, t in given.items()), options)
    if key not in passes:
        while len(passes) >= _KEPT:
            passes.popitem(last=False)
        passes[key] = _record(run, given, next(model.parameters()).device)
    passes.move_to_end(key)
    recording = passes[key]
    for name, value in given.items():
        recording.inputs[name].copy_(value)
    recording.graph.replay()
    return tree_map_only(Tensor, torch.clone, recording.outputs)


def _record(run: Callable[..., Any], given: dict[str, Tensor], device: torch.device) -> _Recording:
    inputs = {name: value.clone() for name, value in given.items()}
    accelerator = torch.get_device_module(device)
    with accelerator.device(device):
        side = accelerator.Stream()
        side.wait_stream(accelerator.current_stream())
        with accelerator.stream(side):
            for _ in range(_WARM_UPS):
                run(**inputs)
        accelerator.current_stream().wait_stream(side)
        graph = accelerator.CUDAGraph()
        with accelerator.graph(graph, stream=side):
            outputs = run(**inputs)
    return _Recording(graph, inputs, outputs)
