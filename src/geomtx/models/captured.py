"""Forward passes recorded once a size and replayed, where launching operations takes longer than doing them."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

__all__ = ["check_can_capture", "run_captured"]

_WARM_UPS = 3  # kernels are chosen and workspaces allocated before anything is recorded
_KEPT = 4  # recordings a model, each with memory of its own


class _Recording(NamedTuple):
    graph: Any
    inputs: dict[str, Tensor]
    outputs: Any


class _Recordings(NamedTuple):
    """Of one model: where its weights were, and the passes over them, the last used at the end."""

    weights: tuple[Any, ...]
    passes: OrderedDict[Any, _Recording]


_RECORDINGS: weakref.WeakKeyDictionary[nn.Module, _Recordings] = weakref.WeakKeyDictionary()


def check_can_capture(device: torch.device) -> None:
    """Require a device that records graphs.

    Raises:
        ValueError: For another one.
    """
    if not hasattr(torch.get_device_module(device), "CUDAGraph"):
        raise ValueError(f"compile must not be 'graphs' on a device that records none, got {device.type}")


def run_captured(model: nn.Module, inputs: dict[str, Tensor | None], options: dict[str, Any]) -> Any:
    """What `model(**inputs, **options)` gives; the first call of a size records the pass, later ones replay it.

    A recording is of one set of sizes and precisions of inputs, and one set of options. It reads the weights where they
    are: values may change, and weights that are elsewhere are recorded anew. So many as are kept hold the memory of a
    pass each.

    Args:
        model: Without autocast and gradients; on a device for which `check_can_capture` passes, and never waiting for a
            value.
        inputs: On the model's device; None is left out.
        options: Hashable.

    Returns:
        Outputs with memory of their own.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    weights = tuple((p.data_ptr(), p.dtype) for p in (*model.parameters(), *model.buffers()))
    recordings = _RECORDINGS.get(model)
    if recordings is None or recordings.weights != weights:
        recordings = _RECORDINGS[model] = _Recordings(weights, OrderedDict())
    passes = recordings.passes
    key = (tuple((name, t.shape, t.dtype) for name, t in given.items()), tuple(sorted(options.items())))
    if key not in passes:
        while len(passes) >= _KEPT:
            passes.popitem(last=False)
        passes[key] = _record(model, given, options)
    passes.move_to_end(key)
    recording = passes[key]
    for name, value in given.items():
        recording.inputs[name].copy_(value)
    recording.graph.replay()
    return tree_map_only(Tensor, torch.clone, recording.outputs)


def _record(model: nn.Module, given: dict[str, Tensor], options: dict[str, Any]) -> _Recording:
    inputs = {name: value.clone() for name, value in given.items()}
    device = next(model.parameters()).device
    accelerator = torch.get_device_module(device)
    with accelerator.device(device):
        side = accelerator.Stream()
        side.wait_stream(accelerator.current_stream())
        with accelerator.stream(side):
            for _ in range(_WARM_UPS):
                model(**inputs, **options)
        accelerator.current_stream().wait_stream(side)
        graph = accelerator.CUDAGraph()
        with accelerator.graph(graph, stream=side):
            outputs = model(**inputs, **options)
    return _Recording(graph, inputs, outputs)
