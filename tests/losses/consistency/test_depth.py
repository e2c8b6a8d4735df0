import pytest
import torch

from geomtx.losses import DepthConsistencySettings, ViewPairs, depth_consistency_loss
from losses.consistency.plane_scene import shifted_views, turned_views

PAIRS = ViewPairs(torch.tensor([[1, 2], [0, 2], [0, 1]]))


def test_error_by_hand():
    """Side by side before a wall: depths 4.4 and 4 differ by 0.4 / 8.4 in both directions."""
    _, depth, cameras = shifted_views()
    depth[0, 1] *= 1.1
    loss = depth_consistency_loss(depth, cameras, ViewPairs(torch.tensor([[1], [0], [1]])))
    assert loss.item() == pytest.approx(0.4 / 8.4)
    assert depth_consistency_loss(depth, cameras, ViewPairs(torch.tensor([[2], [2], [0]]))).item() == pytest.approx(
        0.4 / 8.4 / 3
    )


def test_it_has_no_unit():
    _, depth, cameras = turned_views()
    depth = depth * (1 + 0.02 * torch.rand_like(depth))
    larger = cameras.cam_from_world.clone()
    larger[..., 3] *= 9
    torch.testing.assert_close(
        depth_consistency_loss(9 * depth, cameras._replace(cam_from_world=larger), PAIRS),
        depth_consistency_loss(depth, cameras, PAIRS),
    )


def test_a_larger_error_is_an_occlusion():
    _, depth, cameras = shifted_views()
    depth[0, 1] *= 1.1
    pairs = ViewPairs(torch.tensor([[1], [0], [1]]))
    assert (
        depth_consistency_loss(depth, cameras, pairs, settings=DepthConsistencySettings(max_error=0.4 / 8.4 + 1e-9)) > 0
    )
    assert (
        depth_consistency_loss(depth, cameras, pairs, settings=DepthConsistencySettings(max_error=0.4 / 8.4 - 1e-9))
        == 0
    )


def test_huber_is_squared_below_delta_and_linear_above():
    _, depth, cameras = shifted_views()
    depth[0, 1] *= 1.1
    pairs, error = ViewPairs(torch.tensor([[1], [0], [1]])), 0.4 / 8.4
    loss = depth_consistency_loss(depth, cameras, pairs, settings=DepthConsistencySettings("huber"))
    assert loss.item() == pytest.approx(error**2 / 2)
    loss = depth_consistency_loss(depth, cameras, pairs, settings=DepthConsistencySettings("huber", delta=0.01))
    assert loss.item() == pytest.approx(0.01 * (error - 0.005))


def test_pairs_with_few_pixels_are_left_out():
    _, depth, cameras = shifted_views()
    depth[0, 1] *= 1.1
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[0, 2] = False
    mask[0, 2, 10:20, 10:19] = True  # 90 pixels, those of pairs with view 2
    each = depth_consistency_loss(
        depth, cameras, PAIRS, mask=mask, settings=DepthConsistencySettings(min_pixels=1), reduction="none"
    )[0]
    few = depth_consistency_loss(depth, cameras, PAIRS, mask=mask, reduction="none")[0]
    assert each[1, 1].any()
    assert not few[1, 1].any()
    assert not few[2].any()
    assert torch.equal(few[0, 0], each[0, 0])
    assert depth_consistency_loss(depth, cameras, PAIRS, mask=mask).item() == pytest.approx(0.4 / 8.4)
    count = int((each[0, 0] > 0).sum())
    for min_pixels, kept in ((count, True), (count + 1, False)):
        options = {"mask": mask, "settings": DepthConsistencySettings(min_pixels=min_pixels), "reduction": "none"}
        assert depth_consistency_loss(depth, cameras, PAIRS, **options)[0, 0, 0].any() == kept


def test_mean_is_over_pairs_of_means_over_pixels():
    _, depth, cameras = turned_views()
    depth = depth * (1 + 0.02 * torch.rand_like(depth))
    each = depth_consistency_loss(depth, cameras, PAIRS, reduction="none")
    expected = torch.stack([pair[pair > 0].mean() for pair in each.flatten(0, 2)]).mean()
    torch.testing.assert_close(depth_consistency_loss(depth, cameras, PAIRS), expected)


def test_descent_makes_depth_maps_agree():
    """One wrong map among three, with pairs of which half are frozen."""
    _, truth, cameras = turned_views()
    factor = torch.tensor([1.0, 1.08, 1.0], dtype=torch.float64)[:, None, None]
    log_factor = factor.log().requires_grad_()
    frozen = PAIRS._replace(frozen=torch.tensor([[True, False], [False, True], [True, False]]))
    optimizer = torch.optim.SGD([log_factor], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        depth_consistency_loss(
            truth * log_factor.exp(), cameras, frozen, settings=DepthConsistencySettings("huber")
        ).backward()
        optimizer.step()
    assert depth_consistency_loss(truth * log_factor.exp(), cameras, PAIRS) < 0.2 * depth_consistency_loss(
        truth * factor, cameras, PAIRS
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "l2"}, r"^kind must be one of 'l1', 'huber', got 'l2'$"),
        ({"delta": 0.0}, r"^delta must be positive, got 0.0$"),
        ({"max_error": -0.1}, r"^max_error must be positive, got -0.1$"),
        ({"min_pixels": 0}, r"^min_pixels must be positive, got 0$"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        DepthConsistencySettings(**options)


@pytest.mark.usefixtures("unchecked")
def test_wrong_reduction():
    _, depth, cameras = shifted_views()
    with pytest.raises(ValueError, match=r"^reduction must be one of 'mean', 'none', got 'sum'$"):
        depth_consistency_loss(depth, cameras, PAIRS, reduction="sum")
