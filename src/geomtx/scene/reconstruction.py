"""From a model and photos to a scene."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from geomtx.checks import check_divisible, check_option
from geomtx.models.captured import check_can_capture, run_captured
from geomtx.models.compiled import compiled_parts
from geomtx.models.config import HEAD_MODULES
from geomtx.scene.memory import Memory, choose_plan
from geomtx.scene.query import queries_to_model
from geomtx.scene.scene import Scene
from geomtx.types import Cameras, DenseMap, Predictions, Tracks
from geomtx.views import Views, load_views
from geomtx.views.loading import default_size
from geomtx.views.views import warn_of_range

__all__ = ["reconstruct"]

# Pixels that the dense heads hold at once with view_chunk="auto", where memory is not short.
_PIXELS_AT_ONCE = {"cpu": 2 * 518 * 518}
_PIXELS_AT_ONCE_ELSEWHERE = 8 * 518 * 518
_HALVES = (torch.bfloat16, torch.float16)


def reconstruct(
    model: nn.Module,
    views: Views | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    query_points: Tensor | Sequence[Sequence[float]] | None = None,
    heads: Sequence[str] | None = None,
    view_chunk: int | Literal["auto"] = "auto",
    memory: Memory = "auto",
    dtype: torch.dtype | None = None,
    compile: bool | Literal["graphs"] = False,
    progress: bool = False,
) -> Scene:
    """Run a model on the views of one scene, without gradients, on the model's device and in its precision.

    Args:
        model: `geomtx.VGGT`, or a module with `config.patch_size`, `heads` (names) and the same forward arguments.
        views: From `geomtx.load_views`; or a folder, a photo or a list of photos, which it loads with sides near
            `model.config.image_size`, if there is one; or a tensor (S, 3, H, W) in [0, 1] with H and W multiples of the
            patch.
        query_points: (N, 3) as (view, x, y) in pixels of the original photos, points to track through all views.
        heads: Which of the model's heads to run. None = all, "tracks" only if there are query points.
        view_chunk: How many views the dense heads process at once, at most; "auto" limits their memory.
        memory: Scenes that don't fit are worked on in pieces, with the same result but for rounding: "auto" = if they
            don't fit into what is free; "low" = always, in the smallest; or bytes of the model's device, weights
            included. Tracks are not counted.
        dtype: None = the precision of the model's parameters. A half precision runs a float32 model under autocast.
        compile: True = transformer blocks and decoders compiled by `torch.compile`, once a process and for all numbers
            of views, with the same result but for rounding. "graphs" = the pass is recorded once a size on the GPU,
            which holds its memory, and replayed, with the same result; for few views, where launching operations takes
            the time. Scenes that are worked on in pieces are not recorded.
        progress: Show a progress bar on stderr; not for a pass that is replayed.

    Returns:
        The scene on the CPU: up to scale, in the first camera's frame, cameras, depth and tracks in original pixels.

    Raises:
        ValueError: For images that are not finite or of the wrong size, views for another patch size, a query point
            outside its photo or for a view that doesn't exist, a head that the model doesn't have, too little `memory`,
            and for `compile` where there is nothing to compile, or for "graphs" a device that records none or a `dtype`
            that isn't the model's.
    """
    check_option("compile", compile, (False, True, "graphs"))
    config: Any = model.config
    available: Any = model.heads
    views = _to_views(views, config.patch_size, getattr(config, "image_size", None))
    queries = None if query_points is None else torch.as_tensor(query_points, dtype=torch.float32, device="cpu")
    heads = _choose_heads(available, heads, queries is not None)
    model_queries = None if queries is None else queries_to_model(queries, views.transforms, views.names)
    parameter = next(model.parameters())
    device = parameter.device
    if compile == "graphs":
        _check_recordable(parameter, dtype)
    inputs = {"query_points": _to_batch(model_queries, device), "patch_mask": _to_batch(views.patch_mask, device)}
    options: dict[str, Any] = {"heads": heads, "view_chunk": _choose_chunk(view_chunk, views.images, device)}
    images = views.images[None]
    image_hw = (images.shape[-2], images.shape[-1])
    plan = choose_plan(model, images.shape[1], image_hw, heads, memory, options["view_chunk"])
    if plan is None:
        images = images.to(device)
    else:  # images come over some at a time
        most = plan.view_chunk if view_chunk == "auto" else options["view_chunk"]
        options["memory_plan"] = plan._replace(view_chunk=min(plan.view_chunk, most))
    compiling: AbstractContextManager[None] = compiled_parts(model) if compile is True else nullcontext()
    steps = _steps(model, heads, compiled=compile is True, in_pieces=plan is not None) if progress else []
    with torch.no_grad(), _evaluating(model), _precision(parameter, dtype), compiling:
        if compile == "graphs" and plan is None:
            predictions = run_captured(model, {"images": images, **inputs}, options)
        else:
            with _progress_bar(steps):
                predictions = model(images, **inputs, **options)
    return Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images.clamp(0, 1) * 255).round().to(torch.uint8).cpu(),
        masks=_seen_pixels(views).cpu(),
        predictions=_single_scene(predictions),
        query_points=queries,
    )


def _to_views(source: Any, patch_size: int, image_size: int | None) -> Views:
    if isinstance(source, Views):
        _check_views(source, patch_size)
        return source
    if isinstance(source, Tensor):
        return Views.from_images(source, patch_size=patch_size)
    if not isinstance(source, Iterable | os.PathLike):
        raise ValueError(f"views must be Views, a tensor, a folder or photos, got {type(source).__name__}")
    size = None if image_size is None else default_size(patch_size, image_size)
    return load_views(source, size=size, patch_size=patch_size)


def _check_views(views: Views, patch_size: int) -> None:
    """What `Views.from_images` checks of a tensor, for views that may have been changed since they were loaded."""
    if views.patch_size != patch_size:
        raise ValueError(
            f"patch_size of views must be the model's {patch_size}, got {views.patch_size}; "
            f"load them with load_views(…, patch_size={patch_size}), or give the photos themselves"
        )
    check_divisible("image height", views.images.shape[-2], patch_size)
    check_divisible("image width", views.images.shape[-1], patch_size)
    for image, name in zip(views.images, views.names, strict=True):
        if not image.isfinite().all():
            raise ValueError(f"images must be finite, got NaN or infinity in {name}")
    warn_of_range(views.images)


def _seen_pixels(views: Views) -> Tensor:
    """(S, H, W) bool: photo pixels, without those of patches that the model leaves out."""
    if views.patch_mask is None:
        return views.masks
    patches = views.patch_mask.repeat_interleave(views.patch_size, dim=1).repeat_interleave(views.patch_size, dim=2)
    return views.masks & patches


def _choose_heads(available: Sequence[str], asked: Sequence[str] | None, has_queries: bool) -> tuple[str, ...]:
    """Heads to run: all that can, or those asked for."""
    if asked is None:
        if has_queries:
            check_option("heads for query_points", "tracks", available)
        return tuple(head for head in available if head != "tracks" or has_queries)
    for head in asked:
        check_option("head", head, available)
    if has_queries != ("tracks" in asked):
        raise ValueError(
            f"heads and query_points must come together: tracks {'is not' if has_queries else 'is'} among the heads, "
            f"got query_points {'given' if has_queries else 'None'}"
        )
    return tuple(asked)


def _choose_chunk(view_chunk: int | str, images: Tensor, device: torch.device) -> int:
    if view_chunk == "auto":
        pixels = _PIXELS_AT_ONCE.get(device.type, _PIXELS_AT_ONCE_ELSEWHERE)
        return max(1, min(len(images), pixels // images[0, 0].numel()))
    if not isinstance(view_chunk, int) or view_chunk < 1:
        raise ValueError(f"view_chunk must be 'auto' or at least 1, got {view_chunk!r}")
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


def _check_recordable(parameter: Tensor, dtype: torch.dtype | None) -> None:
    check_can_capture(parameter.device)
    if dtype not in (None, parameter.dtype):
        raise ValueError(f"dtype must be the model's own {parameter.dtype} with compile='graphs', got {dtype}")


def _precision(parameter: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast where a float32 model is asked for a half precision; nothing where it is the model's own."""
    if dtype not in (None, parameter.dtype) and not (parameter.dtype == torch.float32 and dtype in _HALVES):
        raise ValueError(f"dtype must be the model's own {parameter.dtype}, or half of a float32 model, got {dtype}")
    enabled = dtype is not None and dtype != parameter.dtype
    return torch.autocast(parameter.device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)


@contextmanager
def _progress_bar(steps: Sequence[nn.Module]) -> Iterator[None]:
    """Count the encoder's blocks and the heads as they finish; nothing is shown without any."""
    if not steps:
        yield
        return
    waiting = set(steps)

    def advance(module: nn.Module, *_: Any) -> None:
        if module in waiting:  # in pieces, a module runs more than once
            waiting.remove(module)
            bar.update(1)

    with tqdm(total=len(waiting), desc="encoder and heads", unit="step", leave=False) as bar:
        hooks = [module.register_forward_hook(advance) for module in waiting]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _steps(model: nn.Module, heads: Sequence[str], *, compiled: bool, in_pieces: bool) -> list[nn.Module]:
    """Modules that are all called: blocks in the encoder's lists, or what is in them, and the heads."""
    lists = {name: module for name, module in model.named_modules() if _is_block_list(name, module)}
    if compiled:
        # What is within a block is no call of its own; in pieces, that of a global block is none either.
        called = [blocks for name, blocks in lists.items() if not (in_pieces and name.endswith("global_blocks"))]
        steps = [block for blocks in called for block in blocks]
    else:
        # In pieces, a block's parts are called instead of the block.
        steps = [getattr(block, "mlp", block) for blocks in lists.values() for block in blocks]
    parts = (getattr(model, name, None) for head, name in HEAD_MODULES.items() if head in heads)
    return steps + [part for part in parts if part is not None]


def _is_block_list(name: str, module: nn.Module) -> bool:
    return name.startswith("encoder.") and isinstance(module, nn.ModuleList)


def _single_scene(predictions: Predictions) -> Predictions:
    """Without the batch axis, without what only a loss needs; on the CPU, and no half precision, which files lack."""
    cameras, encodings, depth, points, tracks, _ = predictions
    return Predictions(
        cameras=None if cameras is None else Cameras(*(_to_plain(each[0]) for each in cameras)),
        pose_encodings=None if encodings is None else _to_plain(encodings[:, 0]),
        depth=None if depth is None else DenseMap(*(_to_plain(each[0]) for each in depth)),
        points=None if points is None else DenseMap(*(_to_plain(each[0]) for each in points)),
        tracks=None if tracks is None else Tracks(*(_to_plain(each[0]) for each in tracks)),
    )


def _to_plain(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32 if tensor.dtype in _HALVES else tensor.dtype)
