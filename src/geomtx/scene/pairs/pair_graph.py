"""Pairs as a graph of images: what is wrong with it, and the tree of pairs that alignment starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_shape
from geomtx.inference.pair_graphs import check_graph
from geomtx.inference.pair_maps import PairMaps
from geomtx.types import Float

__all__ = ["check_pairs", "growth_order", "score_pairs", "spanning_tree"]


def check_pairs(maps: PairMaps, num_images: int) -> list[tuple[int, int]]:
    """Require maps that belong together, of a graph that connects all images.

    Args:
        maps: Point maps of the pairs.
        num_images: Number of images.

    Returns:
        Height and width of each image.

    Raises:
        ValueError: If numbers of maps or shapes differ, an index is out of range, a pair is of an image with itself, an
            image has two sizes, or images are not connected by pairs; the message names them.
    """
    check_shape("pairs", maps.pairs, ("E", 2))
    pairs: list[list[int]] = maps.pairs.tolist()
    if maps.pairs.is_floating_point() or not pairs:
        raise ValueError(
            f"pairs must be whole numbers, at least one pair, got {maps.pairs.dtype} of {len(pairs)} pairs"
        )
    for name, each in maps._asdict().items():
        if len(each) != len(pairs):
            raise ValueError(f"{name} must have a map for each of the {len(pairs)} pairs, got {len(each)}")
    sizes: dict[int, tuple[int, int]] = {}
    for index, images in enumerate(pairs):
        for side, image in enumerate(images):
            points, confidence = maps.side(index, side)
            check_floating(f"points{side + 1}[{index}]", points)
            check_shape(f"points{side + 1}[{index}]", points, ("H", "W", 3))
            check_shape(f"confidence{side + 1}[{index}]", confidence, tuple(points.shape[:2]))
            size = (points.shape[0], points.shape[1])
            if sizes.setdefault(image, size) != size:
                raise ValueError(f"image {image} must have one size in all pairs, got {sizes[image]} and {size}")
    check_graph(pairs, num_images)
    return [sizes[index] for index in range(num_images)]


def score_pairs(maps: PairMaps) -> Float[Tensor, " e"]:
    """Return the mean confidence of the first image times that of the second one of each pair, (E,).

    Args:
        maps: Point maps of the pairs, with the confidence 0 for pixels that don't count.

    Raises:
        ValueError: If a pair has no confident pixel: confidences are not finite, or all of them 0 or less.
    """
    scores = []
    for index in range(len(maps.pairs)):
        means = []
        for side in range(2):
            confidence = maps.side(index, side)[1]
            means.append(confidence.to(torch.promote_types(confidence.dtype, torch.float32)).mean())
        scores.append(torch.stack(means))
    first, second = torch.stack(scores).cpu().unbind(1)
    for index, pair in enumerate(maps.pairs.tolist()):
        if not (0 < float(first[index]) < torch.inf and 0 < float(second[index]) < torch.inf):
            raise ValueError(f"pair {tuple(pair)} must have confident pixels in both images, got none")
    return first * second


def spanning_tree(pairs: Sequence[Sequence[int]], weights: Sequence[float]) -> list[int]:
    """Return the pairs of the tree with the largest sum of weights that connects all images, by falling weight.

    Args:
        pairs: Two images each; of a pair and its reverse, the tree has the one with the larger weight.
        weights: Weight of each pair.
    """
    group = {image: image for pair in pairs for image in pair}
    tree = []
    for index in sorted(range(len(pairs)), key=lambda each: -weights[each]):
        old, new = group[pairs[index][1]], group[pairs[index][0]]
        if old != new:
            group = {image: new if each == old else each for image, each in group.items()}
            tree.append(index)
    return tree


def growth_order(pairs: Sequence[Sequence[int]], tree: Sequence[int]) -> list[int]:
    """Return the pairs of a tree in the order in which the scene grows.

    They come in the order they are given; one that touches no image placed so far goes to the end of the queue, so
    weaker ones may come before it.

    Args:
        pairs: Two images each.
        tree: Pairs of the tree, the best first.
    """
    queue, order, placed = list(tree), [], set(pairs[tree[0]])
    while queue:
        index = queue.pop(0)
        if placed.isdisjoint(pairs[index]):
            queue.append(index)
            continue
        placed |= set(pairs[index])
        order.append(index)
    return order
