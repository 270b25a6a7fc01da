"""Passes that read a quantized model back: to annotations, or to floats."""
