"""A model's pass over the views of a scene: in its precision, in pieces where memory is short, compiled or shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomtx.encoder.keys import GlobalApproximation
from geomtx.layers.backend_speed import choose_backends
from geomtx.models.captured import check_can_capture, run_captured
from geomtx.models.compiled import compiled_parts
from geomtx.models.memory import PLANS, MemoryPlan, autocast_bytes
from geomtx.models.parallel import deal_out, predict_parallel
from geomtx.models.vggt import VGGT
from geomtx.scene.memory import Memory, choose_plan
from geomtx.scene.progress import list_steps, progress_bar
from geomtx.types import Predictions
from geomtx.views import Views

__all__ = ["HALVES", "PassOptions", "check_options", "run_model"]

HALVES = (torch.bfloat16, torch.float16)
# Pixels that the dense heads hold at once with view_chunk="auto", where memory is not short.
_PIXELS_AT_ONCE = {"cpu": 2 * 518 * 518}
_PIXELS_AT_ONCE_ELSEWHERE = 8 * 518 * 518


class PassOptions(NamedTuple):
    """How a model is run; see `geomtx.reconstruct`."""

    heads: tuple[str, ...]
    view_chunk: int | Literal["auto"] = "auto"
    memory: Memory = "auto"
    dtype: torch.dtype | None = None
    approximation: GlobalApproximation | None = None
    compile: bool | Literal["graphs"] = False
    parallel: bool = False
    progress: bool = False


def check_options(model: nn.Module, options: PassOptions) -> None:
    """Require options that go together and with the model, before any work.

    Raises:
        ValueError: Otherwise.
    """
    parameter = next(model.parameters())
    own, dtype = parameter.dtype, options.dtype
    if options.compile != "graphs" and not isinstance(options.compile, bool):
        raise ValueError(f"compile must be one of False, True, 'graphs', got {options.compile!r}")
    chunk = options.view_chunk
    if chunk != "auto" and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"view_chunk must be 'auto' or at least 1, got {chunk!r}")
    if options.approximation is not None and not isinstance(options.approximation, GlobalApproximation):
        raise ValueError(f"approximation must be a GlobalApproximation, got {options.approximation!r}")
    if dtype not in (None, own) and not (own == torch.float32 and dtype in HALVES):
        raise ValueError(f"dtype must be the model's own {own}, or half of a float32 model, got {dtype}")
    if options.compile == "graphs":
        check_can_capture(parameter.device)
        if dtype not in (None, own):
            raise ValueError(f"dtype must be the model's own {own} with compile='graphs', got {dtype}")
    if options.parallel:
        if not isinstance(model, VGGT):
            raise ValueError(f"model must be VGGT to run in parallel, got {type(model).__name__}")
        for name, value in (("approximation", options.approximation), ("compile", options.compile or None)):
            if value is not None:
                raise ValueError(f"{name} must be left out in parallel, got {value!r}")


def run_model(model: nn.Module, views: Views, queries: Tensor | None, options: PassOptions) -> Predictions:
    """Run a model on views, without gradients, on its device.

    Args:
        model: See `geomtx.reconstruct`; in evaluation mode meanwhile.
        views: Of its patch size.
        queries: (N, 3) in pixels of `views.images`.
        options: For which `check_options` passes.

    Raises:
        ValueError: For another `memory`, and as `model` does.
    """
    parameter = next(model.parameters())
    device, heads, compiled = parameter.device, options.heads, options.compile is True
    inputs = {"query_points": _to_batch(queries, device), "patch_mask": _to_batch(views.patch_mask, device)}
    how: dict[str, Any] = {"heads": heads, "view_chunk": _choose_chunk(options.view_chunk, views.images, device)}
    if options.approximation is not None:
        how["approximation"] = options.approximation
    images = views.images[None]
    plan = _choose_plan(model, views, options, how["view_chunk"])
    if plan is not None:  # images come over some at a time
        most = plan.view_chunk if options.view_chunk == "auto" else how["view_chunk"]
        how["memory_plan"] = plan._replace(view_chunk=min(plan.view_chunk, most))
    elif not options.parallel:
        images = images.to(device)
    forward: Callable[..., Predictions] = model
    if options.parallel:
        assert isinstance(model, VGGT), "check_options has passed"
        forward = partial(predict_parallel, model)
    steps = list_steps(model, heads, compiled=compiled, in_pieces=plan is not None) if options.progress else []
    compiling: AbstractContextManager[None] = compiled_parts(model) if compiled else nullcontext()
    precision = _precision(parameter, options.dtype)
    # Not in inference mode, whoever calls: nothing that it makes could be used where gradients are recorded.
    with torch.inference_mode(False), torch.no_grad(), _evaluating(model), precision, compiling:
        if device.type != "cpu" and not compiled:  # compiled programs don't choose
            choose_backends(model, options.dtype or parameter.dtype)
        if options.compile == "graphs" and plan is None:
            return run_captured(model, {"images": images, **inputs}, how)
        with progress_bar(steps):
            return forward(images, **inputs, **how)


def _choose_plan(model: nn.Module, views: Views, options: PassOptions, view_chunk: int) -> MemoryPlan | None:
    num_views, _, *image_hw = views.images.shape
    shares = deal_out(num_views).sizes if options.parallel else (num_views,)
    parameter = next(model.parameters())
    held = autocast_bytes(model) if _is_autocast(parameter, options.dtype) else 0
    plan = choose_plan(
        model, shares[0], (image_hw[0], image_hw[1]), options.heads, options.memory, view_chunk, len(shares), held
    )
    return _leanest(plan, parameter.device) if options.parallel else plan


def _leanest(plan: MemoryPlan | None, device: torch.device) -> MemoryPlan | None:
    """The plan of the process with the least memory: what they exchange depends on it."""
    plans = (None, *PLANS)
    index = torch.tensor(plans.index(plan), device=device)
    dist.all_reduce(index, dist.ReduceOp.MAX)
    return plans[int(index)]


def _choose_chunk(view_chunk: int | Literal["auto"], images: Tensor, device: torch.device) -> int:
    if view_chunk == "auto":
        pixels = _PIXELS_AT_ONCE.get(device.type, _PIXELS_AT_ONCE_ELSEWHERE)
        return max(1, min(len(images), pixels // images[0, 0].numel()))
    return view_chunk


def _to_batch(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor[None].to(device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, afterwards each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_autocast(parameter: Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype != parameter.dtype


def _precision(parameter: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast where a float32 model is asked for a half precision; nothing where it is the model's own."""
    enabled = _is_autocast(parameter, dtype)
    return torch.autocast(parameter.device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)
