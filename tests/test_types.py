import importlib
import pkgutil
import re

import jaxtyping
import pytest
import torch

import geomtx
from geomtx import Predictions, Tokens
from geomtx.types import TrackIterations


def tokens(mask: torch.Tensor | None = None) -> Tokens:
    layers = {4: torch.randn(2, 3, 1 + 6, 8), 1: torch.randn(2, 3, 1 + 6, 8)}
    return Tokens(layers, 1, (28, 42), (2, 3), mask)


def test_layers_by_index():
    kept = tokens()
    assert kept.layer(4) is kept.layers[4]
    assert kept.views == (2, 3)
    with pytest.raises(ValueError, match=r"^layer must be one of the tapped layers \[1, 4\], got 2$"):
        kept.layer(2)


def test_the_mask_of_the_patches():
    assert tokens().patch_mask() is None
    mask = torch.rand(2, 3, 7) < 0.5
    assert torch.equal(tokens(mask).patch_mask(), mask[:, :, 1:].reshape(6, 6))


def test_patches_as_a_map():
    kept = tokens()
    expected = kept.layer(4)[:, :, 1:].reshape(2, 3, 2, 3, 8).permute(0, 1, 4, 2, 3)
    assert torch.equal(kept.patch_map(4), expected)
    mask = torch.rand(2, 3, 7) < 0.5
    taken = mask[:, :, None, 1:].unflatten(-1, (2, 3))
    assert torch.equal(tokens(mask)._replace(layers=kept.layers).patch_map(4), torch.where(taken, expected, 0.0))


def test_predictions_are_empty_until_a_head_fills_them():
    assert all(part is None for part in Predictions())


def test_shapes_are_checked_in_these_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        geomtx.decode_pose(torch.zeros(2, 8), (4, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        geomtx.encode_pose(torch.zeros(2, 3, 4), torch.zeros(3, 3, 3), (4, 4))


@pytest.mark.usefixtures("unchecked")
def test_and_not_where_they_stand_in_the_way():
    with pytest.raises(ValueError, match=r"^encoding must have shape"):
        geomtx.decode_pose(torch.zeros(2, 8), (4, 4))


def test_a_repr_shows_shapes():
    cameras = geomtx.Cameras(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 3, device="meta"))
    predictions = Predictions(cameras=cameras, extra={"normals": (torch.zeros(5, 1), torch.tensor(2.5))})
    assert repr(predictions) == (
        "Predictions(cameras=Cameras(cam_from_world=float32[1, 2, 3, 4], intrinsics=float32[1, 2, 3, 3] on meta), "
        "extra={'normals': (float32[5, 1], 2.5)})"
    )
    assert repr(tokens()) == (
        "Tokens(layers={4: float32[2, 3, 7, 8], 1: float32[2, 3, 7, 8]}, num_special=1, image_hw=(28, 42), "
        "grid_hw=(2, 3))"
    )


def all_named_tuples() -> list[type]:
    """The public named tuples of geomtx that hold tensors."""
    found = {}
    for module in pkgutil.walk_packages(geomtx.__path__, "geomtx."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
                    found[value.__qualname__] = value
    return [
        value
        for name, value in found.items()
        if re.search(r"\bTensor\b", str(value.__annotations__)) and not name.startswith("_")
    ]


def test_no_named_tuple_prints_the_numbers_of_its_tensors():
    found = all_named_tuples()
    assert {geomtx.Predictions, geomtx.SceneBatch, geomtx.Tokens} <= set(found)
    assert [
        value.__name__ for value in found if "tensor(" in repr(value(*[torch.zeros(50)] * len(value._fields)))
    ] == []


def test_predictions_of_some_views_and_together_again():
    whole = Predictions(
        cameras=geomtx.Cameras(torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 3)),
        pose_encodings=torch.randn(4, 2, 5, 9),
        track_iterations=TrackIterations(torch.randn(4, 2, 5, 3, 2), torch.randn(2, 5, 3), torch.randn(2, 5, 3)),
        extra={"normals": geomtx.DenseMap(torch.randn(2, 5, 6, 7, 3), torch.randn(2, 5, 6, 7))},
    )
    parts = [whole.take_views(views) for views in (slice(0, 2), slice(2, 5))]
    assert parts[0].pose_encodings.shape == (4, 2, 2, 9)
    assert parts[1].track_iterations.coords_px.shape == (4, 2, 3, 3, 2)
    assert parts[1].cameras.intrinsics.shape == (2, 3, 3, 3)
    torch.testing.assert_close(Predictions.cat(parts).extra["normals"].value, whole.extra["normals"].value)
    torch.testing.assert_close(Predictions.cat(parts).track_iterations, whole.track_iterations)
    assert whole.map(lambda values: values.double()).extra["normals"].value.dtype == torch.float64
    assert whole.map(torch.neg).depth is None
