import pytest
import torch

from geomtx.geometry import invert_rigid, transform_points
from geomtx.scene.pairs import AlignmentOptions, MotionTerms, align_pairs, consistent_flow, motion, moving_pixels
from geomtx.scene.pairs.motion import camera_flow, depth_term, flow_term, smoothness_terms
from scene.pairs.point_maps import LONG_FOCAL, both_ways, make_maps, make_surface_truth

NUM, SIZE = 3, (12, 16)
PAIRS = torch.tensor(both_ways(NUM))


@pytest.fixture
def truth():
    return make_surface_truth(NUM, SIZE)


def cameras_of(truth):
    intrinsics = torch.tensor([[LONG_FOCAL, 0, SIZE[1] / 2], [0, LONG_FOCAL, SIZE[0] / 2], [0, 0, 1]]).double()
    return invert_rigid(truth.cam_from_world), intrinsics.expand(NUM, 3, 3)


def true_flow(truth, pairs):
    """By projection of the true points."""
    flows = []
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    for i, j in pairs.tolist():
        seen = transform_points(truth.cam_from_world[j], truth.points[i].flatten(0, 1)).view(*SIZE, 3)
        middle = torch.tensor([SIZE[1] / 2, SIZE[0] / 2])
        flows.append((LONG_FOCAL * seen[..., :2] / seen[..., 2:] + middle - torch.stack([x, y], -1)).movedim(-1, 0))
    return torch.stack(flows)


def test_the_flow_of_cameras_is_that_of_the_points(truth):
    (i, j), (poses, intrinsics) = PAIRS.T, cameras_of(truth)
    depth = torch.stack(truth.depth)
    found = camera_flow(depth[i], (poses[i], intrinsics[i]), (poses[j], intrinsics[j]))
    torch.testing.assert_close(found, true_flow(truth, PAIRS), rtol=1e-4, atol=1e-4)
    flow = true_flow(truth, PAIRS), true_flow(truth, PAIRS.flip(1))
    assert flow_term(PAIRS, depth, (poses, intrinsics), flow) < 1e-6
    assert flow_term(PAIRS, depth, (poses, intrinsics), (flow[0] + 2, flow[1])) == pytest.approx(1.5, rel=1e-3)
    assert flow_term(PAIRS, depth, (poses, intrinsics), (flow[0] + 60, flow[1])) < 1e-6


def test_what_moves_is_found_and_does_not_count(truth):
    depth, flow = torch.stack(truth.depth), true_flow(truth, PAIRS)
    seen = flow.clone()
    seen[:, :, 3:6, 4:9] += 5
    moving = moving_pixels(PAIRS, flow, seen, NUM)
    wanted = torch.zeros(SIZE, dtype=torch.bool)
    wanted[3:6, 4:9] = True
    assert torch.equal(moving, wanted.expand(NUM, *SIZE))
    back = true_flow(truth, PAIRS.flip(1))
    assert flow_term(PAIRS, depth, cameras_of(truth), (seen, back), moving) < 1e-6
    assert flow_term(PAIRS, depth, cameras_of(truth), (seen, back)) > 0.1


def test_flow_that_comes_back_is_consistent():
    forward = torch.full((1, 2, *SIZE), 2.0)
    found = consistent_flow(forward, -forward)
    assert found[0, : SIZE[0] - 2, : SIZE[1] - 2].all()
    assert found.sum() == (SIZE[0] - 2) * (SIZE[1] - 2)
    assert not consistent_flow(forward, forward).any()


def test_smooth_cameras_and_unchanged_depth_cost_nothing(truth):
    poses, _ = cameras_of(truth)
    assert smoothness_terms(poses[:1].expand(4, 3, 4)).abs().max() < 1e-7
    assert smoothness_terms(poses).min() > 0.01
    depth = torch.stack(truth.depth)
    factor = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    assert depth_term(factor * depth, depth) < 1e-12
    assert depth_term(depth.square(), depth) > 1e-4


def test_terms_take_part_in_alignment(truth):
    maps = make_maps(truth, both_ways(NUM), noise=0.03)
    options = AlignmentOptions("published", steps=40)
    flow = true_flow(truth, PAIRS), true_flow(truth, PAIRS.flip(1))
    plain = align_pairs(maps, options=options)
    moved = align_pairs(maps, options=options, motion=MotionTerms(flow, smoothness_weight=0, flow_weight=1.0))
    still = align_pairs(maps, options=options, motion=MotionTerms(smoothness_weight=10.0))

    def error(found):
        poses = invert_rigid(found.cameras.cam_from_world)
        depth = torch.stack(found.depth)
        return flow_term(PAIRS, depth, (poses, found.cameras.intrinsics), flow)

    assert error(moved) < 0.9 * error(plain)
    rough = [smoothness_terms(invert_rigid(each.cameras.cam_from_world)).sum() for each in (still, plain)]
    assert rough[0] < 0.9 * rough[1]


def test_bad_terms_are_named(truth):
    maps = make_maps(truth, both_ways(NUM))
    with pytest.raises(ValueError, match=r"flow\[0\] must have shape \(6, 2, 12, 16\), got"):
        align_pairs(maps, motion=MotionTerms((torch.zeros(6, 2, 3, 3),) * 2))
    with pytest.raises(ValueError, match="flow_weight must be at least 0, got -1"):
        align_pairs(maps, motion=MotionTerms(flow_weight=-1))
    with pytest.raises(ValueError, match="flow must be forwards and back, two tensors, got 1"):
        align_pairs(maps, motion=MotionTerms((torch.zeros(6, 2, *SIZE),)))
    with pytest.raises(ValueError, match="flow_start must be in 0 … 1, got 2"):
        align_pairs(maps, motion=MotionTerms(flow_start=2))
    with pytest.raises(ValueError, match=r"pairs must come in both directions, got \(0, 2\) without \(2, 0\)"):
        align_pairs(maps.take([0, 1, 2, 3, 5]), motion=MotionTerms(torch.zeros(5, 2, *SIZE)))


def test_flow_that_is_not_known_does_not_count(truth):
    poses, intrinsics = cameras_of(truth)
    depth = torch.stack(truth.depth).requires_grad_()
    flow = true_flow(truth, PAIRS), true_flow(truth, PAIRS.flip(1))
    holes = torch.rand(len(PAIRS), 1, *SIZE) < 0.3
    holes[0] = False
    wrong = [torch.where(holes, 10.0, each + 1) for each in flow]
    unknown = [torch.where(holes, torch.nan, each + 1) for each in flow]
    found = flow_term(PAIRS, depth, (poses, intrinsics), tuple(unknown))
    assert found.item() == pytest.approx(1.0, rel=1e-3)
    assert flow_term(PAIRS, depth, (poses, intrinsics), tuple(wrong)) > 2
    assert torch.autograd.grad(found, depth)[0].isfinite().all()
    induced = flow[0]
    seen = torch.where(holes, torch.nan, induced)
    seen[:, :, 3:6, 4:9] += 5
    for rule in ("largest", "median"):
        moving = moving_pixels(PAIRS, induced, seen, NUM, rule=rule)
        known = torch.zeros(NUM, *SIZE).index_add_(0, PAIRS[:, 0], 1.0 - holes[:, 0].float()) > 0
        assert torch.equal(moving, box(moving) & known)


def box(like):
    wanted = torch.zeros_like(like)
    wanted[:, 3:6, 4:9] = True
    return wanted


@pytest.mark.usefixtures("unchecked")
def test_another_rule_is_named(truth):
    flow = true_flow(truth, PAIRS)
    with pytest.raises(ValueError, match=r"^rule must be one of 'largest', 'median', got 'mean'$"):
        moving_pixels(PAIRS, flow, flow, NUM, rule="mean")


def test_small_errors_everywhere_are_no_motion(truth):
    induced = true_flow(truth, PAIRS)
    noisy = induced + 0.3 * torch.randn_like(induced)
    assert moving_pixels(PAIRS, induced, noisy, NUM).any()
    assert not moving_pixels(PAIRS, induced, induced + 0.1 * torch.rand_like(induced), NUM, rule="median").any()
    noisy[:, :, 3:6, 4:9] += 5
    assert torch.equal(moving_pixels(PAIRS, induced, noisy, NUM, rule="median"), box(torch.zeros(NUM, *SIZE) > 0))


def test_some_pairs_at_a_time_give_the_same(truth, monkeypatch):
    cameras, depth = cameras_of(truth), torch.stack(truth.depth).requires_grad_()
    flow = torch.randn(len(PAIRS), 2, *SIZE).double()
    reverse = [PAIRS.tolist().index([second, first]) for first, second in PAIRS.tolist()]
    moving = torch.rand(NUM, *SIZE) < 0.3

    def evaluate(given):
        value = flow_term(PAIRS, depth, cameras, given, moving)
        return value, torch.autograd.grad(value, depth)[0]

    both = evaluate((flow, flow[reverse]))
    for at_once in (1, 4 * SIZE[0] * SIZE[1]):
        monkeypatch.setattr(motion, "_PIXELS_AT_ONCE", at_once)
        for given in ((flow, flow[reverse]), flow):
            for ours, wanted in zip(evaluate(given), both, strict=True):
                torch.testing.assert_close(ours, wanted)
