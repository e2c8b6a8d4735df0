"""Memory of a forward pass for any number of views, without a GPU: `memory.py [--model M] [--views 8 24 200] …`.

The model runs on fake tensors, which have shapes and no values, while every allocation is counted until it is let go.
What is on "cpu" there stands for the GPU, what is on "meta" for the host. Peaks are of live bytes: an allocator's
reserve, the libraries' workspaces and the scratch memory inside kernels come on top.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import geomtx
from common import write_result
from geomtx.inference import predict
from geomtx.inference.plan import PLANS as MEMORY_PLANS
from geomtx.inference.plan import MemoryPlan, PassSize, estimate_bytes

DA3 = geomtx.DepthAnything3Config
# Name → the model's class, its configuration, and the heads that a scene has.
MODELS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "VGGT-1B": (geomtx.VGGT, geomtx.VGGTConfig(), ("camera", "depth", "points")),
    "DA3-SMALL": (geomtx.DepthAnything3, DA3.small(), ("camera", "depth")),
    "DA3-BASE": (geomtx.DepthAnything3, DA3.base(), ("camera", "depth")),
    "DA3-LARGE": (geomtx.DepthAnything3, DA3.large(), ("camera", "depth")),
    "DA3-GIANT": (geomtx.DepthAnything3, DA3.giant(), ("camera", "depth")),
    "DA3MONO-LARGE": (geomtx.DepthAnything3, DA3.mono(), ("depth", "sky")),
    "Omega": (geomtx.VGGTOmega, geomtx.VGGTOmegaConfig(), ("camera", "depth")),
    "Pi3": (geomtx.Pi3, geomtx.Pi3Config.pi3(), ("camera", "depth", "points")),
    "Pi3X": (geomtx.Pi3, geomtx.Pi3Config.pi3x(), ("camera", "depth", "points", "metric")),
}
# Numbers of blocks with which counting takes minutes instead of hours.
_FEW: dict[str, Any] = {"depth": 2, "vit_depth": 1, "head_depth": 1}
FEW_BLOCKS: dict[str, dict[str, Any]] = {"Pi3": _FEW, "Pi3X": {**_FEW, "pose_layers": (0,), "metric_depth": 1}}
PLANS: dict[str, MemoryPlan | None] = {
    "plain": None,
    # The library's own, but for the one that takes the most.
    **{
        name: MemoryPlan(*("meta" if value == "cpu" else value for value in plan))
        for name, plan in zip(("chunked", "offloaded", "low"), MEMORY_PLANS[1:], strict=True)
    },
}


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are alive, by the device that they stand for, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now: defaultdict[str, int] = defaultdict(int)
        self.peak: defaultdict[str, int] = defaultdict(int)
        self._watched: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self.watch(value)
        return out

    def watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._watched:
            return
        device, size = tensor.device.type, storage.nbytes()
        self._watched.add(storage._cdata)
        self.now[device] += size
        self.peak[device] = max(self.peak[device], self.now[device])
        weakref.finalize(storage, self._let_go, storage._cdata, device, size)

    def _let_go(self, key: int, device: str, size: int) -> None:
        self._watched.discard(key)
        self.now[device] -= size


def measure(
    build: Callable[[], Any], views: int, size: Sequence[int], plan: MemoryPlan | None, heads: tuple[str, ...]
) -> dict[str, float]:
    """GiB of the weights and at the peak, in bfloat16."""
    with torch.device("meta"):
        model = build().to(torch.bfloat16).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to_empty(device="cpu")
        with LiveBytes() as live:
            for parameter in model.parameters():
                live.watch(parameter)
            weights = live.now["cpu"]
            host = "cpu" if plan is None else "meta"
            images = torch.empty(1, views, 3, *size, dtype=torch.bfloat16, device=host)
            start = time.perf_counter()
            predict(model, images, heads=heads, plan=plan or MemoryPlan(4, output_device=None))
    estimate = estimate_bytes(model, plan, PassSize(views, (size[0], size[1]), heads))
    return {
        "weights_gib": round(weights / 2**30, 3),
        "estimated_gib": round((weights + estimate) / 2**30, 3),
        "peak_gib": round(live.peak["cpu"] / 2**30, 3),
        "host_gib": round(live.peak["meta"] / 2**30, 3),
        "counted_in_s": round(time.perf_counter() - start, 1),
    }


def weights_gib(build: Callable[[], Any]) -> float:
    """GiB of a model's weights in bfloat16."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters()) * 2 / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--size", type=int, nargs=2, default=[336, 518], metavar=("H", "W"))
    parser.add_argument("--model", default="VGGT-1B", choices=list(MODELS))
    parser.add_argument("--heads", help="names, separated by commas; those of a scene by default")
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--output", type=Path, help="folder of the result")
    parser.add_argument(
        "--few-blocks", action="store_true",
        help="count on a network of few blocks, on whose number the peak above the weights doesn't depend, and add the "
        "weights of the whole one",
    )  # fmt: skip
    arguments = parser.parse_args()
    kind, config, heads = MODELS[arguments.model]
    if arguments.heads:
        heads = tuple(arguments.heads.split(","))
        config = dataclasses.replace(config, heads=heads)
    more = 0.0
    if arguments.few_blocks:
        few = dataclasses.replace(config, **FEW_BLOCKS[arguments.model])
        more, config = weights_gib(lambda: kind(config)) - weights_gib(lambda: kind(few)), few
    results: dict[str, Any] = {}
    for name in arguments.plans:
        found = {
            views: measure(lambda: kind(config), views, arguments.size, PLANS[name], heads)
            for views in sorted(set(arguments.views))
        }
        for numbers in found.values():
            numbers |= {key: round(numbers[key] + more, 3) for key in ("weights_gib", "estimated_gib", "peak_gib")}
        results[name] = {f"{views} views": numbers for views, numbers in found.items()}
        if len(found) > 1:
            results[name]["law"] = fit_law({views: numbers["peak_gib"] for views, numbers in found.items()})
        print(name, results[name], flush=True)
    settings = {"size": arguments.size, "heads": heads, "dtype": "bfloat16", "plans": arguments.plans}
    height, width = arguments.size
    kind_of_heads = "_" + "_".join(heads) if arguments.heads else ""
    of_model = "" if arguments.model == "VGGT-1B" else f"{arguments.model.lower().replace('-', '_')}_"
    settings |= {"model": arguments.model, **({"blocks": "few"} if arguments.few_blocks else {})}
    write_result(
        f"memory_{of_model}bfloat16_{height}x{width}{kind_of_heads}",
        settings,
        results,
        folder=arguments.output,
        show=False,
    )


def fit_law(peaks: dict[int, float]) -> dict[str, float]:
    """GiB = intercept + slope · views through the two largest numbers of views: with few, the heads' peak is higher."""
    (first, low), (second, high) = sorted(peaks.items())[-2:]
    slope = (high - low) / (second - first)
    return {"slope_mib_a_view": round(1024 * slope, 3), "intercept_gib": round(low - slope * first, 3)}


if __name__ == "__main__":
    main()
