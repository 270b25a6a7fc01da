"""Passes that keep a quantized model close to its float model: scaling, thresholds, rounding, corrections."""
