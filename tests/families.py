"""The families of models that `geomtx.reconstruct` runs, each as small as shows what it does; one line a family.

What all of them must do is in `models/test_families.py`, `compile_components.py` and `inference/several_processes.py`.
`FAMILIES` see all views at once, `PAIRS` two at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from geomtx import (
    DenseHead,
    DepthAnything3,
    DepthAnything3Config,
    DPTDecoder,
    DUSt3R,
    DUSt3RConfig,
    MASt3R,
    MASt3RConfig,
    Pi3,
    Pi3Config,
    Predictions,
    VGGTOmega,
    VGGTOmegaConfig,
)
from lean import build_lean, visible


class Family(NamedTuple):
    """A kind of model.

    Attributes:
        make: Function that makes a model with random weights.
        head_dim: Number of channels of the tokens that its heads read.
        first_is_reference: Whether the first view is treated in another way than the others, whatever it shows.
        across: Whether views see each other.
        patch_size: Side of a patch in pixels.
        variant: Whether it differs from another one in numbers alone, and is left out of what takes long.
        in_pairs: Whether it sees two views at a time.
    """

    make: Callable[[], Any]
    head_dim: int = 64
    first_is_reference: bool = False
    across: bool = True
    patch_size: int = 14
    variant: bool = False
    in_pairs: bool = False


_DA3: dict[str, Any] = {"depth": 6, "taps": (3, 3, 5, 5), "camera_depth": 1}


def _da3(**changes: Any) -> DepthAnything3:
    return DepthAnything3(DepthAnything3Config.tiny(**{**_DA3, **changes}))


_OMEGA = VGGTOmegaConfig.tiny(depth=3, taps=(0, 1, 1, 2), vit_depth=1)

FAMILIES = {
    "vggt": Family(lambda: build_lean(heads=("camera", "depth", "points")), first_is_reference=True),
    "da3": Family(_da3),
    "da3, giant's order": Family(
        lambda: _da3(first_global=3, taps=(5, 5, 5, 5), gated=True, heads=("camera", "depth")), variant=True
    ),
    "omega": Family(lambda: VGGTOmega(_OMEGA), first_is_reference=True, patch_size=16),
    "da3, single views": Family(lambda: _da3(depth=2, first_global=None, taps=(0, 0, 1, 1)), head_dim=32, across=False),
    "pi3": Family(lambda: Pi3(Pi3Config.tiny(depth=2)), variant=True),
    "pi3x": Family(lambda: Pi3(Pi3Config.tiny(known_geometry=True, depth=2, metric_depth=1))),
}


_OF_PAIRS: dict[str, Any] = {"depth": 2, "encoder_depth": 1}


def facing(model: DUSt3R) -> DUSt3R:
    """Points that lie in front of the camera and fan out with the pixels, so that there is something to align."""
    with torch.no_grad():
        for head in (model.first_head, model.second_head):
            out = head.points.out
            if isinstance(out, torch.nn.Conv2d):
                out.weight.mul_(0.1)
                out.bias[2] += 1.5
                continue
            out.project.weight.mul_(0.1)
            bias = out.project.bias.view(4, 16, 16)
            bias[2] += 1.5
            bias[0] += torch.linspace(-0.3, 0.3, 16)
            bias[1] += torch.linspace(-0.3, 0.3, 16)[:, None]
    return model


PAIRS = {
    "dust3r": Family(lambda: facing(DUSt3R(DUSt3RConfig.tiny(**_OF_PAIRS))), patch_size=16, in_pairs=True),
    "dust3r, linear head": Family(
        lambda: facing(DUSt3R(DUSt3RConfig.tiny(head="linear", image_size=48, **_OF_PAIRS))),
        patch_size=16,
        in_pairs=True,
    ),
    "mast3r": Family(lambda: facing(MASt3R(MASt3RConfig.tiny(**_OF_PAIRS))), patch_size=16, in_pairs=True),
}
EVERY = {**FAMILIES, **PAIRS}


def build(name: str) -> Any:
    """A model of a family whose weights are not all near their initial value, in evaluation mode."""
    return visible(EVERY[name].make()).eval()


def run(name: str, model: Any, images: Tensor, **options: Any) -> Any:
    """What a model predicts of images (B, S, 3, H, W); one that sees pairs, of the first two views."""
    return model(images[:, 0], images[:, 1]) if EVERY[name].in_pairs else model(images, **options)


def a_map(prediction: Any) -> Tensor:
    """A map in which views have met: depth, or the points of the second view."""
    return prediction.depth.value if isinstance(prediction, Predictions) else prediction.second.points.value


def normals(name: str) -> DenseHead:
    """A head that can be added to a model of a family."""
    taps = build(name).encoder.taps
    decoder = DPTDecoder(
        FAMILIES[name].head_dim, 16, channels=(16, 16, 32, 32), taps=(taps[0], *taps[:1], *taps[-1:] * 2)
    )
    return DenseHead(decoder, 3)


def take_scene(predictions: Any, scene: int) -> Any:
    """The predictions of one of several scenes."""
    if not isinstance(predictions, Predictions):
        return tree_map_only(Tensor, lambda tensor: tensor[scene : scene + 1], predictions)
    encodings = predictions.pose_encodings
    if encodings is not None:  # the number of refinements comes first
        encodings = encodings[:, scene : scene + 1]
    others = predictions._replace(pose_encodings=None).map(lambda tensor: tensor[scene : scene + 1])
    return others._replace(pose_encodings=encodings)


def draw_images(name: str, *shape: int, rows: int = 2, columns: int = 3) -> Tensor:
    """Images of a few patches for a family, (*shape, 3, H, W)."""
    patch = EVERY[name].patch_size
    return torch.rand(*shape, 3, rows * patch, columns * patch, dtype=torch.float64)


def some_patches(images: Tensor) -> Tensor:
    """A mask of patches of images of 2 x 3 patches, in which no view is without any."""
    mask = torch.rand(*images.shape[:2], 2, 3) < 0.7
    mask[..., 0, 0] = True
    return mask
