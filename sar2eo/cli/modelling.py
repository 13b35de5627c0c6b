"""``sar2eo model``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.describing import lines
from sar2eo.cli.options import debug_option

__all__ = ["model"]


@click.group()
def model() -> None:
    """Make, import and describe checkpoints."""
