"""Every setting of a run as a frozen dataclass; TOML in, the resolved recipe out.

Choices are written once, here and in the modules they belong to, and the command line takes them from
here.
"""

from sar2eo.settings.coregistration import CoregisterRecipe, CoregisterSettings
from sar2eo.settings.evaluation import (
    EvaluateRecipe,
    EvaluateSettings,
    MatchEvaluationRecipe,
    MatchEvaluationSettings,
)
from sar2eo.settings.models import CardSettings, InitRecipe, SimulateRecipe
from sar2eo.settings.pairs import PairsRecipe, PairsSettings
from sar2eo.settings.toml import STAGES, Stage, apply_overrides, checked, from_table, read_recipe, stages_of
from sar2eo.settings.training import (
    DataSettings,
    LoopSettings,
    MatcherRecipe,
    MatcherSettings,
    TrainRecipe,
    TrainSettings,
    VaeRecipe,
    VaeSettings,
)
from sar2eo.settings.translation import (
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
