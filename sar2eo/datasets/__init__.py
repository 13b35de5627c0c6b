"""Torch data sets of paired SAR and EO images, one face for all."""
