"""Facts about a float graph: value ranges, liveness, cost."""
