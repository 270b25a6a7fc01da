"""How close a model is to another: golden outputs, metrics, comparison layer by layer."""
