"""Translation of scenes: the lazy dataset, its graph, the plan, the archive."""
