"""Recipes of the golden models: data, training, and their ONNX graphs. Run through tools/make_golden_models.py."""
