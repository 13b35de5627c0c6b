"""``sar2eo run``."""

from __future__ import annotations

from pathlib import Path

import click

from sar2eo.cli.options import debug_option

__all__ = ["run"]


@click.command()
@click.argument("path", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As translate.out=eo.tif.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Worker processes; 0: this process.")
@click.option("--scheduler", metavar="ADDRESS", help="Join this Dask cluster.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@debug_option
def run(path: Path, overrides: tuple[str, ...], workers: int, scheduler: str | None, dry_run: bool) -> None:
    """Run a recipe, a TOML file: the table [translate] holds what the command of that name takes."""
    from sar2eo.cli.translating import translate_all
    from sar2eo.errors import SettingsError
    from sar2eo.recipe import TranslateRecipe, apply_overrides, from_table, read_recipe

    table = apply_overrides(read_recipe(path), overrides)
    if set(table) != {"translate"}:
        raise SettingsError(f"{path}: has {', '.join(table) or 'no table'}, must have just [translate]")
    recipe = from_table(TranslateRecipe, table["translate"], "translate")
    translate_all(recipe, workers=workers, scheduler=scheduler, dry_run=dry_run)
