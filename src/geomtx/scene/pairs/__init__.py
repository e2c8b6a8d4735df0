"""Pairs of images → one scene: global alignment of point maps, and of matches."""

from geomtx.scene.pairs.confidence import clean_confidence
from geomtx.scene.pairs.global_alignment import AlignmentOptions, KnownOfImages, PairAlignment, align_pairs
from geomtx.scene.pairs.matches.alignment import PairMatches, SparseOptions, align_matches
from geomtx.scene.pairs.matches.observations import observe_matches
from geomtx.scene.pairs.matches.pair_matching import PhotoMatches, match_photos
from geomtx.scene.pairs.motion import MotionTerms, consistent_flow, moving_pixels
from geomtx.scene.pairs.pair_folder import PairFolder
from geomtx.scene.pairs.reconstruction import reconstruct_pairs
from geomtx.scene.pairs.tracked_flow import track_flow
from geomtx.scene.pairs.video import VideoAlignment, align_video, find_moving

__all__ = [
    "AlignmentOptions",
    "KnownOfImages",
    "MotionTerms",
    "PairAlignment",
    "PairFolder",
    "PairMatches",
    "PhotoMatches",
    "SparseOptions",
    "VideoAlignment",
    "align_matches",
    "align_pairs",
    "align_video",
    "clean_confidence",
    "consistent_flow",
    "find_moving",
    "match_photos",
    "moving_pixels",
    "observe_matches",
    "reconstruct_pairs",
    "track_flow",
]
