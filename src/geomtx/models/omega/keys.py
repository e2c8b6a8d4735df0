"""Names of VGGT-Omega's parameters and configurations: published ↔ geomtx."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.omega.config import VGGTOmegaConfig, VGGTOmegaHead
from geomtx.models.vggt.keys import BLOCK_KEYS, DECODER_KEYS

__all__ = ["HEAD_MODULES", "OMEGA_KEYS", "config_of", "describe_omega"]

_MASKED_BLOCK = BLOCK_KEYS + KeyTable((("attn.qkv.bias_mask", "attention.qkv.bias_mask"),))

_VIT_KEYS = (
    _MASKED_BLOCK.under("blocks.{i}", "blocks.{i}")
    + KeyTable.of_layers({"patch_embed.proj": "patch_embedding.project", "norm": "norm"})
    + KeyTable(
        (
            ("cls_token", "cls_token"),
            ("storage_tokens", "registers"),
            ("mask_token", "mask_token"),
            ("rope_embed.periods", "rope.periods"),
        )
    )
)

_ENCODER_KEYS = (
    _VIT_KEYS.under("patch_embed", "backbone")
    + _MASKED_BLOCK.under("frame_blocks.{i}", "frame_blocks.{i}")
    + _MASKED_BLOCK.under("inter_frame_blocks.{i}", "global_blocks.{i}")
    + KeyTable(
        (
            ("camera_token", "special.camera"),
            ("register_token", "special.registers"),
            ("rope_embed.periods", "rope.periods"),
        )
    )
)

_CAMERA_HEAD_KEYS = _MASKED_BLOCK.under("trunk.{i}", "trunk.{i}") + KeyTable.of_layers(
    {
        "token_norm": "token_norm",
        "trunk_norm": "trunk_norm",
        "camera_branch.0": "pose_mlp.expand",
        "camera_branch.2": "pose_mlp.contract",
    }
)

_DEPTH_HEAD_KEYS = DECODER_KEYS.under("", "decoder") + KeyTable.of_layers({"proj": "value", "proj_conf": "confidence"})

_TEXT_HEAD_KEYS = (
    _MASKED_BLOCK.under("readout_blocks.{i}", "trunk.{i}")
    + KeyTable.of_layers(
        {
            "token_norm": "token_norm",
            "language_token_norm": "trunk_norm",
            "embedding_projector.{i}": "project.{i}",
        }
    )
    + KeyTable((("language_token", "language_token"),))
)

OMEGA_KEYS = (
    _ENCODER_KEYS.under("aggregator", "encoder")
    + _CAMERA_HEAD_KEYS.under("camera_head", "camera_head")
    + _DEPTH_HEAD_KEYS.under("dense_head", "depth_head")
    + _TEXT_HEAD_KEYS.under("text_alignment_head", "text_head")
)
"""Names of all parameters and stored tables of a model."""

HEAD_MODULES: dict[VGGTOmegaHead, str] = {"camera": "camera_head", "depth": "depth_head", "text": "text_head"}
"""Name of a head → attribute of the model that holds it."""
_PUBLISHED_MODULES: dict[VGGTOmegaHead, str] = {
    "camera": "camera_head",
    "depth": "dense_head",
    "text": "text_alignment_head",
}
_TEXT_SIZE = 256


def describe_omega(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose the names of a checkpoint are, and its heads, see `geomtx.models.registry.Family`."""
    parts = {name.partition(".")[0] for name in names}
    published = "aggregator" in parts
    modules = _PUBLISHED_MODULES if published else HEAD_MODULES
    return "published" if published else "geomtx", tuple(head for head in HEAD_MODULES if modules[head] in parts)


def config_of(shapes: Mapping[str, tuple[int, ...]], source: str) -> VGGTOmegaConfig:
    """Return the configuration of a published checkpoint, which says no more than its names and sizes.

    Args:
        shapes: Published name → shape of its tensors.
        source: Name of the checkpoint, in which the published ones have the number of pixels.

    Raises:
        ValueError: If it has another width than the published ones.
    """
    width = shapes.get("aggregator.camera_token", (0,))[-1]
    config = VGGTOmegaConfig()
    if width != config.dim:
        raise ValueError(f"weights must be of a published VGGT-Omega, {config.dim} wide, got '{source}' {width} wide")
    parts = {name.partition(".")[0] for name in shapes}
    heads = tuple(head for head in HEAD_MODULES if _PUBLISHED_MODULES[head] in parts)
    said = re.search(r"1b_(\d+)", source.rpartition("/")[2])
    image_size = int(said[1]) if said else _TEXT_SIZE if "text" in heads else config.image_size
    return VGGTOmegaConfig(heads=heads, image_size=image_size)
