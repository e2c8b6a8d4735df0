import pytest
import torch

from geomtx.geometry import fit_camera_similarity, invert_rigid, rotation_angle
from geomtx.inference import PairMaps
from geomtx.scene.pairs import AlignmentOptions, KnownOfImages, MotionTerms, align_pairs
from geomtx.scene.pairs.objective import alignment_loss, pack_pairs
from geomtx.scene.pairs.pair_graph import growth_order, spanning_tree
from scene.pairs.point_maps import FOCAL, both_ways, make_maps, make_truth

SIZES = [(9, 12), (12, 9), (9, 12), (10, 11)]
FEW = AlignmentOptions("published", steps=40)
BOTH = pytest.mark.parametrize("options", [AlignmentOptions(), FEW], ids=["fast", "published"])


def pose_errors(found, truth) -> tuple[float, float]:
    """Largest angle in radians and largest distance of centres, after the best similarity."""
    ours, true = invert_rigid(found.double()), invert_rigid(truth.cam_from_world)
    scale, rotation, translation = fit_camera_similarity(ours, true)
    angle = rotation_angle(rotation @ ours[..., :3], true[..., :3])
    return angle.max().item(), (scale * ours[..., 3] @ rotation.mT + translation - true[..., 3]).norm(
        dim=1
    ).max().item()


@pytest.mark.parametrize("pairs", [both_ways(4), [(0, 1), (1, 2), (3, 2)], [(2, 0), (0, 1), (3, 0)]])
def test_exact_maps_give_the_true_cameras_and_depth(pairs):
    """Of photos of several sizes, also where no pair starts at some of them."""
    truth = make_truth(SIZES)
    found = align_pairs(
        make_maps(truth, pairs),
        options=AlignmentOptions("published", steps=0),
        known=KnownOfImages(torch.full((4,), FOCAL)),
    )
    assert max(pose_errors(found.cameras.cam_from_world, truth)) < 1e-6
    ratio = torch.cat([(ours / true).flatten() for ours, true in zip(found.depth, truth.depth, strict=True)])
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)
    assert found.losses[1] < 1e-6


@BOTH
def test_focal_lengths_are_found(options):
    found = align_pairs(make_maps(make_truth(SIZES), both_ways(4)), options=options)
    torch.testing.assert_close(found.cameras.intrinsics[:, 0, 0], torch.full((4,), FOCAL).double(), rtol=5e-3, atol=0)
    assert found.cameras.intrinsics[0, :2, 2].tolist() == [6, 4.5]


@BOTH
def test_noisy_maps_come_closer_and_every_time_alike(options):
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4), noise=0.03, dtype=torch.float32)
    found = align_pairs(maps, options=options)
    assert found.losses[1] < 0.95 * found.losses[0]
    again = align_pairs(maps, options=options)
    assert torch.equal(found.cameras.cam_from_world, again.cameras.cam_from_world)
    assert max(pose_errors(found.cameras.cam_from_world, truth)) < 0.1


@BOTH
def test_known_poses_stay_and_give_the_scale(options):
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4), noise=0.01)
    for given in ([0, 1, 2, 3], [1, 3]):
        poses = torch.full((4, 3, 4), torch.nan).double()
        poses[given] = truth.cam_from_world[given]
        found = align_pairs(maps, options=options, known=KnownOfImages(cam_from_world=poses))
        torch.testing.assert_close(found.cameras.cam_from_world[given], truth.cam_from_world[given])
        for ours, true in zip(found.depth, truth.depth, strict=True):
            assert abs((ours / true).median() - 1) < 0.05


@BOTH
def test_known_poses_of_which_two_are_in_one_place(options):
    """As of a camera on a tripod: the pair of the two says nothing of the scale."""
    truth = make_truth(SIZES, same_place=True)
    maps = make_maps(truth, both_ways(4))
    found = align_pairs(maps, options=options, known=KnownOfImages(cam_from_world=truth.cam_from_world))
    assert found.losses.isfinite().all()
    for ours, true in zip(found.depth, truth.depth, strict=True):
        assert abs((ours / true).median() - 1) < (0.02 if options.method == "fast" else 0.2)


def test_known_poses_of_something_else_are_named(caplog):
    """Between them the points of pairs have no size, which is the loss's minimum."""
    truth = make_truth(SIZES)
    known = KnownOfImages(cam_from_world=truth.cam_from_world)
    maps = make_maps(truth, both_ways(4))
    others = {name: tuple(torch.randn_like(each) + torch.tensor([0, 0, 3]) for each in getattr(maps, name))
              for name in ("points1", "points2")}  # fmt: skip
    found = align_pairs(maps._replace(**others), known=known)
    assert all(depth.isfinite().all() for depth in found.depth)
    assert "known poses contradict the points of " in caplog.text
    caplog.clear()
    align_pairs(maps, known=known)
    assert not caplog.text


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_steps_after_a_scene_that_shrank_stay_finite(seed):
    """Where depth became 0, whose logarithm they would begin with."""
    torch.manual_seed(seed)
    truth = make_truth([(9, 12)] * 8)
    maps = make_maps(truth, both_ways(8), dtype=torch.float32)
    for name in ("points1", "points2"):
        others = (torch.randn_like(each) + torch.tensor([0, 0, 3]) for each in getattr(maps, name))
        maps = maps._replace(**{name: tuple(others)})
    known = KnownOfImages(torch.full((8,), FOCAL), cam_from_world=truth.cam_from_world)
    found = align_pairs(maps, options=AlignmentOptions(steps=3), known=known, motion=MotionTerms())
    assert found.losses.isfinite().all()
    assert all(depth.isfinite().all() for depth in found.depth)


@BOTH
def test_known_poses_of_images_at_which_no_pair_starts(options):
    truth = make_truth(SIZES)
    maps = make_maps(truth, [(0, 1), (0, 2), (0, 3)])
    found = align_pairs(maps, options=options, known=KnownOfImages(cam_from_world=truth.cam_from_world))
    torch.testing.assert_close(found.cameras.intrinsics[:, 0, 0], torch.full((4,), FOCAL).double(), rtol=0.1, atol=0)
    assert found.losses.isfinite().all()


def test_an_image_whose_points_no_camera_sees_so_does_not_spoil_the_others():
    """Mirrored points give a focal length below 0."""
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4))
    mirror = torch.tensor([-1.0, -1, 1])
    points = [
        each * mirror if first == 2 else each for (first, _), each in zip(both_ways(4), maps.points1, strict=True)
    ]
    found = align_pairs(maps._replace(points1=tuple(points)))
    assert found.losses.isfinite().all()
    assert (found.cameras.intrinsics[:, 0, 0] > 0).all()
    assert found.losses[1] < found.losses[0]


def test_two_images_of_which_few_pixels_are_sure_are_optimised():
    truth = make_truth(SIZES[:2])
    maps = make_maps(truth, both_ways(2))
    unsure = maps._replace(**{name: tuple(torch.full_like(each, 2.5) for each in getattr(maps, name))
                              for name in ("confidence1", "confidence2")})  # fmt: skip
    found = align_pairs(unsure)
    assert len(found.losses) == 2
    assert max(pose_errors(found.cameras.cam_from_world, truth)) < 0.05


@BOTH
def test_one_focal_for_all_and_known_focals_stay(options):
    maps = make_maps(make_truth(SIZES), both_ways(4), noise=0.05)
    shared = align_pairs(maps, options=options._replace(shared_focal=True)).cameras.intrinsics[:, 0, 0]
    assert torch.equal(shared, shared[:1].expand(4))
    known = torch.tensor([FOCAL, torch.nan, 21.0, torch.nan])
    focals = align_pairs(maps, options=options, known=KnownOfImages(known)).cameras.intrinsics[:, 0, 0]
    torch.testing.assert_close(focals[[0, 2]], known[[0, 2]].double())
    assert not torch.isclose(focals[1], focals[0])


@pytest.mark.parametrize("change", [{}, {"squared": True, "confidence": "sqrt", "shared_focal": True}])
def test_the_fast_way_ends_where_many_steps_do(change):
    """Never above them, also where most rounds look at some of the pixels."""
    truth = make_truth([(20, 27), (27, 20), (20, 27)])
    maps = make_maps(truth, both_ways(3), noise=0.05, dtype=torch.float32)
    many = align_pairs(maps, options=AlignmentOptions("published", steps=200, **change))
    fast = align_pairs(maps, options=AlignmentOptions(**change))
    assert fast.losses[0] == many.losses[0]
    assert 0.97 * many.losses[1] < fast.losses[1] < 1.001 * many.losses[1]
    assert fast.steps <= 100


@BOTH
@pytest.mark.parametrize(("fill", "all_known"), [(torch.nan, False), (30.0, False), (30.0, True)])
def test_masked_pixels_do_not_count(options, fill, all_known):
    """Whatever their points are, also in the start."""
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4), noise=0.02)
    masks = [torch.rand(size) > 0.3 for size in SIZES]
    spoilt = {}
    for side, name in enumerate(("points1", "points2")):
        of_image = [masks[pair[side]][..., None] for pair in maps.pairs.tolist()]
        spoilt[name] = tuple(
            torch.where(m, p, fill * torch.randn_like(p)) for m, p in zip(of_image, getattr(maps, name), strict=True)
        )
    poses = truth.cam_from_world if all_known else None
    wanted = align_pairs(maps, options=options, known=KnownOfImages(cam_from_world=poses, masks=masks))
    found = align_pairs(
        maps._replace(**spoilt), options=options, known=KnownOfImages(cam_from_world=poses, masks=masks)
    )
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.cameras.cam_from_world, wanted.cameras.cam_from_world)
    for confidence, mask in zip(found.confidence, masks, strict=True):
        assert torch.equal(confidence == 0, ~mask)


@BOTH
def test_pixels_that_are_not_finite_do_not_count(options):
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4))
    for index, (first, second) in enumerate(maps.pairs.tolist()):
        for side, image in enumerate((first, second)):
            points, confidence = maps.side(index, side)
            if image < 2:
                (points if image == 0 else confidence)[:2] = torch.inf
    found = align_pairs(maps, options=options)
    assert max(pose_errors(found.cameras.cam_from_world, truth)) < 0.05


def test_two_images_have_one_focal_length_if_asked():
    maps = make_maps(make_truth(SIZES[:2]), both_ways(2), noise=0.02)
    focals = align_pairs(maps, options=AlignmentOptions(shared_focal=True)).cameras.intrinsics[:, 0, 0]
    assert focals[0] == focals[1]


def test_half_precision_is_read_as_it_is():
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4), dtype=torch.float16)
    found = align_pairs(maps, options=FEW)
    assert found.losses.dtype == torch.float32
    assert max(pose_errors(found.cameras.cam_from_world, truth)) < 0.02


def test_the_loss_does_not_depend_on_how_many_maps_are_worked_on_together(monkeypatch):
    from geomtx.scene.pairs import objective

    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4), noise=0.05)
    data = pack_pairs(maps, SIZES)
    state = random_state(len(maps.pairs))
    whole = torch.autograd.grad(alignment_loss(data, state), state.poses)[0]
    monkeypatch.setattr(objective, "_NUMBERS_AT_ONCE", 1)
    torch.testing.assert_close(torch.autograd.grad(alignment_loss(data, state), state.poses)[0], whole)
    assert torch.autograd.gradcheck(lambda poses: alignment_loss(data, state._replace(poses=poses)), state.poses)


def random_state(num_pairs: int):
    from geomtx.scene.pairs.objective import AlignmentState

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    depth = tuple(0.1 * draw(*size) for size in SIZES)
    return AlignmentState(
        draw(4, 7).requires_grad_(), 60 + draw(4, 1), draw(4, 2), depth, draw(num_pairs, 8), draw(num_pairs, 2)
    )


def test_the_tree_grows_from_the_best_pair():
    pairs, weights = [(0, 1), (2, 3), (1, 2), (1, 0)], [5.0, 4.0, 3.0, 6.0]
    tree = spanning_tree(pairs, weights)
    assert tree == [3, 1, 2]
    assert growth_order(pairs, tree) == [3, 2, 1]


@pytest.mark.parametrize(
    ("change", "known", "options", "message"),
    [
        ({"pairs": [(0, 1), (1, 0), (2, 3)]}, {}, {}, r"pairs must connect all images, got none between images 2, 3 "),
        ({"num_images": 6}, {}, {}, r"got none between images 4, 5 and the others"),
        ({"pairs": [(0, 1), (1, 1), (2, 3)]}, {}, {}, r"pairs must be of two of the images 0 to 3, got \(1, 1\)"),
        ({"confidence": 0.0}, {}, {}, r"pair \(0, 1\) must have confident pixels in both images, got none"),
        ({}, {"poses": [2]}, {}, r"cam_from_world must be known of two images or more, got that of image 2 alone"),
        ({}, {"focals": [20, 20, 25, torch.nan]}, {"shared_focal": True}, r"got 20 px of image 0 and 25 px of image 2"),
        ({}, {"focals": [20, -1, 25, torch.nan]}, {}, r"focals must be positive, got -1 of image 1"),
        ({}, {"poses": [0, 1], "stretch": 3}, {}, r"cam_from_world must be \[R \| t\] with rotations R, .* 'image 0'"),
        ({"pairs": []}, {}, {}, r"pairs must have shape \(E, 2\), got \(0,\)"),
        ({"confidence": 0.05}, {}, {}, r"confidence must be above 1 somewhere in each image to weigh by 'log', "),
        ({}, {}, {"schedule": "step"}, r"schedule must be one of 'cosine', 'linear', got 'step'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, known, options, message):
    truth = make_truth(SIZES)
    maps = make_maps(truth, both_ways(4))
    if "pairs" in change:
        maps = make_maps(truth, change["pairs"])
    if change.get("confidence") == 0:
        maps = maps._replace(confidence1=(0 * maps.confidence1[0], *maps.confidence1[1:]))
    elif "confidence" in change:
        maps = PairMaps(*maps[:3], *(tuple(change["confidence"] * each for each in own) for own in maps[3:]))
    focals = torch.tensor(known["focals"]) if "focals" in known else None
    poses = None
    if "poses" in known:
        poses = torch.full((4, 3, 4), torch.nan).double()
        poses[known["poses"]] = known.get("stretch", 1) * truth.cam_from_world[known["poses"]]
    with pytest.raises(ValueError, match=message):
        align_pairs(
            maps, change.get("num_images"), AlignmentOptions(**options), known=KnownOfImages(focals, None, poses)
        )
