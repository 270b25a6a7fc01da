"""Semantic differences between models: what changed, whatever was renamed, reordered or stored in another form."""
