"""Translation of SAR scenes: the plan, the lazy Dataset and its tasks, writing, runs over archives."""
