"""Passes that write what every value, use and node will be in integers: ranges, types, kernels, placement."""
