"""Pairs of images → one scene: global alignment of point maps."""

from geomtx.scene.pairs.confidence import clean_confidence
from geomtx.scene.pairs.global_alignment import AlignmentOptions, KnownOfImages, PairAlignment, align_pairs
from geomtx.scene.pairs.pair_folder import PairFolder

__all__ = ["AlignmentOptions", "KnownOfImages", "PairAlignment", "PairFolder", "align_pairs", "clean_confidence"]
