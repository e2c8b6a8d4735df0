"""Depth in metres and depth of the sky, from what Depth Anything 3's single-view models predict."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.heads.depth_sky import SKY_THRESHOLD
from geomtx.layers.precision import float32_island
from geomtx.types import Bool, Cameras, DenseMap, Float, show_shapes

__all__ = ["MetricScene", "depth_in_metres", "fill_sky", "scale_to_metres"]

_FOCAL = 300.0  # pixels; the focal length for which the network's output is in metres
_FEWEST_PIXELS = 10
_FARTHEST = 0.99  # quantile of the depth of what is no sky
_MOST_NUMBERS = 100_000  # of a quantile; of more, so many are taken at even steps
_LEAST_METRES, _LEAST_DEPTH = 0.01, 0.001
_FARTHEST_METRES = 200.0


@show_shapes
class MetricScene(NamedTuple):
    """Depth and cameras of scenes in metres.

    Attributes:
        depth: Depth and confidence, (B, S, H, W); confidence is 1 in the sky.
        cameras: Cameras, (B, S, 3, 4) and (B, S, 3, 3).
        scale: Metres of a unit of the model of many views, (B,).
    """

    depth: DenseMap
    cameras: Cameras
    scale: Float[Tensor, " b"]


@float32_island
def depth_in_metres(depth: Float[Tensor, "b s h w"], intrinsics: Float[Tensor, "b s 3 3"]) -> Float[Tensor, "b s h w"]:
    """Return the depth of a metric model in metres: the output times the mean focal length in pixels over 300.

    Args:
        depth: Depth that DA3METRIC-LARGE predicts, (B, S, H, W).
        intrinsics: Intrinsics in pixels of the images that the model saw, (B, S, 3, 3).

    Raises:
        ValueError: Without intrinsics, or if a shape is another one.
    """
    if intrinsics is None:
        raise ValueError("intrinsics must be given, as depth in metres needs a focal length, got None")
    check_shape("intrinsics", intrinsics, (*depth.shape[:2], 3, 3))
    focal = (intrinsics[..., 0, 0] + intrinsics[..., 1, 1]) / 2
    return depth * (focal / _FOCAL)[..., None, None]


@float32_island
def fill_sky(depth: Float[Tensor, "b s h w"], sky: Float[Tensor, "b s h w"]) -> Float[Tensor, "b s h w"]:
    """Return depth with all sky at the far end of everything else in the scene: the 0.99 quantile of its depth.

    For looking at; it is no measurement. Scenes with hardly any sky, or hardly anything else, stay as they are.

    Args:
        depth: Depth, (B, S, H, W).
        sky: Score of being sky, (B, S, H, W); below 0.3 a pixel is no sky.
    """
    filled = []
    for of_scene, score in zip(depth, sky, strict=True):
        ground = score < SKY_THRESHOLD
        if min(int(ground.sum()), int((~ground).sum())) <= _FEWEST_PIXELS:
            filled.append(of_scene)
        else:
            filled.append(torch.where(ground, of_scene, _quantile(of_scene[ground], _FARTHEST)))
    return torch.stack(filled)


@float32_island
def scale_to_metres(
    depth: DenseMap,
    cameras: Cameras,
    metric_depth: Float[Tensor, "b s h w"],
    sky: Float[Tensor, "b s h w"],
    valid: Bool[Tensor, "b s h w"] | None = None,
) -> MetricScene:
    """Bring scenes of a model of many views to metres by the depth of a metric model of the same images.

    The scale of a scene fits both depths by least squares, over pixels that are no sky and at least as confident as
    half of these. Sky is put at the far end of everything else, at most at 200 metres.

    Args:
        depth: Depth and confidence from the model of many views, (B, S, H, W).
        cameras: Its cameras, in pixels of the images.
        metric_depth: Depth that the metric model predicts, (B, S, H, W), see `depth_in_metres`.
        sky: The metric model's score of being sky, (B, S, H, W).
        valid: Pixels that count, which those of padding don't, (B, S, H, W) bool; defaults to all.
    """
    valid = torch.ones_like(sky, dtype=torch.bool) if valid is None else valid
    metres = depth_in_metres(metric_depth, cameras.intrinsics)
    scales, values, confidences = [], [], []
    for value, confidence, wanted, score, counts in zip(*depth, metres, sky, valid, strict=True):
        ground, above = (counts & each for each in (score < SKY_THRESHOLD, score >= SKY_THRESHOLD))
        scale = _fit_scale(value, confidence, wanted, ground)
        value = value * scale
        if min(int(ground.sum()), int(above.sum())) > _FEWEST_PIXELS:
            far = _quantile(value[ground], _FARTHEST).clamp(max=_FARTHEST_METRES)
            value, confidence = torch.where(above, far, value), torch.where(above, 1.0, confidence)
        scales.append(scale)
        values.append(value)
        confidences.append(confidence)
    scale = torch.stack(scales)
    rotation, translation = cameras.cam_from_world[..., :3], cameras.cam_from_world[..., 3:]
    moved = torch.cat([rotation, translation * scale[:, None, None, None]], dim=-1)
    dense = DenseMap(torch.stack(values), torch.stack(confidences))
    return MetricScene(dense, cameras._replace(cam_from_world=moved), scale)


def _fit_scale(value: Tensor, confidence: Tensor, metres: Tensor, ground: Tensor) -> Tensor:
    used = ground & (metres > _LEAST_METRES) & (value > _LEAST_DEPTH)
    if int(ground.sum()):
        used = used & (confidence >= _quantile(confidence[ground], 0.5))
    if not int(used.sum()):
        return torch.ones_like(value.sum())
    own, wanted = value[used], metres[used]
    return (own * wanted).sum() / own.square().sum()


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return a quantile; of many values that of some at even steps."""
    step = -(-len(values) // _MOST_NUMBERS)
    return torch.quantile(values[::step], share)
