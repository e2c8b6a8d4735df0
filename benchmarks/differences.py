"""How far predictions are from others of the same scene, in the numbers that all benchmarks give."""

from __future__ import annotations

from geomtx import Predictions
from geomtx.geometry import rotation_angle


def compare_predictions(got: Predictions, expected: Predictions) -> dict[str, float]:
    """Of one scene: the worst view's rotation in degrees and translation over the mean length; depth's median.

    Translations count from the first camera, whose own is about 0; the mean is over all views of `expected`. Depth is
    the median relative difference over all pixels.
    """
    ours, theirs = got.cameras.cam_from_world.double(), expected.cameras.cam_from_world.double()
    apart = (ours - theirs)[..., 3].norm(dim=-1).max() / theirs[..., 3].norm(dim=-1).mean()
    differences = {
        "rotation_deg": rotation_angle(ours[..., :3], theirs[..., :3]).rad2deg().max(),
        "translation": apart,
        "depth": (got.depth.value.double() / expected.depth.value.double() - 1).abs().median(),
    }
    assert all(value.isfinite() for value in differences.values()), "predictions must be finite"
    return {name: value.item() for name, value in differences.items()}
