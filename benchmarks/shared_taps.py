"""What it would save if depth and points read a layer together: `shared_taps.py [--views 1 8] …`.

Both norm the same tokens and project them, each with parameters of its own. Together means: statistics once, each
norm's gain and offset folded into the projection that follows, and one product with both projections' weights. The
folding belongs to every pass, since weights may be trained, adapted or changed in place.

- work: operations, bytes that they read and write, and bytes of what they make, for VGGT-1B's decoders in bfloat16, on
  fake tensors;
- time on this machine, in float32, in turns;
- error of nano's projected layers in bfloat16 against float64 from the same tokens, on rooms that it never saw.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import geomtx
from common import write_result
from exactness import draw_images
from geomtx import DPTDecoder

Project = Callable[..., list[Tensor]]


def apart(
    decoders: Sequence[DPTDecoder], level: int, tokens: Tensor, grid_hw: tuple[int, int], **options: Any
) -> list[Tensor]:
    """As the library does it."""
    return [decoder.project_tap(level, tokens, grid_hw, **options) for decoder in decoders]


def together(
    decoders: Sequence[DPTDecoder], level: int, tokens: Tensor, grid_hw: tuple[int, int], *, image_hw: tuple[int, int]
) -> list[Tensor]:
    weights, biases = [], []
    for decoder in decoders:
        project, norm = decoder.project[level], decoder.norm
        weight = project.weight.flatten(1)
        weights.append(weight * norm.weight)
        biases.append(torch.addmv(project.bias, weight, norm.bias))
    x = F.layer_norm(tokens, tokens.shape[-1:], eps=decoders[0].norm.eps)
    maps = F.conv2d(x.transpose(1, 2).unflatten(-1, grid_hw), torch.cat(weights)[..., None, None], torch.cat(biases))
    parts = maps.split([len(weight) for weight in weights], dim=1)
    return [decoder._add_signal(part, image_hw) for decoder, part in zip(decoders, parts, strict=True)]


WAYS: dict[str, Project] = {"apart": apart, "together": together}


class Work(TorchDispatchMode):
    """Operations that do not only look at memory differently, and the bytes that they read, write and make."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.moved = self.made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view and function.overloadpacket != torch.ops.aten._unsafe_view:
            written = sum(t.nbytes for t in tree_iter(out) if isinstance(t, Tensor))
            self.operations += 1
            self.made += written
            self.moved += written + sum(t.nbytes for t in tree_iter((args, kwargs)) if isinstance(t, Tensor))
        return out


def count_work(views: int, image_hw: tuple[int, int]) -> dict[str, Any]:
    found = {}
    for name, project in WAYS.items():
        decoders = build(torch.bfloat16)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            run = prepare(project, decoders, views, image_hw)
            with Work() as work:
                run()
        found[name] = {
            "operations": work.operations,
            "moved_mib": round(work.moved / 2**20, 1),
            "made_mib": round(work.made / 2**20, 1),
        }
    return found


def build(dtype: torch.dtype) -> list[DPTDecoder]:
    """Of depth and points, of VGGT-1B's size, without values."""
    with torch.device("meta"):
        return [DPTDecoder().to(dtype).eval() for _ in range(2)]


def prepare(
    project: Project, decoders: Sequence[DPTDecoder], views: int, image_hw: tuple[int, int]
) -> Callable[[], object]:
    """All four layers for both decoders."""
    dtype = decoders[0].norm.weight.dtype
    for decoder in decoders:
        for parameter in decoder.to_empty(device="cpu").parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    grid_hw = (image_hw[0] // 14, image_hw[1] // 14)
    tokens = torch.rand(views, grid_hw[0] * grid_hw[1], 2048, dtype=dtype)
    return lambda: [project(decoders, level, tokens, grid_hw, image_hw=image_hw) for level in range(4)]


@torch.inference_mode()
def time_work(views: int, image_hw: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Seconds, in turns; the ratio is the median over the rounds."""
    runs = {name: prepare(project, build(torch.float32), views, image_hw) for name, project in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(1 + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if index:
                seconds[name].append(round(time.perf_counter() - start, 4))
    ratios = [a / b for a, b in zip(seconds["together"], seconds["apart"], strict=True)]
    return {**seconds, "together_over_apart": round(statistics.median(ratios), 3)}


@torch.inference_mode()
def measure_errors(scenes: int, views: int) -> dict[str, Any]:
    """Root mean square error over that of the values, of both heads' layers: float64 as a check, and bfloat16."""
    model = geomtx.VGGT.from_pretrained("nano", heads=("depth", "points"), dtype=torch.float64)
    found: dict[str, Any] = {}
    squares: dict[tuple[str, torch.dtype], float] = {}
    power = 0.0
    for images in draw_images(scenes, views, None):
        tokens = model.encoder(images.double(), taps=model.config.taps)
        for level, tap in enumerate(model.config.taps):
            patches = tokens.layer(tap)[:, :, tokens.num_special :].flatten(0, 1).bfloat16()
            expected = project_in(torch.float64, apart, model, level, patches, tokens)
            power += sum(t.square().sum().item() for t in expected)
            for name, project in WAYS.items():
                for dtype in (torch.float64, torch.bfloat16):
                    got = project_in(dtype, project, model, level, patches, tokens)
                    error = sum((a - b).square().sum().item() for a, b in zip(got, expected, strict=True))
                    squares[name, dtype] = squares.get((name, dtype), 0.0) + error
    for (name, dtype), error in squares.items():
        found.setdefault(name, {})[str(dtype).removeprefix("torch.")] = float(f"{(error / power) ** 0.5:.3g}")
    return found


def project_in(
    dtype: torch.dtype, project: Project, model: geomtx.VGGT, level: int, patches: Tensor, tokens: geomtx.Tokens
) -> list[Tensor]:
    """Weights are rounded to bfloat16 in either precision: what counts is what the computation adds."""
    decoders = [copy.deepcopy(head.decoder).bfloat16().to(dtype) for head in (model.depth_head, model.point_head)]
    maps = project(decoders, level, patches.to(dtype), tokens.grid_hw, image_hw=tokens.image_hw)
    return [part.double() for part in maps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, nargs=2, default=[336, 518], metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scenes", type=int, default=16, help="of 4 views, for the errors")
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    image_hw = (arguments.size[0], arguments.size[1])
    results: dict[str, Any] = {"error": measure_errors(arguments.scenes, 4), "views": {}}
    for views in arguments.views:
        results["views"][views] = {
            "work": count_work(views, image_hw),
            "seconds": time_work(views, image_hw, arguments.repeats),
        }
    settings = {"size": arguments.size, "repeats": arguments.repeats, "scenes": arguments.scenes}
    write_result("shared_taps", settings, results, folder=arguments.output)


if __name__ == "__main__":
    main()
