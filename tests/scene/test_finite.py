from __future__ import annotations

import dataclasses

import pytest
import torch

import geomtx
from geomtx.scene.checks import require_usable, warn_of_unusable
from geomtx.types import Predictions


def broken(scene: geomtx.Scene, name: str, views: slice | int, value: float = torch.nan) -> geomtx.Scene:
    """The scene with one kind of prediction that is not finite in some views."""
    parts = getattr(scene.predictions, name)
    first = parts[0].clone()
    first[views] = value
    changed = {name: parts._replace(**{parts._fields[0]: first})}
    return dataclasses.replace(scene, predictions=scene.predictions._replace(**changed))


def test_a_whole_scene_is_quiet(scene: geomtx.Scene, caplog: pytest.LogCaptureFixture) -> None:
    require_usable(scene)
    warn_of_unusable(scene)
    require_usable(dataclasses.replace(scene, predictions=Predictions()))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "said"), [("cameras", "camera"), ("depth", "depth"), ("points", "points"), ("tracks", "tracks")]
)
def test_views_are_named_and_nothing_finite_is_an_error(
    scene: geomtx.Scene, name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    some = broken(scene, name, slice(1, 3), torch.inf)
    require_usable(some)
    warn_of_unusable(some)
    assert caplog.messages == [f"predictions are not finite in 2 of 4 views: view_1.png ({said}), view_2.png ({said})"]
    with pytest.raises(ValueError, match=rf"^predictions must be finite, got NaN .* everywhere in {said}; check it$"):
        require_usable(broken(scene, name, slice(None)), "check it")


def test_what_no_photo_shows_need_not_be_finite(scene: geomtx.Scene, caplog: pytest.LogCaptureFixture) -> None:
    masks = scene.masks.clone()
    masks[2] = False
    warn_of_unusable(dataclasses.replace(broken(scene, "depth", 2), masks=masks))
    assert caplog.messages == []


def test_reconstruct_says_it(caplog: pytest.LogCaptureFixture) -> None:
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny())
    with torch.no_grad():
        model.encoder.backbone.patch_embedding.project.weight.fill_(torch.nan)
    scene = geomtx.reconstruct(model, torch.rand(2, 3, 28, 28), heads=("camera",))
    assert scene.cameras is not None
    assert [m for m in caplog.messages if "predictions are not finite in 2 of 2 views: view_000.png (camera)" in m]


def test_views_whose_focal_lengths_are_not_positive_are_named(
    scene: geomtx.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    cameras = scene.predictions.cameras
    assert cameras is not None
    intrinsics = cameras.intrinsics.clone()
    intrinsics[1, 1, 1] *= -1
    some = dataclasses.replace(scene, predictions=Predictions(cameras._replace(intrinsics=intrinsics)))
    require_usable(some)
    warn_of_unusable(some)
    assert caplog.messages == ["predicted focal lengths are not above 0 in 1 of 4 views: view_1.png"]
    caplog.clear()
    intrinsics[1, 1, 1] = 1e7
    warn_of_unusable(dataclasses.replace(scene, predictions=Predictions(cameras._replace(intrinsics=intrinsics))))
    too_long = "predicted focal lengths are more than 100 times as long as the image's side in 1 of 4 views: view_1.png"
    assert caplog.messages == [too_long]
    flat = Predictions(cameras._replace(intrinsics=intrinsics * torch.tensor([0.0, 1.0, 1.0])))
    with pytest.raises(
        ValueError, match="predicted focal lengths must be above 0, got none such in any view; check it"
    ):
        require_usable(dataclasses.replace(scene, predictions=flat), "check it")
