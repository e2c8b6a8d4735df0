"""Names of the parameters of DUSt3R, MASt3R, MonST3R and CroCo, and what they tell: published ↔ geomtx."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.dust3r.config import CroCoConfig, DUSt3RConfig, MASt3RConfig
from geomtx.models.published import kind_of_names
from geomtx.models.vggt.keys import BLOCK_KEYS, fusion_keys

__all__ = [
    "CROCO_KEYS",
    "DUST3R_KEYS",
    "ENCODER_KEYS",
    "PAIR_DECODER_KEYS",
    "config_of",
    "describe_pairs",
    "is_croco_name",
    "is_dust3r_name",
    "repeated_names",
]

_OF_224 = re.compile(r"_224(?!\d)")  # in the published name, of the file or of its folder

ENCODER_KEYS = BLOCK_KEYS.under("enc_blocks.{i}", "blocks.{i}") + KeyTable.of_layers(
    {"patch_embed.proj": "patch_embedding.project", "enc_norm": "norm"}
)

DECODER_BLOCK_KEYS = KeyTable.of_layers(
    {
        "norm1": "attention_norm",
        "attn.qkv": "attention.qkv",
        "attn.proj": "attention.out",
        "norm2": "cross_norm",
        "norm_y": "context_norm",
        "cross_attn.projq": "cross_attention.query",
        "cross_attn.projk": "cross_attention.key",
        "cross_attn.projv": "cross_attention.value",
        "cross_attn.proj": "cross_attention.out",
        "norm3": "mlp_norm",
        "mlp.fc1": "mlp.expand",
        "mlp.fc2": "mlp.contract",
    }
)

PAIR_DECODER_KEYS = (
    KeyTable.of_layers({"decoder_embed": "embed", "dec_norm": "norm"})
    + DECODER_BLOCK_KEYS.under("dec_blocks.{i}", "first_blocks.{i}")
    + DECODER_BLOCK_KEYS.under("dec_blocks2.{i}", "second_blocks.{i}")
)

# One tensor has two names in published files; the second is written.
_REPEATED = KeyTable((("scratch.layer_rn.{i}.weight", "reduce.{i}.weight"),))
_DPT_KEYS = (
    KeyTable.of_layers(
        {
            "act_postprocess.{i}.0": "project.{i}",
            "act_postprocess.{i}.1": "rescale.{i}",
            "head.0": "smooth",
        }
    )
    + _REPEATED
    + KeyTable(tuple((f"scratch.layer{level + 1}_rn.weight", f"reduce.{level}.weight") for level in range(4)))
    + fusion_keys().under("scratch", "")
)

HEAD_KEYS = (
    _DPT_KEYS.under("dpt", "points.decoder")
    + KeyTable.of_layers({"head.2": "points.hidden", "head.4": "points.out"}).under("dpt", "")
    + KeyTable.of_layers(
        {
            "proj": "points.out.project",
            "head_local_features.fc1": "descriptors.hidden",
            "head_local_features.fc2": "descriptors.out.project",
        }
    )
)

DUST3R_KEYS = (
    ENCODER_KEYS.under("", "encoder")
    + PAIR_DECODER_KEYS.under("", "decoder")
    + HEAD_KEYS.under("downstream_head1", "first_head")
    + HEAD_KEYS.under("downstream_head2", "second_head")
    + KeyTable((("mask_token", "mask_token"),))
)
"""Names of DUSt3R, MonST3R and MASt3R."""

CROCO_KEYS = (
    ENCODER_KEYS.under("", "encoder")
    + KeyTable.of_layers(
        {"decoder_embed": "decoder.embed", "dec_norm": "decoder.norm", "prediction_head": "decoder.out"}
    )
    + DECODER_BLOCK_KEYS.under("dec_blocks.{i}", "decoder.blocks.{i}")
    + KeyTable(
        (
            ("mask_token", "decoder.mask_token"),
            ("enc_pos_embed", "encoder.positions.table"),
            ("dec_pos_embed", "decoder.positions.table"),
        )
    )
)
"""Names of CroCo."""


def repeated_names(names: Collection[str]) -> list[str]:
    """Return the stored names of tensors that are stored under their other name too."""
    stored, repeated = set(names), []
    for name in names:
        ours = DUST3R_KEYS.to_geomtx(name)
        other = None if ours is None or ".layer_rn." not in name else DUST3R_KEYS.to_published(ours)
        if other in stored:
            repeated.append(name)
    return repeated


def is_dust3r_name(name: str) -> bool:
    """Return whether a name, published or geomtx's, is one of a DUSt3R or MASt3R model."""
    return name in DUST3R_KEYS


def is_croco_name(name: str) -> bool:
    """Return whether a name, published or geomtx's, is one of a CroCo model."""
    return name in CROCO_KEYS


_HEADS = {"DUSt3R": ("points",), "MASt3R": ("points", "descriptors"), "CroCo": ("completion",), None: ()}


def describe_pairs(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose the names of a checkpoint are, and its heads, see `geomtx.models.registry.Family`."""
    naming = "published" if any("enc_blocks." in name for name in names) else "geomtx"
    return naming, _HEADS[kind_of_names(names)]


# Number of channels → number of attention heads, which the shapes of weights don't tell.
_NUM_HEADS = {1024: 16, 768: 12, 512: 16}


def config_of(
    shapes: Mapping[str, tuple[int, ...]], source: str, image_size: int | None = None
) -> DUSt3RConfig | CroCoConfig:
    """Return the configuration of published weights.

    Args:
        shapes: Published name → shape of its tensors.
        source: Name of the weights.
        image_size: Longer side in pixels of the images that the model is made for; defaults to what the name says.

    Raises:
        ValueError: If they are of no published size.
    """
    dim, encoder_dim = shapes.get("decoder_embed.weight", (0, 0))
    for width in (dim, encoder_dim):
        if width not in _NUM_HEADS:
            known = ", ".join(map(str, _NUM_HEADS))
            raise ValueError(f"weights must have tokens of {known} channels, got '{source}' with {width}")
    numbers: dict[str, Any] = {
        "encoder_dim": encoder_dim,
        "encoder_depth": _count("enc_blocks", shapes),
        "encoder_num_heads": _NUM_HEADS[encoder_dim],
        "dim": dim,
        "depth": _count("dec_blocks", shapes),
        "num_heads": _NUM_HEADS[dim],
    }
    kind = kind_of_names(shapes)
    if kind == "CroCo":
        return CroCoConfig(**numbers, rope_base=None if "enc_pos_embed" in shapes else 100.0)
    numbers["image_size"] = image_size or (224 if _OF_224.search("/".join(PurePath(source).parts[-2:])) else 512)
    if kind == "MASt3R":
        return MASt3RConfig(**numbers)
    return DUSt3RConfig(**numbers, head="linear" if "downstream_head1.proj.weight" in shapes else "dpt")


def _count(blocks: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in shapes)
    return len({match[1] for match in found if match})
