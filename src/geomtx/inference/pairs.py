"""A model that sees a scene as pairs, run on a graph of images: each image encoded once, batches, results kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from geomtx.checks import check_count, check_floating, check_option, check_shape
from geomtx.inference.pair_graphs import check_graph
from geomtx.inference.pair_maps import PairMaps, PairModel, PairPrediction
from geomtx.inference.plan import free_bytes
from geomtx.inference.run import HALVES, run_precision
from geomtx.types import Int, Tokens

__all__ = [
    "PairBatch",
    "PairMemory",
    "PairOptions",
    "PairStore",
    "bytes_of_pairs",
    "check_pair_memory",
    "predict_pairs",
    "run_pairs",
    "split_maps",
]

_BATCH_PIXELS = 2**21  # of the images of a batch of pairs, where nobody chooses and the device is no CPU
_CHANNELS = 4  # of a map of points and their confidence
_STORED = (torch.float16, torch.float32)


class PairOptions(NamedTuple):
    """How `run_pairs` runs a model.

    Attributes:
        batch_size: Number of pairs, and of images that are encoded, at once; None for one on the CPU, and as many as
            have two megapixels elsewhere.
        dtype: None for the precision of the model's parameters. A half precision runs a float32 model under autocast.
        progress: Called with the share of the work that is done since the last call; None for no report.
    """

    batch_size: int | None = None
    dtype: torch.dtype | None = None
    progress: Callable[[float], None] | None = None


class PairBatch(NamedTuple):
    """Some pairs of a graph, whose first images have one size, and whose second ones have one.

    Attributes:
        indices: Indices of the pairs in the graph.
        prediction: Prediction of the model for these pairs, on its device.
    """

    indices: list[int]
    prediction: PairPrediction


@runtime_checkable
class PairStore(Protocol):
    """Where the maps of pairs are kept."""

    def stored(self) -> set[int]:
        """Return the indices of the pairs whose maps are there."""
        ...

    def write(self, batch: PairBatch) -> None:
        """Keep the maps of a batch."""
        ...

    def read(self, pairs: Int[Tensor, "e 2"]) -> PairMaps:
        """Return the maps of all pairs."""
        ...


class PairMemory:
    """Keeps the maps of pairs in the host's memory, of one model, the same images and the same pairs.

    Args:
        dtype: Type of the numbers. Half precision, the default, halves memory: points are rounded by at most 1/2048 of
            their coordinates, and what it can't represent becomes its largest number, 65504.

    Raises:
        ValueError: For a type other than float16 and float32.
    """

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        check_option("dtype", dtype, _STORED)
        self.dtype = dtype
        self._maps: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._of: tuple[PairModel, list[Tensor], list[tuple[int, int]]] | None = None

    def require_same(self, model: PairModel, images: list[Tensor], pairs: list[tuple[int, int]]) -> None:
        """Require the model, images and pairs of the runs before, as their maps are what is there.

        Args:
            model: Model that runs.
            images: Images that it sees.
            pairs: Pairs that it is run on.

        Raises:
            ValueError: For others.
        """
        if self._of is None:
            self._of = model, images, pairs
        before = self._of
        alike = len(images) == len(before[1]) and all(map(torch.equal, images, before[1]))
        for name, same in (("model", model is before[0]), ("images", alike), ("pairs", pairs == before[2])):
            if not same:
                raise ValueError(f"store must be of the same {name}, got a PairMemory of others; make a new one")

    def stored(self) -> set[int]:
        """Return the indices of the pairs whose maps are there."""
        return set(self._maps)

    def write(self, batch: PairBatch) -> None:
        """Keep the maps of a batch."""
        self._maps.update(split_maps(batch, self.dtype))

    def read(self, pairs: Int[Tensor, "e 2"]) -> PairMaps:
        """Return the maps of all pairs."""
        points1, points2, confidence1, confidence2 = zip(
            *(self._maps[index] for index in range(len(pairs))), strict=True
        )
        return PairMaps(pairs, points1, points2, confidence1, confidence2)


def split_maps(batch: PairBatch, dtype: torch.dtype) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Yield the index of each pair of a batch and its points and confidences on the CPU, in the order of `PairMaps`.

    Args:
        batch: Predictions of some pairs.
        dtype: Type of the numbers; larger ones become its largest.
    """
    first, second = batch.prediction.first.points, batch.prediction.second.points
    most = torch.finfo(dtype).max
    maps = [
        each.clamp(-most, most).to("cpu", dtype)
        for each in (first.value, second.value, first.confidence, second.confidence)
    ]
    for row, index in enumerate(batch.indices):
        points1, points2, confidence1, confidence2 = (
            each[row].clone(memory_format=torch.contiguous_format) for each in maps
        )
        yield index, (points1, points2, confidence1, confidence2)


def bytes_of_pairs(pairs: Sequence[Sequence[int]], sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> int:
    """Return the bytes of points and confidences of pairs.

    Args:
        pairs: Indices of the two images of each pair.
        sizes: Height and width of each image.
        dtype: Type of the numbers.
    """
    pixels = [height * width for height, width in sizes]
    return _CHANNELS * dtype.itemsize * sum(pixels[first] + pixels[second] for first, second in pairs)


def run_pairs(
    model: PairModel,
    images: Sequence[Tensor] | Tensor,
    pairs: Int[Tensor, "e 2"],
    *,
    store: PairStore | None = None,
    options: PairOptions | None = None,
) -> PairMaps:
    """Return the point maps of the pairs of a scene, which alignment puts together.

    Every image is encoded once, whatever the number of its pairs; its tokens stay on the model's device. Beyond these
    and one batch, memory holds only what the store keeps. With a store that outlives the process, a run that was killed
    goes on after the last batch that was written.

    Args:
        model: Model that sees pairs, such as `DUSt3R`, in evaluation mode.
        images: Images in [0, 1] of the scene, S tensors (3, H, W) whose sizes may differ, or (S, 3, H, W).
        pairs: Indices of the two images of each pair, from `choose_pairs` or others that connect all images.
        store: Place where the maps are kept; defaults to `PairMemory()`, half precision in memory.
        options: Options of the run: batch, precision, progress.

    Returns:
        Maps of all pairs, in their order.

    Raises:
        ValueError: For images of other shapes, pairs that don't connect all images (the message names them), maps that
            don't fit into memory (it says how many would), a `PairMemory` of another model, other images or pairs, or
            options that are out of range.
    """
    images = _check_images(images)
    check_shape("pairs", pairs, ("E", 2))
    wanted = [(int(first), int(second)) for first, second in pairs]
    check_graph(wanted, len(images))
    if len(set(wanted)) < len(wanted):
        twice = next(pair for index, pair in enumerate(wanted) if pair in wanted[:index])
        raise ValueError(f"pairs must be different ones, got {twice} twice")
    store = PairMemory() if store is None else store
    if isinstance(store, PairMemory):
        store.require_same(model, images, wanted)
    done = store.stored()
    left = [index for index in range(len(wanted)) if index not in done]
    if isinstance(store, PairMemory):
        sizes, new = [_size(image) for image in images], [wanted[index] for index in left]
        check_pair_memory(bytes_of_pairs(new, sizes, store.dtype), len(new), len(images))
    for batch in predict_pairs(model, images, wanted, left, options):
        with torch.inference_mode(False), torch.no_grad():
            store.write(batch)
    return store.read(pairs)


def predict_pairs(
    model: PairModel,
    images: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    indices: Iterable[int] | None = None,
    options: PairOptions | None = None,
) -> Iterator[PairBatch]:
    """Yield what a model predicts for pairs of images, batch by batch; for what more than points is read.

    Args:
        model: Model that sees pairs, as for `run_pairs`.
        images: Images in [0, 1], S tensors (3, H, W).
        pairs: Indices of the two images of each pair.
        indices: Indices of the pairs that are run; defaults to all.
        options: Options of the run, as for `run_pairs`.

    Raises:
        ValueError: For options that are out of range.
    """
    parameter, options = next(model.parameters()), options or PairOptions()
    _check_options(options, parameter.dtype)
    left = list(range(len(pairs)) if indices is None else indices)
    seen = sorted({image for index in left for image in pairs[index]})
    report = options.progress or (lambda share: None)
    total = len(seen) + 2 * len(left)  # an encoder has about half as many operations as the rest has for a pair
    tokens: dict[int, Tokens] = {}
    for batch in _batches(seen, lambda image: (_size(images[image]),), options, parameter):
        stacked = torch.stack([images[image] for image in batch])
        with _running(parameter, options.dtype):
            encoded = model.encode(stacked.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32)))
            tokens |= {image: _rows(encoded, slice(row, row + 1)) for row, image in enumerate(batch)}
        report(len(batch) / total)
    for batch in _batches(left, lambda index: tuple(_size(images[i]) for i in pairs[index]), options, parameter):
        with _running(parameter, options.dtype):
            first, second = (_cat([tokens[pairs[index][side]] for index in batch]) for side in (0, 1))
            prediction = model.decode(first, second)
        yield PairBatch(batch, prediction)
        report(2 * len(batch) / total)


def _check_options(options: PairOptions, dtype: torch.dtype) -> None:
    if options.batch_size is not None:
        check_count("batch_size", options.batch_size)
    if options.dtype not in (None, dtype) and not (dtype == torch.float32 and options.dtype in HALVES):
        raise ValueError(f"dtype must be the model's own {dtype}, or half of a float32 model, got {options.dtype}")


@contextmanager
def _running(parameter: Tensor, dtype: torch.dtype | None) -> Iterator[None]:
    """Without gradients, and in the precision that is asked for."""
    # Not in inference mode, whoever calls: its tensors could not be used where gradients are recorded.
    with torch.inference_mode(False), torch.no_grad(), run_precision(parameter, dtype):
        yield


def _batches(
    items: Sequence[int], sizes: Callable[[int], tuple[tuple[int, int], ...]], options: PairOptions, parameter: Tensor
) -> Iterator[list[int]]:
    """Yield items whose images have the same sizes, in batches."""
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for item in items:
        groups.setdefault(sizes(item), []).append(item)
    for size, group in groups.items():
        count = options.batch_size
        if count is None:
            pixels = sum(height * width for height, width in size)
            count = 1 if parameter.device.type == "cpu" else max(1, _BATCH_PIXELS // pixels)
        for start in range(0, len(group), count):
            yield group[start : start + count]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _rows(tokens: Tokens, rows: slice) -> Tokens:
    """Return the tokens of some of the scenes; a copy, so that the others can be let go."""
    return tokens._replace(layers={index: layer[rows].clone() for index, layer in tokens.layers.items()})


def _cat(parts: Sequence[Tokens]) -> Tokens:
    """Return the tokens of several scenes of one size as a batch."""
    layers = {index: torch.cat([part.layers[index] for part in parts]) for index in parts[0].layers}
    return parts[0]._replace(layers=layers)


def _check_images(images: Sequence[Tensor] | Tensor) -> list[Tensor]:
    images = list(images)
    check_count("number of images", len(images))
    for index, image in enumerate(images):
        check_shape(f"images[{index}]", image, (3, "H", "W"))
        check_floating(f"images[{index}]", image)
    return images


def check_pair_memory(needed: int, num_pairs: int, num_images: int, device: torch.device | None = None) -> None:
    """Refuse pairs whose maps don't fit into what is free.

    Args:
        needed: Bytes of all pairs.
        num_pairs: Number of pairs.
        num_images: Number of images that they are of.
        device: Device of the memory; defaults to the host's.

    Raises:
        ValueError: With the number of pairs that would fit, and a graph of so many.
    """
    device = torch.device("cpu") if device is None else device
    free = free_bytes(device)
    if free is not None and needed > free:
        fit = int(free * num_pairs // needed)
        window = fit // (2 * num_images)
        advice = f"'swin-{window}' is a graph that fits" if window else "fewer or smaller images fit"
        raise ValueError(
            f"pairs must fit into memory, got {num_pairs} that need {needed / 2**30:.3g} GiB on {device} where "
            f"{free / 2**30:.3g} GiB are free, enough for {fit}; {advice}"
        )
