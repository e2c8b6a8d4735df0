"""From a model and photos to a scene."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_option
from geomtx.encoder.keys import GlobalApproximation
from geomtx.heads.dense import DenseHead
from geomtx.scene.finite import warn_of_nonfinite
from geomtx.scene.inference import HALVES, PassOptions, check_options, run_model
from geomtx.scene.memory import Memory
from geomtx.scene.query import queries_to_model
from geomtx.scene.scene import Scene
from geomtx.scene.windows import WindowPlan, check_window_heads, place_windows, stitch_scenes
from geomtx.types import Cameras, DenseMap, Predictions, Tracks
from geomtx.views import Views, load_views
from geomtx.views.loading import default_size
from geomtx.views.views import warn_of_range

__all__ = ["reconstruct"]


def reconstruct(
    model: nn.Module,
    views: Views | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    query_points: Tensor | Sequence[Sequence[float]] | None = None,
    heads: Sequence[str] | None = None,
    view_chunk: int | Literal["auto"] = "auto",
    memory: Memory = "auto",
    dtype: torch.dtype | None = None,
    approximation: GlobalApproximation | None = None,
    window: WindowPlan | None = None,
    compile: bool | Literal["graphs"] = False,
    parallel: bool = False,
    progress: bool = False,
) -> Scene:
    """Run a model on the views of one scene, without gradients, on the model's device and in its precision.

    Args:
        model: `geomtx.VGGT`, or a module with `config.patch_size`, `heads` (names) and the same forward arguments.
        views: From `geomtx.load_views`; or a folder, a photo or a list of photos, which it loads with sides near
            `model.config.image_size`, if there is one; or a tensor (S, 3, H, W) in [0, 1] with H and W multiples of the
            patch.
        query_points: (N, 3) as (view, x, y) in pixels of the original photos, points to track through all views.
        heads: Which of the model's heads to run. None = all, "tracks" only if there are query points. Of heads that
            were added (`VGGT.add_head`), a scene holds what a `DenseHead` gives; others are left out.
        view_chunk: How many views the dense heads process at once, at most; "auto" limits their memory.
        memory: Scenes that don't fit are worked on in pieces, with the same result but for rounding: "auto" = if they
            don't fit into what is free; "low" = always, in the smallest; or bytes of the model's device, weights
            included. Tracks are not counted.
        dtype: None = the precision of the model's parameters. A half precision runs a float32 model under autocast.
        approximation: What global attention may leave out, for many views; None = nothing, and other models than
            `geomtx.VGGT` are not asked for it.
        window: Run the model on so many consecutive views at a time and stitch the scenes by what overlaps, see
            `geomtx.scene.windows.stitch_scenes`; None = all views in one pass. Neighbouring views must show the same
            things. Not with query points.
        compile: True = transformer blocks and decoders compiled by `torch.compile`, once a process and for all numbers
            of views, with the same result but for rounding. "graphs" = the pass is recorded once a size on the GPU,
            which holds its memory, and replayed, with the same result; for few views, where launching operations takes
            the time. Scenes that are worked on in pieces are not recorded.
        parallel: Share the views with all other processes of torch.distributed's default group, see
            `geomtx.predict_parallel`: all of them call this with the same arguments and get the same scene.
        progress: Show a progress bar on stderr; not for a pass that is replayed.

    Returns:
        The scene on the CPU: up to scale, in the first camera's frame, cameras, depth and tracks in original pixels. A
        warning in the log names views whose predictions have NaN or infinity in them.

    Raises:
        ValueError: For images that are not finite or of the wrong size, views for another patch size, a query point
            outside its photo or for a view that doesn't exist, a head that the model doesn't have, too little `memory`,
            windows that can't be stitched; with `compile`, where there is nothing to compile, or for "graphs" a device
            that records none or a `dtype` that isn't the model's; with `parallel`, for a model other than VGGT, fewer
            views than processes, an approximation and `compile`.
    """
    config: Any = model.config
    available = _heads_of_scenes(model)
    views = _to_views(views, config.patch_size, getattr(config, "image_size", None))
    queries = None if query_points is None else torch.as_tensor(query_points, dtype=torch.float32, device="cpu")
    heads = _choose_heads(available, heads, queries is not None)
    options = PassOptions(heads, view_chunk, memory, dtype, approximation, compile, parallel, progress)
    check_options(model, options)
    if window is not None:
        check_window_heads(heads)
        windows = place_windows(len(views), window)
        if len(windows) > 1:
            scenes = (reconstruct(model, views[part.start : part.stop], **options._asdict()) for part in windows)
            return stitch_scenes(scenes, windows)
    model_queries = None if queries is None else queries_to_model(queries, views.transforms, views.names)
    predictions = run_model(model, views, model_queries, options)
    scene = Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images.clamp(0, 1) * 255).round().to(torch.uint8).cpu(),
        masks=_seen_pixels(views).cpu(),
        predictions=_single_scene(predictions),
        query_points=queries,
    )
    warn_of_nonfinite(scene)
    return scene


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


def _heads_of_scenes(model: Any) -> tuple[str, ...]:
    """Heads whose predictions belong to pixels that a scene knows how to bring to the photos."""
    added = getattr(model, "extra_heads", {})
    return tuple(head for head in model.heads if head not in added or isinstance(added[head], DenseHead))


def _choose_heads(available: Sequence[str], asked: Sequence[str] | None, has_queries: bool) -> tuple[str, ...]:
    """Heads to run: all that can, or those asked for."""
    if asked is None:
        if has_queries:
            check_option("heads for query_points", "tracks", available)
        return tuple(head for head in available if head != "tracks" or has_queries)
    if isinstance(asked, str):
        raise ValueError(f"heads must be a sequence of names, got {asked!r}")
    for head in asked:
        check_option("head", head, available)
    if has_queries != ("tracks" in asked):
        raise ValueError(
            f"heads and query_points must come together: tracks {'is not' if has_queries else 'is'} among the heads, "
            f"got query_points {'given' if has_queries else 'None'}"
        )
    return tuple(asked)


def _single_scene(predictions: Predictions) -> Predictions:
    """Without the batch axis, without what only a loss needs; on the CPU, and no half precision, which files lack."""
    cameras, encodings, depth, points, tracks, _, extra = predictions
    return Predictions(
        cameras=None if cameras is None else Cameras(*(_to_plain(each[0]) for each in cameras)),
        pose_encodings=None if encodings is None else _to_plain(encodings[:, 0]),
        depth=None if depth is None else DenseMap(*(_to_plain(each[0]) for each in depth)),
        points=None if points is None else DenseMap(*(_to_plain(each[0]) for each in points)),
        tracks=None if tracks is None else Tracks(*(_to_plain(each[0]) for each in tracks)),
        extra=None if extra is None else {n: DenseMap(*(_to_plain(each[0]) for each in m)) for n, m in extra.items()},
    )


def _to_plain(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32 if tensor.dtype in HALVES else tensor.dtype)
