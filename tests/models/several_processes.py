"""One of several processes with a scene among them: `python several_processes.py FOLDER [cuda]`, into `FOLDER/RANK.pt`.

Environment as torchrun gives it. The tests work out the same things alone, with the functions of this file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import geomtx
from geomtx.layers.backends import resolve_backend
from geomtx.layers.exchange import SharedAttention, Shares
from geomtx.models.memory import MemoryPlan
from geomtx.models.parallel import deal_out, predict_parallel, share_encoder
from geomtx.scene.memory import choose_plan
from reference import named_tensors

IMAGE_HW = (28, 42)


class Case(NamedTuple):
    """A model, a scene, and how it is worked on."""

    num_processes: int
    num_views: int
    config: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float64
    masked: bool = False
    query_dim: int | None = None
    options: dict[str, Any] = {}  # noqa: RUF012
    added: bool = False
    """With heads that were added, one of each class."""


THREE_HEADS = {"dim": 48, "num_heads": 3}
DENSE = ("camera", "depth", "points")
CASES = {
    "even": Case(2, 4, query_dim=2),
    "uneven": Case(2, 5, masked=True, query_dim=3),
    "uneven, three": Case(3, 5, THREE_HEADS, masked=True, query_dim=3),
    "heads that can't be shared": Case(3, 4, masked=True, query_dim=3),
    "heads that can't be shared, two": Case(2, 3, THREE_HEADS),
    "a view each": Case(3, 3, THREE_HEADS),
    "single precision": Case(2, 5, {"heads": DENSE}, torch.float32, masked=True),
    "single precision, three": Case(3, 5, {"heads": DENSE}, torch.float32, masked=True),
    "half precision": Case(2, 3, {"heads": DENSE}, torch.bfloat16),
    "own views": Case(2, 5, masked=True, query_dim=3, options={"gather": False}),
    "own views, cameras": Case(3, 4, options={"gather": False, "heads": ("camera",)}),
    "pieces": Case(2, 5, masked=True, query_dim=2, options={"memory_plan": MemoryPlan(1, 7, "cpu", part_device="cpu")}),
    "pieces without tracks": Case(
        2, 3, {"heads": DENSE}, masked=True, options={"memory_plan": MemoryPlan(1, 7, "cpu")}
    ),
    "pieces, three": Case(3, 4, options={"memory_plan": MemoryPlan(2, 5), "gather": False}),
    "chunks of views": Case(2, 5, options={"view_chunk": 1, "heads": ("depth",)}),
    "global only": Case(2, 3, {"scopes": ("global", "global"), "heads": DENSE}),
    "added heads": Case(2, 3, {"heads": ()}, masked=True, query_dim=3, added=True),
    "added heads, own views": Case(
        2, 3, {"heads": ()}, query_dim=2, options={"gather": False, "memory_plan": MemoryPlan(1, 7)}, added=True
    ),
    "math": Case(2, 3, {"attention": "math", "heads": DENSE}, masked=True),
}


def model_of(case: Case) -> geomtx.VGGT:
    """The same weights in every process."""
    torch.manual_seed(1)
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(**case.config))
    if case.added:
        other = geomtx.VGGT(geomtx.VGGTConfig.tiny())
        for name, head in (
            ("normals", other.point_head),
            ("my_camera", other.camera_head),
            ("my_track", other.track_head),
            ("colours", geomtx.heads.RGBHead(other.depth_head.decoder)),
        ):
            model.add_head(name, head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.2, 0.6)  # at their start, LayerScales hide most of what the blocks do
    return model.to(case.dtype).eval()


def arguments_of(case: Case) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Two scenes; of the first some patches are out, of the second all but those of the first view."""
    torch.manual_seed(2)
    images = torch.rand(2, case.num_views, 3, *IMAGE_HW, dtype=case.dtype)
    mask = queries = None
    if case.masked:
        mask = torch.rand(2, case.num_views, IMAGE_HW[0] // 14, IMAGE_HW[1] // 14) > 0.4
        mask[1, 0], mask[1, 1:] = True, False
    if case.query_dim:
        queries = 25 * torch.rand(2, 4, 2, dtype=case.dtype)
    if case.query_dim == 3:
        views = torch.arange(4).expand(2, 4) % case.num_views
        queries = torch.cat([views[..., None].to(case.dtype), queries], dim=-1)
    return images, queries, mask


def tokens_of(case: Case) -> dict[str, Tensor]:
    """What the encoder gives for this process's views."""
    model = model_of(case)
    images, _, mask = arguments_of(case)
    shares = deal_out(case.num_views)
    token_mask = None if mask is None else model.encoder.token_mask(mask.flatten(2))
    with share_encoder(model.encoder, shares, IMAGE_HW, token_mask=token_mask):
        here = None if mask is None else mask[:, shares.here]
        tokens = model.encoder(images[:, shares.here], patch_mask=here)
    return {str(index): layer for index, layer in tokens.layers.items()}


def state_of(model: geomtx.VGGT) -> tuple[Any, ...]:
    attends = [block.attention.attend for block in model.encoder.global_blocks]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return attends, hooks, model.encoder.special.first_view


def predict(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    model = model_of(case).to(device)
    before = state_of(model)
    predictions = predict_parallel(model, *arguments_of(case), **case.options)
    assert state_of(model) == before
    return named_tensors(predictions)


def attend_shared(num_heads: int, sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Attention of tokens that are dealt out, this process's part; and the same of all that nobody else knows."""
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, sum(sizes), num_heads, 8, dtype=dtype).transpose(2, 3)
    mask = torch.rand(2, 1, 1, sum(sizes)) > 0.3
    shares = Shares(sizes, dist.get_rank())
    shared = SharedAttention(resolve_backend("math"), shares, mask)
    here = shared(*(t[:, :, shares.here] for t in (q, k, v)))
    return here, resolve_backend("math")(q, k, v, mask)[:, :, shares.here]


class Foreign(nn.Module):
    def forward(self, tokens: geomtx.Tokens) -> Tensor:
        return tokens.layer(3).mean()


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def errors(rank: int, num: int) -> dict[str, str]:
    """Every call fails, or doesn't, in all processes."""
    case = Case(num, 3, {"heads": DENSE})
    model = model_of(case)
    before = state_of(model)
    images, _, mask = arguments_of(case._replace(masked=True))
    cross = model_of(case._replace(config={"scopes": ("frame", "cross")}))
    plan = MemoryPlan(1, 5) if rank else None
    alone = dist.new_group([0])
    found = {
        "few": message_of(lambda: predict_parallel(model, images[:, : num - 1])),
        "views": message_of(lambda: predict_parallel(model, images[:, : 3 - (rank == 0)])),
        "heads": message_of(lambda: predict_parallel(model, images, heads=DENSE[: 2 + (rank == 0)])),
        "plan": message_of(lambda: predict_parallel(model, images, memory_plan=plan)),
        "mask": message_of(lambda: predict_parallel(model, images, patch_mask=mask if rank else None)),
        "mask's shape": message_of(lambda: predict_parallel(model, images, patch_mask=mask[:, :, :1])),
        "cross": message_of(lambda: predict_parallel(cross, images)),
        "group": message_of(lambda: predict_parallel(model, images, group=alone)),
    }
    model.add_head("foreign", Foreign())
    found["foreign"] = message_of(lambda: predict_parallel(model, images))
    model.remove_head("foreign")
    with torch.enable_grad():
        found["gradients"] = message_of(lambda: predict_parallel(model, images))
    assert state_of(model) == before
    return found


def reconstruct(rank: int) -> tuple[dict[str, Tensor], int]:
    """Of views, where one process has less memory than the others; and how many of its blocks ran as a whole."""
    from geomtx.scene import inference

    if rank:
        inference.choose_plan = lambda *a: choose_plan(*a[:4], "low", *a[5:])
    model, whole = model_of(Case(1, 4, dtype=torch.float32)), []
    model.encoder.global_blocks[0].register_forward_hook(lambda *_: whole.append(1))
    scene = geomtx.reconstruct(model, arguments_of(Case(1, 4, dtype=torch.float32))[0][0], parallel=True)
    return named_tensors(scene.predictions), len(whole)


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, num = dist.get_rank(), dist.get_world_size()
    results: dict[str, Any] = {"errors": errors(rank, num)}
    for heads, dtype in ((6, torch.float64), (6, torch.bfloat16), (5, torch.float64)):
        results[f"attention {heads} {dtype}"] = attend_shared(heads, (5, 2, 4)[:num], dtype)
    for name, case in CASES.items():
        if case.num_processes == num:
            results[name] = predict(case)
    results["encoder"] = tokens_of(CASES["uneven" if num == 2 else "uneven, three"])
    if num == 3:
        group = dist.new_group([1, 2])
        if rank:
            results["group"] = named_tensors(
                predict_parallel(model_of(CASES["uneven"]), *arguments_of(CASES["uneven"]), group=group)
            )
    results["reconstruct"] = reconstruct(rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_on_gpus(folder: Path) -> None:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    names = ("heads that can't be shared, two", "chunks of views", "math", "pieces without tracks")
    torch.save({name: predict(CASES[name], "cuda") for name in names}, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with torch.no_grad():
        (run_on_gpus if "cuda" in sys.argv else run)(Path(sys.argv[1]))
