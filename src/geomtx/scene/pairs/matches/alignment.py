"""Sparse global alignment: matches and point maps of pairs → cameras and depth of all images (MASt3R-SfM).

Matched points are brought together in space first, by poses and sizes, and then in the pixels, by all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from geomtx.checks import check_at_least, check_count, check_finite_positive, check_option, check_shape
from geomtx.inference.pair_graphs import check_graph, name_images
from geomtx.inference.pair_maps import PairMaps
from geomtx.scene.pairs.confidence import leave_out_pixels
from geomtx.scene.pairs.fitting import Progress, descend, fits_parameters
from geomtx.scene.pairs.global_alignment import KnownOfImages, PairAlignment, check_known_of_images
from geomtx.scene.pairs.matches.camera_tree import TreeMethod, build_tree
from geomtx.scene.pairs.matches.canonical import BLOCK, CanonicalImage, anchor_pixels, canonical_images
from geomtx.scene.pairs.matches.objective import (
    Anchors,
    SparseProblem,
    SparseState,
    block_depth,
    coarse_loss,
    fine_loss,
    sparse_cameras,
    start_state,
)
from geomtx.scene.pairs.pair_graph import check_pairs, score_pairs
from geomtx.tracking.matching import Matches
from geomtx.types import Int, show_shapes

__all__ = [
    "PairMatches",
    "SparseOptions",
    "align_matches",
    "check_sparse_options",
    "dense_depth",
    "sparse_problem",
]


@show_shapes
class PairMatches(NamedTuple):
    """Matches of P pairs of images.

    Attributes:
        pairs: Indices (i, j) of the images of each pair, (P, 2) int64; a pair and its reverse are one.
        matches: Matches of each pair, in pixels of the images that the model saw.
    """

    pairs: Int[Tensor, "p 2"]
    matches: tuple[Matches, ...]


class SparseOptions(NamedTuple):
    """How matches are aligned. The defaults are the published values.

    Attributes:
        tree: Kind of the tree of poses, "ward" or "spanning".
        min_confidence: Pairs whose best match is at most as confident don't count by their matches.
        shared_intrinsics: Whether all images have one focal length and principal point.
        coarse_steps: Number of steps on distances in space.
        coarse_rate: Learning rate of the first of these.
        fine_steps: Number of steps on distances in pixels.
        fine_rate: Learning rate of the first of these.
        progress: Called with the share of the work that is done since the last call; None for no report.
    """

    tree: TreeMethod = "ward"
    min_confidence: float = 5.0
    shared_intrinsics: bool = False
    coarse_steps: int = 300
    coarse_rate: float = 0.07
    fine_steps: int = 300
    fine_rate: float = 0.01
    progress: Progress | None = None


@fits_parameters
def align_matches(
    maps: PairMaps,
    matches: PairMatches,
    options: SparseOptions = SparseOptions(),  # noqa: B008  (immutable)
    *,
    known: KnownOfImages = KnownOfImages(),  # noqa: B008  (immutable)
    device: torch.device | None = None,
) -> PairAlignment:
    """Return cameras and depth with which matched pixels see the same points.

    Args:
        maps: Point maps of all pairs in both directions.
        matches: Matches of the pairs, which must connect all images.
        options: Options of the alignment, see `SparseOptions`.
        known: Known focal lengths and principal points, which are held. Poses can't be, and masks are those of matches.
        device: Device to compute on; defaults to the device of the points.

    Returns:
        Cameras, depth of every pixel, confidence of each image's mean points, and the losses in pixels before and after
        the fine steps. The world is that of the image in the middle of the tree, up to its place in depth.

    Raises:
        ValueError: If there are no pairs, a pair is there in one direction only or has no confident pixels, an image
            has no depth, matches lie beside their images or have confidences that are not finite, negative or all 0,
            images are not connected by matches, poses are known, or focal lengths contradict each other; the message
            names them.

    Source: Duisterhof et al. 2024 (MASt3R-SfM), section 4.
    """
    check_sparse_options(options)
    device = maps.points1[0].device if device is None and maps.points1 else device
    # The start is made on the host, and is the same for every device.
    maps, matches = (tree_map_only(Tensor, Tensor.cpu, each) for each in (maps, matches))
    num = max(maps.pairs.flatten().tolist(), default=1) + 1
    sizes = check_pairs(maps, num)
    _check_matches(maps, matches, sizes)
    if known.cam_from_world is not None:
        raise ValueError("cam_from_world must be None where matches are aligned, as align_pairs alone holds poses")
    focals, offsets, _ = check_known_of_images(known, sizes, shared=options.shared_intrinsics)
    maps = leave_out_pixels(maps)
    score_pairs(maps)  # says which pair has no confident pixels
    images = canonical_images(maps, num)
    flat = [index for index, each in enumerate(images) if not each.core_depth.median() > 0]
    if flat:
        raise ValueError(f"depth must be positive in most of each image, got less in {name_images(flat)}")
    problem = sparse_problem(maps, matches, images, options)
    problem, images = (tree_map_only(Tensor, lambda each: each.to(device), value) for value in (problem, images))
    state = start_state(problem, [each.core_depth for each in images])
    focals, centers = focals.to(problem.focal), 0.5 + offsets.to(problem.focal) / problem.image_hw.flip(1)
    if options.shared_intrinsics:
        weight = torch.stack([each.confidence.mean() for each in images])
        focal = (weight * problem.focal).sum() / weight.sum()
        state = state._replace(log_focal=focal.log()[None], principal=state.principal[:1])
        centers = centers.nanmean(0, keepdim=True)
    focals = focals[: len(state.log_focal)]
    held = focals.isfinite(), centers.isfinite()
    state = state._replace(
        log_focal=torch.where(held[0], focals.log(), state.log_focal),
        principal=torch.where(held[1], centers, state.principal),
    )
    report = options.progress or (lambda share: None)
    coarse, fine = _rates(options.coarse_steps, options.coarse_rate), _rates(options.fine_steps, options.fine_rate)

    def advance(_: float) -> None:
        report(1 / (len(coarse) + len(fine)))

    state = _descend(problem, state, coarse_loss, coarse, None, advance)
    with torch.no_grad():
        before = fine_loss(problem, state)
    state = _descend(problem, state, fine_loss, fine, held, advance)
    with torch.no_grad():
        losses = torch.stack([before, fine_loss(problem, state)])
        cameras = sparse_cameras(problem, state)
        depth = dense_depth(problem, state, images)
    confidence = tuple(each.confidence for each in images)
    return PairAlignment(cameras, depth, confidence, losses, options.coarse_steps + options.fine_steps)


def check_sparse_options(options: SparseOptions) -> None:
    """Require options in their ranges.

    Raises:
        ValueError: Otherwise.
    """
    check_option("tree", options.tree, get_args(TreeMethod))
    check_at_least("min_confidence", options.min_confidence, 0)
    for name in ("coarse_steps", "fine_steps"):
        check_count(name, getattr(options, name), 0)
    for name in ("coarse_rate", "fine_rate"):
        check_finite_positive(name, getattr(options, name))


def _check_matches(maps: PairMaps, matches: PairMatches, sizes: Sequence[tuple[int, int]]) -> None:
    check_shape("pairs", matches.pairs, (len(matches.matches), 2))
    for pair, each in zip(matches.pairs.tolist(), matches.matches, strict=True):
        sure = each.confidence
        if not bool((sure.isfinite() & (sure >= 0)).all()) or (len(sure) and not bool(sure.any())):
            worst = sure[sure.isfinite().logical_not() | (sure <= 0)][0]
            raise ValueError(f"confidence of matches must be finite and above 0, got {worst:g} of pair {tuple(pair)}")
        for image, coords in zip(pair, each[:2], strict=True):
            height, width = sizes[image]
            if not bool(((coords >= 0) & (coords < coords.new_tensor([width, height]))).all()):
                raise ValueError(f"matches must lie in image {image}, {width}x{height} pixels, got others")
    there = set(map(tuple, maps.pairs.tolist()))
    for first, second in matches.pairs.tolist():
        missing = {(first, second), (second, first)} - there
        if missing:
            raise ValueError(f"maps must have both directions of pair ({first}, {second}), got none of {min(missing)}")
    matched = [pair for pair, each in zip(matches.pairs.tolist(), matches.matches, strict=True) if len(each.confidence)]
    try:
        check_graph(matched, len(sizes))
    except ValueError as error:
        raise ValueError(
            f"{error}; pairs without matches don't count, but points can be aligned without (--alignment points)"
        ) from error


def sparse_problem(
    maps: PairMaps, matches: PairMatches, images: Sequence[CanonicalImage], options: SparseOptions
) -> SparseProblem:
    """Return what the parameters of sparse alignment are compared with.

    Args:
        maps: Point maps of all pairs in both directions.
        matches: Matches of the pairs.
        images: Each image as its pairs see it.
        options: Options of the alignment.
    """
    num_blocks = [each.core_depth.numel() for each in images]
    counts = torch.zeros(len(images), len(images))
    for (i, j), each in zip(matches.pairs.tolist(), matches.matches, strict=True):
        counts[i, j] = counts[j, i] = len(each.confidence)
    like = images[0].points
    confidence = torch.cat([each.confidence for each in matches.matches]).to(like)
    sure = [bool((each.confidence > options.min_confidence).any()) for each in matches.matches]
    lengths = torch.tensor([len(each.confidence) for each in matches.matches])
    strong = torch.tensor(sure).repeat_interleave(lengths).to(like.device)
    starts = [0, *torch.tensor(num_blocks).cumsum(0).tolist()]
    first, second = (_anchors(matches, images, starts, side) for side in range(2))
    pairs = {pair: index for index, pair in enumerate(map(tuple, maps.pairs.tolist()))}
    weak = []
    for index, (i, j) in enumerate(matches.pairs.tolist()):
        if sure[index]:
            continue
        for image, camera in ((i, j), (j, i)):
            points, own = maps.side(pairs[camera, image], 1)
            rows = (first.image == image).nonzero()[:, 0], (second.image == image).nonzero()[:, 0]
            block = torch.cat([first.block[rows[0]], second.block[rows[1]]]) - starts[image]
            # As published, the first pixel of a block; what is left of the image at its end is no block.
            num_rows, num_columns = images[image].core_depth.shape
            target, sureness = (each[::BLOCK, ::BLOCK][:num_rows, :num_columns].to(like) for each in (points, own))
            weak.append((*rows, camera, target.flatten(0, 1)[block], sureness.flatten()[block]))
    return SparseProblem(
        build_tree(counts, num_blocks, options.tree),
        like.new_tensor([list(each.confidence.shape) for each in images]),
        torch.stack([each.focal for each in images]),
        torch.stack([each.core_depth.median() for each in images]),
        first,
        second,
        confidence,
        strong,
        tuple(weak),
    )


def _anchors(matches: PairMatches, images: Sequence[CanonicalImage], starts: Sequence[int], side: int) -> Anchors:
    parts: list[tuple[Tensor, ...]] = []
    for pair, each in zip(matches.pairs.tolist(), matches.matches, strict=True):
        image, coords = pair[side], each[side]
        block, ratio = anchor_pixels(images[image], coords)
        parts.append((torch.full_like(block, image), block + starts[image], ratio, coords.to(ratio.dtype)))
    return Anchors(*(torch.cat(each) for each in zip(*parts, strict=True)))


def dense_depth(problem: SparseProblem, state: SparseState, images: Sequence[CanonicalImage]) -> tuple[Tensor, ...]:
    """Return the depth of every pixel, S tensors (H, W).

    Args:
        problem: The problem.
        state: Parameters.
        images: Each image as its pairs see it.
    """
    focal = sparse_cameras(problem, state).intrinsics[:, 0, 0]
    found = []
    for index, (image, blocks) in enumerate(zip(images, block_depth(problem, state), strict=True)):
        height, width = image.confidence.shape
        y, x = (torch.arange(size, device=blocks.device) for size in (height, width))
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
        block, ratio = anchor_pixels(image, pixels)
        depth = blocks[block] * (1 + (ratio - 1) * problem.focal[index] / focal[index])
        found.append(depth.view(height, width))
    return tuple(found)


def _descend(
    problem: SparseProblem,
    state: SparseState,
    loss: Callable[[SparseProblem, SparseState], Tensor],
    rates: Sequence[float],
    held: tuple[Tensor, Tensor] | None,
    progress: Progress,
) -> SparseState:
    """Make steps of Adam, of poses and sizes alone where it isn't said what of the cameras is held."""
    state = state.map(lambda each: each.detach().clone().requires_grad_())
    moved = [state.quat_xyzw, state.translation, state.log_size]
    if held is not None:
        moved += [state.log_focal, state.principal, *state.core]

    def hold() -> None:
        for parameter, each in zip((state.log_focal, state.principal), held or (), strict=False):
            if parameter.grad is not None:
                parameter.grad[each] = 0.0

    def tidy() -> None:
        state.quat_xyzw.div_(state.quat_xyzw.norm(dim=1, keepdim=True))

    descend(moved, lambda _: loss(problem, state), rates, hold=hold, tidy=tidy, progress=progress)
    return state.map(Tensor.detach)


def _rates(steps: int, first: float) -> list[float]:
    """Return the learning rates of steps, which fall to 0 as a cosine."""
    return [first * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
