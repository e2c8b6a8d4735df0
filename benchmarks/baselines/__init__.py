"""Baselines that only the benchmarks compare with."""
