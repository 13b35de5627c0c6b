"""Every setting of a run as a frozen dataclass; TOML in, the resolved recipe out.

Choices are written once, here and in the modules they belong to, and the command line takes them from
here.
"""

from sar2eo.recipe.confidence import ConfidenceRecipe, ConfidenceSettings
from sar2eo.recipe.coregistering import CoregisterRecipe, CoregisterSettings
from sar2eo.recipe.evaluating import EvaluateRecipe, EvaluateSettings
from sar2eo.recipe.judging_matches import MatchEvaluationRecipe, MatchEvaluationSettings
from sar2eo.recipe.making import CardSettings, InitRecipe, SimulateRecipe
from sar2eo.recipe.matching import MatcherRecipe, MatcherSettings
from sar2eo.recipe.pairs import PairsRecipe, PairsSettings
from sar2eo.recipe.stages import STAGES, Stage, stages_of
from sar2eo.recipe.tables import apply_overrides, checked, from_table, read_recipe
from sar2eo.recipe.training import (
    DataSettings,
    LoopSettings,
    TrainRecipe,
    TrainSettings,
    VaeRecipe,
    VaeSettings,
)
from sar2eo.recipe.translating import (
    Compression,
    RegionSettings,
    SceneSettings,
    TranslateRecipe,
    TranslateSettings,
)

__all__ = [
    "STAGES",
    "CardSettings",
    "Compression",
    "ConfidenceRecipe",
    "ConfidenceSettings",
    "CoregisterRecipe",
    "CoregisterSettings",
    "DataSettings",
    "EvaluateRecipe",
    "EvaluateSettings",
    "InitRecipe",
    "LoopSettings",
    "MatchEvaluationRecipe",
    "MatchEvaluationSettings",
    "MatcherRecipe",
    "MatcherSettings",
    "PairsRecipe",
    "PairsSettings",
    "RegionSettings",
    "SceneSettings",
    "SimulateRecipe",
    "Stage",
    "TrainRecipe",
    "TrainSettings",
    "TranslateRecipe",
    "TranslateSettings",
    "VaeRecipe",
    "VaeSettings",
    "apply_overrides",
    "checked",
    "from_table",
    "read_recipe",
    "stages_of",
]
