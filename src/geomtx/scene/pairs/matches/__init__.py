"""Matched pixels of pairs → one scene: sparse global alignment (MASt3R-SfM), and points with observations."""
