"""What a model is worth, against baselines and bounds."""
