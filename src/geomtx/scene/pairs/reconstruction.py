"""A scene from a model that sees it as pairs: the model's views, its pairs, and their alignment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from geomtx.files import PathLike
from geomtx.geometry.camera_fit import fit_focal
from geomtx.inference.pair_graphs import check_graph, choose_pairs, default_graph
from geomtx.inference.pair_maps import PairMaps, PairModel
from geomtx.inference.pairs import PairMemory, PairOptions, bytes_of_pairs, check_pair_memory, run_pairs
from geomtx.scene.checks import warn_of_nonfinite, warn_of_size
from geomtx.scene.pairs.global_alignment import AlignmentOptions, KnownOfImages, PairAlignment, align_pairs
from geomtx.scene.pairs.pair_folder import PairFolder
from geomtx.scene.pairs.two_views import intrinsics_of
from geomtx.scene.reference_view import move_to_first_camera
from geomtx.scene.run_record import describe_run, progress_bar
from geomtx.scene.scene import Scene
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views.for_model import load_for_model
from geomtx.views.loading import preferred_mode
from geomtx.views.views import Views

__all__ = ["check_pairs_of_views", "reconstruct_pairs", "unpad_images"]

_Box = tuple[int, int, int, int]  # top, bottom, left, right


def reconstruct_pairs(
    model: PairModel,
    views: Views | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    graph: str | Tensor = "auto",
    folder: PathLike | None = None,
    alignment: AlignmentOptions | None = None,
    options: PairOptions | None = None,
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
        alignment: Options of the alignment of pairs, see `AlignmentOptions`.
        options: Options of the run; its `progress` is not called.
        progress: Whether to show a progress bar on stderr while the model runs.

    Returns:
        The scene on the CPU, up to scale, in the first camera's frame: cameras and depth, whose confidence is the
        largest of a pixel's pairs.

    Raises:
        ValueError: For a model that sees all views at once, pairs whose maps don't fit into memory, and as `run_pairs`,
            `PairFolder` and `align_pairs`.
    """
    if not isinstance(model, PairModel):
        raise ValueError(f"model must be one that sees pairs, such as a DUSt3R, got a {type(model).__name__}")
    config, device = model.config, next(model.parameters()).device
    views = load_for_model(views, config.patch_size, getattr(config, "image_size", None), preferred_mode(config))
    warn_of_size(config, views.image_hw)
    images, boxes = unpad_images(views, config.patch_size)
    graph, pairs = _choose_graph(views, graph)
    _check_memory(pairs, images, device, on_disk=folder is not None)
    store = PairMemory() if folder is None else PairFolder(folder, model, images, pairs)
    with progress_bar(shown=progress, title="pairs") as advance:
        how = (options or PairOptions())._replace(progress=advance)
        maps = run_pairs(model, images, pairs, store=store, options=how)
    if len(views) == 1:
        found = _place_one(maps)
    else:
        masks = [mask[t:b, left:right].cpu() for mask, (t, b, left, right) in zip(views.masks, boxes, strict=True)]
        known = KnownOfImages(masks=None if all(bool(mask.all()) for mask in masks) else masks)
        found = align_pairs(maps, len(views), alignment or AlignmentOptions(), known=known, device=device)
    scene = Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images.clamp(0, 1) * 255).round().to(torch.uint8).cpu(),
        masks=views.masks.cpu(),
        predictions=_to_predictions(found, boxes, views.image_hw),
        units="up to scale",
        paths=views.paths,
        times=views.times,
        provenance=describe_run(model, views, pairs=f"{len(pairs)}, {graph}" if graph else len(pairs)),
    )
    warn_of_nonfinite(scene)
    return move_to_first_camera(scene, "the first camera of the best pair")


def check_pairs_of_views(
    views: Views, config: Any, device: torch.device, *, graph: str | Tensor = "auto", folder: PathLike | None = None
) -> None:
    """Require pairs that exist and fit into memory, before a model is loaded.

    Args:
        views: Views of the scene.
        config: Configuration of the model.
        device: Device that it will run on.
        graph: Graph of pairs, as for `reconstruct_pairs`.
        folder: Folder of the point maps, as for `reconstruct_pairs`.

    Raises:
        ValueError: Otherwise.
    """
    _, pairs = _choose_graph(views, graph)
    _check_memory(pairs, unpad_images(views, config.patch_size)[0], device, on_disk=folder is not None)


def _choose_graph(views: Views, graph: str | Tensor) -> tuple[str, Tensor]:
    """Return the name of the graph, "" where there is none, and its pairs."""
    if isinstance(graph, Tensor):
        return "", graph
    name = default_graph(len(views), is_video=bool(views.times)) if graph == "auto" else graph
    return name, choose_pairs(len(views), name)


def _check_memory(pairs: Tensor, images: Sequence[Tensor], device: torch.device, *, on_disk: bool) -> None:
    """Require room for the maps as they are kept, and as alignment reads them."""
    wanted, sizes = pairs.tolist(), [(image.shape[-2], image.shape[-1]) for image in images]
    check_graph(wanted, len(images))
    kept = 0 if on_disk else bytes_of_pairs(wanted, sizes, torch.float16)
    read = bytes_of_pairs(wanted, sizes, torch.float32)
    if device.type == "cpu":
        check_pair_memory(kept + read, len(wanted), len(images))
        return
    check_pair_memory(kept, len(wanted), len(images))
    check_pair_memory(read, len(wanted), len(images), device)


def unpad_images(views: Views, patch_size: int) -> tuple[list[Tensor], list[_Box]]:
    """Return the images of views without the padding that brings them to one size, and where in these they lie.

    Args:
        views: Views of a scene.
        patch_size: Side of a patch in pixels; an image that would not be whole patches keeps its padding.

    Returns:
        Images (3, H, W), and top, bottom, left and right of each, in pixels.
    """
    images, boxes = [], []
    for image, transform in zip(views.images, views.transforms, strict=True):
        rows, columns = (transform.mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
        box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        if (box[1] - box[0]) % patch_size or (box[3] - box[2]) % patch_size:
            box = (0, image.shape[-2], 0, image.shape[-1])
        images.append(image[:, box[0] : box[1], box[2] : box[3]])
        boxes.append(box)
    return images, boxes


def _place_one(maps: PairMaps) -> PairAlignment:
    """Return the camera and the depth of a single image, from the pair of it with itself."""
    points, confidence = (each.float() for each in maps.side(0, 0))
    focal = fit_focal(points)[None]
    intrinsics = intrinsics_of(focal, focal.new_zeros(1, 2), [points.shape[:2]])
    cameras = Cameras(torch.eye(3, 4)[None], intrinsics)
    return PairAlignment(cameras, (points[..., 2],), (confidence,), points.new_zeros(0), 0)


def _to_predictions(found: PairAlignment, boxes: Sequence[_Box], image_hw: tuple[int, int]) -> Predictions:
    """Return cameras and depth in pixels of the padded images; depth and confidence are 0 in the padding."""
    depth, confidence = torch.zeros(2, len(boxes), *image_hw)
    intrinsics = found.cameras.intrinsics.float().cpu().clone()
    for index, (top, bottom, left, right) in enumerate(boxes):
        depth[index, top:bottom, left:right] = found.depth[index]
        confidence[index, top:bottom, left:right] = found.confidence[index]
        intrinsics[index, :2, 2] += intrinsics.new_tensor([left, top])
    cameras = Cameras(found.cameras.cam_from_world.float().cpu(), intrinsics)
    return Predictions(cameras=cameras, depth=DenseMap(depth, confidence))
