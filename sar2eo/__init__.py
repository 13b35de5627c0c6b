"""Translate georeferenced SAR scenes into EO images."""

from sar2eo._version import __version__

__all__ = ["__version__"]
