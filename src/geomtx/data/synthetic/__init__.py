"""Rendered scenes."""
