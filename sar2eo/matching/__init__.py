"""Matching of SAR and EO images: where one lies in the other."""
