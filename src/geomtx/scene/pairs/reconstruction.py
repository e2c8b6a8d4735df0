"""A scene from a model that sees it as pairs: the model's views, its pairs, and their alignment."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.files import PathLike
from geomtx.geometry.camera_fit import fit_focal
from geomtx.inference.pair_graphs import check_graph, choose_pairs, default_graph
from geomtx.inference.pair_maps import PairMaps, PairModel
from geomtx.inference.pairs import PairMemory, PairOptions, PairStore, bytes_of_pairs, check_pair_memory, run_pairs
from geomtx.models.video_tracker import VideoTracker
from geomtx.scene.align import align
from geomtx.scene.checks import warn_of_size, warn_of_unusable
from geomtx.scene.known.cameras import KnownCameras, select_views
from geomtx.scene.known.model_input import GivenCameras, in_held_world, known_of_views
from geomtx.scene.known.placing import intrinsics_of_views, use_intrinsics
from geomtx.scene.pairs.global_alignment import (
    AlignmentOptions,
    KnownOfImages,
    PairAlignment,
    align_pairs,
    check_alignment_options,
    check_known_of_images,
)
from geomtx.scene.pairs.matches.alignment import PairMatches, SparseOptions, align_matches, check_sparse_options
from geomtx.scene.pairs.matches.match_store import MatchStore
from geomtx.scene.pairs.matches.observations import join_pairs
from geomtx.scene.pairs.motion import MotionTerms
from geomtx.scene.pairs.pair_folder import PairFolder
from geomtx.scene.pairs.two_views import intrinsics_of
from geomtx.scene.pairs.unpadded import Box, unpad_images
from geomtx.scene.pairs.video import align_video, check_video_of_pairs, motion_terms
from geomtx.scene.reference_view import move_to_first_camera
from geomtx.scene.run_record import describe_run, progress_bar
from geomtx.scene.scene import Scene
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views.for_model import load_for_model
from geomtx.views.loading import preferred_mode
from geomtx.views.views import Views

__all__ = ["check_pairs_of_views", "reconstruct_pairs"]


def reconstruct_pairs(
    model: PairModel,
    views: Views | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    graph: str | Tensor = "auto",
    folder: PathLike | None = None,
    alignment: AlignmentOptions | SparseOptions | None = None,
    options: PairOptions | None = None,
    motion: MotionTerms | VideoTracker | None = None,
    cameras: GivenCameras | None = None,
    progress: bool = False,
) -> Scene:
    """Run a model on pairs of the views of one scene and bring its point maps together.

    Args:
        model: Model that sees pairs, such as `DUSt3R`, in evaluation mode.
        views: Views from `geomtx.load_views`; or a folder, a photo or a list of photos, loaded in the model's mode; or
            a tensor (S, 3, H, W) in [0, 1] with sides that are multiples of the patch. A photo keeps its own size, also
            where others differ.
        graph: Name of the graph of pairs, see `geomtx.inference.choose_pairs`, or pairs (E, 2). Defaults to "auto",
            which takes `geomtx.inference.default_graph` by the number of views: all pairs up to 20.
        folder: Folder in which the point maps are kept, see `PairFolder`: a run that was killed goes on from there.
            Defaults to memory.
        alignment: Options of the alignment of pairs: `AlignmentOptions` of point maps (`align_pairs`), or
            `SparseOptions` of matched pixels (`align_matches`), for a model with descriptors. Defaults to the latter
            where the model has them.
        options: Options of the run; its `progress` is not called.
        motion: Terms of the alignment of a video in which things move, or a tracker whose optical flow finds these, see
            `align_video`; frames then share one focal length unless `alignment` says otherwise, and the scene knows
            the pixels that move by themselves. Defaults to none.
        cameras: Known cameras of some or all views, as for `geomtx.reconstruct`; where poses are known, of two views at
            least. Alignment holds the intrinsics, with the geometric mean of both focal lengths of a view, and that of
            points holds the poses, too; a scene of matches is brought into the world of the poses afterwards
            (`geomtx.align`), and keeps its own. Defaults to none.
        progress: Whether to show a progress bar on stderr while the model runs.

    Returns:
        The scene on the CPU, in the first camera's frame: cameras and depth, with the largest confidence of a pixel
        among its pairs; of matches with the mean one of its image's points, and with the matched pixels in
        `Scene.matched`. It is up to scale, or in metres where the model's points are: alignment changes the scale, so
        the scene is scaled by the median ratio of the depth that pairs predict to that of the scene. With known poses
        it is in their world and unit.

    Raises:
        ValueError: For a model that sees all views at once, pairs that don't connect all views or don't fit into
            memory, `SparseOptions` for a model without descriptors, with pairs in one direction only or with motion,
            motion of a single view, known cameras that contradict each other or are all in one place, and as
            `run_pairs`, `PairFolder`, `align_pairs`, `align_matches`, `align_video` and `track_flow`.
    """
    if not isinstance(model, PairModel):
        raise ValueError(f"model must be one that sees pairs, such as a DUSt3R, got a {type(model).__name__}")
    config, device = model.config, next(model.parameters()).device
    views = load_for_model(views, config.patch_size, getattr(config, "image_size", None), preferred_mode(config))
    warn_of_size(config, views.image_hw)
    given = None if cameras is None else known_of_views(model, views, cameras)
    plan = _plan(model, views, graph, alignment, given, motion)
    _check_memory(plan, device, on_disk=folder is not None, tracked=isinstance(motion, VideoTracker))
    store: PairStore = PairMemory() if folder is None else PairFolder(folder, model, plan.images, plan.pairs)
    matching = len(views) > 1 and isinstance(plan.alignment, SparseOptions)
    matches = MatchStore(store, folder, plan.masks) if matching else None
    with progress_bar(shown=progress, title="pairs") as advance:
        run = (options or PairOptions())._replace(progress=advance)
        maps = run_pairs(model, plan.images, plan.pairs, store=matches or store, options=run)
    with progress_bar(shown=progress and len(views) > 1, title="alignment") as advance:
        plan = plan._replace(alignment=plan.alignment._replace(progress=advance))
        aligned = _align(plan, maps, None if matches is None else matches.matches(plan.pairs), motion, device)
    matched, moving = aligned.matches, aligned.moving
    scene = Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images.clamp(0, 1) * 255).round().to(torch.uint8).cpu(),
        masks=views.masks.cpu(),
        predictions=_to_predictions(aligned.found, plan.boxes, views.image_hw),
        units="up to scale",
        paths=views.paths,
        times=views.times,
        provenance=describe_run(model, views, pairs=", ".join(filter(None, [str(len(plan.pairs)), plan.name]))),
        matched=None if matched is None else join_pairs(_pad_matches(matched, plan.boxes), views.transforms),
        moving=None if moving is None else _pad_masks(moving, plan.boxes, views.image_hw),
    )
    warn_of_unusable(scene)
    if given is not None:
        scene = use_intrinsics(scene, given)
    if given is not None and given.cam_from_world is not None:
        holds = plan.held.cam_from_world is not None
        return in_held_world(scene, given) if holds else align(scene, poses=given)
    if model.metric:
        scene = scene.rescale(_metric_factor(maps, aligned.found, plan.masks), units="metres")
    return move_to_first_camera(scene, "the first camera of the best pair")


def check_pairs_of_views(
    views: Views,
    model: PairModel,
    device: torch.device,
    *,
    graph: str | Tensor = "auto",
    folder: PathLike | None = None,
    alignment: AlignmentOptions | SparseOptions | None = None,
    cameras: KnownCameras | None = None,
    tracked: bool = False,
) -> None:
    """Require pairs that exist and fit into memory, and an alignment of what the model predicts, before it is loaded.

    Args:
        views: Views of the scene.
        model: The model, also without values.
        device: Device that it will run on.
        graph: Graph of pairs, as for `reconstruct_pairs`.
        folder: Folder of the point maps, as for `reconstruct_pairs`.
        alignment: Options of the alignment, as for `reconstruct_pairs`.
        cameras: Known cameras, by the names of the photos.
        tracked: Whether a tracker will find optical flow.

    Raises:
        ValueError: Otherwise.
    """
    given = None if cameras is None else select_views(cameras, views.names)
    plan = _plan(model, views, graph, alignment, given, MotionTerms() if tracked else None)
    _check_memory(plan, device, on_disk=folder is not None, tracked=tracked)


class _Plan(NamedTuple):
    """What a scene is made of and how, checked before the model runs.

    Attributes:
        name: Name of the graph of pairs; "" where it has none.
        pairs: Two views each, (E, 2).
        images: Image of each view, without padding.
        boxes: Places of these in the views.
        masks: Pixels of each image that take part, (H, W) bool each; None for all.
        alignment: Options of the alignment.
        held: What it holds of known cameras.
    """

    name: str
    pairs: Tensor
    images: Sequence[Tensor]
    boxes: Sequence[Box]
    masks: Sequence[Tensor] | None
    alignment: AlignmentOptions | SparseOptions
    held: KnownOfImages

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image."""
        return [(image.shape[-2], image.shape[-1]) for image in self.images]


def _plan(
    model: PairModel,
    views: Views,
    graph: str | Tensor,
    alignment: AlignmentOptions | SparseOptions | None,
    given: KnownCameras | None,
    motion: MotionTerms | VideoTracker | None,
) -> _Plan:
    images, boxes = unpad_images(views, model.config.patch_size)
    name, pairs = _choose_graph(views, graph, is_video=bool(views.times) or motion is not None)
    if motion is not None:
        alignment = check_video_of_pairs(motion, alignment, pairs, [(each.shape[1], each.shape[2]) for each in images])
    masks = [mask[t:b, left:right].cpu() for mask, (t, b, left, right) in zip(views.masks, boxes, strict=True)]
    plan = _Plan(
        name,
        pairs,
        images,
        boxes,
        None if all(bool(mask.all()) for mask in masks) else masks,
        _choose_alignment(model, pairs, alignment),
        KnownOfImages(),
    )
    return plan if given is None else plan._replace(held=_hold(plan, given, views))


class _Aligned(NamedTuple):
    """Cameras and depth of the images, the matches that they come of, and what moves; None where there is none."""

    found: PairAlignment
    matches: PairMatches | None = None
    moving: Tensor | None = None


def _align(
    plan: _Plan,
    maps: PairMaps,
    matches: PairMatches | None,
    motion: MotionTerms | VideoTracker | None,
    device: torch.device,
) -> _Aligned:
    if len(plan.images) == 1:
        return _Aligned(_place_one(maps, plan.held.focals))
    if isinstance(plan.alignment, SparseOptions):
        assert matches is not None
        return _Aligned(align_matches(maps, matches, plan.alignment, known=plan.held, device=device), matches)
    known = plan.held._replace(masks=plan.masks)
    if motion is None:
        return _Aligned(align_pairs(maps, len(plan.images), plan.alignment, known=known, device=device))
    terms = motion_terms(motion, plan.images, plan.pairs)
    found, moving = align_video(maps, terms, plan.alignment, known=known, device=device)
    return _Aligned(found, None, moving)


def _choose_alignment(
    model: PairModel, pairs: Tensor, alignment: AlignmentOptions | SparseOptions | None
) -> AlignmentOptions | SparseOptions:
    """Return how pairs are aligned; what can't work is found before the model runs."""
    kind = type(model).__name__
    if not isinstance(alignment, AlignmentOptions | SparseOptions | None):
        raise ValueError(f"alignment must be AlignmentOptions or SparseOptions, got {alignment!r:.60}")
    if isinstance(alignment, SparseOptions) and not model.has_descriptors:
        raise ValueError(f"alignment must be of points for a {kind}, which has no descriptors to match, got matches")
    if alignment is None:
        alignment = SparseOptions() if model.has_descriptors else AlignmentOptions()
    if isinstance(alignment, SparseOptions):
        there = set(map(tuple, pairs.tolist()))
        alone = next((pair for pair in pairs.tolist() if (pair[1], pair[0]) not in there), None)
        if alone is not None:
            raise ValueError(f"pairs must be in both directions to be aligned by matches, got {tuple(alone)} alone")
        check_sparse_options(alignment)
    else:
        check_alignment_options(alignment)
    return alignment


def _hold(plan: _Plan, given: KnownCameras, views: Views) -> KnownOfImages:
    """Return what alignment holds of known cameras."""
    of_points = isinstance(plan.alignment, AlignmentOptions)
    known = KnownOfImages(cam_from_world=given.cam_from_world if of_points else None)
    intrinsics = intrinsics_of_views(given, views.transforms)
    if intrinsics is not None:
        focal = intrinsics[:, [0, 1], [0, 1]]
        corners = focal.new_tensor([[left, top] for top, _, left, _ in plan.boxes])
        # One that is not above 0 is left as it is, and refused.
        known = known._replace(
            focals=torch.where((focal <= 0).any(1), focal.amin(1), focal.prod(1).sqrt()),
            principal_points=intrinsics[:, :2, 2] - corners,
        )
    how = plan.alignment
    shared = how.shared_focal if isinstance(how, AlignmentOptions) else how.shared_intrinsics
    check_known_of_images(known, plan.sizes, shared=shared, names=views.names)
    return known


def _choose_graph(views: Views, graph: str | Tensor, *, is_video: bool) -> tuple[str, Tensor]:
    """Return the name of the graph, "" where there is none, and its pairs."""
    if not isinstance(graph, str):
        pairs = torch.as_tensor(graph)
        check_shape("graph", pairs, ("E", 2))
        if pairs.is_floating_point():
            raise ValueError(f"graph must be a name or whole numbers (E, 2), got {pairs.dtype}")
        return "", pairs
    name = default_graph(len(views), is_video=is_video) if graph == "auto" else graph
    return name, choose_pairs(len(views), name)


def _check_memory(plan: _Plan, device: torch.device, *, on_disk: bool, tracked: bool) -> None:
    """Require room for the maps as they are kept, and as alignment of points reads them, with the flow of a tracker."""
    wanted, sizes = plan.pairs.tolist(), plan.sizes
    check_graph(wanted, len(sizes))
    kept = 0 if on_disk else bytes_of_pairs(wanted, sizes, torch.float16)
    read = bytes_of_pairs(wanted, sizes, torch.float32) if isinstance(plan.alignment, AlignmentOptions) else 0
    if tracked:  # two numbers a pixel of a first image: the tracker's, that of the cameras, and without masked pixels
        flow = 2 * torch.float32.itemsize * sum(math.prod(sizes[first]) for first, _ in wanted)
        kept, read = kept + 2 * flow, read + flow
    if device.type == "cpu":
        check_pair_memory(kept + read, len(wanted), len(sizes))
        return
    check_pair_memory(kept, len(wanted), len(sizes))
    check_pair_memory(read, len(wanted), len(sizes), device)


def _place_one(maps: PairMaps, known_focals: Tensor | None) -> PairAlignment:
    """Return the camera and the depth of a single image, from the pair of it with itself."""
    points, confidence = (each.float() for each in maps.side(0, 0))
    is_known = known_focals is not None and bool(known_focals.isfinite())
    focal = known_focals.float() if known_focals is not None and is_known else fit_focal(points)[None]
    intrinsics = intrinsics_of(focal, focal.new_zeros(1, 2), [points.shape[:2]])
    cameras = Cameras(torch.eye(3, 4)[None], intrinsics)
    return PairAlignment(cameras, (points[..., 2],), (confidence,), points.new_zeros(0), 0)


def _pad_matches(matches: PairMatches, boxes: Sequence[Box]) -> PairMatches:
    """Return matches in pixels of the padded images."""
    padded = []
    for pair, each in zip(matches.pairs.tolist(), matches.matches, strict=True):
        shifts = [each.coords1_px.new_tensor([boxes[image][2], boxes[image][0]]) for image in pair]
        padded.append(each._replace(coords1_px=each.coords1_px + shifts[0], coords2_px=each.coords2_px + shifts[1]))
    return matches._replace(matches=tuple(padded))


def _metric_factor(maps: PairMaps, found: PairAlignment, masks: Sequence[Tensor] | None) -> float:
    """Return the metres of one unit of aligned images: the median over pairs, and over the first image's pixels."""
    ratios = []
    for index, image in enumerate(maps.pairs[:, 0].tolist()):
        metres, own = maps.points1[index][..., 2].float(), found.depth[image].float().cpu()
        counts = (metres > 0) & (own > 0)
        ratio = (metres / own)[counts if masks is None else counts & masks[image]]
        if len(ratio):
            ratios.append(ratio.median())
    if not ratios:
        raise ValueError("depth must be positive somewhere to give the scene its metres, got none")
    return float(torch.stack(ratios).median())


def _pad_masks(masks: Tensor, boxes: Sequence[Box], image_hw: tuple[int, int]) -> Tensor:
    """Return masks of images in pixels of the padded images; False in the padding."""
    padded = torch.zeros(len(boxes), *image_hw, dtype=torch.bool)
    for index, (top, bottom, left, right) in enumerate(boxes):
        padded[index, top:bottom, left:right] = masks[index]
    return padded


def _to_predictions(found: PairAlignment, boxes: Sequence[Box], image_hw: tuple[int, int]) -> Predictions:
    """Return cameras and depth in pixels of the padded images; depth and confidence are 0 in the padding."""
    depth, confidence = torch.zeros(2, len(boxes), *image_hw)
    intrinsics = found.cameras.intrinsics.float().cpu().clone()
    for index, (top, bottom, left, right) in enumerate(boxes):
        depth[index, top:bottom, left:right] = found.depth[index]
        confidence[index, top:bottom, left:right] = found.confidence[index]
        intrinsics[index, :2, 2] += intrinsics.new_tensor([left, top])
    cameras = Cameras(found.cameras.cam_from_world.float().cpu(), intrinsics)
    return Predictions(cameras=cameras, depth=DenseMap(depth, confidence))
