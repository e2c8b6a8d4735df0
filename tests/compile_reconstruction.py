"""Compile the parts of a small model: `python tests/compile_reconstruction.py eager`.

With `inductor` it generates code, which takes minutes on a small machine: no test does.

Prints one JSON object: largest relative differences from the uncompiled model, and how many graphs had been compiled
after each step. A process of its own, without the hook that checks shapes in the tests, as at a user's.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

import geomtx
from geomtx.inference.engine import Execution, Inputs, execute
from geomtx.inference.graphs import CompiledBlock, many_variants
from geomtx.inference.plan import WHOLE, MemoryPlan
from lean import lean_config
from reference import named_tensors, randomize

PLAN = MemoryPlan(2, 13)


class Comparison:
    """With and without compiled blocks; counts the graphs that are handed to a backend."""

    def __init__(self, backend: str) -> None:
        self.backend = lookup_backend(backend)
        self.compiled = 0
        self.errors: dict[str, float] = {}
        self.graphs: dict[str, int] = {}

    def count(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.compiled += 1
        return self.backend(graph, inputs)

    def add(
        self,
        name: str,
        model: geomtx.VGGT,
        num_views: int,
        size: tuple[int, int],
        *,
        plan: MemoryPlan = WHOLE,
        patch_mask: Any = None,
    ) -> None:
        images = torch.rand(1, num_views, 3, *size, dtype=torch.float64)
        expected = named_tensors(model(images, None, patch_mask))
        inputs = Inputs(*model.check_inputs(images, None, patch_mask, None))
        execution = Execution(plan, run_block=partial(CompiledBlock, backend=self.count))
        with many_variants():
            got = named_tensors(execute(model, inputs, execution))
        assert got.keys() == expected.keys()
        self.errors[name] = max(((got[n] - t).abs().max() / t.abs().max()).item() for n, t in expected.items())
        self.graphs[name] = self.compiled


def build_model(**changes: Any) -> geomtx.VGGT:
    config = lean_config(**{"heads": ("camera", "depth"), **changes})
    return randomize(geomtx.VGGT(config)).double().eval()


def compare_many(comparison: Comparison) -> None:
    model = build_model()
    comparison.add("first", model, 3, (56, 84))
    comparison.add("a second scene", model, 3, (56, 84))
    comparison.add("more views, another size", model, 5, (70, 42))
    comparison.add("another model", build_model(), 3, (56, 84))
    comparison.add("in pieces", model, 4, (56, 84), plan=PLAN)
    comparison.add("more views in pieces", model, 6, (56, 84), plan=PLAN)
    mask = torch.ones(1, 3, 4, 6, dtype=torch.bool)
    mask[0, 1, 2:] = False
    comparison.add("masked", build_model(backbone="conv"), 3, (56, 84), patch_mask=mask)


def compare_camera(comparison: Comparison) -> None:
    """Few graphs."""
    model = build_model(backbone="conv", heads=("camera",))
    comparison.add("first", model, 3, (28, 42))
    comparison.add("more views", model, 5, (28, 42))


def main(arguments: list[str]) -> int:
    torch.manual_seed(0)
    # It keeps results for symbolic shapes that don't come again, for more time than the tracing takes.
    torch._dynamo.config.fake_tensor_cache_enabled = False
    comparison = Comparison(arguments[0])
    with torch.no_grad():
        {"eager": compare_many, "inductor": compare_camera}[arguments[0]](comparison)
    breaks = dict(counters["graph_break"])
    print(json.dumps({"errors": comparison.errors, "graphs": comparison.graphs, "breaks": breaks}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
