"""From a model and photos to a scene, with a record of how it was made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checks import check_name, check_option, close_matches
from geomtx.encoder.patches import mask_pixels
from geomtx.files import user_path
from geomtx.heads.dense import MapHead
from geomtx.inference.chunks import track_in_chunks
from geomtx.inference.pair_maps import PairModel
from geomtx.inference.quantize import quantized_type
from geomtx.inference.run import HALVES, RunOptions, check_options, run_views
from geomtx.models.video_tracker import VideoTracker
from geomtx.models.video_tracker.run import check_video, video_features
from geomtx.scene.checks import check_scene_memory, queries_to_model, warn_of_size, warn_of_unusable
from geomtx.scene.known.model_input import GivenCameras, in_known_world, known_of_views, to_model
from geomtx.scene.pairs.motion import MotionTerms
from geomtx.scene.pairs.reconstruction import reconstruct_pairs
from geomtx.scene.reference_view import Reference, check_reference, move_to_first_camera, run_with_reference
from geomtx.scene.run_record import describe_run, progress_bar
from geomtx.scene.scene import Scene
from geomtx.scene.windows import WindowPlan, check_window_heads, place_windows, stitch_scenes
from geomtx.types import Cameras, Predictions, VideoTracks
from geomtx.views import Views
from geomtx.views.for_model import load_for_model
from geomtx.views.loading import preferred_mode

__all__ = ["heads_of_scenes", "reconstruct", "track"]

_OF_PAIRS = ("graph", "folder", "alignment", "options", "motion")
_QUERY_CHUNK = 256  # points that a VideoTracker tracks at a time


def reconstruct(
    model: nn.Module,
    views: Views | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    query_points: Tensor | Sequence[Sequence[float]] | None = None,
    heads: Sequence[str] | None = None,
    window: WindowPlan | None = None,
    reference: Reference | int = "first",
    cameras: GivenCameras | None = None,
    progress: bool = False,
    **options: Any,
) -> Scene:
    """Run a model on the views of one scene, without gradients, on the model's device and in its precision.

    Args:
        model: `geomtx.VGGT`, or a module with `config.patch_size`, `heads` (names), called as
            `model(images, query_points=…, patch_mask=…, heads=…)`; or a model that sees pairs, such as
            `geomtx.DUSt3R`, which takes no more of the arguments than `views`, `window`, `cameras`, `progress` and
            options.
        views: Views from `geomtx.load_views`; or a folder, a photo or a list of photos, loaded in the model's mode with
            sides near `model.config.image_size`, if there is one; or a tensor (S, 3, H, W) in [0, 1] with H and W
            multiples of the patch. Views for another patch, or for another image size that nobody chose, are prepared
            again from their photos.
        query_points: Points to track through all views, (N, 3) as (view, x, y) in pixels of the original photos;
            defaults to none.
        heads: Names of the heads to run; defaults to all, "tracks" only if there are query points. Of added heads
            (`VGGT.add_head`), a scene holds what a `DenseHead` or `PixelShuffleHead` gives; others are left out.
        window: Run the model on this many consecutive views at a time and stitch the scenes by the views that overlap,
            see `geomtx.scene.windows.stitch_scenes`; defaults to all views in one pass. Neighbouring views must show
            the same things. Not with query points; of a model that sees pairs, a graph is then a name, and motion a
            tracker.
        reference: View that the model takes for its first, which many models treat in another way: "first", "middle",
            the number of a view, or "shared", the view of whose points the others see most, by a first pass; if that is
            another than the first, a second pass follows. Results are in the order of the views in any case, and the
            world is the first view's camera where the model predicts cameras, else the reference's. Not with `window`.
        cameras: Known cameras of all views as an input of models that take them, `DepthAnything3` or Pi3X: by the names
            of the photos as `geomtx.scene.read_cameras` gives them, its file, or `Cameras` of the views in their order,
            in pixels of the original photos. The scene is then in their world and unit, and they take the place of the
            predicted cameras. Of a model that sees pairs, the alignment takes them, also of some views alone. Not with
            `window` or another `reference`. For all other models see `geomtx.align`.
        progress: Whether to show a progress bar on stderr.
        options: Options of the run, see `geomtx.inference.RunOptions`: `view_chunk`, `memory`, `dtype`,
            `approximation`, `compile`, `parallel`, `ray_cameras`. For a model that sees pairs they are `graph`,
            `folder`, `alignment`, `options` and `motion` of `geomtx.scene.pairs.reconstruct_pairs`.

    Returns:
        The scene on the CPU: up to scale, in the first camera's frame, cameras, depth and tracks in original pixels. A
        warning in the log names views whose predictions have NaN or infinity in them.

    Raises:
        ValueError: For images that are not finite, of the wrong size or too large for the memory, views for another
            patch size whose photos are gone, a query point outside its photo or for a view that doesn't exist, a head
            that the model doesn't have, too little `memory`, windows that can't be stitched, `cameras` of some
            photos only or for a model that takes none; with `compile`, where
            there is nothing to compile, or for "graphs" a device that records none or a `dtype` that isn't the model's;
            with `parallel`, for a model of another kind, fewer views than processes, and `compile`; for dropout or
            batch norm in training mode.
        TypeError: For an option that doesn't exist.
    """
    if isinstance(model, PairModel):
        of_passes = {"query_points": query_points, "heads": heads}
        _check_for_pairs(model, {**of_passes, "reference": None if reference in ("first", 0) else reference}, options)
        options |= {"cameras": cameras, "progress": progress}
        return _reconstruct_windows_of_pairs(model, views, window, options)
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "patch_size") or not hasattr(model, "heads"):
        raise ValueError(f"model must have config.patch_size and heads, as VGGT has, got {type(model).__name__}")
    available = heads_of_scenes(model)
    views = load_for_model(views, config.patch_size, getattr(config, "image_size", None), preferred_mode(config))
    warn_of_size(config, views.image_hw)
    queries = None if query_points is None else torch.as_tensor(query_points, dtype=torch.float32, device="cpu")
    heads = _choose_heads(available, heads, queries is not None)
    run_options = _parse_options(options)
    check_options(model, run_options)
    check_reference(reference, len(views), heads)
    if reference not in ("first", 0) and window is not None:
        raise ValueError(
            f"reference must be 'first' with a window, as each has a first view of its own, got {reference!r}"
        )
    known = None if cameras is None else known_of_views(model, views, cameras)
    if known is not None and (window is not None or reference not in ("first", 0) or "camera" not in heads):
        raise ValueError("cameras must go with the head camera, without a window and with the reference 'first'")
    windows = [range(len(views))]
    if window is not None:
        check_window_heads(heads)
        windows = place_windows(len(views), window)
    _check_memory(model, views, heads, len(windows[0]), run_options)
    if window is not None and len(windows) > 1:
        parts = (views[part.start : part.stop] for part in windows)
        scenes = (_run_pass(model, part, None, heads, run_options, progress) for part in parts)
        return _stitch(scenes, windows, window)
    if known is not None:
        given = to_model(known, views)
        return in_known_world(_run_pass(model, views, queries, heads, run_options, progress, given), known)

    def run(views: Views, queries: Tensor | None) -> Scene:
        return _run_pass(model, views, queries, heads, run_options, progress)

    return run_with_reference(run, views, queries, reference)


def track(
    model: nn.Module,
    views: Views | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    query_points: Tensor | Sequence[Sequence[float]],
    *,
    support_grid: int = 5,
    **options: Any,
) -> Scene:
    """Track points through views: frames of a video in their order, or photos.

    Args:
        model: `geomtx.VideoTracker`, for at least two views; or what `reconstruct` takes, with a head "tracks", which
            knows no order of the views.
        views: Photos or frames in any form that `reconstruct` takes.
        query_points: Points to track, (N, 3) as (view, x, y) in pixels of the original photos or frames.
        support_grid: A `VideoTracker` also tracks a grid of this many points a side, as tracks inform each other, and
            leaves them out of the result; 0 for none.
        options: Options of the run for models other than a `VideoTracker`, see `reconstruct`.

    Returns:
        A scene on the CPU with `tracks` alone.

    Raises:
        ValueError: As `reconstruct`, for a model without a head "tracks", and for a `VideoTracker` and a single view or
            images that are too small for it.
        TypeError: For an option that doesn't exist.
    """
    if not isinstance(model, VideoTracker):
        return reconstruct(model, views, query_points=query_points, heads=("tracks",), **options)
    if options:
        raise TypeError(f"track takes no option {next(iter(options))!r} for a VideoTracker")
    config = model.config
    views = load_for_model(views, config.patch_size, config.vggt.image_size)
    queries = torch.as_tensor(query_points, dtype=torch.float32, device="cpu")
    model_queries = queries_to_model(queries, views.transforms, views.names)
    parameter = next(model.tracker.parameters())
    check_video(model, views.image_hw, len(views), parameter.device)
    with torch.inference_mode():
        features = video_features(model, views.images[None].to(parameter))
        run = partial(model.track, features, support_grid=support_grid)
        points = model_queries[None].to(parameter.device)
        found: VideoTracks = track_in_chunks(run, points, _QUERY_CHUNK)
    scene = _to_scene(model, views, queries, Predictions(tracks=found.tracks), support_grid=support_grid or None)
    warn_of_unusable(scene)
    return scene


def _reconstruct_windows_of_pairs(model: PairModel, views: Any, window: WindowPlan | None, options: Any) -> Scene:
    """Reconstruct views by a model that sees pairs, at once or in windows, whose pairs have folders of their own."""
    if window is None:
        return reconstruct_pairs(model, views, **options)
    config = model.config
    views = load_for_model(views, config.patch_size, getattr(config, "image_size", None), preferred_mode(config))
    windows = place_windows(len(views), window)
    if len(windows) == 1:
        return reconstruct_pairs(model, views, **options)
    if options["cameras"] is not None:
        raise ValueError("cameras must be None with a window; geomtx.align(scene, poses=…) brings a scene to them")
    for name, kind in (("graph", Tensor), ("motion", MotionTerms)):
        if isinstance(options.get(name), kind):
            raise ValueError(f"{name} must not be a {kind.__name__} with a window, as it is of all views")
    folder = options.pop("folder", None)
    scenes = (
        reconstruct_pairs(
            model,
            views[part.start : part.stop],
            # Named by its views, so that other windows have other folders.
            folder=None if folder is None else user_path(folder) / f"views-{part.start}-{part.stop - 1}",
            **options,
        )
        for part in windows
    )
    return _stitch(scenes, windows, window)


def _stitch(scenes: Iterable[Scene], windows: Sequence[range], window: WindowPlan) -> Scene:
    stitched = stitch_scenes(scenes, windows)
    made = {"window": f"{window.size} views, {window.overlap} shared"}
    return replace(stitched, provenance={**stitched.provenance, **made})


def _run_pass(
    model: nn.Module,
    views: Views,
    queries: Tensor | None,
    heads: tuple[str, ...],
    options: RunOptions,
    progress: bool,
    cameras: Cameras | None = None,
) -> Scene:
    """Reconstruct views in one pass of the model; the arguments are those of `reconstruct`, checked."""
    model_queries = None if queries is None else queries_to_model(queries, views.transforms, views.names)
    inputs: dict[str, Any] = {
        "images": views.images[None],
        "query_points": None if model_queries is None else model_queries[None],
        "patch_mask": None if views.patch_mask is None else views.patch_mask[None],
        **({} if cameras is None else {"cameras": cameras}),
    }
    with progress_bar(shown=progress) as advance:
        predictions = run_views(model, inputs, heads, options._replace(progress=advance))
    scene = _to_scene(
        model,
        views,
        queries,
        predictions,
        autocast=options.dtype,
        approximation=options.approximation,
        quantize=quantized_type(model),
    )
    warn_of_unusable(scene)
    special = getattr(getattr(model, "encoder", None), "special", None)
    own_frame = getattr(model, "own_frame", False) or not getattr(special, "first_is_reference", True)
    if own_frame and "camera" in heads:
        return move_to_first_camera(scene, "a frame of the model's own")
    return scene


def _to_scene(model: nn.Module, views: Views, queries: Tensor | None, predictions: Predictions, **made: Any) -> Scene:
    """Return the scene of predictions with a batch axis; `made` says how they were made."""
    return Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images.clamp(0, 1) * 255).round().to(torch.uint8).cpu(),
        masks=_seen_pixels(views).cpu(),
        predictions=_single_scene(predictions),
        units="up to scale" if predictions.metric_scale is None else "metres",
        query_points=queries,
        paths=views.paths,
        times=views.times,
        provenance=describe_run(model, views, **made),
    )


def _check_for_pairs(model: PairModel, of_passes: dict[str, Any], options: dict[str, Any]) -> None:
    """Require None for what a model that sees pairs does not take, and options that `reconstruct_pairs` has."""
    kind = f"a {type(model).__name__}, which sees pairs"
    for name, value in of_passes.items():
        if value is not None:
            raise ValueError(f"{name} must be left out for {kind}, got {value!r:.60}")
    for name in options:
        if name not in _OF_PAIRS:
            raise TypeError(f"reconstruct takes no option {name!r} for {kind}{close_matches(name, _OF_PAIRS)}")


def _check_memory(model: Any, views: Views, heads: tuple[str, ...], at_once: int, options: RunOptions) -> None:
    parameter = next(model.parameters())
    if options.parallel:  # each process has a share of the views, and of the memory
        return
    check_scene_memory(
        model,
        views.image_hw,
        heads,
        parameter.device,
        num_views=len(views),
        at_once=at_once,
        element_size=parameter.element_size(),
    )


def _parse_options(options: dict[str, Any]) -> RunOptions:
    known = [name for name in RunOptions._fields if name != "progress"]
    for name in options:
        if name not in known:
            raise TypeError(f"reconstruct takes no option {name!r}{close_matches(name, known)}")
    return RunOptions(**options)


def _seen_pixels(views: Views) -> Tensor:
    """(S, H, W) bool: photo pixels, without those of patches that the model leaves out."""
    if views.patch_mask is None:
        return views.masks
    return views.masks & mask_pixels(views.patch_mask, views.image_hw)


def heads_of_scenes(model: Any) -> tuple[str, ...]:
    """Return the heads of a model whose predictions belong to pixels that a scene knows how to bring to the photos."""
    added = getattr(model, "extra_heads", {})
    # Rays are in pixels of their own, and the embedding of a scene in none.
    known = (head for head in model.heads if head not in ("rays", "text"))
    return tuple(head for head in known if head not in added or isinstance(added[head], MapHead))


def _choose_heads(available: Sequence[str], asked: Sequence[str] | None, has_queries: bool) -> tuple[str, ...]:
    """Heads to run: all that can, or those asked for."""
    if asked is None:
        if has_queries:
            check_option("heads for query_points", "tracks", available)
        return tuple(head for head in available if head != "tracks" or has_queries)
    if isinstance(asked, str):
        raise ValueError(f"heads must be a sequence of names, got {asked!r}")
    for head in asked:
        check_name("head", head, available)
    if has_queries != ("tracks" in asked):
        raise ValueError(
            f"heads and query_points must come together: tracks {'is not' if has_queries else 'is'} among the heads, "
            f"got query_points {'given' if has_queries else 'None'}"
        )
    return tuple(asked)


def _single_scene(predictions: Predictions) -> Predictions:
    """Without the batch axis, and what a scene doesn't need; on the CPU, and no half precision, which files lack."""
    needless = {"track_iterations": None, "points_cam": None, "metric_scale": None}
    scene = predictions._replace(**needless).map(_to_plain)
    encodings = None if scene.pose_encodings is None else scene.pose_encodings[:, 0]
    return scene._replace(pose_encodings=None).map(lambda each: each[0])._replace(pose_encodings=encodings)


def _to_plain(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32 if tensor.dtype in HALVES else tensor.dtype)
