from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from data.plane_scenes import plane_scene
from geomtx.data import build_track_labels, check_values, collate_scenes, render_scenes, repeat_batch
from geomtx.data.collate import split_scenes
from geomtx.types import SceneBatch


def full_scene(num_views: int = 3) -> SceneBatch:
    scene = plane_scene(num_views)
    tracks = build_track_labels(scene.depth, scene.cameras, num_tracks=400, neg_ratio=0.1)
    camera_mask = torch.rand(1, num_views) < 0.7
    mask = torch.rand(scene.depth.shape) < 0.5
    points = torch.rand(*scene.depth.shape, 3).double()
    queries = torch.randint(num_views, (1, 400))
    return scene._replace(camera_mask=camera_mask, mask=mask, tracks=tracks, points=points, query_views=queries)


def test_scenes_are_put_together_along_the_first_axis() -> None:
    scenes = [full_scene() for _ in range(3)]
    batch = collate_scenes(scenes)
    assert len(batch.images) == 3
    for index, scene in enumerate(scenes):
        for one, other in zip(tree_leaves(batch), tree_leaves(scene), strict=True):
            torch.testing.assert_close(one[index : index + 1], other, rtol=0, atol=0)


def test_what_nobody_knows_stays_none() -> None:
    scenes = [SceneBatch(torch.rand(1, 2, 3, 4, 4)) for _ in range(2)]
    assert collate_scenes(scenes)[1:] == (None,) * 7
    scenes = [plane_scene()._replace(mask=None) for _ in range(2)]
    batch = collate_scenes(scenes)
    assert batch.mask is None
    assert batch.camera_mask is None


def test_what_only_some_know_is_masked() -> None:
    full = full_scene()
    bare = SceneBatch(torch.rand(2, 3, 3, 32, 40).double())  # itself two scenes
    for order in ([full, bare], [bare, full]):
        batch = collate_scenes(order)
        check_values(batch._replace(mask=None, depth=None, points=None))
        known = 0 if order[0] is full else 2
        others = [index for index in range(3) if index != known]
        assert torch.equal(batch.mask[known], full.mask[0])
        assert torch.equal(batch.camera_mask[known], full.camera_mask[0])
        assert not batch.mask[others].any()
        assert not batch.camera_mask[others].any()
        assert not batch.tracks.valid[others].any()
        assert all(leaf.isfinite().all() for leaf in tree_leaves(batch))
        torch.testing.assert_close(batch.depth[known], full.depth[0])


def test_masks_come_about_where_only_some_have_depth() -> None:
    deep = plane_scene()._replace(mask=None)
    depth = deep.depth.clone()
    depth[..., :5] = 0
    bare = deep._replace(depth=None, cameras=None)
    batch = collate_scenes([deep._replace(depth=depth), bare])
    assert torch.equal(batch.mask, torch.cat([depth > 0, torch.zeros_like(depth, dtype=torch.bool)]))
    assert batch.camera_mask.tolist() == [[True] * 3, [False] * 3]
    points = deep._replace(depth=None, points=torch.rand(1, 3, 32, 40, 3).double())
    assert collate_scenes([points, bare]).mask.flatten(1).all(1).tolist() == [True, False]


@pytest.mark.parametrize("other", [(1, 4, 3, 32, 40), (1, 3, 3, 32, 32)])
def test_other_shapes(other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^scenes must have images of one shape, got \(.*\) beside \(3, 3, 32, 40\)$"):
        collate_scenes([plane_scene(), SceneBatch(torch.rand(other))])


def test_no_scenes() -> None:
    with pytest.raises(ValueError, match=r"^scenes must hold at least one, got none$"):
        collate_scenes([])


def test_repeated_batch() -> None:
    scene = full_scene()
    twice = repeat_batch(scene)
    for both, once in zip(tree_leaves(twice[:-2]), tree_leaves(scene[:-2]), strict=True):
        torch.testing.assert_close(both[:1], once, rtol=0, atol=0)
        torch.testing.assert_close(both[1:], once.flip(1), rtol=0, atol=0)
    assert torch.equal(twice.query_views, torch.cat([scene.query_views, 2 - scene.query_views]))
    assert torch.equal(twice.tracks.valid[1:], scene.tracks.valid)  # their queries need not be in the reference


def test_tracks_of_a_repeated_batch_begin_in_its_reference() -> None:
    scene = full_scene()._replace(query_views=None)
    tracks = scene.tracks
    assert (tracks.valid[0] & ~tracks.visible[0, -1]).any(), "some end before the last view"
    twice = repeat_batch(scene).tracks
    for both, once in zip(twice, tracks, strict=True):
        torch.testing.assert_close(both[:1], once, rtol=0, atol=0)
    torch.testing.assert_close(twice.coords_px[1], tracks.coords_px[0].flip(0))
    torch.testing.assert_close(twice.valid[1], tracks.valid[0] & tracks.visible[0, -1])
    assert twice.visible[1][0, twice.valid[1]].all()
    assert not twice.visible[1][:, ~twice.valid[1]].any()
    torch.testing.assert_close(twice.visible[1][:, twice.valid[1]], tracks.visible[0].flip(0)[:, twice.valid[1]])


def test_repeated_batch_of_images_only() -> None:
    twice = repeat_batch(SceneBatch(torch.rand(2, 3, 3, 4, 4)))
    assert len(twice.images) == 4
    assert twice[1:] == (None,) * 7


def test_scenes_of_a_batch_are_put_together_again():
    batch = render_scenes([1, 2, 3], 2, (8, 12), num_tracks=4)
    scenes = split_scenes(batch)
    assert [len(scene.images) for scene in scenes] == [1, 1, 1]
    again = collate_scenes(scenes)
    assert torch.equal(again.images, batch.images)
    assert torch.equal(again.cameras.cam_from_world, batch.cameras.cam_from_world)
    assert torch.equal(again.tracks.visible, batch.tracks.visible)
    assert again.camera_mask is None
