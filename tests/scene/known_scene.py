"""A model that knows the truth of a rendered room, with the interface of `geomtx.VGGT`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import geomtx
from geomtx.data.synthetic.photos import save_photos
from geomtx.data.synthetic.render import render_scenes
from geomtx.geometry import normalize_scene, project, unproject
from geomtx.types import Cameras, DenseMap, Predictions, SceneBatch, Tracks

IMAGE_HW = (84, 112)


def render_room(num_views: int, image_hw: tuple[int, int]) -> SceneBatch:
    """A room in the first camera's frame, in metres."""
    room, _ = normalize_scene(render_scenes([2], num_views, image_hw, dtype=torch.float64), by_points=False)
    return tree_map_only(Tensor, lambda part: part.float() if part.is_floating_point() else part, room)


class KnownScene(nn.Module):
    """Answers with the truth, for images that have the size of the rendered views; records what it was asked."""

    def __init__(self, rendered: SceneBatch, heads: tuple[str, ...] = ("camera", "depth", "points", "tracks")) -> None:
        super().__init__()
        self.heads = heads
        self.config = SimpleNamespace(patch_size=14)
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.rendered = rendered
        self.calls: list[dict[str, Any]] = []
        self.eval()  # dropout in training mode would be refused

    def forward(
        self,
        images: Tensor,
        query_points: Tensor | None = None,
        patch_mask: Tensor | None = None,
        *,
        heads: tuple[str, ...] | None = None,
    ) -> Predictions:
        self.calls.append(
            {
                "training": self.training,
                "patch_mask": patch_mask,
                "heads": heads,
                "query_points": query_points,
                "grad": torch.is_grad_enabled(),
            }
        )
        heads = self.heads if heads is None else heads
        assert self.rendered.cameras is not None
        assert self.rendered.depth is not None
        pose, k = self.rendered.cameras
        depth = self.rendered.depth
        num_views = depth.shape[1]
        confidence = 1 + 8 / depth
        tracks = None
        if query_points is not None:
            points = unproject(depth, k, pose)[0]
            view, x, y = query_points[0].round().long().unbind(-1)
            coords, _ = project(points[view, y, x].expand(1, num_views, -1, -1), k, pose)
            tracks = Tracks(coords, torch.full(coords.shape[:-1], 0.9), torch.full(coords.shape[:-1], 0.8))
        return Predictions(
            cameras=Cameras(pose, k) if "camera" in heads else None,
            pose_encodings=torch.randn(2, 1, num_views, 9) if "camera" in heads else None,
            depth=DenseMap(depth, confidence) if "depth" in heads else None,
            points=DenseMap(unproject(depth, k, pose), confidence) if "points" in heads else None,
            tracks=tracks,
        )


def known_scene(folder: Path, num_views: int = 4, **options: Any) -> geomtx.Scene:
    """The scene of a rendered room; its photos are in `folder`."""
    rendered = render_room(num_views, IMAGE_HW)
    views = geomtx.load_views(save_photos(rendered.images[0], folder), size=IMAGE_HW[1])
    return geomtx.reconstruct(KnownScene(rendered), views, **options)


def refined(scene: geomtx.Scene) -> geomtx.Scene:
    """The scene as after a refinement that moved all cameras by half a unit."""
    pose, intrinsics = scene.predictions.cameras
    moved = torch.cat([pose[..., :3], pose[..., 3:] + 0.5], dim=-1)
    return dataclasses.replace(scene, refined=True, first_cameras=Cameras(moved, intrinsics))


def without(scene: geomtx.Scene, *names: str) -> geomtx.Scene:
    return dataclasses.replace(scene, predictions=scene.predictions._replace(**dict.fromkeys(names)))
