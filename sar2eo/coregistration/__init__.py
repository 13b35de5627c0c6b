"""Coregistration: tie points between two scenes, a robust fit, and one scene moved onto the other."""
