from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves, tree_map

import geomtx
from geomtx.data.synthetic.photos import save_photos
from geomtx.types import Predictions
from geomtx.views import Views, ViewTransform
from geomtx.views.for_model import load_for_model
from scene.known_scene import IMAGE_HW, KnownScene, render_room


@pytest.fixture
def model() -> KnownScene:
    return KnownScene(render_room(2, IMAGE_HW))


@pytest.fixture
def views(model: KnownScene, tmp_path: Path) -> Views:
    return geomtx.load_views(save_photos(model.rendered.images[0], tmp_path), size=IMAGE_HW[1])


def test_the_scene_has_what_the_model_says_without_a_batch_axis(model: KnownScene, views: Views) -> None:
    scene = geomtx.reconstruct(model, views)
    assert scene.names == ("view_0.png", "view_1.png")
    assert scene.images.dtype == torch.uint8
    assert scene.images.shape == (2, 3, *IMAGE_HW)
    assert scene.predictions.depth is not None
    assert scene.predictions.depth.value.shape == (2, *IMAGE_HW)
    assert scene.predictions.pose_encodings is not None
    assert scene.predictions.pose_encodings.shape == (2, 2, 9)
    assert scene.predictions.track_iterations is None
    assert torch.equal(scene.images, (model.rendered.images[0] * 255).round().byte())


def test_no_gradients_and_every_module_keeps_its_own_mode(model: KnownScene, views: Views) -> None:
    model.train()
    model.dropout.eval()
    geomtx.reconstruct(model, views)
    assert model.calls[0]["training"] is True
    assert model.calls[0]["grad"] is False
    assert (model.training, model.dropout.training) == (True, False)


def test_dropout_in_training_mode_is_refused(model: KnownScene, views: Views) -> None:
    model.train()
    with pytest.raises(ValueError, match=r"^model must be in evaluation mode, got dropout in training mode; call "):
        geomtx.reconstruct(model, views)
    assert not model.calls


def test_tracks_run_only_with_queries(model: KnownScene, views: Views) -> None:
    geomtx.reconstruct(model, views)
    geomtx.reconstruct(model, views, query_points=[(0, 3, 4)])
    geomtx.reconstruct(model, views, heads=("camera",))
    assert [call["heads"] for call in model.calls] == [
        ("camera", "depth", "points"),
        ("camera", "depth", "points", "tracks"),
        ("camera",),
    ]


def test_queries_are_mapped_to_model_pixels(model: KnownScene, tmp_path: Path) -> None:
    paths = save_photos(render_room(2, (168, 224)).images[0], tmp_path / "large")
    scene = geomtx.reconstruct(model, geomtx.load_views(paths, size=112), query_points=[(1, 100.5, 20.5)])
    assert model.calls[0]["query_points"].tolist() == [[[1.0, 50.0, 10.0]]]
    assert scene.query_points is not None
    assert scene.query_points.tolist() == [[1.0, 100.5, 20.5]]
    assert scene.tracks is not None
    torch.testing.assert_close(scene.tracks.coords_px[1, 0], torch.tensor([100.5, 20.5]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((2, 1, 1), r"query 1 \(2, 1, 1\) must name a view from 0 to 1, got view 2"),
        ((0.5, 1, 1), r"query 1 .* must name a view"),
        ((-1, 1, 1), r"query 1 .* must name a view"),
        ((0, 112, 1), r"query 1 .* must lie inside view_0.png, 112 x 84 pixels, got x 112, y 1"),
        ((1, 5, -0.6), r"query 1 .* must lie inside view_1.png"),
        ((1, float("nan"), 5), r"query 1 .* must lie inside view_1.png"),
    ],
)
def test_wrong_queries_are_named(model: KnownScene, views: Views, query: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(model, views, query_points=[(0, 1, 1), query])
    assert not model.calls


def test_a_query_in_a_cropped_part_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((300, 100, 3), np.uint8)).save(tmp_path / "tall.png")
    views = geomtx.load_views(tmp_path, mode="crop", size=56)
    model = KnownScene(render_room(1, (56, 56)))
    with pytest.raises(ValueError, match=r"query 0 .* part of tall.png that the model sees"):
        geomtx.reconstruct(model, views, query_points=[(0, 50, 5)])


def test_queries_of_another_shape_and_none(model: KnownScene, views: Views) -> None:
    with pytest.raises(ValueError, match=r"query_points must have shape \(N, 3\), got \(1, 2\)"):
        geomtx.reconstruct(model, views, query_points=[(1, 1)])
    with pytest.raises(ValueError, match="query_points must have at least one point"):
        geomtx.reconstruct(model, views, query_points=torch.zeros(0, 3))


def test_wrong_heads(model: KnownScene, views: Views) -> None:
    with pytest.raises(ValueError, match=r"head must be one of 'camera', .*, got 'normals'"):
        geomtx.reconstruct(model, views, heads=("normals",))
    with pytest.raises(ValueError, match="heads and query_points must come together: tracks is among the heads"):
        geomtx.reconstruct(model, views, heads=("tracks",))
    with pytest.raises(ValueError, match="tracks is not among the heads"):
        geomtx.reconstruct(model, views, heads=("depth",), query_points=[(0, 1, 1)])
    model.heads = ("depth",)
    with pytest.raises(ValueError, match="heads for query_points must be one of 'depth', got 'tracks'"):
        geomtx.reconstruct(model, views, query_points=[(0, 1, 1)])


def test_images_that_are_not_finite_are_named(model: KnownScene, views: Views) -> None:
    views.images[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"images must be finite, got NaN or infinity in view_1\.png"):
        geomtx.reconstruct(model, views)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_warning_for_images_far_outside_0_to_1(
    model: KnownScene, views: Views, as_tensor: bool, caplog: pytest.LogCaptureFixture
) -> None:
    views.images.mul_(255)
    geomtx.reconstruct(model, views.images if as_tensor else views)
    assert "should be in [0, 1], got" in caplog.text


def test_sizes_must_fit_the_patch(model: KnownScene) -> None:
    mask = torch.ones(1, 28, 30, dtype=torch.bool)
    views = Views(torch.zeros(1, 3, 28, 30), (ViewTransform.identity((28, 30)),), mask, ("a",), (None,))
    with pytest.raises(ValueError, match="image width must be a multiple of 14, got 30"):
        geomtx.reconstruct(model, views)


def test_a_tensor_is_a_scene_too(model: KnownScene, views: Views) -> None:
    scene = geomtx.reconstruct(model, views.images)
    assert scene.names == ("view_000.png", "view_001.png")
    assert scene.transforms == (ViewTransform.identity(IMAGE_HW),) * 2
    assert scene.masks.all()


def test_a_mask_is_passed_only_with_padding(model: KnownScene, views: Views) -> None:
    geomtx.reconstruct(model, views)
    views.masks[1, :14] = False
    geomtx.reconstruct(model, views)
    assert model.calls[0]["patch_mask"] is None
    assert model.calls[1]["patch_mask"].shape == (1, 2, 6, 8)
    assert not model.calls[1]["patch_mask"][0, 1, 0].any()


def test_options_are_checked_before_windows(model: KnownScene, views: Views) -> None:
    with pytest.raises(ValueError, match="view_chunk must be 'auto' or at least 1, got 0"):
        geomtx.reconstruct(model, views, view_chunk=0, window=geomtx.scene.WindowPlan(1, 1))
    assert not model.calls


def test_precision(tiny_model: geomtx.VGGT) -> None:
    views = torch.rand(2, 3, 28, 42)
    half = geomtx.reconstruct(tiny_model, views, dtype=torch.bfloat16, heads=("camera", "depth"))
    full = geomtx.reconstruct(tiny_model, views, dtype=torch.float32, heads=("camera", "depth"))
    assert half.predictions.depth is not None
    assert full.predictions.depth is not None
    assert half.predictions.depth.value.dtype == torch.float32
    error = (half.predictions.depth.value / full.predictions.depth.value - 1).abs().max()
    assert 0 < error < 0.1
    own = geomtx.reconstruct(tiny_model.bfloat16(), views, heads=("camera", "depth"))
    assert own.predictions.depth is not None
    assert own.predictions.depth.value.dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype must be the model's own torch.bfloat16, .* got torch.float16"):
        geomtx.reconstruct(tiny_model, views, dtype=torch.float16)


def test_a_real_model_end_to_end_with_mixed_sizes(tiny_model: geomtx.VGGT, tmp_path: Path) -> None:
    for name, wh in (("a.png", (120, 80)), ("b.png", (80, 120)), ("c.jpg", (100, 100))):
        Image.effect_noise(wh, 60).convert("RGB").save(tmp_path / name)
    views = geomtx.load_views(tmp_path, size=56)
    scene = geomtx.reconstruct(tiny_model, views, query_points=[(0, 60, 40), (1, 40, 60)])
    assert scene.depth is not None
    assert [tuple(depth.value.shape) for depth in scene.depth] == [(80, 120), (120, 80), (100, 100)]
    assert scene.tracks is not None
    assert scene.tracks.coords_px.shape == (3, 2, 2)
    expected = views.masks.sum()
    assert len(scene.points(0).xyz) == expected < views.masks.numel()


def test_the_progress_bar_is_shown_where_it_is_asked_for(
    tiny_model: geomtx.VGGT, views: Views, capsys: pytest.CaptureFixture[str]
) -> None:
    geomtx.reconstruct(tiny_model, views, heads=("camera", "depth"), progress=True)
    assert "encoder and heads" in capsys.readouterr().err
    geomtx.reconstruct(tiny_model, views, heads=("camera",))
    assert capsys.readouterr().err == ""


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    save_photos(render_room(2, IMAGE_HW).images[0], tmp_path)
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",)))
    scene = geomtx.reconstruct(model, tmp_path)
    assert scene.names == ("view_0.png", "view_1.png")
    assert repr(scene) == "Scene(2 views of 70x56, cameras, pose_encodings; up to scale)"


def test_pixels_of_patches_that_the_model_left_out_are_not_in_the_scene(model: KnownScene, views: Views) -> None:
    masks = [torch.ones(IMAGE_HW, dtype=torch.bool) for _ in range(2)]
    masks[0][:10] = False  # the first row of patches keeps 4 of its 14 rows of pixels: too few
    masks[1][:5] = False  # and here 9: it stays
    scene = geomtx.reconstruct(model, views.with_masks(masks))
    assert model.calls[0]["patch_mask"].sum() == (6 + 5) * 8
    assert not scene.masks[0, :14].any()
    assert scene.masks[0, 14:].all()
    assert torch.equal(scene.masks[1], masks[1])
    cloud = scene.points(0)
    assert torch.bincount(cloud.view).tolist() == [(84 - 14) * 112, (84 - 5) * 112]


def test_views_for_another_patch_size(model: KnownScene, views: Views) -> None:
    with pytest.raises(ValueError, match="patch_size of views must be the model's 14, got 28"):
        geomtx.reconstruct(model, dataclasses.replace(views, patch_size=28))


def test_views_for_another_patch_are_prepared_again(views: Views) -> None:
    nano = geomtx.VGGT(geomtx.VGGTConfig.nano(heads=("camera",))).eval()
    folder = views.paths[0].parent
    default = geomtx.reconstruct(nano, geomtx.load_views(folder))
    assert default.images.shape == (2, 3, 48, 64)
    assert torch.equal(default.images, geomtx.reconstruct(nano, folder).images)
    assert geomtx.reconstruct(nano, geomtx.load_views(folder, patch_size=8)).images.shape[-1] == 64, "nobody chose 520"
    assert geomtx.reconstruct(nano, views[1]).images.shape == (1, 3, 80, 112), "a chosen size stays"
    exact = geomtx.load_views(folder, size=32, patch_size=16)
    assert geomtx.reconstruct(nano, exact).images.shape[-1] == 32
    changed = geomtx.load_views(folder, size=112)
    changed.images[0] = 0
    for kept in (changed, views):  # changed images can't be made again of photos that are there
        with pytest.raises(ValueError, match="patch_size of views must be the model's 8, got 14"):
            geomtx.reconstruct(nano, kept)
        views.paths[1].unlink(missing_ok=True)


def test_large_images_are_warned_of(views: Views, caplog: pytest.LogCaptureFixture) -> None:
    nano = geomtx.VGGT(geomtx.VGGTConfig.nano(heads=("camera",))).eval()
    folder = views.paths[0].parent
    assert geomtx.reconstruct(nano, geomtx.load_views(folder, model=nano, size=128)).images.shape[-1] == 128
    assert caplog.text == ""
    geomtx.reconstruct(nano, geomtx.load_views(folder, model=nano, size=136))
    assert caplog.messages == [
        "images of 136 pixels are 2.1 times as large as those that the model is made for (64 pixels): it takes long, "
        "and the results may be worse than with smaller images (size=, --size)"
    ]


def test_scenes_that_do_not_fit_into_memory_are_refused(
    model: KnownScene, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"cpu": 2 * 84 * 112 * (4 + 4 * 6)}  # 8-bit colours, mask, depth, points and their confidence
    monkeypatch.setattr("geomtx.scene.checks.free_bytes", lambda device: free[device.type])
    geomtx.reconstruct(model, views)
    free["cpu"] -= 1
    message = r"^size of the images must be small enough for memory, got 112x84: 2 views need at least 0.000491 GiB on "
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(model, views)
    tiny = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",))).eval()
    free["cpu"] = 10 * 2**10
    with pytest.raises(ValueError, match=r"2 views need at least 0.000\d+ GiB on cpu"):
        geomtx.reconstruct(tiny, views)


def test_photos_are_loaded(model: KnownScene, views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: object, *, mode: str, size: int | None, patch_size: int) -> Views:
        assert (mode, size, patch_size) == ("fit", None, 14)  # this model doesn't say what size it is made for
        return geomtx.load_views(source, size=IMAGE_HW[1], patch_size=patch_size)  # type: ignore[arg-type]

    monkeypatch.setattr("geomtx.views.for_model.load_views", load)
    first, second = (path for path in views.paths if path is not None)
    for source in (first.parent, str(first.parent), [first, str(second)], iter((first, second))):
        assert geomtx.reconstruct(model, source).names == views.names  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "views must be Views, a tensor, a folder or photos, got NoneType"),
        (3, "views must be Views, a tensor, a folder or photos, got int"),
    ],
)
def test_what_is_neither_views_nor_photos(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_for_model(source, 14, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_predictions_become_float32(
    model: KnownScene, views: Views, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.forward

    def forward_in_half(*args: object, **options: object) -> Predictions:
        return tree_map(lambda t: None if t is None else t.to(dtype), forward(*args, **options))  # type: ignore[arg-type]

    monkeypatch.setattr(model, "forward", forward_in_half)
    scene = geomtx.reconstruct(model, views, query_points=[(0, 3, 4)])
    assert {leaf.dtype for leaf in tree_leaves(scene.predictions) if leaf is not None} == {torch.float32}
    scene.save(tmp_path / "out", report=False)
