"""Names of Depth Anything 3's parameters and configurations: published ↔ geomtx."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.da3.config import DepthAnything3Config, DepthAnything3Head
from geomtx.models.vggt.keys import BLOCK_KEYS, DECODER_KEYS, fusion_keys

__all__ = [
    "CAMERA_ENCODER_KEYS",
    "CAMERA_HEAD_KEYS",
    "DENSE_HEAD_KEYS",
    "backbone_keys",
    "config_of",
    "describe_da3",
    "describe_nested",
    "is_da3_name",
    "is_nested_name",
    "keys_of",
    "nested_keys",
    "nested_parts",
    "published_config",
    "published_nested_config",
]

_PUBLISHED_PARTS = ("backbone.pretrained.", "head.", "cam_dec.", "cam_enc.", "gs_head.")
_PARTS = ("encoder.", "camera_encoder.", "camera_head.", "dense_head.", "extra_heads.")

PREFIX = "model."
"""What the names in published files begin with."""
GAUSSIANS = "gs_head."
"""Prefix of the published names of the head of Gaussians, which geomtx doesn't have."""

_GATED_NAMES = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}


def _gated(keys: KeyTable) -> KeyTable:
    """The same table with the published names of a gated MLP's layers."""

    def rename(name: str) -> str:
        layer, _, leaf = name.rpartition(".")
        return f"{_GATED_NAMES.get(layer, layer)}.{leaf}"

    return KeyTable(tuple((rename(theirs), ours) for theirs, ours in keys.pairs))


def backbone_keys(config: DepthAnything3Config) -> KeyTable:
    """The names of the encoder: the published backbone's blocks are in three lists of geomtx."""
    keys = KeyTable(
        (
            ("cls_token", "backbone.cls_token"),
            ("pos_embed", "backbone.position_table"),
            ("camera_token", "special.camera"),
        )
    ) + KeyTable.of_layers({"patch_embed.proj": "backbone.patch_embedding.project", "norm": "tap_norm"})
    block = _gated(BLOCK_KEYS) if config.gated else BLOCK_KEYS
    scopes = [scope for layer in config.order for scope in layer]
    ours = [f"backbone.blocks.{index}" for index in range(config.num_stem_blocks)]
    ours += [f"{scope}_blocks.{scopes[:index].count(scope)}" for index, scope in enumerate(scopes)]
    for index, name in enumerate(ours):
        keys += block.under(f"blocks.{index}", name)
    return keys


_RAY_OUTPUTS = [f"coarse_outputs.{index}" for index in range(3)] + ["output"]

_RAY_KEYS = fusion_keys("_aux") + KeyTable.of_layers(
    {
        **{f"output_conv1_aux.{index}.{{i}}": f"{output}.smooth.{{i}}" for index, output in enumerate(_RAY_OUTPUTS)},
        **{
            f"output_conv2_aux.{index}.{theirs}": f"{output}.{ours}"
            for index, output in enumerate(_RAY_OUTPUTS)
            for theirs, ours in {"0": "hidden", "2": "norm", "5": "out"}.items()
        },
    }
)

DENSE_HEAD_KEYS = (
    DECODER_KEYS.under("", "decoder")
    + KeyTable.of_layers(
        {
            "scratch.output_conv2.0": "hidden",
            "scratch.output_conv2.2": "out",
            "scratch.sky_output_conv2.0": "sky_hidden",
            "scratch.sky_output_conv2.2": "sky_out",
        }
    )
    + _RAY_KEYS.under("scratch", "rays")
)

CAMERA_HEAD_KEYS = KeyTable.of_layers(
    {
        "backbone.0": "hidden.0",
        "backbone.2": "hidden.1",
        "fc_t": "center",
        "fc_qvec": "quat",
        "fc_fov.0": "fov",
    }
)

CAMERA_ENCODER_KEYS = BLOCK_KEYS.under("trunk.{i}", "trunk.{i}") + KeyTable.of_layers(
    {
        "token_norm": "token_norm",
        "trunk_norm": "trunk_norm",
        "pose_branch.fc1": "pose_mlp.expand",
        "pose_branch.fc2": "pose_mlp.contract",
    }
)


def _plain_keys(config: DepthAnything3Config) -> KeyTable:
    """The names of all parameters of a model, published ones without a prefix."""
    return (
        backbone_keys(config).under("backbone.pretrained", "encoder")
        + DENSE_HEAD_KEYS.under("head", "dense_head")
        + CAMERA_HEAD_KEYS.under("cam_dec", "camera_head")
        + CAMERA_ENCODER_KEYS.under("cam_enc", "camera_encoder")
    )


def _prefixed(keys: KeyTable) -> KeyTable:
    """Names that are written with the published prefix, and read with it or without it."""
    return keys + keys.under(PREFIX.removesuffix("."), "")


def keys_of(config: DepthAnything3Config) -> KeyTable:
    """The names of all parameters of a model."""
    return _prefixed(_plain_keys(config))


# Published prefixes of a nested model's networks → the modules that they are.
_NETWORKS = {"da3": "any_view", "da3_metric": "metric"}


def nested_keys(any_view: DepthAnything3Config, metric: DepthAnything3Config) -> KeyTable:
    """The names of all parameters of a nested model."""
    pairs = zip(_NETWORKS.items(), (any_view, metric), strict=True)
    tables = [_plain_keys(config).under(theirs, ours) for (theirs, ours), config in pairs]
    return _prefixed(tables[0] + tables[1])


def is_nested_name(name: str) -> bool:
    """Return whether a name begins as one of a nested model, a published one or one of geomtx's."""
    parts = (*_NETWORKS, *_NETWORKS.values())
    return name.removeprefix(PREFIX).startswith(tuple(f"{part}." for part in parts))


def nested_parts(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Return name → shape of each network of a published nested model, under the network's own names."""
    plain = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    return [
        {name.removeprefix(f"{part}."): shape for name, shape in plain.items() if name.startswith(f"{part}.")}
        for part in _NETWORKS
    ]


def describe_nested(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose the names of a nested model are, and its heads, see `geomtx.models.registry.Family`."""
    published = any(name.removeprefix(PREFIX).startswith("da3.") for name in names)
    return "published" if published else "geomtx", ("camera", "depth", "sky")


def published_nested_config(any_view: DepthAnything3Config) -> dict[str, Any]:
    """Return the `config.json` of a published nested model."""
    return {"model_name": published_config(any_view)["model_name"].replace("da3-", "da3nested-") + "-large"}


def is_da3_name(name: str) -> bool:
    """Return whether a name begins as one of a Depth Anything 3 model, a published one or one of geomtx's."""
    return name.startswith(_PARTS) or name.removeprefix(PREFIX).startswith(_PUBLISHED_PARTS)


# Head → what its names begin with, published and geomtx's; depth is there where its decoder is.
_HEAD_PARTS: dict[DepthAnything3Head, tuple[str, str]] = {
    "camera": ("cam_dec.", "camera_head."),
    "depth": ("head.", "dense_head."),
    "rays": ("head.scratch.output_conv2_aux.", "dense_head.rays."),
    "sky": ("head.scratch.sky_output_conv2.", "dense_head.sky_out."),
}


def describe_da3(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose the names of a checkpoint are, and its heads, see `geomtx.models.registry.Family`."""
    plain = [name.removeprefix(PREFIX) for name in names]
    naming = "published" if any(name.startswith("backbone.pretrained.") for name in plain) else "geomtx"
    return naming, tuple(head for head, parts in _HEAD_PARTS.items() if any(name.startswith(parts) for name in plain))


# By what a checkpoint's tensors say: number of channels, and whether there is a camera token.
_PRESETS: dict[tuple[int, bool], Callable[..., DepthAnything3Config]] = {
    (384, True): DepthAnything3Config.small,
    (768, True): DepthAnything3Config.base,
    (1024, True): DepthAnything3Config.large,
    (1536, True): DepthAnything3Config.giant,
    (1024, False): DepthAnything3Config.mono,
}
_NAMES = {384: "da3-small", 768: "da3-base", 1024: "da3-large", 1536: "da3-giant"}


def config_of(shapes: Mapping[str, tuple[int, ...]], model_name: str, source: str) -> DepthAnything3Config:
    """Return the configuration of a published checkpoint.

    Args:
        shapes: Published name → shape of its tensors.
        model_name: "model_name" of the `config.json` beside it; "" without one.
        source: Name of the checkpoint.

    Raises:
        ValueError: If it is none of the published models.
    """
    plain = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    token = plain.get("backbone.pretrained.cls_token", (0,))
    many_views = "backbone.pretrained.camera_token" in plain
    preset = _PRESETS.get((token[-1], many_views))
    if preset is None:
        raise ValueError(f"weights must be of a published Depth Anything 3 model, got '{source}' {token[-1]} wide")
    said = re.sub(r"[^a-z0-9]", "", (model_name or source).lower())
    if not many_views:
        return preset(metric="da3metric" in said)
    return preset()


def published_config(config: DepthAnything3Config) -> dict[str, Any]:
    """Return the `config.json` of the published code, which holds the model's name alone."""
    if config.first_global is None:
        return {"model_name": "da3metric-large" if config.metric else "da3mono-large"}
    return {"model_name": _NAMES.get(config.dim, "da3")}
