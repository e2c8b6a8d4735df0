"""Collation of scenes to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geomtx.geometry.scene_frame import known_pixels
from geomtx.types import Cameras, SceneBatch, TrackLabels

__all__ = ["collate_scenes", "repeat_batch", "split_scenes"]


def collate_scenes(scenes: Sequence[SceneBatch]) -> SceneBatch:
    """Concatenate scenes of equal shape along B; the `collate_fn` of a `DataLoader`.

    If only some scenes have a label, the batch has it for all, with masks that are False for the others.

    Args:
        scenes: Scenes of a dataset, B = 1 each, or batches.

    Raises:
        ValueError: If there are none, or if numbers of views or sizes of images differ.
    """
    if not scenes:
        raise ValueError("scenes must hold at least one, got none")
    first = scenes[0].images
    for scene in scenes:
        if scene.images.shape[1:] != first.shape[1:]:
            got = f"{tuple(scene.images.shape[1:])} beside {tuple(first.shape[1:])}"
            raise ValueError(f"scenes must have images of one shape, got {got}")
    flat = [torch.zeros_like(scene.images[:, :, 0]) for scene in scenes]
    no_pixel = [plane.bool() for plane in flat]
    no_view = [plane[..., 0, 0] for plane in no_pixel]
    tracks = _join_tracks(scenes)
    num_tracks = 0 if tracks is None else tracks.valid.shape[1]
    view_zero = [plane.new_zeros(len(plane), num_tracks).long() for plane in flat]
    return SceneBatch(
        torch.cat([scene.images for scene in scenes]),
        _join_cameras(scenes),
        _join_masks([scene.camera_mask for scene in scenes], [_known_cameras(scene) for scene in scenes], no_view),
        _join([scene.depth for scene in scenes], flat),
        _join([scene.points for scene in scenes], [plane[..., None].expand(*plane.shape, 3) for plane in flat]),
        _join_masks([scene.mask for scene in scenes], [_known_pixels(scene) for scene in scenes], no_pixel),
        tracks,
        _join([scene.query_views for scene in scenes], view_zero),
    )


def split_scenes(batch: SceneBatch) -> list[SceneBatch]:
    """Split a batch into its scenes, B = 1 each, as views of its tensors."""
    return [_take_scene(batch, index) for index in range(len(batch.images))]


def _take_scene(value: Any, index: int) -> Any:
    if value is None or isinstance(value, Tensor):
        return None if value is None else value[index : index + 1]
    return type(value)(*(_take_scene(item, index) for item in value))


def repeat_batch(batch: SceneBatch) -> SceneBatch:
    """Append a copy with the views in reverse order, so that the last is the reference (VGGT, released training code).

    Tracks of the copy that are not visible in its reference view become invalid, unless `query_views` has the views of
    their queries.
    """

    def flip(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor, tensor.flip(1)])

    cameras = None if batch.cameras is None else Cameras(*(torch.cat([part, part.flip(1)]) for part in batch.cameras))
    tracks = batch.tracks
    if tracks is not None:
        visible = tracks.visible.flip(1)
        valid = tracks.valid & visible[:, 0] if batch.query_views is None else tracks.valid
        tracks = TrackLabels(
            torch.cat([tracks.coords_px, tracks.coords_px.flip(1)]),
            torch.cat([tracks.visible, visible & valid[:, None]]),
            torch.cat([tracks.valid, valid]),
        )
    queries = batch.query_views
    if queries is not None:
        queries = torch.cat([queries, batch.images.shape[1] - 1 - queries])
    images = torch.cat([batch.images, batch.images.flip(1)])
    camera_mask, depth, points, mask = map(flip, (batch.camera_mask, batch.depth, batch.points, batch.mask))
    return SceneBatch(images, cameras, camera_mask, depth, points, mask, tracks, queries)


def _join(parts: Sequence[Tensor | None], fill: Sequence[Tensor]) -> Tensor | None:
    """Concatenate along B, with `fill` in place of None; None if all parts are None."""
    if all(part is None for part in parts):
        return None
    return torch.cat([other if part is None else part for part, other in zip(parts, fill, strict=True)])


def _join_masks(
    parts: Sequence[Tensor | None], known: Sequence[Tensor | None], empty: Sequence[Tensor]
) -> Tensor | None:
    """Concatenate masks as `_join` does; there is also a mask if only some scenes have the masked label.

    `known` is the mask of a scene that has the label but no mask of its own, None for a scene without the label, whose
    mask is `empty`.
    """
    lacking = [other is None for other in known]
    if all(lacking) or not (any(lacking) or any(part is not None for part in parts)):
        return None
    fill = [nothing if other is None else other for other, nothing in zip(known, empty, strict=True)]
    return torch.cat([other if part is None else part for part, other in zip(parts, fill, strict=True)])


def _known_pixels(scene: SceneBatch) -> Tensor | None:
    """Return where depth or points are known, (B, S, H, W) bool; None without both."""
    return None if scene.depth is None and scene.points is None else known_pixels(scene)


def _known_cameras(scene: SceneBatch) -> Tensor | None:
    """Return a mask (B, S) of ones; None without cameras."""
    if scene.cameras is None:
        return None
    return torch.ones(scene.images.shape[:2], dtype=torch.bool, device=scene.images.device)


def _join_cameras(scenes: Sequence[SceneBatch]) -> Cameras | None:
    if all(scene.cameras is None for scene in scenes):
        return None
    identity = [torch.eye(3, 4).to(scene.images).expand(*scene.images.shape[:2], 3, 4) for scene in scenes]
    poses = _join([scene.cameras and scene.cameras.cam_from_world for scene in scenes], identity)
    intrinsics = _join(
        [scene.cameras and scene.cameras.intrinsics for scene in scenes], [part[..., :3] for part in identity]
    )
    assert poses is not None
    assert intrinsics is not None
    return Cameras(poses, intrinsics)


def _join_tracks(scenes: Sequence[SceneBatch]) -> TrackLabels | None:
    known = next((scene.tracks for scene in scenes if scene.tracks is not None), None)
    if known is None:
        return None
    parts = [scene.tracks or _empty_tracks(scene, known.valid.shape[1]) for scene in scenes]
    return TrackLabels(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _empty_tracks(scene: SceneBatch, num_tracks: int) -> TrackLabels:
    shape = (*scene.images.shape[:2], num_tracks)
    visible = torch.zeros(shape, dtype=torch.bool, device=scene.images.device)
    return TrackLabels(scene.images.new_zeros(*shape, 2), visible, visible[:, 0])
