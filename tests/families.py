"""The families of models that `geomtx.reconstruct` runs, each as small as shows what it does; one line a family.

What all of them must do is in `models/test_families.py`, `compile_components.py` and `inference/several_processes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx import (
    DenseHead,
    DepthAnything3,
    DepthAnything3Config,
    DPTDecoder,
    Pi3,
    Pi3Config,
    Predictions,
    VGGTOmega,
    VGGTOmegaConfig,
)
from geomtx.models.scene_model import SceneModel
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
    """

    make: Callable[[], SceneModel]
    head_dim: int = 64
    first_is_reference: bool = False
    across: bool = True
    patch_size: int = 14
    variant: bool = False


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
    "pi3": Family(lambda: Pi3(Pi3Config.tiny()), variant=True),
    "pi3x": Family(lambda: Pi3(Pi3Config.tiny(known_geometry=True))),
}


def build(name: str) -> Any:
    """A model of a family whose weights are not all near their initial value, in evaluation mode."""
    return visible(FAMILIES[name].make()).eval()


def normals(name: str) -> DenseHead:
    """A head that can be added to a model of a family."""
    taps = build(name).encoder.taps
    decoder = DPTDecoder(
        FAMILIES[name].head_dim, 16, channels=(16, 16, 32, 32), taps=(taps[0], *taps[:1], *taps[-1:] * 2)
    )
    return DenseHead(decoder, 3)


def take_scene(predictions: Predictions, scene: int) -> Predictions:
    """The predictions of one of several scenes."""
    encodings = predictions.pose_encodings
    if encodings is not None:  # the number of refinements comes first
        encodings = encodings[:, scene : scene + 1]
    others = predictions._replace(pose_encodings=None).map(lambda tensor: tensor[scene : scene + 1])
    return others._replace(pose_encodings=encodings)


def draw_images(name: str, *shape: int, rows: int = 2, columns: int = 3) -> Tensor:
    """Images of a few patches for a family, (*shape, 3, H, W)."""
    patch = FAMILIES[name].patch_size
    return torch.rand(*shape, 3, rows * patch, columns * patch, dtype=torch.float64)


def some_patches(images: Tensor) -> Tensor:
    """A mask of patches of images of 2 x 3 patches, in which no view is without any."""
    mask = torch.rand(*images.shape[:2], 2, 3) < 0.7
    mask[..., 0, 0] = True
    return mask
