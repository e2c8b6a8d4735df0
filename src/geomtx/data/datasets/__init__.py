"""Datasets of files."""
