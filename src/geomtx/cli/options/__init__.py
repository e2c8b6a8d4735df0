"""Groups of options of `geomtx reconstruct`: each adds, checks and reads its own, and imports torch only to read."""
