"""DCDM: matching by translating the optical template into the SAR domain, in latent space.

A reconstruction of "Interpretable Matching of Optical-SAR Image via Dynamically Conditioned Diffusion
Models" (ACM MM 2024) from its supplement, which is what "supplement" means in this package; the main
text was not available. Where the supplement is silent, docstrings say "own choice".
"""
