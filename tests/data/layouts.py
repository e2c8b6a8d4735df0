"""Datasets of small trees in each layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.utils._pytree import tree_leaves

from data.plane_scenes import write_co3d, write_unified, write_virtual_kitti
from geomtx.data import Co3dDataset, FrameTransform, SampleOptions, SceneDataset, UnifiedDataset, VirtualKittiDataset
from geomtx.types import SceneBatch

OPTIONS = SampleOptions(size=56, transform=FrameTransform.plain())
Open = Callable[..., SceneDataset]


def open_unified(root: Path, options: SampleOptions = OPTIONS, **more: object) -> SceneDataset:
    write_unified(root, "room")
    return UnifiedDataset(root, options=options, **more)


def open_co3d(root: Path, options: SampleOptions = OPTIONS, **more: object) -> SceneDataset:
    write_co3d(root, "apple")
    return Co3dDataset(root, root, categories=("apple",), options=options, **{"min_frames": 2, **more})


def open_virtual_kitti(root: Path, options: SampleOptions = OPTIONS, **more: object) -> SceneDataset:
    write_virtual_kitti(root)
    return VirtualKittiDataset(root, options=options, **{"min_frames": 2, **more})


def tensors(scene: SceneBatch) -> list[Tensor]:
    """All that a scene has."""
    return [leaf for leaf in tree_leaves(scene) if leaf is not None]
