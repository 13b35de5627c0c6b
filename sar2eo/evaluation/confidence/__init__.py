"""The study of what a model's variance knows of changes."""
