"""Reconstruct with compiled parts: `python tests/compile_reconstruction.py eager` (or `aot_eager`, `inductor`).

Prints one JSON object: largest relative differences from the uncompiled model, and how many graphs had been compiled
after each step. A process of its own, without the hook that checks shapes in the tests, as at a user's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

import geomtx
from geomtx.models.compiled import compiled_parts
from geomtx.models.memory import MemoryPlan
from reference import named_tensors

PLAN = MemoryPlan(2, 13)


class CountingBackend:
    """Counts the graphs that it hands on to another backend."""

    def __init__(self, name: str) -> None:
        self.backend = lookup_backend(name)
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        return self.backend(graph, inputs)


def build_model(**changes: Any) -> geomtx.VGGT:
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(**changes)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.2, 0.6)
    return model


def main(arguments: list[str]) -> int:
    torch.manual_seed(0)
    count = CountingBackend(arguments[0])
    model = build_model()
    errors, graphs = {}, {}

    def compare(name: str, model: geomtx.VGGT, num_views: int, size: tuple[int, int], **options: Any) -> None:
        images = torch.rand(1, num_views, 3, *size, dtype=torch.float64)
        expected = named_tensors(model(images, **options))
        with compiled_parts(model, backend=count):
            got = named_tensors(model(images, **options))
        assert got.keys() == expected.keys()
        errors[name] = max(((got[n] - t).abs().max() / t.abs().max()).item() for n, t in expected.items())
        graphs[name] = count.graphs

    with torch.no_grad():
        compare("first", model, 3, (56, 84))
        compare("a second scene", model, 3, (56, 84))
        compare("more views", model, 5, (56, 84))
        compare("another size", model, 4, (70, 42))
        compare("another model", build_model(), 3, (56, 84))
        compare("in pieces", model, 4, (56, 84), memory_plan=PLAN)
        compare("more views in pieces", model, 6, (70, 84), memory_plan=PLAN)
        mask = torch.ones(1, 3, 4, 6, dtype=torch.bool)
        mask[0, 1, 2:] = False
        compare("masked", model, 3, (56, 84), patch_mask=mask)
        compare("one view", model, 1, (56, 84))
    breaks = dict(counters["graph_break"])
    print(json.dumps({"errors": errors, "graphs": graphs, "breaks": breaks}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
