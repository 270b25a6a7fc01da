"""The rules of the pass ``fuse``, by family."""
