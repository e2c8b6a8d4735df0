from __future__ import annotations

from typing import Any

import pytest
import torch

import geomtx
from geomtx.scene import WindowPlan
from geomtx.types import Cameras, SceneBatch
from scene.known_scene import IMAGE_HW, KnownScene, render_room


class KnownByContent(KnownScene):
    """Knows the views by their images, in any order, and answers in the frame of the first that it gets."""

    def forward(self, images: torch.Tensor, **options: Any) -> geomtx.Predictions:
        whole: SceneBatch = self.rendered
        order = [int((whole.images[0] - image).abs().mean((1, 2, 3)).argmin()) for image in images[0].cpu()]
        self.orders = [*getattr(self, "orders", []), order]
        cameras, depth = whole.cameras, whole.depth[:, order]
        poses = cameras.cam_from_world[:, order]
        first = geomtx.invert_rigid(poses[:, :1]).expand_as(poses)
        moved = geomtx.geometry.compose_rigid(poses, first)
        self.rendered = whole._replace(
            images=images, cameras=Cameras(moved, cameras.intrinsics[:, order]), depth=depth, points=None
        )
        try:
            return super().forward(images, **options)
        finally:
            self.rendered = whole


@pytest.fixture(scope="module")
def room() -> SceneBatch:
    return render_room(4, IMAGE_HW)


@pytest.mark.parametrize("reference", ["middle", 1, 3, "shared"])
def test_results_are_in_the_order_of_the_photos_whatever_comes_first(room: SceneBatch, reference: str | int) -> None:
    queries = [(0, 30, 40), (2, 60.0, 50.0)]
    want = geomtx.reconstruct(KnownByContent(room), room.images[0], query_points=queries)
    model = KnownByContent(room)
    got = geomtx.reconstruct(model, room.images[0], query_points=queries, reference=reference)
    first = {"middle": 1, "shared": model.orders[-1][0]}.get(reference, reference)
    assert model.orders[-1][0] == first
    assert sorted(model.orders[-1][1:]) == model.orders[-1][1:]
    assert len(model.orders) == (2 if reference == "shared" and first != 0 else 1)
    assert (got.names, got.world) == (want.names, want.world)
    torch.testing.assert_close(got.cameras, want.cameras, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.predictions.depth, want.predictions.depth, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.predictions.points.value, want.predictions.points.value, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(got.tracks, want.tracks, atol=1e-2, rtol=1e-3)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.query_points, want.query_points)
    if first != 0:
        assert got.provenance["reference"] == got.names[first]


def test_the_view_that_shares_most_is_asked_for_in_a_second_pass(room: SceneBatch) -> None:
    """The middle one of three that look past one another."""
    k = room.cameras.intrinsics
    turns = []
    for angle in (-0.7, 0.0, 0.7):  # about y
        c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
        turns.append(torch.stack([torch.stack([c, c * 0, s]), torch.tensor([0.0, 1, 0]), torch.stack([-s, c * 0, c])]))
    apart = torch.cat([torch.stack(turns), torch.zeros(3, 3, 1)], dim=-1)[None]
    depth = torch.full((1, 3, *IMAGE_HW), 2.0)
    # Points on a sphere around all three: their depth is the same function of the pixel in each.
    x, y = torch.meshgrid(torch.arange(IMAGE_HW[1]), torch.arange(IMAGE_HW[0]), indexing="xy")
    ray = torch.stack([(x - k[0, 0, 0, 2]) / k[0, 0, 0, 0], (y - k[0, 0, 1, 2]) / k[0, 0, 1, 1]])
    depth = depth / (1 + ray.square().sum(0)).sqrt()
    scene = SceneBatch(room.images[:, :3], Cameras(apart, k[:, :1].expand(1, 3, 3, 3)), depth=depth)
    model = KnownByContent(scene)
    got = geomtx.reconstruct(model, scene.images[0], heads=("camera", "depth"), reference="shared")
    assert [order[0] for order in model.orders] == [0, 1]
    assert got.provenance["reference"] == "view_001.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 4}, "reference must be in 0 … 3, got 4"),
        ({"reference": "last"}, "reference must be one of 'first', 'middle', 'shared', got 'last'"),
        ({"reference": "shared", "heads": ("camera",)}, "heads must hold camera and depth to find what views share"),
        ({"reference": 1, "window": WindowPlan(2, 1)}, "reference must be 'first' with a window, .* got 1"),
        ({"reference": 1, "query_points": [(4, 1, 1)]}, r"query 0 \(4, 1, 1\) must name a view from 0 to 3"),
    ],
)
def test_a_reference_is_checked(room: SceneBatch, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(KnownByContent(room), room.images[0], **options)


def test_without_cameras_the_world_is_the_references(room: SceneBatch) -> None:
    got = geomtx.reconstruct(KnownByContent(room), room.images[0], heads=("points",), reference=2)
    assert got.world == "the camera of view_002.png, as the model predicts it"
