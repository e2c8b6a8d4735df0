"""Rendered training scenes: photos and videos of random rooms with exact ground truth."""
