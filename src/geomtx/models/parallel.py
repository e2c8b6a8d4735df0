"""One scene in several processes, each with some of its views; without gradients.

What looks at one view is local: backbone, frame blocks, dense heads. Global blocks exchange queries, keys and values
(`geomtx.layers.exchange`), the camera head gets the camera tokens of all views, the tracker their feature maps.

What is shared is lent to the modules for a call (`attend`, `first_view`, hooks), not passed: on its way to attention it
would be an argument of the model, the encoder whole and in pieces, chunks, blocks and attention, and of every head, all
of which run for a single process, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomtx.checks import check_mask
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.patches import grid_of
from geomtx.heads.camera import CameraHead
from geomtx.heads.dense import DenseHead
from geomtx.heads.rgb import RGBHead
from geomtx.heads.track import TrackHead
from geomtx.layers.attention import Attention, key_mask
from geomtx.layers.exchange import SharedAttention, Shares
from geomtx.models.config import HEADS
from geomtx.models.extra_heads import head_modules
from geomtx.models.memory import MemoryPlan
from geomtx.models.vggt import VGGT
from geomtx.types import (
    Bool,
    CameraPrediction,
    Cameras,
    DenseMap,
    Float,
    Predictions,
    Tokens,
    TrackIterations,
    TrackPrediction,
    Tracks,
)

__all__ = ["deal_out", "predict_parallel", "share_encoder"]


def predict_parallel(
    model: VGGT,
    images: Float[Tensor, "*batch s 3 h w"],
    query_points: Tensor | None = None,
    patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
    *,
    heads: tuple[str, ...] | None = None,
    view_chunk: int | None = None,
    memory_plan: MemoryPlan | None = None,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> Predictions:
    """What `model(images, …)` gives, but for rounding, worked on by all processes of a group; without gradients.

    Every process calls it with the same arguments and the same weights. Views are dealt out in contiguous pieces whose
    numbers differ by one at most; a process brings only its own to its model's device. Cameras and tracks are worked
    out from what is exchanged, by every process for all views. Not to be called from two threads with one model.

    Args:
        model: On a device that the group's backend serves.
        images: All views, as for `VGGT.forward`, on any device.
        query_points: As for `VGGT.forward`.
        patch_mask: Of all views, as for `VGGT.forward`.
        heads: As for `VGGT.forward`.
        view_chunk: As for `VGGT.forward`, of a process's views.
        memory_plan: As for `VGGT.forward`, of a process's views; but all tokens' keys and values, of one block at a
            time, are in every process.
        group: None = all processes.
        gather: True = every process gets the predictions of all views; False = those of its own, see `deal_out`.

    Raises:
        ValueError: As `VGGT.forward`; for fewer views than processes, arguments that are not the same in every process,
            a group without this process, the scope "cross".
        RuntimeError: Where gradients are recorded, or no process group is there.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("gradients don't flow between processes; use torch.no_grad()")
    images, query_points, patch_mask, heads = model._to_batch(images, query_points, patch_mask, heads)
    modules = {name: head for name, head in head_modules(model).items() if name in heads}
    for name, head in modules.items():
        if not isinstance(head, CameraHead | DenseHead | RGBHead | TrackHead):
            raise ValueError(f"heads must be of geomtx's classes in parallel, got {type(head).__name__} for {name!r}")
    device = next(model.parameters()).device
    numbers = _numbers_of(images, query_points, heads, dict.fromkeys((*HEADS, *model.extra_heads)))
    numbers |= {"bits of a parameter": torch.finfo(next(model.parameters()).dtype).bits}
    numbers |= {"patch_mask": patch_mask is not None, "memory_plan": memory_plan is not None, "gather": gather}
    _check_same(numbers, device, group)
    shares = deal_out(images.shape[1], group)
    image_hw = (images.shape[-2], images.shape[-1])
    token_mask = None
    if patch_mask is not None:
        grid_hw = grid_of(image_hw, model.encoder.backbone.patch_size)
        check_mask("patch_mask", patch_mask, (*images.shape[:2], *grid_hw))
        patch_mask = patch_mask.to(device)
        token_mask = model.encoder.token_mask(patch_mask.flatten(2))
        patch_mask = patch_mask[:, shares.here]
    images = images[:, shares.here]
    if memory_plan is None:
        images = images.to(device)
    if query_points is not None:
        query_points = query_points.to(device)
    encoder = share_encoder(model.encoder, shares, image_hw, token_mask=token_mask)
    with encoder, _share_heads(modules.values(), shares, token_mask):
        predictions = model._predict(images, query_points, patch_mask, heads, view_chunk, memory_plan)
    return _gather_maps(predictions, shares, device) if gather else _cut(predictions, shares.here)


def deal_out(num_views: int, group: dist.ProcessGroup | None = None) -> Shares:
    """Contiguous pieces of a scene's views, the larger ones first; `deal_out(S).here` is the slice of this process.

    Args:
        num_views: S.
        group: Of the processes; None = all.

    Raises:
        ValueError: For fewer views than processes, or a group without this process.
        RuntimeError: Without a process group.
    """
    rank, num = _place_in(group)
    if num_views < num:
        raise ValueError(f"number of views must be at least that of processes, {num}, got {num_views}")
    return Shares(tuple(num_views // num + (i < num_views % num) for i in range(num)), rank, group)


@contextmanager
def share_encoder(
    encoder: AlternatingEncoder,
    shares: Shares,
    image_hw: tuple[int, int],
    *,
    token_mask: Bool[Tensor, "b s p"] | None = None,
) -> Iterator[None]:
    """Within the block, `encoder(images[:, shares.here])` gives this process's views as part of the whole scene.

    Args:
        encoder: Whose global blocks have an `attention`, an `Attention`.
        shares: Of the views, see `deal_out`.
        image_hw: Of the images.
        token_mask: Of all views, see `AlternatingEncoder.token_mask`; None = all take part. The encoder needs the
            `patch_mask` of its own views besides.

    Raises:
        ValueError: For the scope "cross", or other blocks.
    """
    if any("cross" in layer for layer in encoder.order):
        raise ValueError("order must be without the scope 'cross' to be shared by processes, got one with it")
    attentions = list(dict.fromkeys(map(_attention_of, encoder.global_blocks)))
    rows, columns = grid_of(image_hw, encoder.backbone.patch_size)
    of_tokens = shares.times(rows * columns + encoder.special.num_tokens)
    mask = None if token_mask is None else key_mask(token_mask.flatten(1, 2))
    alone = [attention.attend for attention in attentions]
    try:
        encoder.special.first_view = shares.start
        for attention, attend in zip(attentions, alone, strict=True):
            attention.attend = SharedAttention(attend, of_tokens, mask)
        yield
    finally:
        encoder.special.first_view = 0
        for attention, attend in zip(attentions, alone, strict=True):
            attention.attend = attend


def _attention_of(block: nn.Module) -> Attention:
    attention = getattr(block, "attention", None)
    if not isinstance(attention, Attention):
        raise ValueError(f"global_blocks must have an Attention to be shared by processes, got {type(block).__name__}")
    return attention


@contextmanager
def _share_heads(heads: Iterable[nn.Module], shares: Shares, token_mask: Tensor | None) -> Iterator[None]:
    """Within the block, camera heads and trackers get what all processes made of their views."""

    def gather_tokens(head: nn.Module, args: tuple[Tokens]) -> tuple[Tokens]:
        assert isinstance(head, CameraHead)
        (tokens,) = args
        index = max(tokens.layers) if head.layer is None else head.layer
        camera = shares.gather(tokens.layer(index)[:, :, :1], dim=1)
        mask = None if token_mask is None else token_mask[:, :, :1]
        return (Tokens({index: camera}, 1, tokens.image_hw, tokens.grid_hw, mask),)

    def gather_features(_: nn.Module, args: tuple[Tensor, Tensor], options: dict[str, Any]) -> tuple[Any, Any]:
        features, query_points = args
        mask = None if token_mask is None else token_mask[:, :, 0]
        return (shares.gather(features, dim=1), query_points), {**options, "view_mask": mask}

    hooks = []
    for head in heads:
        if isinstance(head, CameraHead):
            hooks.append(head.register_forward_pre_hook(gather_tokens))
        if isinstance(head, TrackHead):
            hooks.append(head.tracker.register_forward_pre_hook(gather_features, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _place_in(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("torch.distributed has no process group; call init_process_group first")
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group must have this process in it, got one without")
    return rank, dist.get_world_size(group)


def _numbers_of(
    images: Tensor, query_points: Tensor | None, heads: tuple[str, ...], known: Iterable[str]
) -> dict[str, int]:
    """What decides which tensors are exchanged."""
    queries = (0, 0) if query_points is None else query_points.shape[1:]
    numbers: dict[str, int] = {f"{axis} of images": size for axis, size in zip("BSCHW", images.shape, strict=True)}
    numbers |= {f"{axis} of query_points": size for axis, size in zip("NC", queries, strict=True)}
    return numbers | {f"head {head!r}": head in heads for head in known}


def _check_same(numbers: dict[str, int], device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Require the same in every process: else they would wait for each other forever."""
    rank, num = _place_in(group)
    mine = torch.tensor([list(numbers.values())], device=device)
    differ = (Shares((1,) * num, rank, group).gather(mine, dim=0) != mine).any(dim=0)
    for (name, number), other in zip(numbers.items(), differ, strict=True):
        if other:
            raise ValueError(f"{name} must be the same in every process, got {number} here and another one elsewhere")


def _gather_maps(predictions: Predictions, shares: Shares, device: torch.device) -> Predictions:
    """Maps of all views; cameras and tracks are complete."""

    def whole(value: Any) -> Any:
        if isinstance(value, Tensor):
            return shares.gather(value, dim=1, device=device)
        return DenseMap(*map(whole, value)) if isinstance(value, DenseMap) else value

    extra = None if predictions.extra is None else {name: whole(value) for name, value in predictions.extra.items()}
    return predictions._replace(depth=whole(predictions.depth), points=whole(predictions.points), extra=extra)


def _cut(predictions: Predictions, here: slice) -> Predictions:
    """Cameras and tracks of some views; depth and points are theirs alone."""
    changes: dict[str, Any] = {}
    if predictions.cameras is not None and predictions.pose_encodings is not None:
        changes |= _cut_cameras(CameraPrediction(predictions.cameras, predictions.pose_encodings), here)._asdict()
    if predictions.tracks is not None and predictions.track_iterations is not None:
        tracks, iterations = _cut_tracks(TrackPrediction(predictions.tracks, predictions.track_iterations), here)
        changes |= {"tracks": tracks, "track_iterations": iterations}
    if predictions.extra is not None:
        changes["extra"] = {name: _cut_extra(value, here) for name, value in predictions.extra.items()}
    return predictions._replace(**changes)


def _cut_extra(value: Any, here: slice) -> Any:
    if isinstance(value, CameraPrediction):
        return _cut_cameras(value, here)
    return _cut_tracks(value, here) if isinstance(value, TrackPrediction) else value


def _cut_cameras(prediction: CameraPrediction, here: slice) -> CameraPrediction:
    cameras, encodings = prediction
    return CameraPrediction(Cameras(*(each[:, here] for each in cameras)), encodings[:, :, here])


def _cut_tracks(prediction: TrackPrediction, here: slice) -> TrackPrediction:
    tracks, (coords, *logits) = prediction
    cut = TrackIterations(coords[:, :, here], *(each[:, here] for each in logits))
    return TrackPrediction(Tracks(*(each[:, here] for each in tracks)), cut)
