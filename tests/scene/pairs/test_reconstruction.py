from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import roma
import torch
from torch import nn

import geomtx
from geomtx import DUSt3R, DUSt3RConfig, Scene
from geomtx.geometry import invert_rigid, unproject
from geomtx.geometry.camera import transform_points
from geomtx.inference import choose_pairs, default_graph, pairs
from geomtx.inference.pair_maps import PairedView, PairModel, PairPrediction
from geomtx.scene import KnownCameras, WindowPlan
from geomtx.scene.pairs import AlignmentOptions, MotionTerms, SparseOptions, reconstruct_pairs
from geomtx.types import DenseMap, Tokens
from geomtx.views import Views

SIZES = [(32, 48), (48, 32), (32, 48)]


class Exact(PairModel):
    """In place of a network: the true point maps of a wavy surface, for images whose grey value is their number."""

    def __init__(self, sizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(patch_size=16)
        self.points, self.cam_from_world, self.focal = [], [], 50.0
        for index, (height, width) in enumerate(sizes):
            pose = torch.eye(3, 4)
            pose[:, 3] = torch.tensor([0.4 * index, -0.1 * index, 0.05 * index])
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            depth = 3 + 0.5 * (x / 9.0).sin() + 0.4 * (y / 7.0 + index).cos()
            k = torch.tensor([[self.focal, 0, width / 2], [0, self.focal, height / 2], [0, 0, 1]])
            self.points.append(unproject(depth, k, pose))  # in the world
            self.cam_from_world.append(pose)

    def encode(self, images) -> Tokens:
        return Tokens({0: images.mean((1, 2, 3))[:, None, None, None]}, 0, tuple(images.shape[-2:]), (1, 1))

    def decode(self, first, second) -> PairPrediction:
        def view(i: int, of: int) -> PairedView:
            local = transform_points(self.cam_from_world[i], self.points[of].flatten(0, 1)).view_as(self.points[of])
            return PairedView(DenseMap(local[None] * (1 + 0.1 * i), torch.full((1, *local.shape[:2]), 5.0)))

        i, j = (round(float(tokens.layer(0)) * 100) for tokens in (first, second))
        return PairPrediction(view(i, i), view(i, j))


def test_true_maps_give_true_cameras_and_depth_in_padded_views():
    model = Exact(SIZES)
    images = [torch.full((3, *size), index / 100) for index, size in enumerate(SIZES)]
    views = Views.from_images(images, patch_size=16)
    assert views.image_hw == (48, 48)
    scene = reconstruct_pairs(model, views, alignment=AlignmentOptions(steps=60))
    centers = invert_rigid(scene.cameras.cam_from_world)[:, :, 3]
    true = invert_rigid(torch.stack(model.cam_from_world))[:, :, 3]
    ratio = centers[1].norm() / true[1].norm()
    torch.testing.assert_close(centers / ratio, true - true[0], atol=0.03, rtol=0)
    torch.testing.assert_close(scene.cameras.intrinsics[:, 0, 0], torch.full((3,), 50.0), atol=1.5, rtol=0)
    torch.testing.assert_close(scene.cameras.intrinsics[1, :2, 2], torch.tensor([16.0, 24.0]), atol=1e-3, rtol=0)
    for depth, points, pose in zip(scene.depth, model.points, model.cam_from_world, strict=True):
        wanted = transform_points(pose, points.flatten(0, 1)).view_as(points)[..., 2]
        torch.testing.assert_close(depth.value / ratio, wanted, atol=0.1, rtol=0)
    assert scene.depth[1].value.shape == (48, 32)
    assert "6, complete" in scene.provenance["pairs"]


@pytest.mark.parametrize("num_views", [1, 2])
def test_one_and_two_photos_make_scenes_that_are_saved(num_views, tmp_path):
    model = Exact(SIZES[:1] * num_views)
    images = torch.stack([torch.full((3, 32, 48), index / 100) for index in range(num_views)])
    scene = reconstruct_pairs(model, images, folder=None)
    torch.testing.assert_close(scene.cameras.intrinsics[0, 0, 0], torch.tensor(50.0), atol=0.5, rtol=0)
    assert len(scene.points(percentile=0).xyz) > 1000
    scene.save(tmp_path / "scene")
    assert Scene.load(tmp_path / "scene").predictions.depth.value.shape == (num_views, 32, 48)


def test_a_network_and_a_folder(tmp_path, capsys):
    model = DUSt3R(DUSt3RConfig.tiny(depth=2, head="linear")).eval()
    with torch.no_grad():  # points in front of the camera
        for head in (model.first_head, model.second_head):
            head.points.out.project.bias.view(4, -1)[2] += 1.5
    images = torch.rand(2, 3, 32, 48)
    scene = reconstruct_pairs(model, images, folder=tmp_path)
    assert scene.predictions.depth.value.shape == (2, 32, 48)
    assert (tmp_path / "pairs.json").is_file()
    again = reconstruct_pairs(model, images, folder=tmp_path)
    assert torch.equal(again.predictions.depth.value, scene.predictions.depth.value)
    scene = geomtx.reconstruct(model, images, graph="oneref-1", progress=True)
    assert scene.provenance["pairs"] == "2, oneref-1"
    assert "pairs: " in capsys.readouterr().err


def test_more_photos_than_all_pairs_are_good_for():
    assert [default_graph(num) for num in (2, 20, 21)] == ["complete", "complete", "logwin-5"]
    assert default_graph(21, is_video=True) == "swinstride-5-noncyclic"
    images = torch.stack([torch.full((3, 16, 16), index / 100) for index in range(21)])
    scene = geomtx.reconstruct(Exact([(16, 16)] * 21), images, alignment=AlignmentOptions("published", steps=0))
    assert scene.provenance["pairs"] == "210, logwin-5"


def true_cameras(model: Exact) -> KnownCameras:
    """The cameras of its images, in a world that is turned, twice as large and elsewhere; in metres."""
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.2, 0.5]).double())
    rotation, translation = torch.stack(model.cam_from_world).double().split([3, 1], dim=2)
    shift = rotation @ torch.tensor([1.0, 2, 3]).double()[:, None]
    poses = torch.cat([rotation @ turn, 2 * translation + shift], dim=2)
    sizes = tuple((points.shape[0], points.shape[1]) for points in model.points)
    intrinsics = torch.stack(
        [torch.tensor([[model.focal, 0, w / 2], [0, model.focal, h / 2], [0, 0, 1]]).double() for h, w in sizes]
    )
    return KnownCameras(tuple(f"photo {index}" for index in range(len(sizes))), poses, intrinsics, sizes, "metres")


@pytest.mark.parametrize("unknown", [(), (1,)])
def test_known_cameras_are_kept_and_give_the_world(unknown):
    model = Exact(SIZES)
    views = Views.from_images([torch.full((3, *size), index / 100) for index, size in enumerate(SIZES)], patch_size=16)
    true = true_cameras(model)
    known = true._replace(names=views.names, cam_from_world=true.cam_from_world.clone())
    known.cam_from_world[list(unknown)] = torch.nan
    scene = geomtx.reconstruct(model, views, cameras=known)
    assert scene.units == "metres"
    for view, (wanted, got) in enumerate(zip(true.cam_from_world.float(), scene.cameras.cam_from_world, strict=True)):
        torch.testing.assert_close(got, wanted, atol=0.1 if view in unknown else 1e-5, rtol=0)
    torch.testing.assert_close(scene.cameras.intrinsics[:, 0, 0], torch.full((3,), model.focal))
    for depth, points, pose in zip(scene.depth, model.points, model.cam_from_world, strict=True):
        wanted = transform_points(pose, points.flatten(0, 1)).view_as(points)[..., 2]
        torch.testing.assert_close(depth.value / 2, wanted, atol=0.05, rtol=0)


def test_known_focal_lengths_are_kept():
    model = Exact(SIZES[:1] * 3)
    images = torch.stack([torch.full((3, 32, 48), index / 100) for index in range(3)])
    known = true_cameras(model)._replace(cam_from_world=None)
    known.intrinsics[:, [0, 1], [0, 1]] = 60.0
    known.intrinsics[1] = torch.nan
    for count in (1, 2, 3):
        views = Views.from_images(images[:count], patch_size=16)
        given = known._replace(names=(*views.names, *known.names[count:]))
        scene = geomtx.reconstruct(model, views, cameras=given)
        assert set(scene.cameras.intrinsics[::2, 0, 0].tolist()) == {60.0}
        assert scene.units == "up to scale"
        torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4))


def test_known_cameras_that_do_not_fit_are_one_line():
    model, images = Exact(SIZES[:1] * 3), torch.rand(3, 3, 32, 48)
    views = Views.from_images(images, patch_size=16)
    known = true_cameras(model)._replace(names=views.names)
    alone = known._replace(cam_from_world=known.cam_from_world.clone())
    alone.cam_from_world[1:] = torch.nan
    with pytest.raises(ValueError, match=r"^known cameras must have poses of at least 2 of the photos .*, got 1$"):
        geomtx.reconstruct(model, views, cameras=alone)
    other = known._replace(intrinsics=known.intrinsics.clone())
    other.intrinsics[2, 0, 0] *= 1.1
    with pytest.raises(ValueError, match=r"^focals must be one where .*, got 50 px of \S+ and 52.4404 px of "):
        geomtx.reconstruct(model, views, cameras=other, alignment=AlignmentOptions(shared_focal=True))
    negative = known._replace(intrinsics=known.intrinsics * torch.tensor([[-1.0], [1], [1]]))
    with pytest.raises(ValueError, match=r"^focals must be positive, got -50 of \S+, \S+, \S+"):
        geomtx.reconstruct(model, views, cameras=negative)
    flat = known._replace(cam_from_world=known.cam_from_world * torch.tensor([1.0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"^known poses must be \[R \| t\] with rotations R"):
        geomtx.reconstruct(model, views, cameras=flat)


@pytest.mark.parametrize("alignment", [AlignmentOptions(), AlignmentOptions("published", steps=300)])
def test_known_principal_points_are_kept(alignment):
    """Of photos that were cut: their middle is not where the camera looks."""
    model, size = Exact([(32, 64)] * 2), (32, 48)
    model.points = [points[:, 10:58] for points in model.points]
    views = Views.from_images([torch.full((3, *size), index / 100) for index in range(2)], patch_size=16)
    principal = torch.tensor([[model.focal, 0, 22], [0, model.focal, 16], [0, 0, 1]]).double()
    known = true_cameras(model)._replace(names=views.names, intrinsics=principal.expand(2, 3, 3))
    scene = geomtx.reconstruct(model, views, cameras=known, alignment=alignment)
    torch.testing.assert_close(scene.cameras.intrinsics, known.intrinsics.float())
    for depth, points, pose in zip(scene.depth, model.points, model.cam_from_world, strict=True):
        wanted = transform_points(pose, points.flatten(0, 1)).view_as(points)[..., 2]
        torch.testing.assert_close(depth.value / 2, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("alignment", [AlignmentOptions(), AlignmentOptions("published", steps=20)])
def test_whatever_stands_around_the_scene_is_the_same(around, alignment):
    model = Exact(SIZES[:1] * 3)
    images = torch.stack([torch.full((3, 32, 48), index / 100) for index in range(3)])
    expected = geomtx.reconstruct(model, images, alignment=alignment)
    with around():
        scene = geomtx.reconstruct(model, images, alignment=alignment)
    torch.testing.assert_close(scene.cameras.cam_from_world, expected.cameras.cam_from_world)
    torch.testing.assert_close(scene.predictions.depth.value, expected.predictions.depth.value)


def test_windows_are_stitched(tmp_path):
    count, size, window = 7, (32, 48), WindowPlan(4, 2)
    model = Exact([size] * count)
    views = Views.from_images(torch.stack([torch.full((3, *size), i / 100) for i in range(count)]), patch_size=16)
    scene = geomtx.reconstruct(model, views, window=window, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["views-0-3", "views-2-5", "views-3-6"]
    assert scene.provenance["window"] == "4 views, 2 shared"
    true = invert_rigid(torch.stack(model.cam_from_world))[:, :, 3]
    centers = invert_rigid(scene.cameras.cam_from_world)[:, :, 3]
    torch.testing.assert_close(centers * true[1].norm() / centers[1].norm(), true, atol=0.05, rtol=0)
    assert "window" not in geomtx.reconstruct(model, views[:4], window=window).provenance
    tracker = geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny(features="images")).eval()
    found = geomtx.reconstruct(model, views, window=window, motion=tracker, alignment=AlignmentOptions(steps=1))
    assert found.moving.shape == (count, *size)
    for name, value, message in (
        ("cameras", true_cameras(model), r"cameras must be None with a window; geomtx.align\("),
        ("graph", torch.tensor([[0, 1], [1, 0]]), "graph must not be a Tensor with a window, as it is of all views"),
        ("motion", MotionTerms(), "motion must not be a MotionTerms with a window, as it is of all views"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            geomtx.reconstruct(model, views, window=window, **{name: value})


def test_what_does_not_go_with_pairs_is_one_line(monkeypatch):
    model, images = Exact(SIZES[:1] * 2), torch.rand(2, 3, 32, 48)
    for name, value in {
        "query_points": [[0, 1, 1]],
        "heads": ("depth",),
        "reference": "shared",
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be left out for a Exact, which sees pairs, got "):
            geomtx.reconstruct(model, images, **{name: value})
    with pytest.raises(TypeError, match=r"^reconstruct takes no option 'grahp' for a Exact, .*'graph'"):
        geomtx.reconstruct(model, images, grahp="complete")
    with pytest.raises(ValueError, match=r"^pairs must connect all images, got none between image 2 and the others$"):
        reconstruct_pairs(model, torch.rand(3, 3, 32, 48), graph=torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match=r"^graph must have shape \(E, 2\), got \(3,\)$"):
        reconstruct_pairs(model, images, graph=[0, 1, 1])
    with pytest.raises(ValueError, match=r"^graph must be a name or whole numbers \(E, 2\), got torch.float32$"):
        reconstruct_pairs(model, images, graph=torch.rand(2, 2))
    with pytest.raises(ValueError, match=r"^model must be one that sees pairs, such as a DUSt3R, got a Linear$"):
        reconstruct_pairs(nn.Linear(2, 2), images)
    monkeypatch.setattr(pairs, "free_bytes", lambda device: 1e5)
    with pytest.raises(ValueError, match=r"^pairs must fit into memory, got 2 that need .* enough for 1; fewer"):
        reconstruct_pairs(model, images)


def test_optical_flow_counts_where_memory_is_checked(monkeypatch):
    model, size = Exact(SIZES[:1] * 2), SIZES[0]
    images = torch.stack([torch.full((3, *size), index / 100) for index in range(2)])
    tracker = geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny(features="images")).eval()
    # Both sides of two pairs in half precision and float32, four numbers a pixel; flow and that of the cameras, two.
    needed = 2 * size[0] * size[1] * (2 * 4 * (2 + 4) + 3 * 2 * 4)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(pairs, "free_bytes", lambda device, free=free: free)
        with nullcontext() if fits else pytest.raises(ValueError, match=r"^pairs must fit into memory"):
            reconstruct_pairs(model, images, motion=tracker, alignment=AlignmentOptions(steps=1))
    monkeypatch.setattr("geomtx.models.video_tracker.run.free_bytes", lambda device: 0)
    monkeypatch.setattr(Exact, "encode", lambda self, images: pytest.fail("the model ran first"))
    with pytest.raises(ValueError, match=r"^video must be short enough for memory, got 2 frames"):
        reconstruct_pairs(model, images, motion=tracker)


def test_a_video_keeps_what_moves(tmp_path):
    count, size = 4, (32, 48)
    model = Exact([size] * count)
    images = torch.stack([torch.full((3, *size), index / 100) for index in range(count)])
    graph = choose_pairs(count, default_graph(count, is_video=True))
    flow = torch.full((len(graph), 2, *size), torch.nan)
    moving = torch.zeros(count, *size, dtype=torch.bool)
    moving[1:, 8:16, 20:30] = True
    steps = AlignmentOptions(steps=1)
    scene = reconstruct_pairs(
        model, Views.from_images(images, patch_size=16), motion=MotionTerms(flow, moving), alignment=steps
    )
    assert torch.equal(scene.moving, moving)
    assert len(scene.points(0).xyz) <= int((~moving).sum())
    assert geomtx.reconstruct(model, images, motion=MotionTerms(), alignment=steps).moving is None
    tracker = geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny(features="images")).eval()
    found = geomtx.reconstruct(model, images, motion=tracker, alignment=steps)
    assert found.moving.shape == moving.shape
    found.save(tmp_path, report=False)
    assert torch.equal(Scene.load(tmp_path).moving, found.moving)


def test_motion_that_does_not_fit_is_one_line():
    model, images = Exact([(32, 48)] * 3), torch.rand(3, 3, 32, 48)
    with pytest.raises(ValueError, match=r"^motion must be of at least two frames, got 1$"):
        reconstruct_pairs(model, images[:1], motion=MotionTerms())
    with pytest.raises(ValueError, match=r"^alignment must be AlignmentOptions with motion, got SparseOptions"):
        reconstruct_pairs(model, images, motion=MotionTerms(), alignment=SparseOptions())
    with pytest.raises(ValueError, match=r"^motion must be MotionTerms or a VideoTracker, got 'raft'$"):
        reconstruct_pairs(model, images, motion="raft")
    with pytest.raises(ValueError, match=r"^flow must have shape"):
        reconstruct_pairs(model, images, motion=MotionTerms(torch.zeros(2, 2, 32, 48)))
