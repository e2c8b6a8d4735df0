"""One implementation of VGGT-1B, run a pass at a time when `vggt_speed.py` says so: a line of JSON in, a line out.

Its own process, so that other versions of geomtx, found on PYTHONPATH, can be timed in turns with this one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import geomtx
import geomtx.layers

UNTIL_THE_END = contextlib.ExitStack()
KINDS = ("geomtx", "straightforward", "published")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("--kind", choices=KINDS, default="geomtx")
    parser.add_argument("--path", help="of the published code")
    parser.add_argument("--heads", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--view-chunk", type=int, required=True)
    parser.add_argument("--attention")
    parser.add_argument("--plan", choices=("pieces", "low"))
    parser.add_argument("--mode", choices=("compile", "graphs"))
    parser.add_argument("--quantize", choices=("int8", "fp8"))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    case, images = None, torch.empty(0)
    with torch.inference_mode():
        run = build(arguments)
        answer({})
        for line in sys.stdin:
            if json.loads(line) != case:
                case = json.loads(line)
                shape = (case["views"], 3, *case["size"])
                images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(arguments.device)
            try:
                answer(measure(run, images, arguments.device))
            except torch.OutOfMemoryError as error:
                answer({"failed": str(error).partition(". ")[0]})
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the others need it


def build(arguments: argparse.Namespace) -> Callable[[torch.Tensor], Any]:
    heads, dtype = tuple(arguments.heads.split(",")), getattr(torch, arguments.dtype)
    if arguments.kind == "published":
        return build_published(arguments, heads, dtype)
    half = arguments.kind == "geomtx"
    how: dict[str, Any] = {"quantize": arguments.quantize} if arguments.quantize else {}  # earlier versions lack it
    model = geomtx.VGGT.from_pretrained(
        arguments.weights, heads=heads, device=arguments.device, dtype=dtype if half else torch.float32, **how
    )
    choose_attention(model, arguments.attention, dtype)
    if not half:
        from straightforward import Straightforward

        straightforward = Straightforward(model, dtype)
        return lambda images: straightforward(images, view_chunk=arguments.view_chunk)
    if importlib.util.find_spec("geomtx.inference") is None:  # earlier versions, only as they are
        return lambda images: model(images.to(dtype), view_chunk=arguments.view_chunk)
    return build_execution(model, arguments, dtype)


def build_execution(
    model: Any, arguments: argparse.Namespace, dtype: torch.dtype
) -> Callable[[torch.Tensor], geomtx.Predictions]:
    """Return the pass with the plan, compiled blocks or recording that the arguments ask for."""
    from geomtx.inference import LEAN_PLAN, PLANS, MemoryPlan
    from geomtx.inference.engine import Execution, Inputs, execute
    from geomtx.inference.graphs import CompiledBlock, many_variants, run_captured

    views_at_a_time = MemoryPlan(arguments.view_chunk, output_device=None)
    plan = {None: views_at_a_time, "pieces": PLANS[0], "low": LEAN_PLAN}[arguments.plan]
    execution = Execution(plan, run_block=CompiledBlock if arguments.mode == "compile" else None)

    def run(images: torch.Tensor) -> geomtx.Predictions:
        return execute(model, Inputs(*model.check_inputs(images, None, None, None)), execution)

    if arguments.mode == "graphs":
        return lambda images: run_captured(model, run, {"images": images.to(dtype)}, plan)
    if arguments.mode == "compile":
        UNTIL_THE_END.enter_context(many_variants())
    return lambda images: run(images.to(dtype))


def choose_attention(model: torch.nn.Module, name: str | None, dtype: torch.dtype) -> None:
    """A backend by name; without one, on a GPU, the fastest, as `reconstruct` would."""
    if name is None:
        if next(model.parameters()).is_cuda and hasattr(geomtx.layers, "choose_backends"):
            geomtx.layers.choose_backends(model, dtype)
        return
    from geomtx.layers.backends import resolve_backend

    for module in model.modules():
        if isinstance(module, geomtx.Attention):
            module.backend = resolve_backend(name)


def build_published(
    arguments: argparse.Namespace, heads: tuple[str, ...], dtype: torch.dtype
) -> Callable[[torch.Tensor], Any]:
    """The package `vggt` of a checkout, with the same weights under the published names."""
    sys.path.insert(0, arguments.path)
    from vggt.models.vggt import VGGT

    published = VGGT()
    for head, module in (("camera", "camera_head"), ("depth", "depth_head"), ("points", "point_head")):
        if head not in heads:
            setattr(published, module, None)
    published.track_head = None
    published.load_state_dict(published_tensors(arguments.weights, heads))
    published.to(arguments.device).eval()
    autocast = torch.autocast(torch.device(arguments.device).type, dtype=dtype, enabled=dtype != torch.float32)

    def run(images: torch.Tensor) -> Any:
        with autocast:
            return published(images)

    return run


def published_tensors(weights: str, heads: tuple[str, ...]) -> dict[str, torch.Tensor]:
    import tempfile

    from safetensors.torch import load_file

    model = geomtx.VGGT.from_pretrained(weights, heads=heads)
    with tempfile.TemporaryDirectory() as folder:
        return load_file(Path(model.save_pretrained(folder, names="published")) / "model.safetensors")


def measure(run: Callable[[torch.Tensor], Any], images: torch.Tensor, device: str) -> dict[str, Any]:
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(images)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if on_gpu:
        peaks = {
            "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
        }
    else:
        peaks = {"peak_resident_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    return {"seconds": seconds, **peaks}


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
