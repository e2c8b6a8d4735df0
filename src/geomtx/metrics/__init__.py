"""Published measures of cameras, depth, points and tracks."""
