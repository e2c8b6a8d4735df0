"""Datasets of files: Co3Dv2, Virtual KITTI 2, COLMAP reconstructions, and a simple layout for your own data."""
