"""A model's pass over the views of a scene as a user asks for it: precision, memory, compilation, processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from geomtx.checks import check_option
from geomtx.encoder.patches import mask_pixels
from geomtx.geometry.ray_cameras import Decomposition, cameras_from_rays
from geomtx.inference.engine import EncodedViews, Execution, Inputs, encode, execute
from geomtx.inference.graphs import CompiledBlock, check_can_capture, check_can_compile, many_variants, run_captured
from geomtx.inference.keys import GlobalApproximation
from geomtx.inference.parallel import predict_parallel
from geomtx.inference.plan import (
    PLANS,
    WHOLE,
    Memory,
    MemoryPlan,
    PassSize,
    autocast_bytes,
    choose_plan,
    weight_bytes,
)
from geomtx.inference.shares import deal_out
from geomtx.types import Predictions

__all__ = ["HALVES", "RunOptions", "check_options", "encode_views", "run_precision", "run_views"]

HALVES = (torch.bfloat16, torch.float16)
# Pixels that the dense heads hold at once with view_chunk="auto", where memory is not short.
_PIXELS_AT_ONCE = {"cpu": 2 * 518 * 518}
_PIXELS_AT_ONCE_ELSEWHERE = 8 * 518 * 518


class RunOptions(NamedTuple):
    """How `geomtx.reconstruct` runs a model.

    Attributes:
        view_chunk: Number of views that the dense heads process at once, at most; "auto" limits their memory.
        memory: Scenes that don't fit are worked on in parts, with the same result up to rounding: "auto" where they
            don't fit into what is free; "low" always, with the least memory; or bytes of the model's device, weights
            included. Tracks are not counted.
        dtype: None for the precision of the model's parameters. A half precision runs a float32 model under autocast.
        approximation: Keys that global attention leaves out, for many views; None for nothing.
        compile: True runs the transformer blocks compiled by `torch.compile`, with one program for all numbers of
            views and the same result up to rounding. "graphs" records the pass once a size on the GPU, which holds its
            memory, and replays it with the same result; for few views, where launching operations takes the time.
            Scenes that are worked on in parts are not recorded.
        parallel: Share the views with all other processes of torch.distributed's default group, see
            `geomtx.predict_parallel`: all of them call with the same arguments and get the same result.
        progress: Called with the share of the pass that is done since the last call; None for no report. Not for a
            pass that is replayed.
        ray_cameras: None for the cameras of the camera head; "qr" or "ql" for those that fit the predicted rays, for
            models with a head "rays", see `geomtx.geometry.ray_cameras.cameras_from_rays`.
    """

    view_chunk: int | Literal["auto"] = "auto"
    memory: Memory = "auto"
    dtype: torch.dtype | None = None
    approximation: GlobalApproximation | None = None
    compile: bool | Literal["graphs"] = False
    parallel: bool = False
    progress: Callable[[float], None] | None = None
    ray_cameras: Decomposition | None = None


def check_options(model: nn.Module, options: RunOptions) -> None:
    """Require options that go together and with the model, before any work.

    Raises:
        ValueError: Otherwise.
    """
    for network in getattr(model, "networks", {}).values():
        check_options(network.model, _options_of(network.model, options))
    parameter = next(model.parameters())
    own, dtype = parameter.dtype, options.dtype
    if options.compile != "graphs" and not isinstance(options.compile, bool):
        raise ValueError(f"compile must be one of False, True, 'graphs', got {options.compile!r}")
    if options.ray_cameras is not None:
        check_option("ray_cameras", options.ray_cameras, get_args(Decomposition))
        if "rays" not in getattr(model, "heads", ()):
            raise ValueError(f"ray_cameras must be None for a {type(model).__name__} without the head rays, got some")
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
    if options.compile is True:
        check_can_compile(model)
    if options.parallel and options.compile:
        raise ValueError(f"compile must be left out in parallel, got {options.compile!r}")
    _check_evaluation(model)
    if not hasattr(model, "run_heads") and not hasattr(model, "networks"):
        changed = [name for name, value in options._asdict().items() if value != RunOptions._field_defaults[name]]
        for name in changed:
            if name in ("approximation", "compile", "parallel"):
                got = f"{getattr(options, name)!r} for a {type(model).__name__}"
                raise ValueError(f"{name} must be left out for a model without `run_heads`, got {got}")


def _check_evaluation(model: nn.Module) -> None:
    """Require evaluation mode of layers that behave otherwise in training."""
    for name, module in model.named_modules():
        if module.training and isinstance(module, _DropoutNd | _BatchNorm):
            raise ValueError(f"model must be in evaluation mode, got {name} in training mode; call model.eval()")


def run_views(model: Any, inputs: dict[str, Any], heads: tuple[str, ...], options: RunOptions) -> Predictions:
    """Run a model on the views of a scene, without gradients, on its device.

    Args:
        model: A model with one pass over all views; any other module is called as
            `model(images, query_points=…, patch_mask=…, heads=…)`.
        inputs: "images" (1, S, 3, H, W), "query_points" (1, N, 3) or None, "patch_mask" (1, S, rows, columns) or None;
            for models that take them "cameras", a `Cameras` with the B axis.
        heads: Names of the heads to run.
        options: Options for which `check_options` passes.

    Raises:
        ValueError: For another `memory`, known cameras with `compile="graphs"`, and as the model does.
    """
    if options.ray_cameras is not None and "camera" in heads:
        return _run_with_rays(model, inputs, heads, options)
    if hasattr(model, "networks"):
        return _run_networks(model, inputs, heads, options)
    parameter = next(model.parameters())
    if options.compile == "graphs" and "cameras" in inputs:
        raise ValueError("compile must not be 'graphs' with known cameras, got it")
    device, images = parameter.device, inputs["images"]
    assert images is not None, "a scene has images"
    # Not in inference mode, whoever calls: its tensors could not be used where gradients are recorded.
    with torch.inference_mode(False), torch.no_grad(), run_precision(parameter, options.dtype):
        if not hasattr(model, "run_heads"):
            given = {name: None if value is None else value.to(device) for name, value in inputs.items()}
            return model(given.pop("images"), **given, heads=heads)
        plan = _choose_plan(model, images, heads, options)
        approximation = options.approximation or GlobalApproximation()
        if options.parallel:
            how: dict[str, Any] = {"plan": plan, "approximation": approximation, "progress": options.progress}
            return predict_parallel(model, **inputs, heads=heads, **how)
        compiled = options.compile is True
        execution = Execution(plan, approximation, None, CompiledBlock if compiled else None, options.progress)

        def run(
            images: Tensor, query_points: Tensor | None = None, patch_mask: Tensor | None = None, **known: Any
        ) -> Predictions:
            checked = model.check_inputs(images, query_points, patch_mask, heads, **known)
            return execute(model, Inputs(*checked), execution)

        if options.compile == "graphs" and plan.token_chunk is None:
            here = {name: None if value is None else value.to(device) for name, value in inputs.items()}
            return run_captured(model, run, here, (heads, plan, approximation))
        with many_variants() if compiled else nullcontext():
            return run(**inputs)


def _run_with_rays(model: Any, inputs: dict[str, Any], heads: tuple[str, ...], options: RunOptions) -> Predictions:
    """Run a model, and take the cameras that fit its rays; rays of patches that are left out don't count."""
    assert options.ray_cameras is not None, "asked for"
    names = tuple(head for head in heads if head not in ("camera", "rays"))
    found = run_views(model, inputs, (*names, "rays"), options._replace(ray_cameras=None))
    assert found.rays is not None, "a head that runs"
    confidence, mask = found.rays.confidence, inputs.get("patch_mask")
    if mask is not None:
        seen = mask_pixels(mask, (confidence.shape[-2], confidence.shape[-1]))
        confidence = confidence * seen.to(confidence)
    image_hw = (inputs["images"].shape[-2], inputs["images"].shape[-1])
    cameras = cameras_from_rays(found.rays.value, confidence, image_hw, decomposition=options.ray_cameras)
    return found._replace(cameras=cameras, rays=found.rays if "rays" in heads else None)


def _run_networks(model: Any, inputs: dict[str, Any], heads: tuple[str, ...], options: RunOptions) -> Predictions:
    """Run the networks of a model that has several, one after the other, and merge what they predict."""
    found, networks = {}, model.networks
    report = options.progress
    share = None if report is None else lambda part: report(part / len(networks))
    for name, network in networks.items():
        own = _options_of(network.model, options)._replace(progress=share)
        if isinstance(own.memory, int):
            own = own._replace(memory=own.memory - weight_bytes(model) + weight_bytes(network.model))
        given = {key: value for key, value in inputs.items() if key != "cameras" or network.takes_cameras}
        found[name] = run_views(network.model, given, network.heads, own)
    merged: Predictions = model.merge(found, heads, inputs.get("patch_mask"))
    return merged


def _options_of(network: Any, options: RunOptions) -> RunOptions:
    """Return the options for one of several networks: an approximation is for those with blocks across views."""
    return options if network.encoder.global_blocks else options._replace(approximation=None)


def encode_views(
    model: Any, images: Tensor, patch_mask: Tensor | None, heads: tuple[str, ...], options: RunOptions
) -> EncodedViews:
    """Run a model's encoder on the views of a scene, in the memory that there is, for a caller that runs the heads.

    Args:
        model: A model with one pass over all views.
        images: Images (1, S, 3, H, W) on any device.
        patch_mask: Mask of patches (1, S, rows, columns); None for all.
        heads: Names of the heads that will run.
        options: `view_chunk` and `memory` count.

    Raises:
        ValueError: For another `memory`, and as the model does.
    """
    plan = _choose_plan(model, images, heads, options)
    return encode(model, Inputs(images, None, patch_mask, heads), Execution(plan))


def _choose_plan(model: nn.Module, images: Tensor, heads: tuple[str, ...], options: RunOptions) -> MemoryPlan:
    num_views, _, *image_hw = images.shape[1:]
    shares = deal_out(num_views).sizes if options.parallel else (num_views,)
    parameter = next(model.parameters())
    held = autocast_bytes(model) if _is_autocast(parameter, options.dtype) else 0
    view_chunk = _choose_chunk(options.view_chunk, images[0], parameter.device)
    size = PassSize(shares[0], (image_hw[0], image_hw[1]), heads, view_chunk=view_chunk, num_processes=len(shares))
    plan = choose_plan(model, size, options.memory, held=held)
    if options.parallel:
        plan = _leanest(plan, parameter.device)
    if plan is None:
        return WHOLE._replace(view_chunk=view_chunk)
    assert plan.view_chunk is not None, "plans for little memory have a number of views"
    most = plan.view_chunk if options.view_chunk == "auto" else view_chunk
    return plan._replace(view_chunk=min(plan.view_chunk, most))


def _leanest(plan: MemoryPlan | None, device: torch.device) -> MemoryPlan | None:
    """Return the plan of the process with the least memory: what processes exchange depends on it."""
    plans = (None, *PLANS)
    index = torch.tensor(plans.index(plan), device=device)
    dist.all_reduce(index, dist.ReduceOp.MAX)
    return plans[int(index)]


def _choose_chunk(view_chunk: int | Literal["auto"], images: Tensor, device: torch.device) -> int:
    if view_chunk == "auto":
        pixels = _PIXELS_AT_ONCE.get(device.type, _PIXELS_AT_ONCE_ELSEWHERE)
        return max(1, min(len(images), pixels // images[0, 0].numel()))
    return view_chunk


def _is_autocast(parameter: Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype != parameter.dtype


def run_precision(parameter: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast where a float32 model is asked for a half precision; nothing where it is the model's own."""
    enabled = _is_autocast(parameter, dtype)
    return torch.autocast(parameter.device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)
