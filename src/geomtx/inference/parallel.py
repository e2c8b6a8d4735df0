"""One scene on several processes, each with some of its views; without gradients.

Backbone, frame blocks and dense heads work on this process's views. Global blocks exchange tokens, or keys and values;
the camera head gets the camera tokens of all views, and the tracker their feature maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomtx.checks import check_mask, close_matches
from geomtx.encoder.geometry_conditioning import KnownGeometry
from geomtx.encoder.patches import grid_of
from geomtx.heads.head import runs_in_parts
from geomtx.inference.engine import Execution, Inputs, execute
from geomtx.inference.shares import Shares, count_processes, deal_out
from geomtx.types import CameraPrediction, DenseMap, Predictions, TrackPrediction

__all__ = ["predict_parallel"]

_OPTIONS = ("plan", "approximation", "progress", "cameras")
# Fields of predictions with a value for each pixel of a process's own views.
_MAPS = ("depth", "points", "rays", "sky", "points_cam")


def predict_parallel(
    model: Any,
    images: Tensor,
    query_points: Tensor | None = None,
    patch_mask: Tensor | None = None,
    *,
    heads: tuple[str, ...] | None = None,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
    **options: Any,
) -> Predictions:
    """Return what `model(images, …)` gives up to rounding, computed by all processes of a group; without gradients.

    Every process calls it with the same arguments and the same weights. Views are shared in contiguous pieces whose
    sizes differ by one at most; a process brings only its own to its model's device. Cameras and tracks are predicted
    by every process for all views, from what is exchanged.

    Args:
        model: A model with one pass over all views, on a device that the group's backend serves.
        images: All views, as for the model's `forward`, on any device.
        query_points: Query points, as for the model's `forward`.
        patch_mask: Mask of the patches of all views, as for the model's `forward`.
        heads: Names of heads, as for the model's `forward`.
        group: The process group; defaults to all processes.
        gather: Whether every process gets the predictions of all views, or only those of its own, see
            `geomtx.inference.deal_out`.
        options: `plan`, `approximation`, `progress` and `cameras`, as for `geomtx.inference.predict`. A plan is for a
            process's own views; but keys and values of all tokens, of one block at a time, are in every process.

    Raises:
        ValueError: As the model's `forward` and `predict`; for fewer views than processes, arguments that are not the
            same in every process, a group without this process, the scope "cross".
        RuntimeError: Where gradients are recorded, or without a process group.
        TypeError: For an option that doesn't exist.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("gradients don't flow between processes; use torch.no_grad()")
    known = {name: value for name, value in options.items() if name == "cameras" and value is not None}
    inputs = Inputs(*model.check_inputs(images, query_points, patch_mask, heads, **known))
    modules = {name: head for name, head in model.head_modules().items() if name in inputs.heads}
    _check_heads(modules)
    device = next(model.parameters()).device
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"predict_parallel takes no option {name!r}{close_matches(name, _OPTIONS)}")
    execution = Execution()._replace(
        **{name: value for name, value in options.items() if value is not None and name not in known}
    )
    numbers = _numbers_of(inputs, model.heads)
    numbers |= {"bits of a parameter": torch.finfo(next(model.parameters()).dtype).bits}
    numbers |= {"plan": execution.plan.token_chunk is not None, "gather": gather}
    numbers |= {f"{name} of the approximation": value or 0 for name, value in execution.approximation._asdict().items()}
    _check_same(numbers, device, group)
    if inputs.patch_mask is not None:
        grid_hw = grid_of((inputs.images.shape[-2], inputs.images.shape[-1]), model.encoder.backbone.patch_size)
        check_mask("patch_mask", inputs.patch_mask, (*inputs.images.shape[:2], *grid_hw))
    shares = deal_out(inputs.images.shape[1], group)
    predictions = execute(model, inputs, execution._replace(shares=shares))
    return _gather_maps(predictions, shares, device) if gather else _own_views(predictions, shares)


def _check_heads(heads: dict[str, nn.Module]) -> None:
    for name, head in heads.items():
        if not runs_in_parts(head):
            raise ValueError(f"heads must be of geomtx's classes in parallel, got {type(head).__name__} for {name!r}")


def _numbers_of(inputs: Inputs, known: Iterable[str]) -> dict[str, int]:
    """Return what decides which tensors are exchanged."""
    images, query_points, patch_mask, heads, cameras = inputs
    queries = (0, 0) if query_points is None else query_points.shape[1:]
    numbers: dict[str, int] = {f"{axis} of images": size for axis, size in zip("BSCHW", images.shape, strict=True)}
    numbers |= {f"{axis} of query_points": size for axis, size in zip("NC", queries, strict=True)}
    numbers |= {"patch_mask": patch_mask is not None, "cameras": cameras is not None}
    numbers |= {f"known {name}": getattr(cameras, name, None) is not None for name in KnownGeometry._fields}
    return numbers | {f"head {head!r}": head in heads for head in known}


def _check_same(numbers: dict[str, int], device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Require the same numbers in every process: otherwise processes would wait for each other forever."""
    mine = torch.tensor([list(numbers.values())], device=device)
    one_each = deal_out(count_processes(group), group)
    differ = (one_each.gather(mine, dim=0) != mine).any(dim=0)
    for (name, number), other in zip(numbers.items(), differ, strict=True):
        if other:
            raise ValueError(f"{name} must be the same in every process, got {number} here and another one elsewhere")


def _gather_maps(predictions: Predictions, shares: Shares, device: torch.device) -> Predictions:
    """Put the maps of all views together; cameras and tracks are of all views already."""

    def whole(value: Any) -> Any:
        if isinstance(value, Tensor):
            return shares.gather(value, dim=1, device=device)
        return DenseMap(*map(whole, value)) if isinstance(value, DenseMap) else value

    extra = None if predictions.extra is None else {name: whole(value) for name, value in predictions.extra.items()}
    return predictions._replace(**{name: whole(getattr(predictions, name)) for name in _MAPS}, extra=extra)


def _own_views(predictions: Predictions, shares: Shares) -> Predictions:
    """Cut cameras and tracks, which are of all views, to this process's; maps are of its own already."""
    maps = {name: getattr(predictions, name) for name in _MAPS}
    of_all = predictions._replace(**dict.fromkeys(_MAPS), extra=None).take_views(shares.here)
    extra = predictions.extra
    if extra is not None:
        whole = {name: each for name, each in extra.items() if isinstance(each, CameraPrediction | TrackPrediction)}
        extra = extra | (Predictions(extra=whole).take_views(shares.here).extra or {})
    return of_all._replace(**maps, extra=extra, scene_embedding=predictions.scene_embedding)
