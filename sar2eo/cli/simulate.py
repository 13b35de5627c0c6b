"""``sar2eo simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sar2eo.cli.options import debug_option, numbers, polarisations_option
from sar2eo.cli.progress import say
from sar2eo.settings import SimulateRecipe

__all__ = ["simulate", "simulate_files"]


@click.command()
@click.option("--out", required=True, metavar="DIR", help="Folder of sar.tif, eo.tif and truth.tif.")
@click.option("--size", type=int, default=2048, show_default=True, help="Rows and columns, in pixels.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the landscape and the speckle.")
@polarisations_option("--polarisations", help="Bands of the SAR scene; VH if not given.")
@click.option("--shift", type=numbers("ROWS,COLS"), default=(0.0, 0.0), help="Of the SAR against the EO.")
@click.option(
    "--discrepancies/--no-discrepancies",
    default=True,
    show_default=True,
    help="Let some objects differ between the two dates.",
)
@debug_option
def simulate(**flags: Any) -> None:
    """Simulate a pair of SAR and EO scenes with known truth.

    The truth file holds land cover, and the objects that changed between the two dates. The same
    settings give the same pixels.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    simulate_files(SimulateRecipe(**given), dry_run=False)


def simulate_files(recipe: SimulateRecipe, *, dry_run: bool) -> None:
    """Simulate, or find that it was done before.

    Raises
    ------
    OutputError
        If the folder holds files of other settings.
    """
    from sar2eo.simulation import SimulationSettings, make_folder, simulate_pair, simulated_before, write_pair

    settings = SimulationSettings(
        size=recipe.size,
        seed=recipe.seed,
        polarisations=recipe.polarisations,
        shift=recipe.shift,
        discrepancies=recipe.discrepancies,
    )
    if simulated_before(settings, Path(recipe.out)):
        say(f"{recipe.out}: simulated before, kept")
    elif dry_run:
        say(f"{recipe.out}: a pair of {recipe.size} x {recipe.size} pixels, seed {recipe.seed}")
    else:
        make_folder(Path(recipe.out))
        for path in write_pair(simulate_pair(settings), Path(recipe.out)).values():
            say(path)
