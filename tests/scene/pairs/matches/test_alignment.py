import pytest
import torch

from geomtx.metrics import pairwise_pose_errors
from geomtx.scene.pairs import KnownOfImages, PairMatches, SparseOptions, align_matches
from geomtx.scene.pairs.matches.alignment import sparse_problem
from geomtx.scene.pairs.matches.camera_tree import build_tree, find_root
from geomtx.scene.pairs.matches.canonical import canonical_image, canonical_images
from geomtx.tracking import Matches
from scene.pairs.point_maps import LONG_FOCAL as FOCAL
from scene.pairs.point_maps import both_ways, make_maps, make_surface_truth, true_matches

FEW = SparseOptions(coarse_steps=50, fine_steps=20)
NUM, SIZE = 3, (24, 32)
PAIRS = [(0, 1), (1, 2), (0, 2)]


@pytest.fixture
def problem():
    truth = make_surface_truth(NUM, SIZE)
    matches = [Matches(*true_matches(truth, pair, 150), 2 + 8 * torch.rand(150).double()) for pair in PAIRS]
    return truth, make_maps(truth, both_ways(NUM), spread=0.02), PairMatches(torch.tensor(PAIRS), tuple(matches))


@pytest.mark.parametrize("options", [FEW, FEW._replace(tree="spanning", shared_intrinsics=True)])
def test_true_matches_give_the_true_cameras_and_depth(problem, options):
    """To what rounding matches to whole pixels leaves."""
    truth, maps, matches = problem
    coarse = align_matches(maps, matches, options._replace(coarse_steps=100, fine_steps=0))
    errors = pairwise_pose_errors(coarse.cameras.cam_from_world, truth.cam_from_world)
    assert errors.rotation_deg.max() < 3
    assert errors.translation_deg.max() < 12
    torch.testing.assert_close(
        coarse.cameras.intrinsics[:, 0, 0], torch.full((NUM,), FOCAL).double(), rtol=1e-3, atol=0
    )
    ratio = torch.stack([ours / true for ours, true in zip(coarse.depth, truth.depth, strict=True)])
    assert (ratio / ratio.median() - 1).abs().max() < 0.05
    fine = align_matches(maps, matches, options)
    assert fine.losses[1] < 0.95 * fine.losses[0]
    again = align_matches(maps, matches, options)
    assert torch.equal(again.cameras.cam_from_world, fine.cameras.cam_from_world)


def test_known_focal_lengths_stay(problem):
    _, maps, matches = problem
    known = torch.tensor([FOCAL, torch.nan, 31.0])
    focal = align_matches(maps, matches, FEW, known=KnownOfImages(known)).cameras.intrinsics[:, 0, 0]
    torch.testing.assert_close(focal[[0, 2]], known[[0, 2]].double())
    assert focal[1] not in known


def test_known_principal_points_stay_and_poses_are_refused(problem):
    truth, maps, matches = problem
    known = torch.tensor([[17.0, 11.0], [torch.nan, torch.nan], [16.0, 12.0]])
    found = align_matches(maps, matches, FEW, known=KnownOfImages(principal_points=known)).cameras.intrinsics[:, :2, 2]
    torch.testing.assert_close(found[[0, 2]], known[[0, 2]].double())
    assert not torch.isclose(found[1], torch.tensor([16.0, 12.0]).double()).any()
    with pytest.raises(ValueError, match="cam_from_world must be None where matches are aligned, as align_pairs alone"):
        align_matches(maps, matches, known=KnownOfImages(cam_from_world=truth.cam_from_world))
    behind = maps._replace(points1=tuple(each if i != 2 else -each for i, each in enumerate(maps.points1)))
    behind = behind._replace(points1=tuple(-each if i == 3 else each for i, each in enumerate(behind.points1)))
    with pytest.raises(ValueError, match="depth must be positive in most of each image, got less in image 1"):
        align_matches(behind, matches)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_whatever_stands_around_the_result_is_the_same(problem, around):
    _, maps, matches = problem
    few = FEW._replace(coarse_steps=5, fine_steps=5)
    maps = maps._replace(points1=tuple(each.float() for each in maps.points1))
    expected = align_matches(maps, matches, few)
    with around():
        found = align_matches(maps, matches, few)
    torch.testing.assert_close(found.cameras.cam_from_world, expected.cameras.cam_from_world)


def test_pairs_without_sure_matches_count_by_their_points(problem):
    """Not by what their matches are worth."""
    _, maps, matches = problem
    weak, results = matches.matches[1], []
    few = FEW._replace(coarse_steps=10, fine_steps=10)
    for factor in (1, 2):
        unsure = weak._replace(confidence=factor * torch.rand(150).double())
        found = align_matches(maps, matches._replace(matches=(matches.matches[0], unsure, matches.matches[2])), few)
        results.append(found.cameras.cam_from_world)
    assert torch.equal(*results)
    other = maps._replace(points2=tuple(1.2 * each for each in maps.points2))
    unsure = matches._replace(matches=(matches.matches[0], unsure, matches.matches[2]))
    assert not torch.equal(align_matches(other, unsure, few).cameras.cam_from_world, results[0])


def test_images_need_not_be_whole_blocks():
    """A block that its centre is not in is none; its pixels belong to the one before."""
    size = (20, 27)
    truth = make_surface_truth(2, size)
    maps = make_maps(truth, both_ways(2))
    matches = PairMatches(torch.tensor([(0, 1)]), (Matches(*true_matches(truth, (0, 1), 50), torch.rand(50).double()),))
    problem = sparse_problem(maps, matches, canonical_images(maps, 2), SparseOptions())
    for (_, _, camera, target, _), coords in zip(problem.weak, matches.matches[0][:2], strict=True):
        x, y = (8 * (coords // 8).minimum(torch.tensor([2, 1]))).unbind(1)
        torch.testing.assert_close(target, maps.points2[camera][y, x])


def test_one_image_in_its_own_camera(problem):
    _, maps, _ = problem
    one = canonical_image([maps.points1[0]], [maps.confidence1[0]])
    torch.testing.assert_close(one.points, maps.points1[0])
    assert one.core_depth.shape == (3, 4)
    torch.testing.assert_close(one.core_depth, maps.points1[0][4::8, 4::8, 2])
    rebuilt = one.depth_ratio * one.core_depth.repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(rebuilt, maps.points1[0][..., 2], rtol=1e-6, atol=0)
    assert abs(one.focal - FOCAL) < 0.01


def test_the_tree_follows_the_matches():
    counts = torch.tensor([[0, 9, 1, 0], [9, 0, 8, 0], [1, 8, 0, 7], [0, 0, 7, 0]])
    for method in ("ward", "spanning"):
        tree = build_tree(counts, [12] * 4, method)
        assert {frozenset(edge) for edge in tree.edges} == {frozenset(e) for e in ((0, 1), (1, 2), (2, 3))}
        assert tree.root in (1, 2)
    assert find_root([(0, 1), (1, 2), (2, 3), (3, 4)], 5) == 2


def test_ward_agrees_with_scipy():
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    from geomtx.scene.pairs.matches.camera_tree import _merge_clusters

    counts = torch.randint(0, 40, (7, 7)).triu(1)
    counts = counts + counts.T
    likeness = (counts.double() / 36).clamp(max=1)
    distance = torch.where(likeness > 0, 1 - likeness, 2.0)
    first, second = torch.triu_indices(7, 7, 1)
    linkage = hierarchy.linkage(distance[first, second].numpy(), "ward")
    clusters = {image: {image} for image in range(7)}
    ours = [{image} for image in range(7)]
    for step, (edge, row) in enumerate(zip(_merge_clusters(counts, [12] * 7), linkage, strict=True)):
        clusters[7 + step] = clusters.pop(int(row[0])) | clusters.pop(int(row[1]))
        parts = [part for part in ours if part & set(edge)]
        ours = [part for part in ours if part not in parts] + [parts[0] | parts[1]]
        assert ours[-1] == clusters[7 + step]


def test_pixels_that_no_map_is_sure_of_change_nothing(problem):
    _, maps, matches = problem
    wrong = [each.clone() for each in maps.points1]
    sure = [each.clone() for each in maps.confidence1]
    wrong[0][3, 5], wrong[1][:4, :4], sure[2][0, 0] = torch.nan, torch.inf, 0.0
    found = align_matches(maps._replace(points1=tuple(wrong), confidence1=tuple(sure)), matches, FEW)
    assert all(bool(each.isfinite().all()) for each in (*found.depth, *found.cameras, found.losses))
    errors = pairwise_pose_errors(found.cameras.cam_from_world, align_matches(maps, matches, FEW).cameras[0])
    assert errors.rotation_deg.max() < 1


def test_bad_input_is_named(problem):
    _, maps, matches = problem
    with pytest.raises(ValueError, match=r"pairs must be whole numbers, at least one pair, got torch.int64 of 0 pairs"):
        align_matches(maps.take([]), matches)
    with pytest.raises(ValueError, match=r"^pair \(1, 0\) must have confident pixels in both images, got none"):
        align_matches(maps._replace(confidence2=tuple(each * (i != 2) for i, each in enumerate(maps.confidence2))),
                      matches)  # fmt: skip
    for value in (torch.nan, -1.0):
        confidence = matches.matches[1].confidence.clone()
        confidence[3] = value
        bad = (matches.matches[0], matches.matches[1]._replace(confidence=confidence), matches.matches[2])
        with pytest.raises(ValueError, match=rf"must be finite and above 0, got {value:g} of pair \(1, 2\)"):
            align_matches(maps, matches._replace(matches=bad))
    zero = matches.matches[0]._replace(confidence=torch.zeros(150))
    with pytest.raises(ValueError, match=r"must be finite and above 0, got 0 of pair \(0, 1\)"):
        align_matches(maps, matches._replace(matches=(zero, *matches.matches[1:])))
    beside = matches.matches[0]._replace(coords2_px=matches.matches[0].coords2_px + SIZE[1])
    with pytest.raises(ValueError, match="matches must lie in image 1, 32x24 pixels, got others"):
        align_matches(maps, matches._replace(matches=(beside, *matches.matches[1:])))
    with pytest.raises(ValueError, match=r"maps must have both directions of pair \(0, 1\), got none of \(1, 0\)"):
        align_matches(maps.take([0, 1, 3, 4, 5]), matches)
    none = Matches(*(each[:0] for each in matches.matches[0]))
    with pytest.raises(ValueError, match="got none between image 0 and the others; pairs without matches don't count"):
        align_matches(maps, matches._replace(matches=(none, matches.matches[1], none)))
    with pytest.raises(ValueError, match="focals must be positive, got -3"):
        align_matches(maps, matches, known=KnownOfImages(torch.tensor([-3.0, torch.nan, 20.0])))
    contradicting = KnownOfImages(torch.tensor([20.0, 25.0, torch.nan]))
    with pytest.raises(ValueError, match=r"^focals must be one where .*, got 20 px of image 0 and 25 px of image 1"):
        align_matches(maps, matches, FEW._replace(shared_intrinsics=True), known=contradicting)
