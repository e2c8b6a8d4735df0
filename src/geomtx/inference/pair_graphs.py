"""Which pairs of a scene's images a model sees: graphs of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from geomtx.checks import check_count, check_option, check_shape
from geomtx.types import Float, Int

__all__ = ["check_graph", "choose_pairs", "default_graph", "keep_near", "name_images", "retrieved_pairs"]

_MOST_COMPLETE = 20  # images of which all pairs are taken
_SHOWN = 8  # images that an error names

# Offsets of a window of w images.
_OFFSETS: dict[str, Callable[[int], Iterable[int]]] = {
    "swin": lambda w: range(1, w + 1),
    "logwin": lambda w: (2**k for k in range(w)),
    "swinstride": lambda w: range(1, 2 * w + 1, 2),
    "swin2stride": lambda w: range(1, 3 * w + 1, 3),
}
_GRAPH = re.compile(r"([a-z0-9]*[a-z])(?:-(\d+))?(-noncyclic)?")


def choose_pairs(num_images: int, graph: str = "complete", *, both_directions: bool = True) -> Int[Tensor, "e 2"]:
    """Return the pairs of a graph of images by its published name.

    | graph | pairs |
    |---|---|
    | "complete" | all |
    | "swin-w" | of an image and the w after it |
    | "logwin-w" | of an image and those 1, 2, 4, … after it, w of them |
    | "swinstride-w" | of an image and those 1, 3, 5, … after it, w of them (MonST3R) |
    | "swin2stride-w" | of an image and those 1, 4, 7, … after it, w of them (MonST3R) |
    | "oneref-r" | of image r and each other one |

    Windows go on from the last image to the first, unless the name ends in "-noncyclic". A window's w defaults to 3, r
    to 0. One image is paired with itself.

    Args:
        num_images: Number of images S of the scene.
        graph: Name of the graph; defaults to all pairs.
        both_directions: Whether each pair is followed, after all of them, by its reverse: models see the two as
            different pairs, and alignment is better with both. Defaults to True.

    Returns:
        Indices of the first and the second image of each pair, (E, 2) int64: all pairs in ascending order, in windows
        with the smaller index first, with the larger first where all are taken; then their reverses.

    Raises:
        ValueError: For another name, or a reference that is no image.
    """
    check_count("num_images", num_images)
    match = _GRAPH.fullmatch(graph)
    kind, number, noncyclic = match.groups() if match else (graph, None, None)
    check_option("graph", kind, ("complete", "oneref", *_OFFSETS))
    if (kind == "complete" and number) or (kind not in _OFFSETS and noncyclic):
        raise ValueError(f"graph {kind!r} must be named so, got {graph!r}")
    if num_images == 1:
        return torch.zeros(1, 2, dtype=torch.long)
    if kind == "oneref":
        reference = int(number or 0)
        check_option("reference of the graph", reference, range(num_images))
        pairs = [(reference, other) for other in range(num_images) if other != reference]
    elif kind == "complete":
        pairs = [(first, second) for first in range(num_images) for second in range(first)]
    else:
        width = int(number or 3)
        check_count("window of the graph", width)
        width = min(width, num_images)  # more go round once again
        reached = ((first, first + offset) for first in range(num_images) for offset in _OFFSETS[kind](width))
        if noncyclic:
            found = {pair for pair in reached if pair[1] < num_images}
        else:
            around = ((first, second % num_images) for first, second in reached)
            found = {(min(pair), max(pair)) for pair in around if pair[0] != pair[1]}
        pairs = sorted(found)
    return _as_tensor(pairs, both_directions)


def default_graph(num_images: int, *, is_video: bool = False) -> str:
    """Return the name of a graph for images of which nobody knows more than their order, see `choose_pairs`.

    It is "complete" up to 20 images, as time and memory grow with their square; beyond, "logwin-5", of which the number
    of pairs grows with that of the images, and of frames of a video "swinstride-5-noncyclic", as MonST3R has it.

    Args:
        num_images: Number of images.
        is_video: Whether they are frames of a video.
    """
    if num_images <= _MOST_COMPLETE:
        return "complete"
    return "swinstride-5-noncyclic" if is_video else "logwin-5"


def keep_near(pairs: Int[Tensor, "e 2"], max_distance: int, *, num_images: int | None = None) -> Int[Tensor, "e2 2"]:
    """Return the pairs whose images are at most some images apart, in their order.

    Args:
        pairs: Pairs, (E, 2).
        max_distance: Largest difference of the indices.
        num_images: Number of images of a scene that goes on from the last to the first; defaults to one that doesn't.
    """
    distance = (pairs[:, 0] - pairs[:, 1]).abs()
    if num_images is not None:
        distance = torch.minimum(distance, num_images - distance)
    return pairs[distance <= max_distance]


def retrieved_pairs(
    similarity: Float[Tensor, "s s"],
    num_keys: int,
    num_nearest: int,
    *,
    first_key: int = 0,
    both_directions: bool = True,
) -> Int[Tensor, "e 2"]:
    """Return the pairs of images that look alike (MASt3R-SfM, Duisterhof et al. 2024).

    Some images are keys: each is the one that is least like the keys before. All keys are paired, each other image with
    the key that it is most like, and each image with those most like it.

    Args:
        similarity: Similarity of each two images, (S, S), with the largest value, 1, on the diagonal.
        num_keys: Number of keys.
        num_nearest: Number of images most like an image, itself included.
        first_key: Index of the first key; the published code draws it.
        both_directions: Whether the reverses of all pairs follow, see `choose_pairs`.

    Returns:
        Pairs as from `choose_pairs`, (E, 2) int64.

    Raises:
        ValueError: For numbers that are out of range.
    """
    num_images = len(similarity)
    check_shape("similarity", similarity, (num_images, num_images))
    check_option("num_keys", num_keys, range(1, num_images + 1))
    check_option("num_nearest", num_nearest, range(1, num_images + 1))
    check_option("first_key", first_key, range(num_images))
    keys = [first_key]
    while len(keys) < num_keys:
        nearest = similarity[keys].amax(0)
        nearest[keys] = torch.inf
        keys.append(int(nearest.argmin()))
    found = {(a, b) for a in keys for b in keys}
    for image in set(range(num_images)) - set(keys):
        found.add((image, keys[int(similarity[image, keys].argmax())]))
    for image, nearest in enumerate(similarity.topk(num_nearest, dim=1).indices):
        found |= {(image, int(other)) for other in nearest}
    return _as_tensor(sorted({(min(pair), max(pair)) for pair in found if pair[0] != pair[1]}), both_directions)


def _as_tensor(pairs: Sequence[tuple[int, int]], both_directions: bool) -> Tensor:
    once = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return torch.cat([once, once.flip(1)]) if both_directions else once


def check_graph(pairs: Sequence[Sequence[int]], num_images: int) -> None:
    """Require pairs of two different images each, which connect all images; a scene of one image has it twice.

    Args:
        pairs: Indices of the two images of each pair.
        num_images: Number of images.

    Raises:
        ValueError: If an index is out of range, a pair is of an image with itself, or images are not connected by
            pairs; the message names them.
    """
    group = list(range(num_images))
    for first, second in pairs:
        if (first == second and num_images > 1) or not 0 <= min(first, second) <= max(first, second) < num_images:
            raise ValueError(f"pairs must be of two of the images 0 to {num_images - 1}, got {(first, second)}")
        old, new = group[second], group[first]
        if old != new:
            group = [new if each == old else each for each in group]
    if len(set(group)) > 1:
        largest = max(set(group), key=group.count)
        apart = [index for index, each in enumerate(group) if each != largest]
        raise ValueError(f"pairs must connect all images, got none between {name_images(apart)} and the others")


def name_images(images: Sequence[int]) -> str:
    """Return "image 3" or "images 1, 2, 5 …" for an error."""
    shown = ", ".join(map(str, images[:_SHOWN])) + (" …" if len(images) > _SHOWN else "")
    return f"image{'s' if len(images) > 1 else ''} {shown}"
