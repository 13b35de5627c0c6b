"""What a model is worth, against baselines and bounds."""

from sar2eo.evaluation.running import evaluate, plan_evaluation

__all__ = ["evaluate", "plan_evaluation"]
