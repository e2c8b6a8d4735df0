"""Scenes to train on: rendered ones and datasets."""
