"""Several processes that share scenes: `python several_processes.py FOLDER` writes `FOLDER/COUNT/RANK.pt` for 2 and 3.

They are forks of one, in which everything is imported once. With `cuda` behind it, it is one of several processes, in
an environment as torchrun sets it, and writes `FOLDER/RANK.pt`. The tests compute the same in one process, with the
functions of this file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import geomtx
from families import FAMILIES
from families import build as build_family
from geomtx.inference import GlobalApproximation, MemoryPlan, deal_out, predict_parallel
from geomtx.inference.attention import attention_table
from geomtx.inference.plan import WHOLE, choose_plan
from geomtx.inference.shares import Shares, exchange_heads
from geomtx.layers.backends import resolve_backend
from geomtx.models.scene_model import SceneModel
from inference.model_state import state_of
from lean import lean_config, visible
from processes import run_forks
from reference import named_tensors

GRID_HW = (2, 3)
LIMIT = timedelta(minutes=3)  # after which no process waits for another


class Case(NamedTuple):
    """A model, a scene, and how the model is run on it."""

    num_processes: int
    num_views: int
    config: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float64
    masked: bool = False
    query_dim: int | None = None
    options: dict[str, Any] = {}  # noqa: RUF012
    added: bool = False
    """With heads that were added, one of each class."""
    family: str = ""
    """A family of `families.py`, in place of a VGGT of the configuration."""


THREE_HEADS = {"dim": 48, "num_heads": 3}
DENSE = ("camera", "depth", "points")
FEW = {"heads": ("camera", "depth")}
PIECES = MemoryPlan(1, 7, "cpu", part_device="cpu")
CAMERAS = geomtx.Cameras(
    torch.eye(3, 4).repeat(2, 3, 1, 1) + torch.arange(3)[:, None, None] * torch.eye(3, 4).roll(3, dims=-1),
    40 * torch.eye(3).repeat(2, 3, 1, 1),
)
# Of a scene the poses of some views, in all of them some depth.
KNOWN = geomtx.KnownGeometry(
    *CAMERAS,
    torch.linspace(-1, 3, 2 * 3 * 28 * 42).view(2, 3, 28, 42).clamp(min=0),
    torch.tensor([[True, True, True], [False, True, True]]),
)
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
    "pieces": Case(2, 5, masked=True, query_dim=2, options={"plan": PIECES}),
    "pieces without tracks": Case(2, 3, {"heads": DENSE}, masked=True, options={"plan": MemoryPlan(1, 7, "cpu")}),
    "pieces, three": Case(3, 4, options={"plan": MemoryPlan(2, 5), "gather": False}),
    "chunks of views": Case(2, 5, options={"plan": MemoryPlan(1, output_device=None), "heads": ("depth",)}),
    "global only": Case(2, 3, {"scopes": ("global", "global"), "heads": DENSE}),
    "added heads": Case(2, 3, {"heads": ()}, masked=True, query_dim=3, added=True),
    "added heads, own views": Case(
        2, 3, {"heads": ()}, query_dim=2, options={"gather": False, "plan": MemoryPlan(1, 7)}, added=True
    ),
    "math": Case(2, 3, {"attention": "math", "heads": DENSE}, masked=True),
    # Ways of running combine: fewer keys with processes, and with pieces of these.
    "key views": Case(2, 5, FEW, options={"approximation": GlobalApproximation(2)}),
    "key views, masked": Case(2, 5, FEW, masked=True, options={"approximation": GlobalApproximation(3, 2, 1)}),
    "stride": Case(2, 5, FEW, masked=True, options={"approximation": GlobalApproximation(None, 2)}),
    "local layers": Case(2, 4, FEW, options={"approximation": GlobalApproximation(num_local_layers=1)}),
    "key views, three": Case(
        3, 7, FEW | THREE_HEADS, masked=True, query_dim=None, options={"approximation": GlobalApproximation(3)}
    ),
    "one key view, three": Case(3, 4, FEW, options={"approximation": GlobalApproximation(1, 2, 1), "gather": False}),
    "pieces with key views": Case(
        2, 5, FEW, masked=True, options={"approximation": GlobalApproximation(2, 2, 1), "plan": PIECES}
    ),
    "pieces with key views, three": Case(
        3, 7, FEW, options={"approximation": GlobalApproximation(3), "plan": MemoryPlan(2, 5)}
    ),
    "pieces with a stride": Case(
        2, 3, FEW, masked=True, options={"approximation": GlobalApproximation(None, 2), "plan": MemoryPlan(2, 5)}
    ),
    "pieces with local layers": Case(
        2, 3, FEW, options={"approximation": GlobalApproximation(None, 1, 1), "plan": MemoryPlan(2, 5)}
    ),
    **{
        f"{name}, {how}": case._replace(family=name)
        for name, family in FAMILIES.items()
        if name != "vggt" and not family.variant
        for how, case in (
            ("masked", Case(2, 5, masked=True)),
            ("pieces, three", Case(3, 4, options={"plan": PIECES, "gather": False})),
            *((("known cameras", Case(2, 3, options={"cameras": CAMERAS})),) * (name == "da3")),
            *((("known geometry", Case(2, 3, masked=True, options={"cameras": KNOWN})),) * (name == "pi3x")),
            *((("known, pieces", Case(3, 3, options={"cameras": KNOWN, "plan": PIECES})),) * (name == "pi3x")),
            *((("fewer keys", Case(2, 4, options={"approximation": GlobalApproximation(2, 2)})),) * family.across),
        )
    },
}


_MODELS: dict[str, SceneModel] = {}


def model_of(case: Case) -> SceneModel:
    """Return a model with the same weights in every process, one for all cases that are alike in it."""
    kind = f"{case.config} {case.dtype} {case.added} {case.family}"
    if kind not in _MODELS:
        _MODELS[kind] = build_model(case)
    return _MODELS[kind]


def build_model(case: Case) -> SceneModel:
    torch.manual_seed(1)
    if case.family:
        return build_family(case.family).to(case.dtype)
    model = geomtx.VGGT(lean_config(**case.config))
    if case.added:
        other = geomtx.VGGT(lean_config())
        for name, head in (
            ("normals", other.point_head),
            ("my_camera", other.camera_head),
            ("my_track", other.track_head),
            ("colours", geomtx.heads.RGBHead(other.depth_head.decoder)),
        ):
            model.add_head(name, head)
    return visible(model).to(case.dtype).eval()


def arguments_of(case: Case) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return two scenes: of the first some patches are masked, of the second all but those of the first view."""
    torch.manual_seed(2)
    patch = FAMILIES[case.family or "vggt"].patch_size
    images = torch.rand(2, case.num_views, 3, *(size * patch for size in GRID_HW), dtype=case.dtype)
    mask = queries = None
    if case.masked:
        mask = torch.rand(2, case.num_views, *GRID_HW) > 0.4
        mask[1, 0], mask[1, 1:] = True, False
    if case.query_dim:
        queries = 25 * torch.rand(2, 4, 2, dtype=case.dtype)
    if case.query_dim == 3:
        views = torch.arange(4).expand(2, 4) % case.num_views
        queries = torch.cat([views[..., None].to(case.dtype), queries], dim=-1)
    return images, queries, mask


def tokens_of(case: Case) -> dict[str, Tensor]:
    """Return what the encoder gives for this process's views."""
    model = model_of(case)
    images, _, mask = arguments_of(case)
    shares = deal_out(case.num_views)
    here = None if mask is None else mask[:, shares.here]
    views = model.encoder.embed(images[:, shares.here], patch_mask=here, first_view=shares.start)
    table = attention_table(model.encoder, views, WHOLE, GlobalApproximation(), shares)
    return {str(index): layer for index, layer in model.encoder.collect(views, table).layers.items()}


def predict(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    model = build_model(case).to(device) if device != "cpu" else model_of(case)
    before = state_of(model)
    predictions = predict_parallel(model, *arguments_of(case), **case.options)
    assert state_of(model) == before
    return named_tensors(predictions)


def attend_shared(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return attention of tokens that are shared, this process's part; and the same computed by one process."""
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, sum(sizes), 6, 8, dtype=dtype).transpose(2, 3)
    mask = torch.rand(2, 1, 1, sum(sizes)) > 0.3
    shares, math = Shares(sizes, dist.get_rank()), resolve_backend("math")
    here = exchange_heads(math, shares, *(t[:, :, shares.here] for t in (q, k, v)), mask)
    return here, math(q, k, v, mask)[:, :, shares.here]


class Foreign(nn.Module):
    def forward(self, tokens: geomtx.Tokens) -> Tensor:
        return tokens.layer(1).mean()


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def errors(rank: int, num: int) -> dict[str, str]:
    """Return what calls raise; each fails, or doesn't, in all processes."""
    case = Case(num, 3, {"heads": DENSE})
    model = model_of(case)
    before = state_of(model)
    images, _, mask = arguments_of(case._replace(masked=True))
    cross = model_of(case._replace(config={"scopes": ("frame", "cross")}))
    plan = MemoryPlan(1, 5) if rank else None
    keys = GlobalApproximation(2) if rank else None
    pi3x, known = model_of(Case(num, 3, family="pi3x")), KNOWN if rank else KNOWN._replace(depth=None)
    alone = dist.new_group([0])
    run = partial(predict_parallel, model, images)
    found = {
        "few": message_of(lambda: predict_parallel(model, images[:, : num - 1])),
        "views": message_of(lambda: predict_parallel(model, images[:, : 3 - (rank == 0)])),
        "heads": message_of(lambda: run(heads=DENSE[: 2 + (rank == 0)])),
        "plan": message_of(lambda: run(plan=plan)),
        "approximation": message_of(lambda: run(approximation=keys)),
        "mask": message_of(lambda: run(patch_mask=mask if rank else None)),
        "mask's shape": message_of(lambda: run(patch_mask=mask[:, :, :1])),
        "cross": message_of(lambda: predict_parallel(cross, images)),
        "known": message_of(lambda: predict_parallel(pi3x, images, cameras=known)),
        "group": message_of(lambda: run(group=alone)),
    }
    model.add_head("foreign", Foreign())
    found["foreign"] = message_of(run)
    model.remove_head("foreign")
    with torch.enable_grad():
        found["gradients"] = message_of(run)
    assert state_of(model) == before
    return found


def build_nested() -> tuple[geomtx.NestedDepthAnything3, Tensor]:
    """Return a model of two networks and four views."""
    torch.manual_seed(1)
    model = visible(geomtx.NestedDepthAnything3(geomtx.NestedDepthAnything3Config.tiny())).eval()
    return model, torch.rand(4, 3, 28, 42)


def reconstruct(rank: int) -> tuple[dict[str, Tensor], int]:
    """Reconstruct where one process has less memory than others; count the blocks that ran on all tokens at once."""
    from geomtx.inference import run

    if rank:
        run.choose_plan = lambda model, size, memory, *, held: choose_plan(model, size, "low", held=held)
    model, whole = build_model(Case(1, 4, dtype=torch.float32)), []
    model.encoder.global_blocks[0].register_forward_hook(lambda *_: whole.append(1))
    scene = geomtx.reconstruct(model, arguments_of(Case(1, 4, dtype=torch.float32))[0][0], parallel=True)
    return named_tensors(scene.predictions), len(whole)


def run(rank: int, folder: Path, num: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num, timeout=LIMIT)
    results: dict[str, Any] = {"errors": errors(rank, num)}
    for dtype in (torch.float64, torch.bfloat16):
        results[f"attention {dtype}"] = attend_shared((5, 2, 4)[:num], dtype)
    for name, case in CASES.items():
        if case.num_processes == num:
            results[name] = predict(case)
    results["encoder"] = tokens_of(CASES["uneven" if num == 2 else "uneven, three"])
    if num == 3:
        group = dist.new_group([1, 2])
        if rank:
            for name in ("uneven", "key views, masked"):
                case = CASES[name]
                found = predict_parallel(model_of(case), *arguments_of(case), **case.options, group=group)
                results[f"group, {name}"] = named_tensors(found)
    # Two networks, one after the other; before memory plans are tampered with.
    nested, images = build_nested()
    results["nested"] = named_tensors(geomtx.reconstruct(nested, images, parallel=True).predictions)
    results["reconstruct"] = reconstruct(rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_on_gpus(folder: Path) -> None:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    names = ("heads that can't be shared, two", "chunks of views", "math", "pieces without tracks", "stride")
    torch.save({name: predict(CASES[name], "cuda") for name in names}, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_all(folder: Path) -> None:
    torch.set_num_threads(1)
    for case in CASES.values():
        model_of(case)  # which the forks then share
    for num in (2, 3):
        (folder / str(num)).mkdir()
        run_forks(run, num, folder / str(num), num)


if __name__ == "__main__":
    with torch.no_grad():
        (run_on_gpus if "cuda" in sys.argv else run_all)(Path(sys.argv[1]))
