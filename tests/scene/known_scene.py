"""A model that knows the truth of a rendered room, with the interface of `geomtx.VGGT`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import geomtx
from geomtx.cli.demo_scene import RenderedView, render_room, save_photos
from geomtx.geometry import project, unproject
from geomtx.types import Cameras, DenseMap, Predictions, Tracks

IMAGE_HW = (84, 112)


class KnownScene(nn.Module):
    """Answers with the truth, for images that have the size of the rendered views; records what it was asked."""

    def __init__(
        self, rendered: tuple[RenderedView, ...], heads: tuple[str, ...] = ("camera", "depth", "points", "tracks")
    ) -> None:
        super().__init__()
        self.heads = heads
        self.config = SimpleNamespace(patch_size=14)
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.rendered = rendered
        self.calls: list[dict[str, Any]] = []

    def forward(
        self,
        images: Tensor,
        query_points: Tensor | None = None,
        patch_mask: Tensor | None = None,
        *,
        heads: tuple[str, ...] | None = None,
        view_chunk: int | None = None,
    ) -> Predictions:
        self.calls.append(
            {
                "training": self.training,
                "patch_mask": patch_mask,
                "heads": heads,
                "view_chunk": view_chunk,
                "query_points": query_points,
                "grad": torch.is_grad_enabled(),
            }
        )
        heads = self.heads if heads is None else heads
        depth, k, pose = (
            torch.stack([torch.from_numpy(getattr(view, name)).float() for view in self.rendered])[None]
            for name in ("depth", "intrinsics", "cam_from_world")
        )
        confidence = 1 + 8 / depth
        tracks = None
        if query_points is not None:
            points = unproject(depth, k, pose)[0]
            view, x, y = query_points[0].round().long().unbind(-1)
            coords, _ = project(points[view, y, x].expand(1, len(self.rendered), -1, -1), k, pose)
            tracks = Tracks(coords, torch.full(coords.shape[:-1], 0.9), torch.full(coords.shape[:-1], 0.8))
        return Predictions(
            cameras=Cameras(pose, k) if "camera" in heads else None,
            pose_encodings=torch.randn(2, 1, len(self.rendered), 9) if "camera" in heads else None,
            depth=DenseMap(depth, confidence) if "depth" in heads else None,
            points=DenseMap(unproject(depth, k, pose), confidence) if "points" in heads else None,
            tracks=tracks,
        )


def known_scene(folder: Path, num_views: int = 4, **options: Any) -> geomtx.Scene:
    """The scene of a rendered room; its photos are in `folder`."""
    rendered = render_room(num_views, IMAGE_HW)
    views = geomtx.load_views(save_photos(rendered, folder), size=IMAGE_HW[1])
    return geomtx.reconstruct(KnownScene(rendered), views, **options)
