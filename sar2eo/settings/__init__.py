"""Every setting, declared once: name, type, bounds, default and help, as frozen dataclasses.

Flags, the reading of TOML recipes, ``--help`` and the reference page come from them.
"""

from sar2eo.settings.models import (
    CardSettings,
    ImportSettings,
    InitRecipe,
    ModelInfoSettings,
    PackSettings,
    SimulateRecipe,
)
from sar2eo.settings.pairs import (
    CoregisterRecipe,
    CoregisterSettings,
    MatchSettings,
    PairsRecipe,
    PairsSettings,
)
from sar2eo.settings.schema import (
    InvalidSettingsError,
    Recipe,
    Settings,
    apply_overrides,
    from_table,
    read_recipe,
    replace_settings,
)
from sar2eo.settings.training import (
    DataSettings,
    EvaluateRecipe,
    EvaluateSettings,
    LoopSettings,
    MatcherRecipe,
    MatcherSettings,
    MatchEvaluationRecipe,
    MatchEvaluationSettings,
    TrainRecipe,
    TrainSettings,
    VaeRecipe,
    VaeSettings,
)
from sar2eo.settings.translation import (
    InfoSettings,
    RegionSettings,
    SceneSettings,
    TranslateRecipe,
    TranslateSettings,
)
from sar2eo.settings.vocabulary import Compression
