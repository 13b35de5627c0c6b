"""Grids, windows, blending, radiometry and footprints: values and arithmetic, no files."""
