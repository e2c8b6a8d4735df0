"""Names of Pi3's and Pi3X's parameters: published ↔ geomtx."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.pi3.config import Pi3Config
from geomtx.models.vggt.keys import BLOCK_KEYS, VIT_KEYS

__all__ = ["CAMERA_KEYS", "UPSAMPLER_KEYS", "config_of", "describe_pi3", "is_pi3_name", "keys_of"]

_PUBLISHED = (
    *("register_token", "image_mean", "image_std", "encoder.", "decoder.", "point_decoder.", "point_head."),
    *("conf_decoder.", "conf_head.", "camera_decoder.", "camera_head.", "depth_encoder.", "depth_emb", "ray_embed."),
    *("pose_inject_blk.", "metric_token", "metric_decoder.", "metric_head."),
)
_PARTS = ("conditioning.", "extra_heads.")

_TRUNK_KEYS = BLOCK_KEYS.under("blocks.{i}", "blocks.{i}") + KeyTable.of_layers(
    {"projects": "project", "linear_out": "out"}
)

CAMERA_KEYS = KeyTable.of_layers(
    {
        **{f"res_conv.{unit}.res_conv{layer + 1}": f"units.{unit}.{layer}" for unit in range(2) for layer in range(3)},
        "more_mlps.0": "hidden.0",
        "more_mlps.2": "hidden.1",
        "fc_t": "center",
        "fc_rot": "rotation",
    }
)

_UNIT_LAYERS = {0: "norm1", 2: "conv1", 3: "norm2", 5: "conv2"}

UPSAMPLER_KEYS = KeyTable.of_layers(
    {
        "upsample_blocks.{i}.0.0": "stages.{i}.enlarge",
        "upsample_blocks.{i}.0.1": "stages.{i}.smooth",
        **{
            f"upsample_blocks.{{i}}.{unit + 1}.layers.{index}": f"stages.{{i}}.units.{unit}.{name}"
            for unit in range(2)
            for index, name in _UNIT_LAYERS.items()
        },
        "output_block.{i}.0": "hidden.{i}",
        "output_block.{i}.2": "out.{i}",
    }
)

_METRIC_KEYS = (
    KeyTable.of_layers({"projects_x": "project_token", "projects_y": "project_views", "linear_out": "contract"})
    + KeyTable.of_layers(
        {
            "norm2": "query_norm",
            "norm_y": "token_norm",
            "cross_attn.q_proj": "query",
            "cross_attn.k_proj": "key",
            "cross_attn.v_proj": "value",
            "cross_attn.proj": "attention_out",
            "norm3": "mlp_norm",
            "mlp.fc1": "mlp.expand",
            "mlp.fc2": "mlp.contract",
        }
    ).under("blocks.{i}", "blocks.{i}")
).under("metric_decoder", "metric_head") + KeyTable.of_layers({"metric_head": "metric_head.out"})

_CONDITIONING_KEYS = (
    VIT_KEYS.under("depth_encoder", "conditioning.depth_encoder")
    + KeyTable.of_layers({"ray_embed.proj": "conditioning.ray_embedding.project"})
    + KeyTable((("depth_emb", "conditioning.depth_token"), ("metric_token", "metric_head.token")))
)


def keys_of(config: Pi3Config) -> KeyTable:
    """The names of all parameters and stored numbers of a model."""
    keys = VIT_KEYS.under("encoder", "encoder.backbone") + KeyTable(
        (
            ("register_token", "encoder.special.registers"),
            ("image_mean", "encoder.normalize.mean"),
            ("image_std", "encoder.normalize.std"),
        )
    )
    for index in range(config.depth):
        keys += BLOCK_KEYS.under(f"decoder.{2 * index}", f"encoder.frame_blocks.{index}")
        keys += BLOCK_KEYS.under(f"decoder.{2 * index + 1}", f"encoder.global_blocks.{index}")
    for theirs, ours in {"point": "points", "conf": "confidence", "camera": "camera"}.items():
        keys += _TRUNK_KEYS.under(f"{theirs}_decoder", f"point_head.{ours}.trunk")
    keys += CAMERA_KEYS.under("camera_head", "point_head.camera")
    outputs = UPSAMPLER_KEYS if config.known_geometry else KeyTable.of_layers({"proj": "project"})
    keys += outputs.under("point_head", "point_head.points.out")
    keys += outputs.under("conf_head", "point_head.confidence.out")
    if config.known_geometry:
        keys += BLOCK_KEYS.under("pose_inject_blk.{i}", "encoder.pose_blocks.{i}")
        keys += _METRIC_KEYS + _CONDITIONING_KEYS
    return keys


def is_pi3_name(name: str) -> bool:
    """Return whether a name begins as one of a Pi3 or Pi3X, a published one or one of geomtx's."""
    return name.startswith((*_PUBLISHED, *_PARTS))


# Head → what the names of its tensors begin with.
_HEAD_PARTS = {
    "camera": ("camera_decoder.", "point_head.camera."),
    "depth": ("point_decoder.", "point_head.points."),
    "points": ("camera_decoder.", "point_head.camera."),
    "metric": ("metric_decoder.", "metric_head.blocks."),
}


def describe_pi3(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose the names of a checkpoint are, and its heads, see `geomtx.models.registry.Family`."""
    naming = "published" if any(name.startswith("conf_decoder.") for name in names) else "geomtx"
    return naming, tuple(head for head, parts in _HEAD_PARTS.items() if any(name.startswith(parts) for name in names))


def config_of(shapes: Mapping[str, tuple[int, ...]], source: str) -> Pi3Config:
    """Return the configuration of a published checkpoint.

    Args:
        shapes: Published name → shape of its tensors.
        source: Name of the checkpoint.

    Raises:
        ValueError: If it is none of the published models.
    """
    width = shapes.get("register_token", (0,))[-1]
    if width != 1024:
        raise ValueError(f"weights must be of a published Pi3 or Pi3X, got '{source}' {width} wide")
    return Pi3Config.pi3x() if "metric_token" in shapes else Pi3Config.pi3()
