"""The parts of the pass ``fold-constants``."""
