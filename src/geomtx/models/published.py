"""Weights by name: those that come with geomtx, under its own licence, and published ones, under theirs."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from geomtx.checkpoint.files import Checkpoint, open_checkpoint
from geomtx.checks import close_matches

__all__ = [
    "EMBEDDED",
    "MARKS",
    "NESTED_PAIRS",
    "PUBLISHED",
    "PublishedWeights",
    "find_weights",
    "kind_of_names",
    "known_weights",
    "open_weights",
    "state_licence",
    "suggest_names",
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
        advice: Advice to be read before they are used; "" for none.
    """

    name: str
    kind: str
    num_parameters: int
    size: int
    licence: str
    advice: str = ""


_APACHE, _NON_COMMERCIAL = "Apache-2.0", "CC BY-NC 4.0: no commercial use"
_RESEARCH = (
    "the FAIR Noncommercial Research License v1: research only, also of what is made with them; access on request"
)
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
_OMEGA = "facebook/VGGT-Omega"
_REPRODUCE = "vggt_omega_1b_416_reproduce.pt"
_ADVICE = (
    "Their authors suspect that scenes of benchmarks were among those they were trained on, and ask to use "
    f"{_REPRODUCE} where accuracy is measured"
)
# File, number of parameters, bytes of the tensors, advice.
_OMEGAS = (
    ("vggt_omega_1b_512.pt", 1_143_814_185, 4_576_239_908, _ADVICE),
    (_REPRODUCE, 1_143_814_185, 4_576_239_908, ""),
    ("vggt_omega_1b_256_text.pt", 1_349_473_321, 5_398_974_756, _ADVICE),
)

_SMALL, _BASE, _METRIC = 34_299_655, 135_366_791, 334_171_394
# Name, number of parameters, licence of models in metres; geomtx's own names stand for two published weights.
_NESTED = (
    ("da3nested-small-large", _SMALL + _METRIC, _APACHE),
    ("da3nested-base-large", _BASE + _METRIC, _APACHE),
    ("depth-anything/DA3NESTED-GIANT-LARGE-1.1", 1_355_700_000 + _METRIC, _NON_COMMERCIAL),
    ("depth-anything/DA3NESTED-GIANT-LARGE", 1_355_700_000 + _METRIC, _NON_COMMERCIAL),
)
NESTED_PAIRS = {
    f"da3nested-{size.lower()}-large": (f"depth-anything/DA3-{size}", "depth-anything/DA3METRIC-LARGE")
    for size in ("SMALL", "BASE")
}
"""Name of a nested model → the weights of its two networks."""

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
            PublishedWeights(name, "NestedDepthAnything3", count, 4 * count, licence)
            for name, count, licence in _NESTED
        ),
        *(
            PublishedWeights(name, kind, count, 4 * count, f"CC BY-NC-SA 4.0: no commercial use{more}")
            for name, kind, count, more in _PAIRS
        ),
        *(
            PublishedWeights(f"{_OMEGA}/{file}", "VGGTOmega", count, size, _RESEARCH, advice)
            for file, count, size, advice in _OMEGAS
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
        ValueError: For a broken file, the hub id of several known weights, and a `config.json` of another class of
            models than the tensors beside it.
        FileNotFoundError: If there are none; names known weights that are spelt alike.
    """
    inside = [name for name in PUBLISHED if name.startswith(f"{source}/") and name.count("/") == 2]
    if inside and not Path(source).exists():
        raise ValueError(f"weights must be one of {', '.join(inside)}, got '{source}', which has all of them")
    try:
        checkpoint = open_checkpoint(find_weights(source))
    except FileNotFoundError as error:
        if Path(source).exists() or source in PUBLISHED:
            raise
        raise FileNotFoundError(f"{error}{suggest_names(str(source))}") from error
    _check_config(checkpoint)
    return checkpoint


def suggest_names(name: str) -> str:
    """Return the end of an error message that suggests known weights by their full name or spelt alike, or ""."""
    without_owner = [known for known in PUBLISHED if known.lower().endswith(f"/{name}".lower())]
    return close_matches(without_owner[0] if without_owner else name, without_owner or PUBLISHED)


def _check_config(checkpoint: Checkpoint) -> None:
    said = (checkpoint.config or {}).get("kind")
    # Heads of a user's own have any names, also those that are marks of another class.
    own = (name for name in checkpoint.shapes if "extra_heads." not in name)
    kind = (checkpoint.embedded_config or {}).get("kind") or kind_of_names(own)
    if said in (*MARKS, "VGGT") and kind is not None and said != kind:
        raise ValueError(
            f"config.json must be of the weights beside it, got that of a {said} beside tensors of a {kind} in "
            f"'{checkpoint.source}'; put that of the {kind} in its place"
        )


MARKS = {
    # It has the names of two DepthAnything3 besides.
    "NestedDepthAnything3": ("da3_metric.backbone.", "metric.dense_head.decoder."),
    "DepthAnything3": ("backbone.pretrained.", "dense_head.decoder."),
    "VGGTOmega": ("aggregator.patch_embed.storage_tokens", "encoder.rope.periods"),
    "Pi3": ("conf_decoder.blocks.", "point_head.confidence.trunk."),
    # A MASt3R has the names of a DUSt3R besides.
    "MASt3R": ("_head1.head_local_features.", "first_head.descriptors."),
    "DUSt3R": ("downstream_head1.", "first_head.points."),
    "CroCo": ("prediction_head.", "decoder.blocks.0.cross_attention."),
}
"""Name of a class → what only names of its tensors have in them, published or geomtx's; the first that fits counts."""


def kind_of_names(names: Iterable[str]) -> str | None:
    """Return the name of the class that a checkpoint's tensors tell to be for; None for others, such as VGGT.

    Args:
        names: Names of the tensors, published ones or geomtx's.
    """
    names = list(names)
    marks = ((kind, mark) for kind, known in MARKS.items() for mark in known)
    return next((kind for kind, mark in marks if any(mark in name for name in names)), None)


def known_weights(source: str) -> PublishedWeights | None:
    """Return what is known of weights by name, or of a file named as one of those that are published as such.

    Args:
        source: Name, folder or file.
    """
    files = {name.rpartition("/")[2]: name for name in PUBLISHED if name.count("/") == 2}
    return PUBLISHED.get(source) or PUBLISHED.get(files.get(Path(source).name, ""))


@functools.cache
def state_licence(source: str) -> None:
    """Log, once a process, the licence of known weights, and what to know before they are used.

    Args:
        source: Name, folder or file, see `known_weights`.
    """
    known = known_weights(source)
    if known is not None:
        advice = f" {known.advice}." if known.advice else ""
        logger.warning("The weights %s have a licence of their own, %s.%s", known.name, known.licence, advice)
