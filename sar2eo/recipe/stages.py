"""A recipe as a list of stages: one table for each command to run, in the order of the file."""

from __future__ import annotations

from typing import Any, NamedTuple

from sar2eo.errors import SettingsError
from sar2eo.recipe.confidence import ConfidenceRecipe
from sar2eo.recipe.coregistering import CoregisterRecipe
from sar2eo.recipe.evaluating import EvaluateRecipe
from sar2eo.recipe.judging_matches import MatchEvaluationRecipe
from sar2eo.recipe.making import InitRecipe, SimulateRecipe
from sar2eo.recipe.matching import MatcherRecipe
from sar2eo.recipe.pairs import PairsRecipe
from sar2eo.recipe.tables import from_table
from sar2eo.recipe.training import TrainRecipe, VaeRecipe
from sar2eo.recipe.translating import TranslateRecipe

__all__ = ["STAGES", "Stage", "stages_of"]

STAGES: dict[str, type] = {
    "simulate": SimulateRecipe,
    "coregister": CoregisterRecipe,
    "build-pairs": PairsRecipe,
    "train-vae": VaeRecipe,
    "model-init": InitRecipe,
    "train": TrainRecipe,
    "train-matcher": MatcherRecipe,
    "translate": TranslateRecipe,
    "evaluate": EvaluateRecipe,
    "evaluate-matcher": MatchEvaluationRecipe,
    "confidence": ConfidenceRecipe,
}
"""Tables that a recipe may have, each named after its command."""


class Stage(NamedTuple):
    """One step of a recipe.

    Parameters
    ----------
    name : str
        Of the command.
    recipe : object
        A dataclass of `STAGES`.
    """

    name: str
    recipe: Any


def stages_of(table: dict[str, Any]) -> list[Stage]:
    """Read every stage of a recipe before any of them runs.

    Parameters
    ----------
    table : dict
        Of the whole file. A command that runs several times is an array of tables, ``[[train]]``,
        whose runs follow each other where the first one stands.

    Raises
    ------
    SettingsError
        For a table that is no command's, for keys or values that a command does not know, or if there
        is no table.
    """
    if not table:
        raise SettingsError(f"the recipe is empty: it must have tables of {', '.join(STAGES)}")
    found = []
    for name, value in table.items():
        if name not in STAGES:
            raise SettingsError(f"[{name}]: not a stage; known are {', '.join(STAGES)}")
        runs = value if isinstance(value, list) else [value]
        for number, run in enumerate(runs):
            where = name if len(runs) == 1 else f"{name}.{number}"
            found.append(Stage(name, from_table(STAGES[name], run, where)))
    return found
