"""Names of VGGT's parameters and configuration: published ↔ geomtx.

Published names, with their odd spellings, are in this file only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from geomtx.checkpoint.key_table import KeyTable, drop_wrappers
from geomtx.models.vggt.config import HEAD_MODULES, HEADS, HeadName, VGGTConfig

__all__ = [
    "BLOCK_KEYS",
    "CAMERA_HEAD_KEYS",
    "DECODER_KEYS",
    "DENSE_HEAD_KEYS",
    "ENCODER_KEYS",
    "TRACKER_KEYS",
    "VGGT_KEYS",
    "VIT_KEYS",
    "describe_vggt",
    "fusion_keys",
    "is_published_config",
    "is_vggt",
    "parse_config",
    "published_config",
]

BLOCK_KEYS = KeyTable.of_layers(
    {
        "norm1": "attention_norm",
        "attn.qkv": "attention.qkv",
        "attn.q_norm": "attention.q_norm",
        "attn.k_norm": "attention.k_norm",
        "attn.proj": "attention.out",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp.expand",
        "mlp.fc2": "mlp.contract",
    }
) + KeyTable((("ls1.gamma", "attention_scale.gamma"), ("ls2.gamma", "mlp_scale.gamma")))

VIT_KEYS = (
    BLOCK_KEYS.under("blocks.{i}", "blocks.{i}")
    + KeyTable.of_layers({"patch_embed.proj": "patch_embedding.project", "norm": "norm"})
    + KeyTable(
        (
            ("cls_token", "cls_token"),
            ("register_tokens", "registers"),
            ("pos_embed", "position_table"),
            ("mask_token", "mask_token"),
        )
    )
)

ENCODER_KEYS = (
    VIT_KEYS.under("patch_embed", "backbone")
    + KeyTable.of_layers({"patch_embed.proj": "backbone.project"})  # the backbone without a ViT
    + BLOCK_KEYS.under("frame_blocks.{i}", "frame_blocks.{i}")
    + BLOCK_KEYS.under("global_blocks.{i}", "global_blocks.{i}")
    + KeyTable((("camera_token", "special.camera"), ("register_token", "special.registers")))
)

CAMERA_HEAD_KEYS = (
    BLOCK_KEYS.under("trunk.{i}", "trunk.{i}")
    + KeyTable.of_layers(
        {
            "token_norm": "token_norm",
            "trunk_norm": "trunk_norm",
            "embed_pose": "pose_embedding",
            "poseLN_modulation.1": "modulation.project",
            "pose_branch.fc1": "pose_mlp.expand",
            "pose_branch.fc2": "pose_mlp.contract",
        }
    )
    + KeyTable((("empty_pose_tokens", "initial_pose"),))
)


def fusion_keys(suffix: str = "") -> KeyTable:
    """Return the names of a decoder's four fusion blocks, published as "refinenet" with a number and a suffix."""
    units = {"resConfUnit1": "skip_unit", "resConfUnit2": "unit"}
    keys = KeyTable(())
    for level in range(4):
        convs = {f"{theirs}.conv{i}": f"{ours}.conv{i}" for theirs, ours in units.items() for i in (1, 2)}
        keys += KeyTable.of_layers({"out_conv": "out", **convs}).under(f"refinenet{level + 1}{suffix}", f"fuse.{level}")
    return keys


DECODER_KEYS = KeyTable.of_layers(
    {
        "norm": "norm",
        "projects.{i}": "project.{i}",
        "resize_layers.{i}": "rescale.{i}",
        "scratch.output_conv1": "smooth",
        **{f"scratch.layer{level + 1}_rn": f"reduce.{level}" for level in range(4)},
    }
) + fusion_keys().under("scratch", "")

DENSE_HEAD_KEYS = DECODER_KEYS.under("", "decoder") + KeyTable.of_layers(
    {"scratch.output_conv2.0": "hidden", "scratch.output_conv2.2": "out"}
)


def _track_block(attention: str) -> KeyTable:
    packed = tuple((f"{attention}.in_proj_{leaf}", f"attention.qkv.{leaf}") for leaf in ("weight", "bias"))
    return KeyTable(packed) + KeyTable.of_layers(
        {
            "norm1": "norm",
            "norm_context": "context_norm",
            f"{attention}.out_proj": "attention.out",
            "norm2": "mlp_norm",
            "mlp.fc1": "mlp.expand",
            "mlp.fc2": "mlp.contract",
        }
    )


_UPDATER_KEYS = (
    _track_block("attn").under("time_blocks.{i}", "view_blocks.{i}")
    + _track_block("attn").under("space_virtual_blocks.{i}", "virtual_blocks.{i}")
    + _track_block("cross_attn").under("space_virtual2point_blocks.{i}", "virtual_from_point.{i}")
    + _track_block("cross_attn").under("space_point2virtual_blocks.{i}", "point_from_virtual.{i}")
    + KeyTable.of_layers(
        {
            "input_norm": "input_norm",
            "input_transform": "input_project",
            "output_norm": "output_norm",
            "flow_head": "output_project",
        }
    )
    + KeyTable((("virual_tracks", "virtual_tracks"),))
)

TRACKER_KEYS = (
    _UPDATER_KEYS.under("updateformer", "updater")
    + KeyTable.of_layers(
        {
            "corr_mlp.fc1": "correlation_mlp.expand",
            "corr_mlp.fc2": "correlation_mlp.contract",
            "fmap_norm": "map_norm",
            "ffeat_norm": "feature_norm",
            "ffeat_updater.0": "feature_update",
            "vis_predictor.0": "visibility",
            "conf_predictor.0": "confidence",
        }
    )
    + KeyTable((("query_ref_token", "query_token"),))
)

VGGT_KEYS = (
    ENCODER_KEYS.under("aggregator", "encoder")
    + CAMERA_HEAD_KEYS.under("camera_head", "camera_head")
    + DENSE_HEAD_KEYS.under("depth_head", "depth_head")
    + DENSE_HEAD_KEYS.under("point_head", "point_head")
    + DECODER_KEYS.under("track_head.feature_extractor", "track_head.decoder")
    + TRACKER_KEYS.under("track_head.tracker", "track_head.tracker")
)


def describe_vggt(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose the names of a checkpoint are, and its heads, see `geomtx.models.registry.Family`."""
    return VGGT_KEYS.describe(names, HEAD_MODULES)


def is_vggt(names: Iterable[str]) -> bool:
    """Return whether there is a VGGT's tensor among those of a checkpoint, also under a prefix of up to three parts."""
    parts = (name.split(".") for name in map(drop_wrappers, names))
    return any(".".join(each[start:]) in VGGT_KEYS for each in parts for start in range(min(len(each), 4)))


_NUMBERS = {"img_size": "image_size", "patch_size": "patch_size", "embed_dim": "dim"}
_SWITCHES: dict[str, HeadName] = {
    "enable_camera": "camera",
    "enable_depth": "depth",
    "enable_point": "points",
    "enable_track": "tracks",
}


def is_published_config(values: dict[str, Any]) -> bool:
    """Return whether the values of a `config.json` are published ones."""
    return bool(values.keys() & _NUMBERS.keys() - {"patch_size"})


def parse_config(values: dict[str, Any]) -> VGGTConfig:
    """Read the values of a `config.json` of geomtx or a published one; published ones default to VGGT-1B's values.

    Raises:
        ValueError: For an unknown key in one of geomtx.
    """
    if not is_published_config(values):
        return VGGTConfig.from_dict(values)
    numbers = {ours: values[theirs] for theirs, ours in _NUMBERS.items() if theirs in values}
    off = {head for switch, head in _SWITCHES.items() if not values.get(switch, True)}
    return VGGTConfig(heads=tuple(head for head in HEADS if head not in off), **numbers)


def published_config(config: VGGTConfig) -> dict[str, Any]:
    """Return the `config.json` of the published code, which holds only some of the configuration's values."""
    values = {theirs: getattr(config, ours) for theirs, ours in _NUMBERS.items()}
    switches = {switch: head in config.heads for switch, head in _SWITCHES.items()}
    return {**values, **switches}
