"""Weights by name: those that come with geomtx, under its own licence, and published ones, under theirs."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from geomtx.checkpoint.files import Checkpoint, open_checkpoint
from geomtx.checks import close_matches

__all__ = [
    "EMBEDDED",
    "PUBLISHED",
    "PublishedWeights",
    "find_weights",
    "is_depth_anything",
    "is_pi3",
    "open_weights",
    "pair_kind",
    "state_licence",
]

logger = logging.getLogger("geomtx")


class PublishedWeights(NamedTuple):
    """Weights that `geomtx.load_model` knows by name.

    Attributes:
        name: Name to load them by: a hub id, or the name of weights that come with geomtx.
        kind: Name of the class that they are weights of.
        num_parameters: Number of parameters.
        size: Bytes of the file.
        licence: Licence of the weights, in short.
    """

    name: str
    kind: str
    num_parameters: int
    size: int
    licence: str


_APACHE, _NON_COMMERCIAL = "Apache-2.0", "CC BY-NC 4.0: no commercial use"
# Name, number of parameters with all heads, licence.
_DEPTH_ANYTHING = (
    ("DA3-SMALL", 34_299_655, _APACHE),
    ("DA3-BASE", 135_366_791, _APACHE),
    ("DA3-LARGE-1.1", 410_941_959, _NON_COMMERCIAL),
    ("DA3-LARGE", 410_941_959, _NON_COMMERCIAL),
    ("DA3-GIANT-1.1", 1_355_700_000, _NON_COMMERCIAL),
    ("DA3-GIANT", 1_355_700_000, _NON_COMMERCIAL),
    ("DA3MONO-LARGE", 334_171_394, _APACHE),
    ("DA3METRIC-LARGE", 334_171_394, _APACHE),
)

# Name, class, number of parameters, what the licence says besides.
_PAIRS = (
    ("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", "DUSt3R", 571_171_208, ""),
    ("naver/DUSt3R_ViTLarge_BaseDecoder_512_linear", "DUSt3R", 532_342_784, ""),
    ("naver/DUSt3R_ViTLarge_BaseDecoder_224_linear", "DUSt3R", 532_342_784, ""),
    (
        "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
        "MASt3R",
        688_638_856,
        ", and the licences of its data sets, above all that of Map-free",
    ),
    ("Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt", "DUSt3R", 571_171_208, ""),
    ("naver/CroCo_V2_ViTLarge_BaseDecoder", "CroCo", 417_918_720, ""),
    ("naver/CroCo_V2_ViTBase_BaseDecoder", "CroCo", 200_269_824, ""),
    ("naver/CroCo_V2_ViTBase_SmallDecoder", "CroCo", 120_076_288, ""),
    ("naver/CroCo", "CroCo", 120_327_168, ""),
)

PUBLISHED = {
    weights.name: weights
    for weights in (
        PublishedWeights("nano", "VGGT", 2_436_588, 4_924_792, "Apache-2.0, as geomtx"),
        PublishedWeights(
            "facebook/VGGT-1B", "VGGT", 1_256_537_516, 4 * 1_256_537_516, "CC BY-NC 4.0: no commercial use"
        ),
        PublishedWeights(
            "facebook/VGGT-1B-Commercial",
            "VGGT",
            1_256_537_516,
            4 * 1_256_537_516,
            "the VGGT licence: commercial use but for military purposes; access on request",
        ),
        *(
            PublishedWeights(f"depth-anything/{name}", "DepthAnything3", count, 4 * count, licence)
            for name, count, licence in _DEPTH_ANYTHING
        ),
        *(
            PublishedWeights(name, kind, count, 4 * count, f"CC BY-NC-SA 4.0: no commercial use{more}")
            for name, kind, count, more in _PAIRS
        ),
        PublishedWeights("yyfz233/Pi3", "Pi3", 958_696_732, 4 * 958_696_732, _NON_COMMERCIAL),
        PublishedWeights("yyfz233/Pi3X", "Pi3", 1_360_032_433, 4 * 1_360_032_433, _NON_COMMERCIAL),
    )
}
"""Known weights by name."""

EMBEDDED = ("nano",)
"""Weights within the package, stored in half precision to be small, made for float32."""


def find_weights(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the folder of embedded weights, or any other source as it is. A folder named so is given as "./nano"."""
    return Path(__file__).parents[1] / "weights" / str(source) if str(source) in EMBEDDED else source


def open_weights(source: str | os.PathLike[str]) -> Checkpoint:
    """Open weights by name, hub id, folder or file, see `open_checkpoint`.

    Raises:
        ValueError: For a broken file.
        FileNotFoundError: If there are none; names known weights that are spelt alike.
    """
    try:
        return open_checkpoint(find_weights(source))
    except FileNotFoundError as error:
        if Path(source).exists() or source in PUBLISHED:
            raise
        raise FileNotFoundError(f"{error}{close_matches(str(source), PUBLISHED)}") from error


def is_depth_anything(names: Iterable[str]) -> bool:
    """Return whether the names of a checkpoint's tensors are those of a Depth Anything 3 model, published or ours."""
    return any("backbone.pretrained." in name or "dense_head.decoder." in name for name in names)


def is_pi3(names: Iterable[str]) -> bool:
    """Return whether the names of a checkpoint's tensors are those of a Pi3 or Pi3X, published or ours."""
    return any("conf_decoder.blocks." in name or "point_head.confidence.trunk." in name for name in names)


def pair_kind(names: Iterable[str]) -> Literal["DUSt3R", "MASt3R", "CroCo"] | None:
    """Return which class of models that see a scene as pairs a checkpoint's tensors are of, by their names.

    None if they are of none; published names count and ours.
    """
    names = tuple(names)
    if any("_head1.head_local_features." in name or "first_head.descriptors." in name for name in names):
        return "MASt3R"
    if any("downstream_head1." in name or "first_head.points." in name for name in names):
        return "DUSt3R"
    completes = any("prediction_head." in name or "decoder.blocks.0.cross_attention." in name for name in names)
    return "CroCo" if completes else None


@functools.cache
def state_licence(source: str) -> None:
    """Log, once a process, the licence of known weights."""
    if source in PUBLISHED:
        logger.warning("The weights %s have a licence of their own, %s.", source, PUBLISHED[source].licence)
