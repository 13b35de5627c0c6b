"""The command line, run in this process."""

from click.testing import CliRunner, Result

from sar2eo.cli import cli

SMALL = ("--model", "identity", "--tile", "128", "--overlap", "16", "--scaling-from", "255")
"""A quick translation of `scene_file` that returns the pixels themselves."""


def run(*arguments: object) -> Result:
    """Run ``sar2eo ARGUMENTS``."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])
