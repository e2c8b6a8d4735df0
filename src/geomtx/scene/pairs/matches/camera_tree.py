"""A tree of images along which poses are chained, from the numbers of their matches."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomtx.checks import check_option
from geomtx.scene.pairs.pair_graph import spanning_tree

__all__ = ["CameraTree", "TreeMethod", "build_tree", "find_root"]

TreeMethod = Literal["ward", "spanning"]
"""How the tree is built: "ward" merges clusters of images (Ward 1963), "spanning" has the largest sum of matches."""

_EXPECTED = 3  # matches a block of two images that show the same


class CameraTree(NamedTuple):
    """Images as a tree.

    Attributes:
        root: The image whose pose is that of the world.
        edges: Parent and child of each edge, parents before their children.
    """

    root: int
    edges: tuple[tuple[int, int], ...]


def build_tree(counts: Tensor, num_blocks: list[int], method: TreeMethod = "ward") -> CameraTree:
    """Return the tree of images.

    Args:
        counts: Number of matches of each two images, (S, S), symmetric.
        num_blocks: Number of blocks of each image.
        method: Name of the way in which the tree is built.

    Raises:
        ValueError: If the method is unknown.
    """
    check_option("method", method, get_args(TreeMethod))
    num = len(counts)
    if method == "spanning":
        first, second = torch.triu_indices(num, num, 1)
        pairs = [(i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True) if counts[i, j] > 0]
        edges = [pairs[index] for index in spanning_tree(pairs, [float(counts[pair]) for pair in pairs])]
    else:
        edges = _merge_clusters(counts, num_blocks)
    return _orient(edges, find_root(edges, num))


def _merge_clusters(counts: Tensor, num_blocks: list[int]) -> list[tuple[int, int]]:
    blocks = torch.tensor(num_blocks, dtype=torch.float64)
    likeness = (counts.double() / (_EXPECTED * torch.minimum(blocks[:, None], blocks))).clamp(max=1)
    likeness.fill_diagonal_(1)
    square = torch.where(likeness > 0, 1 - likeness, 2.0).square().fill_diagonal_(torch.inf)
    clusters = {image: (1, image) for image in range(len(counts))}  # number of images, and the one that stands for them
    edges = []
    for _ in range(len(counts) - 1):
        alive = sorted(clusters)
        part = square[alive][:, alive]
        row, column = divmod(int(part.argmin()), len(alive))
        one, two = sorted((alive[row], alive[column]))
        (size1, image1), (size2, image2) = clusters[one], clusters.pop(two)
        edges.append((image1, image2))
        stays = image1 if likeness[image1].sum() >= likeness[image2].sum() else image2
        likeness[stays] = torch.maximum(likeness[image1], likeness[image2])
        clusters[one] = (size1 + size2, stays)
        for other in clusters.keys() - {one}:
            size = clusters[other][0]
            new = (size1 + size) * square[one, other] + (size2 + size) * square[two, other] - size * square[one, two]
            square[one, other] = square[other, one] = new / (size1 + size2 + size)
    return edges


def find_root(edges: list[tuple[int, int]], num: int) -> int:
    """Return an image in the middle of a tree.

    Images are ranked in the order of a breadth-first walk from image 0, then from the last one of it, then from the
    last one of that; the root has the largest minimum of the last two ranks.

    Args:
        edges: Two images each.
        num: Number of images.
    """
    walk = _walk(edges, 0)
    ranks = []
    for _ in range(2):
        walk = _walk(edges, walk[-1])
        rank = [0] * num
        for index, image in enumerate(walk):
            rank[image] = index
        ranks.append(rank)
    return max(range(num), key=lambda image: min(ranks[0][image], ranks[1][image]))


def _walk(edges: list[tuple[int, int]], start: int) -> list[int]:
    order = [start]
    for image in order:
        beside = {a + b - image for a, b in edges if image in (a, b)}
        order += sorted(beside - set(order))
    return order


def _orient(edges: list[tuple[int, int]], root: int) -> CameraTree:
    rank = {image: index for index, image in enumerate(_walk(edges, root))}
    pairs = [(a, b) if rank[a] < rank[b] else (b, a) for a, b in edges]
    return CameraTree(root, tuple(sorted(pairs, key=lambda pair: rank[pair[1]])))
