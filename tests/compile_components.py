"""Compile and export the components of a small model: `python tests/compile_components.py`.

Prints one JSON object, "compiled" and "exported" → component → largest difference from eager. It runs in a process of
its own, without the hook that checks shapes in the tests, as at a user's; any break of a graph is an error.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, export

import geomtx
from families import FAMILIES, build, draw_images, normals
from geomtx.inference import MemoryPlan, predict
from geomtx.models.scene_model import SceneModel
from reference import named_tensors

CONFIG = geomtx.VGGTConfig.tiny(
    heads=("camera", "depth", "tracks"),
    depth=2,
    taps=(0, 0, 1, 1),
    vit_depth=1,
    camera_depth=1,
    camera_iterations=2,
    track_depth=1,
    track_iterations=1,
)


# The families that don't track; VGGT is compiled with all of its heads.
OTHERS = tuple(name for name, family in FAMILIES.items() if name != "vggt" and not family.variant)


def tensors_of(value: Any) -> dict[str, Tensor]:
    return {str(k): v for k, v in value.layers.items()} if isinstance(value, geomtx.Tokens) else named_tensors(value)


def difference(ours: Any, reference: Any) -> float:
    """The largest, relative to the largest number of a tensor; infinite for other tensors."""
    ours, reference = tensors_of(ours), tensors_of(reference)
    shapes = [{name: (t.shape, t.dtype) for name, t in side.items()} for side in (ours, reference)]
    if shapes[0] != shapes[1] or not reference:
        return float("inf")
    return max(((ours[n] - t).abs().max() / t.abs().max()).item() for n, t in reference.items())


def compiled(function: Callable, *arguments: Any, backend: str = "aot_eager", **options: Any) -> float:
    torch._dynamo.reset()
    program = torch.compile(function, fullgraph=True, backend=backend)
    return difference(program(*arguments, **options), function(*arguments, **options))


def compiled_gradients(function: torch.nn.Module, tokens: geomtx.Tokens) -> float:
    """Of a compiled module's parameters, against those of eager."""
    gradients = []
    torch._dynamo.reset()
    for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        with torch.enable_grad():
            total = sum(tensor.sum() for tensor in named_tensors(run(tokens)).values())
            gradients.append(torch.autograd.grad(total, list(function.parameters())))
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in zip(*gradients, strict=True))


def exported(model: SceneModel, name: str, *others: Tensor) -> dict[str, float]:
    """One program for 1 to 8 views of several sizes."""
    views, rows, columns = Dim("views", min=1, max=8), Dim("rows", min=1, max=16), Dim("columns", min=1, max=16)
    images, patch = draw_images(name, 1, 3, rows=4, columns=6), FAMILIES[name].patch_size
    shapes = {"images": {1: views, 3: patch * rows, 4: patch * columns}, **({"query_points": None} if others else {})}
    program = export(model, (images, *others), dynamic_shapes=shapes, strict=False).module()
    errors = {}
    for num_views in (1, 2, 5, 8):
        for grid_hw in ((4, 6), (7, 5)):
            images = draw_images(name, 1, num_views, rows=grid_hw[0], columns=grid_hw[1])
            shape = f"{name}, {num_views} views of {grid_hw[0]} x {grid_hw[1]} patches"
            errors[shape] = difference(program(images, *others), model(images, *others))
    return errors


def exported_attention() -> dict[str, float]:
    """One program for any number of tokens."""
    errors = {}
    for backend in ("auto", "sdpa_flash"):
        attention = geomtx.Attention(64, 2, backend=backend).double().eval()
        shapes = {"x": {1: Dim("tokens", min=2, max=64)}, "context": None}
        program = export(attention, (torch.rand(2, 7, 64).double(), None), dynamic_shapes=shapes, strict=False).module()
        x = torch.rand(2, 31, 64, dtype=torch.float64)
        errors[f"exported, attention {backend}"] = difference(program(x, None), attention(x))
    return errors


def compiled_attention(backend: str) -> float:
    """The largest of two, without and with a mask."""
    attention = geomtx.Attention(64, 2, backend=backend).double().eval()
    x, mask = torch.rand(2, 9, 64, dtype=torch.float64), torch.rand(2, 1, 1, 9) < 0.6
    mask[..., 0] = True
    return max(compiled(attention, x), compiled(attention, x, mask=mask))


def adapted(model: SceneModel) -> SceneModel:
    """A copy with adapters of random values."""
    model = copy.deepcopy(model)
    geomtx.add_lora(model, ["encoder.*blocks.*"], rank=2)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            parameter.normal_(std=0.1)
    return model


def with_heads(model: SceneModel, family: str) -> SceneModel:
    """A copy with two added heads."""
    model = copy.deepcopy(model)
    model.add_head("normals", normals(family).double())
    model.add_head("my_camera", geomtx.CameraHead(FAMILIES[family].head_dim, 1, num_heads=4).double())
    return model.eval()


def compiled_components(model: geomtx.VGGT) -> dict[str, float]:
    images = torch.rand(1, 2, 3, 28, 42, dtype=torch.float64)
    queries = torch.rand(1, 4, 2, dtype=torch.float64) * 25
    mask = torch.rand(1, 2, 2, 3) < 0.7
    tokens = model.encoder(images)
    return {
        # All parts of a model are within it; a head alone reads tokens that are inputs of its graph. What a backend
        # makes of a whole graph is seen in `exported`, which takes the same steps.
        "adapted model with added heads and a mask": compiled(
            with_heads(adapted(model), "vggt"), images, queries, mask, backend="eager"
        ),
        "model in chunks of views": compiled(
            partial(predict, model, plan=MemoryPlan(1, output_device=None), heads=("depth",)), images, backend="eager"
        ),
        "gradients of the camera head": compiled_gradients(model.camera_head, tokens),
        **{
            f"adapted {family} with added heads and a mask": compiled(
                with_heads(adapted(build(family).double()), family),
                draw_images(family, 1, 2),
                None,
                mask,
                backend="eager",
            )
            for family in OTHERS
        },
        "pairs": compiled(
            geomtx.MASt3R(geomtx.MASt3RConfig.tiny()).double().eval(),
            torch.rand(2, 3, 32, 48, dtype=torch.float64),
            torch.rand(2, 3, 48, 32, dtype=torch.float64),
            backend="eager",
        ),
        **{f"attention {name}": compiled_attention(name) for name in ("auto", "math", "sdpa_flash", "flex")},
    }


def exported_pairs() -> dict[str, float]:
    """One program for any number of pairs of images of two sizes."""
    model = geomtx.MASt3R(geomtx.MASt3RConfig.tiny()).double().eval()
    pairs = Dim("pairs", min=1, max=8)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        first = torch.rand(number, 3, 32, 48, dtype=torch.float64)
        return first, torch.rand(number, 3, 48, 32, dtype=torch.float64)

    shapes = {"first": {0: pairs}, "second": {0: pairs}}
    program = export(model, draw(2), dynamic_shapes=shapes, strict=False).module()
    errors = {}
    for number in (1, 5):
        images = draw(number)
        errors[f"{number} pairs"] = difference(program(*images), model(*images))
    return errors


def main() -> None:
    # Caching results for symbolic shapes costs more than computing them anew.
    torch._dynamo.config.fake_tensor_cache_enabled = False
    torch.manual_seed(0)
    # In float64, where only a wrong program is far from the right one.
    model = geomtx.VGGT(CONFIG).double().eval()
    queries = torch.rand(1, 4, 2, dtype=torch.float64) * 50
    with torch.no_grad():
        programs = exported(model, "vggt", queries) | exported_attention() | exported_pairs()
        for family in OTHERS:
            programs |= exported(build(family).double(), family)
        print(json.dumps({"compiled": compiled_components(model), "exported": programs}))


if __name__ == "__main__":
    main()
