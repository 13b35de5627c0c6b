"""What a model is worth, against baselines and bounds."""

from sar2eo.evaluation.running import evaluate

__all__ = ["evaluate"]
