"""Global alignment: point maps of pairs → cameras and depth of all images (DUSt3R, Wang et al. 2024, section 3.4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomtx.checks import (
    check_at_least,
    check_count,
    check_finite_positive,
    check_mask,
    check_option,
    check_shape,
    enumerate_names,
)
from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.projection import unproject
from geomtx.inference.pair_graphs import name_images
from geomtx.inference.pair_maps import PairMaps
from geomtx.scene.known.cameras import check_poses
from geomtx.scene.pairs.confidence import image_confidence, leave_out_pixels
from geomtx.scene.pairs.fitting import Progress, descend, fits_parameters
from geomtx.scene.pairs.motion import MotionTerms, check_motion, motion_loss
from geomtx.scene.pairs.objective import (
    AlignmentData,
    AlignmentState,
    ConfidenceWeight,
    alignment_loss,
    camera_parameters,
    pack_pairs,
    principal_parameters,
)
from geomtx.scene.pairs.pair_graph import check_pairs, score_pairs
from geomtx.scene.pairs.reweighted import FixedCameras, solve_reweighted
from geomtx.scene.pairs.start import move_to_known, place_images, start_alignment, start_from_cameras
from geomtx.scene.pairs.two_views import has_both_directions, intrinsics_of, place_two_images
from geomtx.types import Cameras, show_shapes

__all__ = [
    "AlignmentOptions",
    "KnownOfImages",
    "PairAlignment",
    "align_pairs",
    "check_alignment_options",
    "check_known_of_images",
]

logger = logging.getLogger(__name__)

_LEAST_PIXELS = 4  # that a camera comes from
_OFF_MIDDLE_PX = 1.0  # distance of a principal point that two images can't be placed without
_SHRUNK = math.log(0.1)  # change of the logarithm of a scale
_SAME_FOCAL = 1e-3  # relative difference up to which known focal lengths are one
_Method = Literal["fast", "published"]
_Schedule = Literal["cosine", "linear"]


@show_shapes
class KnownOfImages(NamedTuple):
    """What is known of images before alignment.

    Attributes:
        focals: Focal lengths in pixels of the images that the model saw (resized and cropped), (S,); NaN where they
            aren't known. Defaults to none.
        principal_points: Principal points (x, y) in these pixels, (S, 2); NaN where they aren't known: they are then
            the middle (W/2, H/2). Defaults to none.
        cam_from_world: Poses, (S, 3, 4), of two images or more; NaN where they aren't known. Defaults to none.
        masks: Pixels of each image that take part, S tensors (H, W) bool; defaults to all.
    """

    focals: Tensor | None = None
    principal_points: Tensor | None = None
    cam_from_world: Tensor | None = None
    masks: Sequence[Tensor] | None = None


class AlignmentOptions(NamedTuple):
    """How pairs are aligned. The defaults are the published values.

    Attributes:
        method: "fast" finds the minimum by reweighted least squares, most of it on some of the pixels; "published"
            makes a fixed number of steps of Adam, to which `steps` and what follows it up to `schedule` belong. With
            terms of motion, "fast" makes these steps after the least squares.
        confidence: Weight of a pixel of confidence C: "log" C, "sqrt", "minus_one" or "none".
        squared: Whether distances are squared; by default they are not.
        by_pair: Whether pairs count alike, whatever their number of pixels.
        shared_focal: Whether all images have one focal length.
        steps: Number of steps, at least 0.
        learning_rate: Learning rate of the first step.
        last_rate: Learning rate after the last step.
        schedule: Course of the learning rate, "cosine" or "linear".
        min_confidence: Confidence above which a pixel helps to place the second one of two images, and the camera of
            an image that is the second one in all of its pairs.
        two_views: Whether two images with both of their pairs are placed without optimisation, by the pixels of which
            the model is more confident than `min_confidence`. They are optimised all the same where poses are known, a
            principal point is known to be off the middle, both share an unknown focal length, or, by "fast", where such
            pixels are fewer than four; by "published", both then have the same camera.
        progress: Called with the share of the work that is done since the last call; None for no report.
    """

    method: _Method = "fast"
    confidence: ConfidenceWeight = "log"
    squared: bool = False
    by_pair: bool = False
    shared_focal: bool = False
    steps: int = 300
    learning_rate: float = 0.01
    last_rate: float = 1e-6
    schedule: _Schedule = "cosine"
    min_confidence: float = 3.0
    two_views: bool = True
    progress: Progress | None = None


@show_shapes
class PairAlignment(NamedTuple):
    """Cameras and depth of S images, aligned.

    Attributes:
        cameras: Poses (S, 3, 4), and intrinsics (S, 3, 3) in pixels of the images that the model saw.
        depth: Depth of each image, S tensors (H, W), z-depth in the unit of the alignment.
        confidence: Largest confidence of each pixel among its pairs, S tensors (H, W).
        losses: Loss at the start and at the end, (2,); empty for two images placed without optimisation.
        steps: Number of steps made.
    """

    cameras: Cameras
    depth: tuple[Tensor, ...]
    confidence: tuple[Tensor, ...]
    losses: Tensor
    steps: int

    @property
    def points(self) -> tuple[Tensor, ...]:
        """Points of each image in the world, S tensors (H, W, 3)."""
        each = zip(self.depth, self.cameras.intrinsics, self.cameras.cam_from_world, strict=True)
        return tuple(unproject(depth, intrinsics, pose) for depth, intrinsics, pose in each)


@fits_parameters
def align_pairs(
    maps: PairMaps,
    num_images: int | None = None,
    options: AlignmentOptions = AlignmentOptions(),  # noqa: B008  (immutable)
    *,
    known: KnownOfImages = KnownOfImages(),  # noqa: B008  (immutable)
    motion: MotionTerms | None = None,
    device: torch.device | None = None,
) -> PairAlignment:
    """Return cameras and depth with which the point maps of all pairs agree best.

    Images are placed along the tree of the best pairs first; then poses, focal lengths, depth and a similarity of each
    pair are changed so that the weighted distances between the images' points and those of the pairs become small.
    The geometric mean of the scales of pairs is held at 0.5, unless poses are known. On the CPU the result is the same
    every time; on a GPU the last digits of sums differ, unless `torch.use_deterministic_algorithms` asks for the same.
    Pixels whose point or confidence isn't finite don't take part.

    Args:
        maps: Point maps of the pairs, which must connect all images.
        num_images: Number of images S; defaults to the largest index in the pairs and one.
        options: Options of the alignment, see `AlignmentOptions`.
        known: Known values of the images. With all poses known, the start comes of them; with some, at least two, the
            placed images are brought to them first.
        motion: Terms that frames of a video add to the loss (MonST3R) in the steps of Adam. Defaults to none.
        device: Device to compute on; defaults to the device of the points.

    Returns:
        Cameras, depth and confidence. The world is that of the known poses, or the first camera of the best pair.

    Raises:
        ValueError: If images are not connected by pairs, a pair has no confident pixels, all pixels of an image weigh
            nothing, a single pose is known, a known one is no rotation, or focal lengths contradict each other; the
            message names the images.

    Source: Wang et al. 2024 (DUSt3R), section 3.4.
    """
    if num_images is None:
        num_images = max(maps.pairs.long().flatten().tolist(), default=1) + 1
    check_count("num_images", num_images, 2)
    check_alignment_options(options)
    sizes = check_pairs(maps, num_images)
    if motion is not None:
        check_motion(motion, maps.pairs, sizes)
    focals, offsets, poses = check_known_of_images(known, sizes, shared=options.shared_focal)
    maps = leave_out_pixels(maps, known.masks)
    scores = score_pairs(maps).tolist()
    confidence = image_confidence(maps, num_images)
    has_pose = poses.isfinite().flatten(1).all(1)
    sure = [each > options.min_confidence for each in confidence]
    heeds = bool(has_pose.any()) or (options.shared_focal and bool(focals.isnan().any()))
    heeds |= bool((offsets.abs() > _OFF_MIDDLE_PX).any())
    # As published, two images then have one camera.
    heeds |= options.method == "fast" and any(int(each.sum()) < _LEAST_PIXELS for each in sure)
    if num_images == 2 and options.two_views and has_both_directions(maps) and not heeds:
        cameras, depth = place_two_images(maps, scores, sure, focals)
        to = confidence[0]
        return PairAlignment(
            Cameras(*(each.to(to.dtype).to(to.device) for each in cameras)),
            tuple(each.to(to.dtype).to(to.device) for each in depth),
            *(confidence, to.new_zeros(0), 0),
        )
    data = pack_pairs(
        maps,
        sizes,
        confidence=options.confidence,
        by_pair=options.by_pair,
        device=device,
    )
    start = _start(maps, scores, confidence, (focals, poses), options)
    start = start._replace(principal=principal_parameters(offsets.nan_to_num(0.0)))
    place = data.points.device
    start = start.map(lambda each: each.to(data.points.dtype).to(place))
    fixed = FixedCameras(has_pose.to(place), focals.isfinite().to(place), options.shared_focal)
    motion = None if motion is None else motion.to(data.points.dtype, place)
    report = options.progress or (lambda share: None)
    descends = options.method == "published" or motion is not None
    if options.method == "fast":
        part = 0.5 if descends else 1.0
        state, losses, steps = solve_reweighted(
            data, start, fixed, squared=options.squared, progress=lambda share: report(part * share)
        )
    if descends:
        first, part = (start, 1.0) if options.method == "published" else (state, 0.5)
        state, losses, steps = _descend(data, first, fixed, options, motion, lambda share: report(part * share))
    if fixed.free_scale:
        _warn_of_shrunk(start, state)
    return _result(state, data, confidence, losses, steps)


def _warn_of_shrunk(start: AlignmentState, state: AlignmentState) -> None:
    """Log a warning where most pairs shrink to nothing between known poses, as those of other photos make them do."""
    shrunk = int(((state.pair_poses - start.pair_poses)[:, 7] < _SHRUNK).sum())
    if shrunk > len(state.pair_poses) / 2:
        logger.warning(
            "known poses contradict the points of %d of %d pairs, which shrink to nothing between them: are they of "
            "these photos, and camera from world?",
            shrunk,
            len(state.pair_poses),
        )


def check_alignment_options(options: AlignmentOptions) -> None:
    """Require options in their ranges.

    Raises:
        ValueError: Otherwise.
    """
    check_option("method", options.method, get_args(_Method))
    check_option("confidence", options.confidence, get_args(ConfidenceWeight))
    check_option("schedule", options.schedule, get_args(_Schedule))
    check_count("steps", options.steps, 0)
    check_finite_positive("learning_rate", options.learning_rate)
    check_at_least("last_rate", options.last_rate, 0)
    check_at_least("min_confidence", options.min_confidence, 0)


def check_known_of_images(
    known: KnownOfImages, sizes: Sequence[tuple[int, int]], *, shared: bool, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return focal lengths (S,), principal points less the middle (S, 2) and world_from_cam (S, 3, 4).

    They are in float64 on the host; NaN where they aren't known.

    Args:
        known: Known values of the images.
        sizes: Height and width of each image.
        shared: Whether all images have one focal length; a known one is then that of all.
        names: Names of the images for errors; defaults to "image 0" and so on.

    Raises:
        ValueError: For values of other shapes, focal lengths that are not positive or contradict each other, poses that
            are no rotations, and a single known pose.
    """
    num = len(sizes)
    focals = torch.full((num,), torch.nan, dtype=torch.float64)
    if known.focals is not None:
        check_shape("focals", known.focals, (num,))
        focals = known.focals.detach().cpu().double()
        wrong = [index for index, each in enumerate(focals.tolist()) if each <= 0 or math.isinf(each)]
        if wrong:
            raise ValueError(f"focals must be positive, got {focals[wrong[0]]:g} of {_name(wrong, names)}")
        given = focals.isfinite().nonzero()[:, 0].tolist()
        if shared and given:
            first = focals[given[0]]
            other = [each for each in given if not abs(focals[each] / first - 1) < _SAME_FOCAL]
            if other:
                raise ValueError(
                    f"focals must be one where images share it, as frames of a video do, got {first:g} px of "
                    f"{_name(given[:1], names)} and {focals[other[0]]:g} px of {_name(other, names)}"
                )
            focals = first.expand(num)
    offsets = torch.full((num, 2), torch.nan, dtype=torch.float64)
    if known.principal_points is not None:
        check_shape("principal_points", known.principal_points, (num, 2))
        middle = torch.tensor(sizes, dtype=torch.float64).flip(1) / 2
        offsets = known.principal_points.detach().cpu().double() - middle
    poses = torch.full((num, 3, 4), torch.nan, dtype=torch.float64)
    if known.cam_from_world is not None:
        check_shape("cam_from_world", known.cam_from_world, (num, 3, 4))
        given_poses = known.cam_from_world.detach().cpu().double()
        check_poses("cam_from_world", given_poses, [f"image {index}" for index in range(num)])
        poses = invert_rigid(given_poses)
        given = poses.isfinite().flatten(1).all(1).nonzero()[:, 0].tolist()
        if len(given) == 1:
            raise ValueError(f"cam_from_world must be known of two images or more, got that of image {given[0]} alone")
    if known.masks is not None:
        if len(known.masks) != num:
            raise ValueError(f"masks must be {num}, one for each image, got {len(known.masks)}")
        for index, (mask, size) in enumerate(zip(known.masks, sizes, strict=True)):
            check_mask(f"masks[{index}]", mask, size)
    return focals, offsets, poses


def _name(images: Sequence[int], names: Sequence[str] | None) -> str:
    return name_images(images) if names is None else enumerate_names([names[image] for image in images])


def _start(
    maps: PairMaps,
    scores: Sequence[float],
    confidence: Sequence[Tensor],
    known: tuple[Tensor, Tensor],
    options: AlignmentOptions,
) -> AlignmentState:
    focals, poses = known
    has_pose = poses.isfinite().flatten(1).all(1)
    if bool(has_pose.all()):
        state = start_from_cameras(maps, scores, poses, focals)
    else:
        state = start_alignment(
            maps, place_images(maps, scores, [each.cpu() for each in confidence], focals, options.min_confidence)
        )
        if bool(has_pose.any()):
            state = move_to_known(state, poses, has_pose)
    return state._replace(focals=state.focals.mean(0, keepdim=True)) if options.shared_focal else state


def _descend(
    data: AlignmentData,
    state: AlignmentState,
    fixed: FixedCameras,
    options: AlignmentOptions,
    motion: MotionTerms | None,
    progress: Progress,
) -> tuple[AlignmentState, Tensor, int]:
    """Make the published steps of Adam; principal points and adaptors stay."""
    of_pairs = data.image.unflatten(0, (2, -1)).mT
    first_depth = None if motion is None or not motion.depth_weight else torch.stack(state.log_depth).exp()
    state = state.map(lambda each: each.clone().requires_grad_())
    poses, focals, depth, pairs = state.poses, state.focals, state.log_depth, state.pair_poses
    known_focals = fixed.focals[: len(focals)]

    def measure(step: int) -> Tensor:
        loss = alignment_loss(data, state, squared=options.squared, free_scale=fixed.free_scale)
        if motion is None:
            return loss
        return loss + motion_loss(of_pairs, state, motion, first_depth, step / max(1, options.steps))

    def hold() -> None:
        assert poses.grad is not None
        assert focals.grad is not None
        poses.grad[fixed.poses] = 0.0
        focals.grad[known_focals] = 0.0

    rates = [_learning_rate(step / options.steps, options) for step in range(options.steps)]
    losses = descend([poses, focals, *depth, pairs], measure, rates, hold=hold, progress=progress)
    with torch.no_grad():
        last = measure(max(1, options.steps))
    return state.map(Tensor.detach), torch.stack([*losses[:1], *[last] * (2 - len(losses[:1]))]), options.steps


def _learning_rate(progress: float, options: AlignmentOptions) -> float:
    """Return the learning rate at a share of all steps."""
    left = 1 - progress if options.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return options.last_rate + (options.learning_rate - options.last_rate) * left


def _result(
    state: AlignmentState, data: AlignmentData, confidence: tuple[Tensor, ...], losses: Tensor, steps: int
) -> PairAlignment:
    poses, focals, principal = camera_parameters(state)
    cameras = Cameras(invert_rigid(poses), intrinsics_of(focals, principal, data.sizes))
    depth = tuple(each.exp() for each in state.log_depth)
    to = losses.device
    return PairAlignment(cameras, depth, tuple(each.to(to) for each in confidence), losses, steps)
