import pytest
import torch

from geometry.random_cameras import random_rigid
from geomtx.encoder.pose_injection import PoseBlock, PoseTable, pose_table
from geomtx.geometry import compose_rigid
from geomtx.inference.attention import KeysFirst
from geomtx.layers.attention import key_mask
from geomtx.types import EmbeddedViews

GRID = (2, 3)


@pytest.fixture
def block() -> PoseBlock:
    return PoseBlock(32, 2, qk_norm=True, layer_scale=1.0).double().eval()


@pytest.fixture
def views() -> EmbeddedViews:
    """Two scenes of three views with one register token; a pose of the second scene is unknown."""
    posed = torch.ones(2, 3, dtype=torch.bool)
    posed[1, 1] = False
    x = torch.randn(2, 3, 7, 32, dtype=torch.float64)
    return EmbeddedViews(x, 1, (28, 42), GRID, poses=random_rigid(2, 3), posed=posed)


def run(block: PoseBlock, views: EmbeddedViews) -> torch.Tensor:
    table = pose_table(views, 16)
    return block(views.x.flatten(1, 2), rope=table, mask=key_mask(table.active)).view_as(views.x)


@torch.no_grad()
def test_only_relative_poses_count(block, views):
    expected = run(block, views)
    moved = compose_rigid(views.poses, random_rigid(2, 1))
    torch.testing.assert_close(run(block, views._replace(poses=moved)), expected)
    other = compose_rigid(views.poses, random_rigid(2, 3))
    assert (run(block, views._replace(poses=other)) - expected).abs().max() > 1e-2


@torch.no_grad()
def test_the_order_of_views_does_not_count(block, views):
    order = [2, 0, 1]
    swapped = views._replace(x=views.x[:, order], poses=views.poses[:, order], posed=views.posed[:, order])
    torch.testing.assert_close(run(block, swapped), run(block, views)[:, order])


@torch.no_grad()
def test_tokens_that_take_no_part_neither_see_nor_are_seen(block, views):
    mask = torch.ones(2, 3, 7, dtype=torch.bool)
    mask[0, 2, 4] = False
    views = views._replace(mask=mask)
    found = run(block, views)
    still = (found == views.x).all(-1)
    expected = torch.zeros(2, 3, 7, dtype=torch.bool)
    expected[:, :, 0] = expected[1, 1] = expected[0, 2, 4] = True
    assert torch.equal(still, expected)
    other = views.x.clone()
    other[expected] = 100.0
    assert torch.equal(run(block, views._replace(x=other))[~expected], found[~expected])


@torch.no_grad()
def test_without_turns_it_is_plain_attention(block):
    """One patch a view, at (0, 0), in cameras at the origin: both branches read the same normalised tokens."""
    x = torch.randn(1, 4, 1, 32, dtype=torch.float64)
    poses = torch.eye(3, 4, dtype=torch.float64).expand(1, 4, 3, 4)
    views = EmbeddedViews(x, 0, (14, 14), (1, 1), poses=poses, posed=torch.ones(1, 4, dtype=torch.bool))
    x = x.flatten(1, 2)
    attended = block.attention(block.attention_norm(x))
    expected = x + block.attention_scale.gamma * attended + block.mlp_scale.gamma * block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(run(block, views).flatten(1, 2), expected)


@torch.no_grad()
def test_keys_first_gives_the_same(block, views):
    table = pose_table(views, 16)
    for chunk in (None, 5):
        attend = KeysFirst(table, key_mask(table.active), token_chunk=chunk)
        torch.testing.assert_close(attend(0, block, views.x.clone()), run(block, views))


def test_heads_are_of_groups_of_four_channels(views):
    with pytest.raises(ValueError, match=r"^head_dim must be a multiple of 8, got 12$"):
        pose_table(views, 12)
    assert isinstance(pose_table(views, 8).rows(slice(2, 5)), PoseTable)
