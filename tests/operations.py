"""Count the operations of a model of any size without doing them: on fake tensors, which have shapes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class OperationCount(TorchDispatchMode):
    """Name of an operation → how often it ran; those that only look at memory differently are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            function.namespace == "aten"
            and not function.is_view
            and function.overloadpacket != torch.ops.aten._unsafe_view
        ):
            self.counts[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


def count_operations(build: Callable[[], nn.Module], run: Callable[[Any], Any]) -> Counter[str]:
    """Of `run(model)` in bfloat16; whatever has to wait for a value fails, as fake tensors have none."""
    with torch.device("meta"):
        model = build().to(torch.bfloat16).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to_empty(device="cpu")
        with OperationCount() as counter:
            run(model)
    return counter.counts
