"""Losses that compare views of one scene with each other."""
