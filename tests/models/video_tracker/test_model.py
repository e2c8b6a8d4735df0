import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from geomtx import VGGT, VideoTracker, VideoTrackerConfig
from geomtx.inference import track_in_chunks
from geomtx.types import Tokens
from lean import lean_config
from reference import randomize, without_gradient

HW = (28, 56)


class FirstToken(nn.Module):
    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.layer(1)[:, :, 0]


def tracker(**changes) -> VideoTracker:
    vggt = lean_config(heads=("depth", "tracks"), dim=16, dpt_features=8, dpt_channels=(8, 8, 8, 8), track_features=8)
    numbers = {"vggt": vggt, "window": 4, "window_stride": 2, **changes}
    return randomize(VideoTracker(VideoTrackerConfig.tiny(**numbers)), 0.2).double().eval()


def draw_video(num_frames: int = 5, num_videos: int = 1) -> Tensor:
    return torch.rand(num_videos, num_frames, 3, *HW).double()


def draw_queries(views: list[int], num_videos: int = 1) -> Tensor:
    view = torch.tensor(views).double().expand(num_videos, -1)[..., None]
    return torch.cat([view, torch.rand(*view.shape[:2], 2).double() * torch.tensor([55, 27])], dim=-1)


def assert_equal_tracks(ours, reference, atol: float = 1e-8) -> None:
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("features", ["vggt", "images"])
def test_forward_is_features_then_tracks(features):
    model, video, queries = tracker(features=features), draw_video(5, 2), draw_queries([0, 3, 4], 2)
    result = model(video, queries)
    assert result.tracks.coords_px.shape == (2, 5, 3, 2)
    kept = model.features(video)
    assert kept.shape == (2, 5, 8, 7, 14)
    assert_equal_tracks(model.track(kept, queries).tracks, result.tracks, 0)
    for options in ({}, {"support_grid": 2, "local_grid": 2}):
        result = model(video, queries, **options)
        for b in range(2):
            alone = model(video[b], queries[b], **options).tracks
            assert_equal_tracks(alone, (part[b : b + 1] for part in result.tracks))


def test_support_points_are_dropped_and_felt():
    model, video, queries = tracker(), draw_video(), draw_queries([0, 2])
    plain = model(video, queries)
    for options in ({"support_grid": 3}, {"local_grid": 2}, {"support_grid": 2, "local_grid": 2}):
        ours = model(video, queries, **options)
        for part, reference in zip((*ours.tracks, *ours.windows), (*plain.tracks, *plain.windows), strict=True):
            assert part.shape == reference.shape
        assert not torch.allclose(ours.tracks.coords_px, plain.tracks.coords_px)
        torch.testing.assert_close(ours.tracks.coords_px[0, 2, 1], queries[0, 1, 1:])


def test_queries_in_chunks_are_tracked_as_if_alone():
    model, video, queries = tracker(), draw_video(), draw_queries([0, 1, 3])
    ours = track_in_chunks(partial(model, video, support_grid=2), queries, 2)
    alone = [model(video, part, support_grid=2) for part in queries.split(2, dim=1)]
    assert torch.equal(ours.tracks.coords_px, torch.cat([part.tracks.coords_px for part in alone], dim=2))
    assert torch.equal(ours.windows.coords_px, torch.cat([part.windows.coords_px for part in alone], dim=4))


def test_the_vggt_inside_stays_usable():
    model = tracker()
    images = draw_video(2)
    assert model.vggt(images, draw_queries([0]), heads=("depth", "tracks")).depth.value.shape == (1, 2, *HW)
    with pytest.raises(ValueError, match=r"^features must be a VGGT's for the model to have one, got ImageFeatures$"):
        tracker(features="images").vggt  # noqa: B018


def test_no_query_is_no_track():
    tracks = tracker()(draw_video(), torch.zeros(1, 0, 3).double(), support_grid=2).tracks
    assert tracks.coords_px.shape == (1, 5, 0, 2)


class Brightness(nn.Module):
    """Features of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 1).double())

    def forward(self, video: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(video.mean(2), 4)[:, :, None] * self.weight


def test_any_module_can_make_the_features(tmp_path):
    config = tracker().config
    model = VideoTracker(config, features=Brightness()).double().eval()
    video, queries = draw_video(), draw_queries([0, 2])
    expected = model(video, queries).tracks
    model.save_pretrained(tmp_path)
    loaded = VideoTracker.from_pretrained(tmp_path, features=Brightness())
    assert_equal_tracks(loaded(video, queries).tracks, expected, 0)


@pytest.mark.parametrize("features", ["vggt", "images"])
def test_saved_and_loaded(tmp_path, features):
    model, video, queries = tracker(features=features), draw_video(), draw_queries([0, 2])
    expected = model(video, queries).tracks
    assert model.save_pretrained(tmp_path) == tmp_path
    loaded = VideoTracker.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert_equal_tracks(loaded(video, queries).tracks, expected, 0)
    assert (
        next(VideoTracker.from_pretrained(tmp_path / "model.safetensors", dtype=torch.float32).parameters()).dtype
        == torch.float32
    )


def test_on_a_vggt_that_is_there(tmp_path):
    vggt = randomize(VGGT(lean_config(dim=16))).eval()
    images, queries = torch.rand(1, 3, 3, *HW), torch.rand(1, 2, 2)
    before = vggt(images, queries)
    vggt.save_pretrained(tmp_path)
    for source in (vggt, tmp_path):
        model = VideoTracker.from_vggt(
            source, window=6, stride=2, levels=2, num_virtual=3, depth=1, dim=16, num_heads=2
        )
        assert model.config.vggt == vggt.config
        assert (model.config.window, model.config.stride) == (6, 2)
        after = model.vggt(images, queries)
        assert torch.equal(after.tracks.coords_px, before.tracks.coords_px)
        assert torch.equal(model.features(images), vggt.track_head.extract(vggt.encoder(images)))
    assert model.vggt is not vggt
    half = VideoTracker.from_vggt(copy.deepcopy(vggt).bfloat16(), levels=2, num_virtual=3, depth=1, dim=16, num_heads=2)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(images, torch.tensor([[[0, 3.0, 4.0]]])).tracks.coords_px.dtype == torch.float32
    small = VGGT(lean_config(dim=16, heads=("camera",)))
    assert VideoTracker.from_vggt(small, num_virtual=3, depth=1, dim=16, num_heads=2).vggt.track_head is None


def test_added_heads_of_the_vggt_inside(tmp_path):
    model, video, queries = tracker(), draw_video(), draw_queries([0, 2])
    model.vggt.add_head("first", FirstToken())
    model.save_pretrained(tmp_path)
    loaded = VideoTracker.from_pretrained(tmp_path, extra_heads={"first": FirstToken()})
    assert torch.equal(loaded.vggt(video).extra["first"], model.vggt(video).extra["first"])
    assert_equal_tracks(loaded(video, queries).tracks, model(video, queries).tracks, 0)


def test_every_parameter_of_the_tracker_gets_a_gradient():
    model = tracker().train()
    windows = model(draw_video(), draw_queries([0, 1]), backward=False).windows
    sum((part * torch.randn_like(part)).sum() for part in windows[:3]).backward()
    # The heads of the VGGT inside have no part in it.
    unused = (
        "features.vggt.encoder.backbone.mask_token",
        "features.vggt.camera_head",
        "features.vggt.depth_head",
        "features.vggt.point_head",
        "features.vggt.track_head",
    )
    assert [name for name in without_gradient(model) if not name.startswith(unused)] == []


@pytest.mark.usefixtures("unchecked")
def test_errors(tmp_path):
    model = tracker()
    with pytest.raises(ValueError, match=r"^video must have at least 2 frames to track in, got 1$"):
        model(draw_video(1), draw_queries([0]))
    with pytest.raises(ValueError, match=r"^query_points must lie in one of 5 frames of 56x28 pixels, got \[5.0, "):
        model(draw_video(), draw_queries([5]))
    with pytest.raises(ValueError, match=r"^query_points must lie in one of 5 frames of 56x28 pixels, got \[1.0, 56.0"):
        model(draw_video(), torch.tensor([[[1.0, 56.0, 3.0]]]).double())
    with pytest.raises(ValueError, match=r"^query_points must have shape \(1, N, 3\), got \(1, 4, 2\)$"):
        model(draw_video(), torch.rand(1, 4, 2).double())
    with pytest.raises(ValueError, match=r"^query_points must be a tensor, got list; "):
        model(draw_video(), [[0, 1.0, 2.0]])
    with pytest.raises(ValueError, match=r"^video must be floating point, got torch.uint8$"):
        model(torch.zeros(1, 5, 3, *HW, dtype=torch.uint8), draw_queries([0]))
    with pytest.raises(ValueError, match=r"^video must have shape .*, got \(3, 28, 56\)$"):
        model(draw_video()[0, 0], draw_queries([0]))
    with pytest.raises(ValueError, match=r"^video must have at least 32 pixels a side, got \(28, 56\)$"):
        tracker(levels=4)(draw_video(), draw_queries([0]))
    with pytest.raises(ValueError, match=r"^support_grid must be a whole number, at least 0, got -1$"):
        model(draw_video(), draw_queries([0]), support_grid=-1)
    with pytest.raises(ValueError, match=r"^local_grid must be a whole number, at least 0, got -1$"):
        model(draw_video(), draw_queries([0]), local_grid=-1)
    with pytest.raises(ValueError, match=r"^features must be a torch.nn.Module, got 'vgg'$"):
        VideoTracker(model.config, features="vgg")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("features", ["vggt", "images"])
def test_errors_of_features(features):
    source = tracker(features=features).features
    with pytest.raises(ValueError, match=r"^video must be floating point, got torch.uint8$"):
        source(torch.zeros(1, 5, 3, *HW, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^video must have shape \(B, S, 3, H, W\), got \(5, 3, 28, 56\)$"):
        source(draw_video()[0])


@pytest.mark.usefixtures("unchecked")
def test_track_takes_and_refuses_what_forward_does():
    model, video, queries = tracker(), draw_video(), draw_queries([0, 3])
    features, expected = model.features(video), model(video, queries)
    assert_equal_tracks(model.track(features, queries[0]).tracks, expected.tracks, 0)
    for row, message in (
        ([5, 1, 1], r"lie in one of 5 frames of 56x28 pixels, got \[5.0, "),
        ([1, -1, 1], r"lie in one of 5 frames of 56x28 pixels, got \[1.0, -1.0, "),
        ([1, 1, 31], r"lie in one of 5 frames of 56x28 pixels, got \[1.0, 1.0, 31.0"),
        ([0.5, 1, 1], r"name frames by whole numbers, as \(frame, x, y\), got \[0.5, "),
        ([torch.nan, 1, 1], r"be finite, got \[nan, "),
    ):
        for call, given in ((model, video), (model.track, features)):
            with pytest.raises(ValueError, match="^query_points must " + message):
                call(given, torch.tensor([[0, 1, 1], row]).double())
    with pytest.raises(ValueError, match=r"^query_points must be a tensor, got list; "):
        model.track(features, [[0, 1.0, 2.0]])
    with pytest.raises(ValueError, match=r"^query_points must have shape \(1, N, 3\), got \(1, 4, 2\)$"):
        model.track(features, torch.rand(4, 2).double())
    with pytest.raises(ValueError, match=r"^features must have shape \(B, S, 8, H, W\), got \(5, 8, 7, 14\)$"):
        model.track(features[0], queries)
    with pytest.raises(ValueError, match=r"^video must have at least 2 frames to track in, got 1$"):
        model.track(features[:, :1], draw_queries([0]))


def test_queries_by_the_border_of_a_video_that_maps_round_down():
    model, video = tracker(), torch.rand(1, 3, 3, 42, 70).double()
    corner = torch.tensor([[[1, 69.5, 41.5]]]).double()
    features = model.features(video)
    assert features.shape[-2:] == (10, 17)
    assert_equal_tracks(model.track(features, corner).tracks, model(video, corner).tracks, 0)


def test_on_a_vggt_on_another_device():
    numbers = {"num_virtual": 3, "depth": 1, "dim": 16, "num_heads": 2}
    vggt = VGGT(lean_config(dim=16, heads=("camera",))).to("meta", torch.bfloat16)
    model = VideoTracker.from_vggt(vggt, **numbers)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.cuda
def test_queries_are_looked_at_on_a_gpu_too():
    model, video, queries = tracker().cuda(), draw_video().cuda(), draw_queries([7]).cuda()
    features = model.features(video)
    for call, given in ((model, video), (model.track, features)):
        with pytest.raises(ValueError, match=r"^query_points must lie in one of 5 frames of 56x28 pixels, got \[7.0, "):
            call(given, queries)


def test_numbers_of_a_tracker_on_a_vggt(tmp_path):
    vggt = VGGT(lean_config(dim=16))
    numbers = {"num_virtual": 3, "depth": 1, "dim": 16, "num_heads": 2}
    with pytest.raises(ValueError, match=r"^features must be 'vggt' for a tracker on a VGGT, got 'images'$"):
        VideoTracker.from_vggt(vggt, features="images")
    for name in ("windwo", "vggt"):
        with pytest.raises(ValueError, match=rf"^number must be one of .*'window', .*, got '{name}'$"):
            VideoTracker.from_vggt(vggt, **{name: 8})
        with pytest.raises(ValueError, match=rf"^number must be one of .*'window', .*, got '{name}'$"):
            VideoTracker.from_vggt(tmp_path / "nothing", **{name: 8})  # before anything is read
    model = VideoTracker.from_vggt(vggt, features="vggt", device="cpu", dtype=torch.float64, **numbers)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    vggt.save_pretrained(tmp_path)
    model = VideoTracker.from_vggt(tmp_path, device="cpu", dtype=torch.bfloat16, **numbers)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.bfloat16)}


def test_weights_of_another_kind(tmp_path):
    tracker().vggt.save_pretrained(tmp_path)
    for source in (tmp_path, "nano"):
        with pytest.raises(
            ValueError, match=r"^weights must be of a VideoTracker, got '.*' of a VGGT; VideoTracker\.from_"
        ):
            VideoTracker.from_pretrained(source)


@pytest.mark.parametrize("kind", ["vggt", "images"])
def test_weights_of_other_features_ask_for_them(tmp_path, kind):
    config = tracker(features=kind).config
    VideoTracker(config, features=nn.Sequential(nn.Conv3d(3, 8, 1))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^features must be given for '.*', whose feature maps came from a module of"):
        VideoTracker.from_pretrained(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_features_that_do_not_fit():
    config, video, queries = tracker(levels=1).config, torch.rand(1, 3, 3, 56, 84), torch.tensor([[[1, 5.0, 5.0]]])
    for pool, message in (
        (
            nn.AvgPool3d((1, 8, 8)),
            r"^features must have stride 4 for a video of \(56, 84\) pixels, got maps of \(7, 10\)$",
        ),
        (nn.AvgPool3d((3, 4, 4)), r"^features must have shape \(1, 3, 8, H, W\), got \(1, 3, 1, 14, 21\)$"),
    ):
        widen = nn.Identity() if pool.kernel_size[0] == 3 else nn.ConstantPad3d((0, 0, 0, 0, 0, 5), 0.0)
        with pytest.raises(ValueError, match=message):
            VideoTracker(config, features=nn.Sequential(pool, widen))(video, queries)


def test_added_heads_elsewhere_are_saved_with_the_features(tmp_path):
    vggt = VGGT(lean_config(heads=()))
    vggt.add_head("mine", nn.Linear(3, 3))
    model = VideoTracker(tracker().config, features=nn.Sequential(vggt))
    model.save_pretrained(tmp_path / "new")
    other = copy.deepcopy(vggt)
    nn.init.zeros_(other.extra_heads["mine"].weight)
    loaded = VideoTracker.from_pretrained(tmp_path / "new", features=nn.Sequential(other))
    assert torch.equal(loaded.features[0].extra_heads["mine"].weight, vggt.extra_heads["mine"].weight)
