"""Build pairs, with the matcher that aligns them."""
