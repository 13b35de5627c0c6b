"""Paired chips of SAR and EO scenes, cut by footprint, split by place."""
